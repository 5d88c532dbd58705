"""Every graph of a bundle against its torch module, on random inputs of several lengths."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tortoise_rt.engine import Array, Engine
from tortoise_rt.errors import TortoiseError
from tortoise_rt.spec import GRAPHS, MEL_MAX, MEL_MIN, TRAINED_STEPS, Dims, GraphSpec

from .checkpoints import Checkpoints
from .models.autoregressive import UnifiedVoice
from .models.graphs import GRAPH_FUNCTIONS

#: precision -> largest difference allowed, relative to the range of the module's output
BOUNDS = {"fp32": 1e-4, "fp16": 0.01, "bf16": 0.06, "fp8": 0.15, "int8": 0.05, "int4": 0.5, "int8row": 0.1}

ROUNDING_FACTOR = 4  #: how much further from float64 than the module a graph may be, see _check_graph
MAX_BOUND = 1e-3  #: however much the module rounds

#: sizes of the free dimensions, one mapping per trial
TRIALS: tuple[dict[str, int], ...] = (
    {"rows": 1, "clips": 1, "frames": 8, "text": 2, "codes": 1, "samples": 1600},
    {"rows": 2, "clips": 2, "frames": 37, "text": 9, "codes": 12, "samples": 4000},
    {"rows": 3, "clips": 1, "frames": 90, "text": 21, "codes": 30, "samples": 9001},
)


class ExportError(TortoiseError):
    """A graph does not compute what its module does; ``report`` has the parity of all graphs."""

    def __init__(self, message: str, report: Iterable[GraphParity] = ()) -> None:
        super().__init__(message)
        self.report = tuple(report)


@dataclass(frozen=True)
class GraphParity:
    """How far a graph is from its module."""

    graph: str
    error: float  #: largest difference / range of the module's output, over all trials and outputs
    bound: float
    precision: str
    judge: str = "module"  #: what it was compared with: the module in float32, or in float64

    @property
    def ok(self) -> bool:
        return self.error <= self.bound


def check_graphs(engine: Engine, source: Checkpoints, seed: int = 0) -> Iterator[GraphParity]:
    """Parity of each graph the engine has, within its bound or not (see :func:`require_parity`)."""
    loaded: tuple[str, torch.nn.Module] | None = None
    for spec in GRAPHS.values():
        if spec.name not in engine.info.graphs:
            continue
        if loaded is None or loaded[0] != spec.network:
            loaded = (spec.network, source.load(spec.network))
        rng = np.random.default_rng(seed)
        precision = engine.info.precision.get(spec.name, "fp32")
        if spec.stateful:
            error = max(_step_error(engine, loaded[1], trial, rng) for trial in TRIALS)
            yield GraphParity(spec.name, error, BOUNDS[precision], precision)
        else:
            yield _check_graph(engine, spec, loaded[1], rng, precision)


def require_parity(report: Sequence[GraphParity]) -> None:
    """Raise an ExportError that names every graph out of its bound."""
    if wrong := [p for p in report if not p.ok]:
        listed = ", ".join(f"{p.graph} by {p.error:.2e} of the range (bound {p.bound:.2g})" for p in wrong)
        raise ExportError(f"graphs do not compute what their modules do: {listed}", report)


def relative_error(got: Array, wanted: Array) -> float:
    """Largest difference relative to the range of ``wanted``; infinite for a wrong shape or NaN."""
    if got.shape != wanted.shape or not (np.isfinite(got).all() and np.isfinite(wanted).all()):
        return float("inf")
    spread = float(wanted.max() - wanted.min()) or float(np.abs(wanted).max()) or 1.0
    return float(np.abs(got.astype(np.float64) - wanted).max() / spread)


def random_inputs(
    spec: GraphSpec, dims: Dims, sizes: dict[str, int], rng: np.random.Generator
) -> dict[str, Array]:
    """Plausible random inputs of a stateless graph."""
    sizes = {**sizes, "codes": min(sizes["codes"], dims.get("ar.mel_positions", 1 << 30))}
    inputs = {}
    for tensor in spec.inputs:
        shape = tuple(d if isinstance(d, int) else dims[d] if "." in d else sizes[d] for d in tensor.dims)
        if tensor.name == "frame_index":
            inputs[tensor.name] = np.arange(shape[0]) * sizes["codes"] // shape[0]
        elif tensor.name == "wanted":
            inputs[tensor.name] = np.array([sizes["frames"] // 4, sizes["frames"] - sizes["frames"] // 8])
        elif tensor.name == "timestep":
            inputs[tensor.name] = rng.integers(0, TRAINED_STEPS, shape).astype(np.float32)
        elif spec.name == "univnet" and tensor.name == "mel":
            inputs[tensor.name] = rng.uniform(MEL_MIN, MEL_MAX, shape).astype(np.float32)
        elif tensor.dtype == "int64":
            inputs[tensor.name] = rng.integers(0, _vocabulary(spec, tensor.name, dims), shape)
        else:
            inputs[tensor.name] = rng.standard_normal(shape).astype(np.float32)
    return inputs


def _vocabulary(spec: GraphSpec, name: str, dims: Dims) -> int:
    return dims[f"{spec.network}.{name}"]


@torch.inference_mode()
def _check_graph(
    engine: Engine, spec: GraphSpec, module: torch.nn.Module, rng: np.random.Generator, precision: str
) -> GraphParity:
    """Against the module; where that is out of bounds, both against the module in float64.

    Some weights amplify rounding so much that two correct float32 computations differ by more than the bound.
    A graph that is then about as near to float64 as the module itself is right, and the report says so.
    """
    trials = [random_inputs(spec, engine.dims, sizes, rng) for sizes in TRIALS]
    got = [engine.run(spec.name, **inputs) for inputs in trials]
    single = [_run_module(spec, module, inputs) for inputs in trials]
    error = _worst(got, single)
    if error <= BOUNDS[precision] or precision != "fp32":
        return GraphParity(spec.name, error, BOUNDS[precision], precision)
    exact_module = copy.deepcopy(module).double()
    exact = [_run_module(spec, exact_module, inputs) for inputs in trials]
    bound = min(MAX_BOUND, max(BOUNDS["fp32"], ROUNDING_FACTOR * _worst(single, exact)))
    return GraphParity(spec.name, _worst(got, exact), bound, precision, judge="module in float64")


def _run_module(spec: GraphSpec, module: torch.nn.Module, inputs: dict[str, Array]) -> tuple[Array, ...]:
    """Outputs of a graph as the module computes them, in the module's own precision."""
    dtype = next(module.parameters()).dtype
    tensors = (torch.from_numpy(a) for a in inputs.values())
    outputs = GRAPH_FUNCTIONS[spec.name](
        module, *(t.to(dtype) if t.is_floating_point() else t for t in tensors)
    )
    return tuple(output.numpy() for output in outputs)


