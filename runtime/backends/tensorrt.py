"""TensorRT and TensorRT for RTX, without torch: one plan per graph, run on the memory and the stream of a ``Device``.

The calls of all threads take turns. The key/value cache stays on the device and is bound as ar_step's past and present.
Rows beyond what a plan was built for take turns as well. An earlier form of it has run on an H200, ONNX Runtime standing in
for plans; no GPU has run plans yet, nor the loops in ``tensorrt_ahead``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..bundle import cache_folder
from ..engine import Array, Engine, EngineInfo, KVCache
from ..errors import BundleMismatch, EngineError
from ..kernels.ahead import DENOISES_AHEAD, DRAWS_AHEAD
from ..profiles import MOST_DECODED, SPAN_STEP, few_rows
from ..samplers import DenoisingStep
from ..sampling import Drawing
from ..spec import GRAPHS, GraphSpec, TensorSpec, cache_capacity, cache_names
from . import exchange, reads
from .cubins import load_kernels
from .device import Block, Device, Kernel, Memory
from .exchange import DeviceArray
from .reads import Read
from .tensorrt_ahead import Denoising, Draws
from .tensorrt_library import LIBRARIES, check_gpu, check_version, load_library
from .tensorrt_plans import Placed, Plans, bytes_of

if TYPE_CHECKING:
    from ..bundle import Bundle

T = TypeVar("T")
ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 2, "fp8": 2}  #: of a cache


def open_bundle(bundle: Bundle, device: str = "auto") -> TensorRTEngine:
    """An engine over a bundle's plans, on "cuda" (the default) or "cuda:N".

    Raises BundleMismatch when the bundle is for another backend, GPU or version of the library, and says what rebuilds
    it; MissingDependency without the library; EngineError without a GPU.
    """
    target = bundle.manifest["target"]
    if target["backend"] != "tensorrt" or target.get("library") not in LIBRARIES:
        raise BundleMismatch(
            f"{bundle.folder} was exported for {target['backend']}; this is the tensorrt backend. "
            "Export one for it: tortoise-rt export --target tensorrt"
        )
    kind, _, number = ("cuda" if device == "auto" else device).partition(":")
    if kind != "cuda" or (number and not number.isascii()) or (number and not number.isdigit()):
        raise EngineError(f"the tensorrt backend has no device {device!r}. Use cuda or cuda:N")
    library = load_library(target["library"])
    check_version(bundle, library.__version__)
    gpu = Device(int(number or 0))
    check_gpu(bundle, gpu)
    info = bundle.engine_info("tensorrt", f"cuda:{gpu.number}")
    kernels = load_kernels(bundle, gpu)
    key = json.dumps([bundle.manifest["files"], gpu.name], sort_keys=True).encode()
    kept = cache_folder() / "compiled" / hashlib.sha256(key).hexdigest()[:32]
    return TensorRTEngine(
        bundle.folder, info, bundle.graphs, library, gpu, bundle.check_unchanged, kernels, kept
    )


@dataclass(frozen=True)
class _State:
    """A cache: (tensors, rows, heads, capacity, head size) in one block."""

    memory: Memory
    rows: int


class TensorRTEngine(Engine):
    """Runs plans from the files of one folder. Safe to call from several threads."""

    def __init__(
        self,
        folder: Path,
        info: EngineInfo,
        files: Mapping[str, str],
        library: Any,
        device: Device,
        check_files: Callable[[], None] = lambda: None,
        kernels: Mapping[str, Kernel] | None = None,
        kept: Path | None = None,
    ) -> None:
        """files: graph -> plan in ``folder``; library: the module; check_files: see ``OnnxEngine``; kernels: of the loops
        that the device goes through by itself, where there are any; kept: see ``Compiled``."""
        self.info = info
        self._device = device
        with device.turn():
            self._plans = Plans(folder, files, library, device, check_files, kept)
        self._loops: dict[str, Draws | Denoising] = {}  # by the graphs that they run
        if kernels:
            self._draws = Draws(self._plans, device, kernels, info.dims)
            self._denoising = Denoising(self._plans, device, kernels, info.dims)
            denoising = dict.fromkeys(("diffusion_condition", "diffusion_denoise"), self._denoising)
            self._loops = {"ar_step": self._draws, **denoising}
            self.draws_ahead = DRAWS_AHEAD if "ar_step" in files else 0
            self.denoises_ahead = DENOISES_AHEAD if "diffusion_denoise" in files else 0
        self._tensors = cache_names(info.dims) if "ar_step" in files else ()
        self._item = ITEM_BYTES[info.precision.get("ar_step", "fp32")]

    def release(self, graph: str) -> None:
        with self._device.turn():
            self._plans.release(graph)
            if graph in self._loops:
                self._loops[graph].clear()
            self._device.trim()

    def position_bytes(self) -> int:
        """Bytes of one position of a row of a cache."""
        return super().position_bytes() * self._item // 4

    # --- graphs ---

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        spec = GRAPHS[graph]
        by_row = [t.name for t in spec.inputs if t.dims[0] in ("rows", "clips")]
        with self._device.turn():
            most = self._plans.most_rows(graph, {name: array.shape for name, array in inputs.items()})
            parts = [
                self._plans.call(
                    graph, inputs | {name: inputs[name][first : first + most] for name in by_row}, {}
                )
                for first in range(0, len(inputs[by_row[0]]), most)
            ]
        return tuple(self._join(tensor, [part[tensor.name] for part in parts]) for tensor in spec.outputs)

    def _run_on_device(
        self, spec: GraphSpec, stream: int, inputs: Mapping[str, Any]
    ) -> tuple[DeviceArray, ...]:
        return exchange.run(self._plans, self._device, self.dims, spec, inputs, stream)

    @staticmethod
    def _join(tensor: TensorSpec, parts: list[Array]) -> Array:
        """What several calls gave for an output, one behind the other if it has rows."""
        return np.concatenate(parts) if tensor.dims[0] in ("rows", "clips") and len(parts) > 1 else parts[0]

    # --- key/value cache ---

    def _new_cache(self, rows: int, capacity: int) -> _State:
        most = cache_capacity(self.dims)
        if capacity > most:
            raise EngineError(f"a cache of {capacity} positions; this engine was built for {most}")
        with self._device.turn():
            nbytes = len(self._tensors) * rows * self._row_bytes()
            return _State(self._device.allocate(nbytes, f"a cache of {rows} rows", zeros=True), rows)

    def _row_shape(self) -> tuple[int, ...]:
        """(heads, capacity, head size) of each tensor; an export may pad heads."""
        return self._plans.shape("ar_step", self._tensors[0])[1:]

    def _row_bytes(self) -> int:
        return bytes_of(self._row_shape(), self._item)

    def _take_rows(self, cache: KVCache, rows: Array, capacity: int) -> _State:
        taken = self._new_cache(len(rows), capacity)
        self._copy(taken, np.arange(len(rows)), cache, rows)
        return taken

    def _put_rows(self, target: KVCache, places: Array, source: KVCache, rows: Array) -> None:
        if target.state is source.state and set(places) & set(
            rows
        ):  # one copy could spoil what another reads
            state = self._take_rows(source, rows, target.capacity)
            source, rows = KVCache(state, source.lengths[rows], source.capacity), np.arange(len(rows))
        self._copy(target.state, places, source, rows)

    def _copy(self, target: _State, places: Array, source: KVCache, rows: Array) -> None:
        """Copy rows, of all tensors at once; whole, since what lies behind the positions held must be finite numbers.

        The host does not wait: a source that is given back is freed behind the copy.
        """
        with self._device.turn():
            row_bytes = self._row_bytes()

            def block(state: _State, row: int) -> Block:
                return Block(state.memory.address + row * row_bytes, row_bytes, state.rows)

            for place, row in zip(places.tolist(), rows.tolist(), strict=True):
                to, origin = block(target, place), block(source.state, row)
                self._device.copy(to, origin, row_bytes, 1, len(self._tensors))

    def _first_rows(self, cache: KVCache, count: int) -> _State:
        return cache.state

    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        latents = []
        for read in reads.cut(inputs, cache.lengths, self.dims):
            found = self._read(cache, read)
            latents.append(found["latents"][:, : read.codes])
        return found["logits"], np.concatenate(latents, axis=1)

    def _read(self, cache: KVCache, read: Read) -> dict[str, Array]:
        span = self._span(read.lengths, read.new)

        def step(part: slice) -> dict[str, Array]:
            together = self._few(cache, part) if read.new == 1 else part
            rows, more = part.stop - part.start, together.stop - part.stop
            given = {
                n: np.concatenate([a[part], np.zeros_like(a[:1], shape=(more, *a.shape[1:]))])
                for n, a in read.inputs.items()
            }
            lengths = np.concatenate([read.lengths[part], np.full(more, -1)])  # rows that are left alone
            given |= {"cache_lengths": lengths, "reach": np.arange(span)}
            found = self._plans.call("ar_step", given, self._bound(cache, together))
            return {name: array[:rows] for name, array in found.items()}

        parts = self._by_turns(cache, read.inputs, step)
        return {t.name: self._join(t, [part[t.name] for part in parts]) for t in GRAPHS["ar_step"].outputs}

    def _ar_draw(
        self, cache: KVCache, inputs: dict[str, Array], drawings: Sequence[Drawing | None]
    ) -> tuple[Array, Array]:
        count = min(
            self.draws_ahead, max(len(drawing.uniforms) for drawing in drawings if drawing is not None)
        )
        span = self._span(cache.lengths, count)

        def draw(part: slice) -> tuple[Array, Array]:
            given = (inputs["codes"][part], inputs["code_positions"][part], cache.lengths[part])
            bound = self._bound(cache, self._few(cache, part))
            return self._draws.draw(*given, drawings[part], bound, count, span)

        drawn, latents = zip(*self._by_turns(cache, inputs, draw), strict=True)
        return np.concatenate(drawn), np.concatenate(latents)

    @staticmethod
    def _few(cache: KVCache, part: slice) -> slice:
        """Some rows of a cache and, to few numbers of them, others behind them in its memory."""
        room = min(cache.state.rows - part.start, MOST_DECODED)
        return slice(part.start, part.start + few_rows(part.stop - part.start, room))

    def _span(self, lengths: Array, new: int) -> int:
        """Positions that are attended to when rows that hold ``lengths`` hold ``new`` more, at most."""
        longest = int(lengths.max()) + new
        return min(-(-longest // SPAN_STEP) * SPAN_STEP, cache_capacity(self.dims))

    def _by_turns(self, cache: KVCache, inputs: Mapping[str, Array], work: Callable[[slice], T]) -> list[T]:
        """``work`` on all rows of a cache, as many at a time as the plan of ar_step takes."""
        with self._device.turn():
            most = self._plans.most_rows("ar_step", {name: array.shape for name, array in inputs.items()})
            return [work(slice(n, min(n + most, cache.rows))) for n in range(0, cache.rows, most)]

    def _bound(self, cache: KVCache, part: slice) -> dict[str, Placed]:
        """Where the tensors of some rows of a cache lie: their past, and their present."""
        state: _State = cache.state
        row, shape = self._row_bytes(), (part.stop - part.start, *self._row_shape())
        return {
            name: (state.memory.address + (number * state.rows + part.start) * row, shape)
            for number, name in enumerate(self._tensors)
        }

    # --- diffusion ---

    def _denoise(
        self, x: Array, last: Array, aligned: Array, free: Array, steps: Sequence[DenoisingStep],
        noise: Callable[[int], Array],
    ) -> tuple[Array, Array]:  # fmt: skip
        with self._device.turn():
            return self._denoising.denoise(x, last, aligned, free, steps, noise)
