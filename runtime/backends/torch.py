"""The fallback and the judge: PyTorch modules straight from checkpoints, on CPU, CUDA or MPS."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tortoise_rt.export.checkpoints import Checkpoints
from tortoise_rt.export.models.graphs import GRAPH_FUNCTIONS, GraphFunction

from ..engine import Array, Engine, EngineInfo, KVCache
from ..errors import EngineError, suggest
from ..kernels.ahead import DENOISES_AHEAD
from ..samplers import DenoisingStep
from ..sampling import Drawing
from ..spec import GRAPHS
from .device import no_such_gpu

#: precision -> the type of weights and of what lies between layers; sums, norms and softmax are float32 in all
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_NETWORKS = ("autoregressive", "clvp", "cvvp", "diffusion")
#: precision -> networks that it is for. The others stay fp32: they are small, and a vocoder's error is heard as noise
REDUCED = {"fp32": (), "fp16": (*_NETWORKS, "hifigan"), "bf16": _NETWORKS}

SHAPING = ("wanted",)  #: inputs that say what is computed: they stay on the CPU


def pick_device(device: str) -> torch.device:
    """The torch device for "auto" (CUDA, else MPS, else CPU) or a name; raises EngineError if it is not there."""
    if device == "auto":
        device = (
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise EngineError(f"unknown device {device!r}. Use auto, cpu, cuda, cuda:N or mps") from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(picked.type):
        there = ", ".join(name for name, yes in available.items() if yes)
        raise EngineError(f"PyTorch {torch.__version__} has no device {device!r} here. Available: {there}")
    if picked.type != "cuda":
        return picked
    count = torch.cuda.device_count()
    if picked.index is not None and picked.index >= count:
        raise no_such_gpu(picked.index, [torch.cuda.get_device_name(number) for number in range(count)])
    return torch.device("cuda", torch.cuda.current_device() if picked.index is None else picked.index)


class TorchEngine(Engine):
    """Runs the graphs as torch modules. Networks are loaded when first used and stay on the device.

    precision: "fp32", "fp16" or "bf16", of weights and activations. On CUDA the calls of all threads take turns on a
    stream of the engine's own.
    """

    def __init__(self, folder: str | Path, device: str = "auto", precision: str = "fp32") -> None:
        if precision not in PRECISIONS:
            raise EngineError(f"unknown precision {precision!r}. {suggest(precision, tuple(PRECISIONS))}")
        self.checkpoints = Checkpoints(folder)
        self.device = pick_device(device)
        self._dtype, self._reduced = PRECISIONS[precision], REDUCED[precision]
        self._modules: dict[str, torch.nn.Module] = {}
        self._lock = threading.RLock()
        self._fast = _open_fast(self.device)
        tokenizer = self.checkpoints.folder / "tokenizer.json"
        self.info = EngineInfo(
            backend="torch",
            device=str(self.device),
            source=str(self.checkpoints.folder),
            dims=self.checkpoints.dims(),
            graphs=frozenset(g.name for g in GRAPHS.values() if g.network in self.checkpoints.networks),
            tokenizer=tokenizer if tokenizer.is_file() else None,
            defaults=self.checkpoints.config.get("defaults", {}),
            notice=self.checkpoints.config.get("notice", ""),
            fingerprint=self.checkpoints.fingerprint(),
            precision={g.name: precision if g.network in self._reduced else "fp32" for g in GRAPHS.values()},
        )

        self.denoises_ahead = DENOISES_AHEAD if self._fast is not None and self._fast.kernels else 0
        self.draws_ahead = 0 if self._fast is None else self._fast.draws_ahead(self.dims)

    def module(self, network: str) -> Any:
        """The network's module on the device, in its precision."""
        with self._lock, torch.inference_mode(False):
            if network not in self._modules:
                module = self.checkpoints.load(network).to(self.device)
                if network in self._reduced:  # buffers stay as they are: angles need their bits
                    for parameter in module.parameters():
                        parameter.data = parameter.data.to(self._dtype)
                self._modules[network] = module
            return self._modules[network]

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """What a call runs in: no gradients; on CUDA one call at a time, on the engine's stream."""
        with torch.inference_mode():
            if self._fast is None:
                yield
            else:
                with self._lock, self._fast.running():
                    yield

    def _to_device(self, array: Array) -> torch.Tensor:
        # Torch warns of arrays that cannot be written to, such as broadcast ones.
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        return tensor.to(self.device, non_blocking=True)

    def _to_host(self, tensors: tuple[torch.Tensor, ...]) -> tuple[Array, ...]:
        """float32 arrays of their own, in plain memory.

        What the device writes to is pinned memory, which PyTorch keeps and gives out again: callers may keep results.
        """
        if self.device.type != "cuda":
            return tuple(tensor.float().cpu().numpy() for tensor in tensors)
        pinned = [torch.empty(tensor.shape, pin_memory=True) for tensor in tensors]
        for held, tensor in zip(pinned, tensors, strict=True):
            held.copy_(tensor.float(), non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return tuple(held.numpy().copy() for held in pinned)

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        network = GRAPHS[graph].network
        with self._turn():
            module = self.module(network)
            dtype = next(module.parameters()).dtype
            tensors = []
            for name, array in inputs.items():
                tensor = torch.from_numpy(array) if name in SHAPING else self._to_device(array)
                casts = tensor.is_floating_point() and name != "timestep"  # whose sinusoids need its bits
                tensors.append(tensor.to(dtype) if casts else tensor)
            function: GraphFunction = functools.partial(GRAPH_FUNCTIONS[graph], module)
            if self._fast is None:
                outputs = function(*tensors)
            else:
                outputs = self._fast.run(graph, function, module, tensors)
            return self._to_host(outputs)

    def _denoise(
        self,
        x: Array,
        last: Array,
        aligned: Array,
        free: Array,
        steps: Sequence[DenoisingStep],
        noise: Callable[[int], Array],
    ) -> tuple[Array, Array]:
        with self._turn():
            module = self.module("diffusion")
            dtype = next(module.parameters()).dtype
            given = [self._to_device(x), self._to_device(last)]
            given += [self._to_device(array).to(dtype) for array in (aligned, free)]

            def fresh(i: int) -> torch.Tensor:  # pinned: what is not waits until the step before is done
                return torch.from_numpy(noise(i)).pin_memory().to(self.device, non_blocking=True)

            x, last = self._to_host(self._fast.denoise(module, *given, steps, fresh))
            return x, last

    def position_bytes(self) -> int:
        """Bytes of one position of a row of a cache."""
        return super().position_bytes() * self._dtype.itemsize // 4

    def _new_cache(self, rows: int, capacity: int) -> torch.Tensor:
        with self._turn():
            return self.module("autoregressive").new_cache(rows, capacity)

    def _take_rows(self, cache: KVCache, rows: Array, capacity: int) -> torch.Tensor:
        with self._turn():
            taken = self.module("autoregressive").new_cache(len(rows), capacity)
            filled = int(cache.lengths[rows].max())
            taken[..., :filled, :] = cache.state[:, :, self._to_device(rows), :, :filled]
            return taken

    def _put_rows(self, target: KVCache, places: Array, source: KVCache, rows: Array) -> None:
        with self._turn():
            filled = int(source.lengths[rows].max())
            to, of = self._places(places), self._places(rows)
            target.state[:, :, to, :, :filled] = source.state[:, :, of, :, :filled]
            target.state[:, :, to, :, filled:] = 0  # attention weighs it with 0, and 0 * NaN is NaN

    def _places(self, rows: Array) -> Any:
        """An index of rows: a slice for one row, which is copied faster."""
        return slice(rows[0], rows[0] + 1) if len(rows) == 1 else self._to_device(rows)

    def _first_rows(self, cache: KVCache, count: int) -> torch.Tensor:
        return cache.state[:, :, :count]

    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        with self._turn():
            model = self.module("autoregressive")
            codes, positions = inputs["codes"], inputs["code_positions"]
            one_code = codes.shape[1] == 1 and not inputs["voice"].shape[1] + inputs["text_ids"].shape[1]
            if one_code and self.draws_ahead:
                return self._fast.decoder(model, self.dims).step(cache, codes, positions)
            tensors = {name: self._to_device(array) for name, array in inputs.items()}
            tensors["voice"] = tensors["voice"].to(cache.state.dtype)
            if self._fast is not None and cache.rows == 1:
                reader = self._fast.reader(model, self.dims)
                logits, latents = self._to_host(reader.read(cache, **tensors))
                return logits, latents
            past = self._to_device(np.asarray(cache.lengths))
            logits, latents = model.step(cache.state, past, **tensors, longest=int(cache.lengths.max()))
            logits, latents = self._to_host((logits, latents))
            return logits, latents

    def _ar_draw(
        self, cache: KVCache, inputs: dict[str, Array], drawings: Sequence[Drawing | None]
    ) -> tuple[Array, Array]:
        with self._turn():
            decoder = self._fast.decoder(self.module("autoregressive"), self.dims)
            return decoder.draw(cache, inputs["codes"], inputs["code_positions"], drawings)


def _open_fast(device: torch.device) -> Any:
    """What makes CUDA fast, None on other devices."""
    if device.type != "cuda":
        return None
    from .cuda import Fast

    return Fast(device)