def _worst(got: list[tuple[Array, ...]], wanted: list[tuple[Array, ...]]) -> float:
    pairs = zip(got, wanted, strict=True)
    return max(relative_error(g, w) for one, other in pairs for g, w in zip(one, other, strict=True))


@torch.inference_mode()
def _step_error(
    engine: Engine, module: torch.nn.Module, sizes: dict[str, int], rng: np.random.Generator
) -> float:
    """All uses of ar_step against the module's whole sequence, logits and latents.

    Whole rows at once, prefill then one code at a time, prefill then several codes at once, and forked rows.
    """
    assert isinstance(module, UnifiedVoice)
    dims, rows = engine.dims, sizes["rows"]
    text_length = min(sizes["text"], dims["ar.text_positions"])
    count = min(sizes["codes"] + 2, dims["ar.mel_positions"])
    voice = rng.standard_normal((rows, dims["ar.dim"])).astype(np.float32)
    text = rng.integers(0, dims["ar.text_ids"], (rows, text_length))
    codes = rng.integers(0, dims["ar.mel_codes"], (rows, count))
    positions = np.broadcast_to(np.arange(count), codes.shape)
    capacity = 1 + text_length + count

    hidden = module.hidden(*map(torch.from_numpy, (voice, text, codes)))[:, -count:]
    wanted_logits, wanted_latents = module.mel_head(hidden).numpy(), hidden.numpy()

    def error(step: tuple[Array, Array], first: int, last: int, row: slice = slice(None)) -> float:
        """Of the logits behind code ``last - 1`` and of the latents at codes ``first`` to ``last``."""
        logits, latents = step
        return max(
            relative_error(logits, wanted_logits[row, last - 1]),
            relative_error(latents, wanted_latents[row, first:last]),
        )

    whole = engine.ar_step(engine.new_cache(rows, capacity), codes, positions, voice, text)
    errors = [error(whole, 0, count)]
    cache = engine.new_cache(rows, capacity)
    errors.append(error(engine.ar_step(cache, codes[:, :1], positions[:, :1], voice, text), 0, 1))
    forked = engine.take_rows(cache, range(rows))
    errors.append(error(engine.ar_step(forked, codes[:, 1:], positions[:, 1:]), 1, count))
    last_row = engine.take_rows(cache, [rows - 1])
    for i in range(1, count):
        one = slice(i, i + 1)
        errors.append(error(engine.ar_step(cache, codes[:, one], positions[:, one]), i, i + 1))
    alone = engine.ar_step(last_row, codes[-1:, 1:2], positions[-1:, 1:2])
    errors.append(error(alone, 1, 2, slice(rows - 1, None)))
    return max(errors)
