"""DLPack's capsules: the structures of its dlpack.h, as Python's libraries hand them to each other."""

from __future__ import annotations

import ctypes
import functools
import logging
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p, py_object
from typing import Any, NamedTuple

import numpy as np

from ..errors import EngineError

CUDA = 2  #: the kind of device
NAME = b"dltensor"  #: of a capsule whose array nobody has taken
KINDS = {0: "i", 1: "u", 2: "f"}  #: of numbers
FLOAT = 2, 32  #: kind and bits of float32

log = logging.getLogger("tortoise_rt")


class Opened(NamedTuple):
    """What a capsule holds, while it lives."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...] | None  #: in bytes; None in C order


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = [
        ("data", c_void_p),
        ("device_kind", c_int32),
        ("device_number", c_int32),
        ("axes", c_int32),
        ("kind", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),  # in items; null in C order
        ("offset", c_uint64),  # bytes
    ]


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = [("tensor", _Tensor), ("context", c_void_p), ("deleter", c_void_p)]


_api = ctypes.pythonapi
_new = ctypes.PYFUNCTYPE(py_object, c_void_p, c_char_p, c_void_p)(("PyCapsule_New", _api))
_valid = ctypes.PYFUNCTYPE(ctypes.c_int, c_void_p, c_char_p)(("PyCapsule_IsValid", _api))
_pointer = ctypes.PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(("PyCapsule_GetPointer", _api))
_refused = functools.partial(log.warning, "a library took no array of a GPU (%s): NumPy takes array.numpy()")
_raise = ctypes.PYFUNCTYPE(None)(("PyErr_Occurred", _api))  # ctypes raises what has occurred
_lent: dict[
    int, tuple[Any, ...]
] = {}  # address of a _Managed -> it, what it points to, and whose memory it is


# Whoever calls these, in C, may be about to raise an error; none can be pending while Python runs, nor when it returns to C: it
# is taken, and logged. What they need is bound, as arrays may outlive this module when Python ends.
@ctypes.CFUNCTYPE(None, c_void_p)
def _delete(
    address: int, lent: dict[int, tuple[Any, ...]] = _lent, pending: Any = _raise, refused: Any = _refused
) -> None:
    """Called by whoever took a capsule's array, when it is done with it."""
    try:
        pending()
    except BaseException as error:
        refused(error)
    lent.pop(address, None)


@ctypes.CFUNCTYPE(None, c_void_p)
def _end(
    capsule: int,
    lent: dict[int, Any] = _lent,
    valid: Any = _valid,
    pointer: Any = _pointer,
    name: bytes = NAME,
    pending: Any = _raise,
    refused: Any = _refused,
) -> None:
    """Called when a capsule ends; one whose array was taken has another name."""
    try:
        pending()
    except BaseException as error:
        refused(error)
    if valid(capsule, name):
        lent.pop(pointer(capsule, name), None)


for _function in (_delete, _end):
    _api.Py_IncRef(py_object(_function))


def capsule(address: int, shape: tuple[int, ...], device: int, holder: Any) -> Any:
    """A capsule of an array of float32 in C order on a GPU; ``holder`` is kept until whoever takes it is done."""
    sizes = (c_int64 * len(shape))(*shape)
    tensor = _Tensor(address, CUDA, device, len(shape), *FLOAT, 1, sizes, None, 0)
    managed = _Managed(tensor, None, ctypes.cast(_delete, c_void_p))
    place = ctypes.addressof(managed)
    _lent[place] = managed, sizes, holder
    return _new(place, NAME, ctypes.cast(_end, c_void_p))


def opened(given: Any) -> Opened:
    """What a capsule holds. It is not taken: its owner gives the array back when the capsule ends."""
    try:
        tensor = _Managed.from_address(_pointer(id(given), NAME)).tensor
    except ValueError:
        raise EngineError("an array gives no capsule of DLPack's first version: update its library") from None
    if tensor.kind not in KINDS or tensor.lanes != 1:
        raise EngineError("an array of this type cannot be shared: give float32 or int64")
    dtype, shape = np.dtype(f"{KINDS[tensor.kind]}{tensor.bits // 8}"), tuple(tensor.shape[: tensor.axes])
    strides = tuple(s * dtype.itemsize for s in tensor.strides[: tensor.axes]) if tensor.strides else None
    return Opened((tensor.data or 0) + tensor.offset, shape, dtype, strides)
