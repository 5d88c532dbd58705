"""TensorRT and TensorRT for RTX, without torch: one plan per graph, run on the memory and the stream of a ``Device``.

The calls of all threads take turns. The key/value cache stays on the device and is bound as ar_step's past and present.
Rows beyond what a plan was built for take turns as well. On an H200 all of it has run but the plans: no GPU has run
these yet, ONNX Runtime stood in for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine import Array, Engine, EngineInfo, KVCache
from ..errors import BundleMismatch, EngineError
from ..profiles import SPAN_STEP
from ..spec import GRAPHS, TensorSpec, cache_capacity, cache_names
from .device import Block, Device, Memory
from .tensorrt_library import LIBRARIES, check_gpu, check_version, load_library
from .tensorrt_plans import Plans, bytes_of

if TYPE_CHECKING:
    from ..bundle import Bundle

ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}  #: of a cache


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
    return TensorRTEngine(bundle.folder, info, bundle.graphs, library, gpu, bundle.check_unchanged)


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
    ) -> None:
        """files: graph -> plan in ``folder``; library: the module; check_files: see ``OnnxEngine``."""
        self.info = info
        self._device = device
        self._plans = Plans(folder, files, library, device, check_files)
        self._lock = threading.RLock()
        self._tensors = cache_names(info.dims) if "ar_step" in files else ()
        self._item = ITEM_BYTES[info.precision.get("ar_step", "fp32")]

    def release(self, graph: str) -> None:
        with self._lock:
            self._plans.release(graph)

    def position_bytes(self) -> int:
        """Bytes of one position of a row of a cache."""
        return super().position_bytes() * self._item // 4

    # --- graphs ---

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        spec = GRAPHS[graph]
        by_row = [t.name for t in spec.inputs if t.dims[0] in ("rows", "clips")]
        with self._lock:
            self._device.use()
            most = self._plans.most_rows(graph, inputs)
            parts = [
                self._plans.call(
                    graph, inputs | {name: inputs[name][first : first + most] for name in by_row}, {}
                )
                for first in range(0, len(inputs[by_row[0]]), most)
            ]
        return tuple(self._join(tensor, [part[tensor.name] for part in parts]) for tensor in spec.outputs)

    @staticmethod
    def _join(tensor: TensorSpec, parts: list[Array]) -> Array:
        """What several calls gave for an output, one behind the other if it has rows."""
        return np.concatenate(parts) if tensor.dims[0] in ("rows", "clips") and len(parts) > 1 else parts[0]

    # --- key/value cache ---

    def _new_cache(self, rows: int, capacity: int) -> _State:
        most = cache_capacity(self.dims)
        if capacity > most:
            raise EngineError(f"a cache of {capacity} positions; this engine was built for {most}")
        with self._lock:
            self._device.use()
            nbytes = len(self._tensors) * rows * self._row_bytes()
            return _State(self._device.allocate(nbytes, f"a cache of {rows} rows"), rows)

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
        """Copy what rows hold, of all tensors of a row at once."""
        with self._lock:
            self._device.use()
            heads, capacity, size = self._row_shape()
            pitch = bytes_of((capacity, size), self._item)

            def block(state: _State, row: int) -> Block:
                return Block(state.memory.address + row * heads * pitch, pitch, state.rows * heads)

            for place, row in zip(places.tolist(), rows.tolist(), strict=True):
                if width := bytes_of((int(source.lengths[row]), size), self._item):
                    to, origin = block(target, place), block(source.state, row)
                    self._device.copy(to, origin, width, heads, len(self._tensors))
            self._device.synchronize()  # a source may be given back right behind

    def _first_rows(self, cache: KVCache, count: int) -> _State:
        return cache.state

    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        new = sum(inputs[name].shape[1] for name in ("voice", "text_ids", "codes"))
        longest = int(cache.lengths.max()) + new
        span = min(-(-longest // SPAN_STEP) * SPAN_STEP, cache_capacity(self.dims))
        with self._lock:
            self._device.use()
            most = self._plans.most_rows("ar_step", inputs)
            parts = [
                self._step_rows(cache, slice(first, min(first + most, cache.rows)), span, inputs)
                for first in range(0, cache.rows, most)
            ]
        logits, latents = (
            self._join(tensor, [part[tensor.name] for part in parts]) for tensor in GRAPHS["ar_step"].outputs
        )
        return logits, latents

    def _step_rows(
        self, cache: KVCache, part: slice, span: int, inputs: dict[str, Array]
    ) -> dict[str, Array]:
        """ar_step of some rows, their cache bound in place as past and present."""
        state: _State = cache.state
        row, shape = self._row_bytes(), (part.stop - part.start, *self._row_shape())
        bound = {
            name: (state.memory.address + (number * state.rows + part.start) * row, shape)
            for number, name in enumerate(self._tensors)
        }
        given = {name: array[part] for name, array in inputs.items()}
        given["cache_lengths"] = np.asarray(cache.lengths[part], np.int64)
        given["reach"] = np.arange(span)
        return self._plans.call("ar_step", given, bound)
