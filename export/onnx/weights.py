"""External data: tensors are streamed to one file beside the model while the graph is built."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx
from onnx import TensorProto

ALIGNMENT = 4096  #: bytes; a page, so that a runtime can map every tensor from the file
INLINE_BYTES = 1024  #: tensors up to this size stay in the model file
HALVED_SIZE = 1024  #: elements; tensors up to this size are not worth a second representation


class TensorWriter:
    """Writes tensors to ``path`` one after the other; a context manager.

    Nothing is kept in memory. A model without any large tensor leaves no file behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        empty = self._file.tell() == 0
        self._file.close()
        if empty or kind is not None:
            self.path.unlink()

    def tensor(self, name: str, array: np.ndarray, data_type: int | None = None) -> TensorProto:
        """An ONNX tensor that holds ``array`` (small) or points at where it was written (large).

        ``data_type`` is what its bits stand for, where NumPy has no such type.
        """
        if data_type is None:
            data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        proto = TensorProto(name=name, dims=array.shape, data_type=data_type)
        little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        if array.nbytes <= INLINE_BYTES:
            proto.raw_data = little_endian.tobytes()
            return proto
        self._file.seek(-self._file.tell() % ALIGNMENT, os.SEEK_CUR)
        offset = self._file.tell()
        self._file.write(little_endian.data)
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", self.path.name),
            ("offset", str(offset)),
            ("length", str(array.nbytes)),
        ):
            proto.external_data.add(key=key, value=value)
        return proto


def as_bfloat16(array: np.ndarray) -> np.ndarray:
    """The bits of finite float32 numbers rounded to bfloat16, to the nearest and to even: uint16."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def fits_half(array: np.ndarray) -> bool:
    """Whether a float32 array is large and float16 holds each of its values exactly."""
    if array.dtype != np.float32 or array.size <= HALVED_SIZE:
        return False
    return _same_in_half(array[:1]) and _same_in_half(array)  # the first row nearly always decides


def _same_in_half(array: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return bool((array.astype(np.float16) == array).all())
