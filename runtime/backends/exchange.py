"""Arrays on a GPU that are shared with other libraries, in place: cupy, torch, numba, pycuda and whoever else speaks
``__cuda_array_interface__`` (version 3) or DLPack. ``Engine.run_on_device`` takes and gives them.

In what order things happen is said by streams: the caller names one, what it has queued there is done before the engine reads
its arrays, and what it queues there later sees what the engine wrote. The host waits for neither. No GPU has run this yet: a
driver of NumPy stood in for one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine import Array
from ..errors import EngineError
from ..graph_inputs import check_shapes, converted
from ..spec import Dims, GraphSpec, TensorSpec
from . import dlpack
from .device import Device, Memory
from .tensorrt_plans import Plans, bytes_of

DEFAULT_STREAM = 1  #: the legacy default stream, which libraries use unless they are told otherwise


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """float32 in C order, in memory of a GPU that is held while this lives: an array for any library that shares arrays.

    It may be used on ``stream``, on what waits for that, and on streams that take it by DLPack. All these must last as long as
    the array: before its memory is used for something else, what was queued on ``stream`` and on takers' is waited for.
    """

    memory: Memory
    shape: tuple[int, ...]
    stream: int
    device: Device

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": np.dtype(np.float32).str,
            "data": (self.memory.address if math.prod(self.shape) else 0, False),
            "strides": None,
            "stream": self.stream,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device.number

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule of this memory, to be used on ``stream`` (None: the default one; -1: the caller sees to the order)."""
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("this array is shared where it is, and not copied")
        reader = DEFAULT_STREAM if stream is None else stream
        if reader not in (-1, self.stream):
            with self.device.turn():
                self.device.order(self.stream, reader)
            self.memory.readers.add(reader)
        return dlpack.capsule(self.memory.address, self.shape, self.device.number, self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """As ``numpy``, for ``np.asarray``."""
        if copy is False:
            raise ValueError("this array lies on a GPU: NumPy takes a copy")
        return self.numpy().astype(dtype or np.float32, copy=False)

    def numpy(self) -> Array:
        """A copy on the host, which waits for it."""
        nbytes = bytes_of(self.shape)
        with self.device.turn():
            self.device.order(self.stream, self.device.stream)
            pinned = self.device.pinned(max(1, nbytes))
            self.device.download(pinned[:nbytes], self.memory.address)
            self.device.synchronize()
            return pinned[:nbytes].view(np.float32).reshape(self.shape).copy()


@dataclass(frozen=True)
class _Shared:
    """An array of somebody else's on a GPU."""

    place: dlpack.Opened
    stream: int | None  #: on which it may be used, if not on the caller's
    holder: Any  #: what keeps it

    @property
    def in_order(self) -> bool:
        """Whether it lies in C order without gaps."""
        _, shape, dtype, strides = self.place
        steps = [bytes_of(shape[axis + 1 :], dtype.itemsize) for axis in range(len(shape))]
        return (
            strides is None
            or 0 in shape
            or all(size == 1 or s == step for size, s, step in zip(shape, strides, steps, strict=True))
        )


def run(
    plans: Plans, device: Device, dims: Dims, spec: GraphSpec, inputs: Mapping[str, Any], stream: int
) -> tuple[DeviceArray, ...]:
    """As ``Engine.run_on_device``. Raises EngineError for what the graph does not take."""
    stream = stream or DEFAULT_STREAM  # some call it 0
    taken = {
        name: _taken(spec, name, value, stream) for name, value in inputs.items()
    }  # which another engine may have a part in
    theirs = {name: array for name, array in taken.items() if isinstance(array, _Shared)}
    own = {name: array for name, array in taken.items() if not isinstance(array, _Shared)}
    shapes = {name: array.place.shape for name, array in theirs.items()}
    check_shapes(spec, dims, shapes | {name: array.shape for name, array in own.items()})
    with device.turn():
        for tensor in spec.inputs:
            if tensor.name in own:
                own[tensor.name] = converted(spec, tensor, own[tensor.name])
            else:
                _check(device, spec, tensor, theirs[tensor.name])
        for name in plans.shaping(spec.name) & theirs.keys():
            raise EngineError(f'graph "{spec.name}": {name} says what is computed: give an array of the host')
        places = plans.upload(spec.name, own)
        streams = {stream, *(array.stream for array in theirs.values() if array.stream)}
        for other in streams:
            device.order(other, device.stream)
        places |= {name: (array.place.address, array.place.shape) for name, array in theirs.items()}
        made = plans.run(spec.name, places, stream)
        for other in streams:  # before what was read is used for something else
            device.order(device.stream, other)
    return tuple(DeviceArray(*made[tensor.name], stream, device) for tensor in spec.outputs)


def _taken(spec: GraphSpec, name: str, value: Any, stream: int) -> _Shared | Array:
    """An array where it lies, on a GPU or the host. What its library says against that becomes an EngineError."""
    try:
        shared = _shared(value, stream)
        return np.asarray(value) if shared is None else shared
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(
            f'graph "{spec.name}": {name} is not shared by its library: {type(error).__name__}: {error}. Give a plain array '
            "(torch: tensor.detach())"
        ) from error


def _shared(value: Any, stream: int) -> _Shared | None:
    """An array that lies on a GPU; None for others. Its library has ``stream`` wait for it, or says what to wait for."""
    if hasattr(value, "__dlpack__") and value.__dlpack_device__()[0] == dlpack.CUDA:
        capsule = value.__dlpack__(stream=stream)
        return _Shared(dlpack.opened(capsule), None, capsule)
    said = getattr(value, "__cuda_array_interface__", None)
    if said is None:
        return None
    if said.get("mask") is not None:
        raise EngineError("an array with a mask cannot be shared: give what it holds without")
    strides = said.get("strides")
    place = dlpack.Opened(
        said["data"][0], tuple(said["shape"]), np.dtype(said["typestr"]), strides and tuple(strides)
    )
    return _Shared(place, said.get("stream"), value)


def _check(device: Device, spec: GraphSpec, tensor: TensorSpec, array: _Shared) -> None:
    """Raise an EngineError unless a plan can read an array where it lies."""
    what, place = f'graph "{spec.name}": {tensor.name}', array.place
    if place.dtype != tensor.dtype:
        raise EngineError(f"{what} must be {np.dtype(tensor.dtype)}, not {place.dtype}")
    if not array.in_order:
        raise EngineError(f"{what} must lie in C order without gaps: make it contiguous")
    if place.address and (owner := device.owner(place.address)) != device.number:
        raise EngineError(f"{what} lies on cuda:{owner}, the engine on cuda:{device.number}: copy it there")
