"""Every graph of a bundle against its torch module, on random inputs of several lengths."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from tortoise_rt.engine import Array, Engine
from tortoise_rt.errors import TortoiseError
from tortoise_rt.spec import GRAPHS, TRAINED_STEPS, Dims, GraphSpec

from .checkpoints import Checkpoints
from .models.autoregressive import UnifiedVoice
from .models.graphs import GRAPH_FUNCTIONS

BOUND_FP32 = 1e-4  #: largest difference allowed, relative to the range of the module's output

ROUNDING_FACTOR = 4  #: how much further from float64 than the module a graph may be, see _check_graph

#: sizes of the free dimensions, one mapping per trial
TRIALS: tuple[dict[str, int], ...] = (
    {"rows": 1, "clips": 1, "frames": 8, "text": 2, "codes": 1, "samples": 1600},
    {"rows": 2, "clips": 2, "frames": 37, "text": 9, "codes": 12, "samples": 4000},
    {"rows": 3, "clips": 1, "frames": 90, "text": 21, "codes": 30, "samples": 9001},
)


class ExportError(TortoiseError):
    """A graph does not compute what its module does."""


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
    """Parity of each graph the engine has; raises ExportError at the first that is out of its bound."""
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
            parity = GraphParity(spec.name, error, BOUND_FP32, precision)
        else:
            parity = _check_graph(engine, spec, loaded[1], rng, precision)
        if not parity.ok:
            raise ExportError(
                f"{spec.name} differs from its {parity.judge} by {parity.error:.2e} of the range; "
                f"the bound is {parity.bound:.2g}"
            )
        yield parity


def relative_error(got: Array, wanted: Array) -> float:
    """Largest difference relative to the range of ``wanted``; infinite for a wrong shape or NaN."""
    if got.shape != wanted.shape or not np.isfinite(got).all():
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
        elif tensor.name == "timestep":
            inputs[tensor.name] = rng.integers(0, TRAINED_STEPS, shape).astype(np.float32)
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
    if error <= BOUND_FP32:
        return GraphParity(spec.name, error, BOUND_FP32, precision)
    exact_module = copy.deepcopy(module).double()
    exact = [_run_module(spec, exact_module, inputs) for inputs in trials]
    bound = max(BOUND_FP32, ROUNDING_FACTOR * _worst(single, exact))
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
    """Prefill, fork and cached decode on the engine against the module's whole-sequence forward."""
    assert isinstance(module, UnifiedVoice)
    dims = engine.dims
    text_length = min(sizes["text"], dims["ar.text_positions"])
    decoded = min(sizes["codes"], dims["ar.mel_positions"] - 3)
    voice = rng.standard_normal((1, dims["ar.dim"])).astype(np.float32)
    text = rng.integers(0, dims["ar.text_ids"], (1, text_length))
    rows = sizes["rows"]
    codes = rng.integers(0, dims["ar.mel_codes"], (rows, decoded + 2))
    codes[:, 0] = codes[0, 0]

    cache = engine.new_cache(1, 1 + text_length + codes.shape[1])
    logits, _ = engine.ar_step(cache, codes[:1, :1], np.zeros((1, 1), np.int64), voice, text)
    cache = engine.take_rows(cache, [0] * rows)
    _, wanted = module(
        torch.from_numpy(voice).expand(rows, -1),
        torch.from_numpy(text).expand(rows, -1),
        torch.from_numpy(codes),
    )
    error = relative_error(logits, wanted[:1, 0].numpy())
    for position in range(1, codes.shape[1]):
        positions = np.full((rows, 1), position, np.int64)
        logits, _ = engine.ar_step(cache, codes[:, position, None], positions)
        error = max(error, relative_error(logits, wanted[:, position].numpy()))
    return error
