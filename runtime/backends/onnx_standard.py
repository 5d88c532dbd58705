"""ONNX Runtime on graphs of standard operators: what CUDA runs, and the CPU to compare with. No GPU has run this yet.

The key/value cache stays on the device. Its rows are moved through the host: ONNX Runtime has no copies of parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine import Array, KVCache
from ..errors import EngineError
from ..profiles import SPAN_STEP
from ..spec import TensorSpec, cache_capacity, cache_names
from .onnx import OnnxEngine
from .onnx_checks import cache_specs, first_line

CACHE_TYPES = {
    "fp32": "float32",
    "fp16": "float16",
    "int8": "float16",
    "fp8": "float16",
}  #: precision -> the type of keys and values


class StandardEngine(OnnxEngine):
    """Runs graphs of standard operators from the files of one folder. Safe to call from several threads."""

    steps_some_rows = False  # a tensor is bound whole

    def _provider_options(self, options: Any) -> dict[str, str]:
        if self._kind == "cpu":
            return {}
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        # The exhaustive search, the default, would be made again for every new length.
        return {"device_id": str(self._number), "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}

    @property
    def _type(self) -> str:
        return CACHE_TYPES[self.info.precision.get("ar_step", "fp32")]

    def position_bytes(self) -> int:
        """Bytes of one position of a row of a cache."""
        return super().position_bytes() * np.dtype(self._type).itemsize // 4

    def _cache_tensors(self, session: Any) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec("cache_lengths", "int64", ("rows",)),
            TensorSpec("reach", "int64", ("span",)),
            *cache_specs(session, self.dims, self._type, cache_capacity(self.dims)),
        )

    def _new_cache(self, rows: int, capacity: int) -> list[Any]:
        shape = self._cache_shape(rows, cache_capacity(self.dims))
        if capacity > shape[3]:
            raise EngineError(f"a cache of {capacity} positions; this engine was exported for {shape[3]}")
        return [self._to_device(np.zeros(shape[1:], self._type)) for _ in range(shape[0])]

    def _to_device(self, array: Array) -> Any:
        try:
            return self._runtime.OrtValue.ortvalue_from_numpy(array, self._kind, self._number)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise EngineError(
                f"no cache of {array.nbytes} bytes on {self._kind}:{self._number}: {first_line(error)}"
            ) from None

    def _take_rows(self, cache: KVCache, rows: Array, capacity: int) -> list[Any]:
        filled = int(cache.lengths[rows].max())
        tensors = []
        for value in cache.state:
            held = value.numpy()
            room = np.zeros((len(rows), *held.shape[1:]), held.dtype)
            room[:, :, :filled] = held[rows, :, :filled]
            tensors.append(self._to_device(room))
        return tensors

    def _put_rows(self, target: KVCache, places: Array, source: KVCache, rows: Array) -> None:
        filled = int(source.lengths[rows].max())
        for to, value in zip(target.state, source.state, strict=True):
            room, held = np.array(to.numpy()), value.numpy()
            room[places, :, :filled] = held[rows, :, :filled]
            to.update_inplace(room)

    def _first_rows(self, cache: KVCache, count: int) -> list[Any]:
        return cache.state

    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        longest = int(cache.lengths.max()) + sum(inputs[n].shape[1] for n in ("voice", "text_ids", "codes"))
        span = min(-(-longest // SPAN_STEP) * SPAN_STEP, cache_capacity(self.dims))
        given = {**inputs, "cache_lengths": np.asarray(cache.lengths, np.int64), "reach": np.arange(span)}

        def bind(binding: Any, name: str, tensor: Any) -> None:
            binding.bind_ortvalue_input(name, tensor)
            binding.bind_ortvalue_output(f"new_{name}", tensor)

        return self._step(given, dict(zip(cache_names(self.dims), cache.state, strict=True)), bind)
