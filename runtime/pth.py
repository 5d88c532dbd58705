"""Small tensors in PyTorch's .pth files, without PyTorch and without running what a pickle asks for.

A .pth file is an uncompressed zip: ``NAME/data.pkl``, a pickle whose tensors refer to storages, and
``NAME/data/0``, ``NAME/data/1``, ..., their bytes. Read are tensors of floats in tuples, lists and dictionaries;
any other opcode or name in the pickle is refused before anything of it is evaluated.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import VoiceError

MAX_FILE_BYTES = 64 << 20  #: of a file, and of all that is read from it; latents take some kilobytes
_MAX_PICKLE_BYTES = 1 << 20
_MAX_MEMO = 1 << 16  # a larger index would make the unpickler allocate that many places
_CONVERT = "convert it where PyTorch is installed: torch.save(torch.load(NAME, map_location='cpu', weights_only=True), NAME)"

_OPCODES = frozenset(
    [
        "PROTO",
        "FRAME",
        "STOP",
        "MARK",
        "GLOBAL",
        "STACK_GLOBAL",
        "REDUCE",
        "BINPERSID",
        "BINPUT",
        "LONG_BINPUT",
        "MEMOIZE",
        "BINGET",
        "LONG_BINGET",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "EMPTY_LIST",
        "APPEND",
        "APPENDS",
        "EMPTY_DICT",
        "SETITEM",
        "SETITEMS",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINUNICODE",
    ]
)
_STORAGES: dict[str, np.dtype[Any]] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("<u2"),  # the upper half of a float32
}


class _TensorReader(pickle.Unpickler):
    """Evaluates a checked pickle; storages come from ``archive``, tensors become float32 arrays."""

    def __init__(self, data: bytes, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(io.BytesIO(data))
        self._archive = archive
        self._prefix = prefix
        self._storages: dict[str, np.ndarray] = {}
        self._budget = MAX_FILE_BYTES  # bytes that may still be made

    def _spend(self, count: int) -> None:
        self._budget -= count
        if self._budget < 0:
            raise VoiceError(f"it unfolds to more than {MAX_FILE_BYTES >> 20} MB")

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise VoiceError(f"it asks for {module}.{name}, which has no place in voice latents")

    def persistent_load(self, pid: Any) -> np.ndarray:
        """The storage that ("storage", type, key, device, elements) names -> (elements,) float32."""
        kind, storage, key, _, elements = pid
        if kind != "storage" or not isinstance(key, str):
            raise VoiceError(f"it refers to {kind!r} instead of a storage")
        if key not in self._storages:
            dtype = _STORAGES[storage]
            info = self._archive.getinfo(f"{self._prefix}data/{key}")
            if info.file_size != elements * dtype.itemsize:
                raise VoiceError(
                    f"storage {key} has {info.file_size} bytes for {elements} numbers of {dtype.itemsize}"
                )
            self._spend(4 * elements)
            raw = np.frombuffer(_read(self._archive, info), dtype)
            wide = (raw.astype("<u4") << 16).view("<f4") if dtype.kind == "u" else raw
            self._storages[key] = wide.astype(np.float32)
        return self._storages[key]

    def _tensor(
        self, storage: np.ndarray, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any
    ) -> np.ndarray:
        """The strided view of a storage that torch._utils._rebuild_tensor_v2 makes, as an array of its own."""
        if len(size) != len(stride) or len(size) > 8 or min([offset, *size, *stride]) < 0:
            raise VoiceError(f"a tensor has the size {size} and the stride {stride}")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 not in size and last >= len(storage):
            raise VoiceError(f"a tensor reaches element {last} of a storage of {len(storage)}")
        self._spend(4 * math.prod(size))
        if 0 in size:
            return np.zeros(size, np.float32)
        return np.lib.stride_tricks.as_strided(storage[offset:], size, [4 * step for step in stride]).copy()


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """An entry's bytes. PyTorch never compresses, so what is compressed may be a bomb."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > MAX_FILE_BYTES:
        raise VoiceError(f"its entry {info.filename} is compressed or too large")
    data = archive.read(info)
    if len(data) != info.file_size:
        raise VoiceError(f"its entry {info.filename} is cut off")
    return data


def _check_pickle(data: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in _OPCODES:
            raise VoiceError(f"its pickle uses {opcode.name}, which has no place in voice latents")
        if opcode.name == "LONG_BINPUT" and isinstance(argument, int) and argument > _MAX_MEMO:
            raise VoiceError(f"its pickle numbers its objects up to {argument}")


def read_pth(path: Path) -> Any:
    """What a .pth file holds: float32 arrays, in tuples, lists or dictionaries as they were saved.

    Raises VoiceError, without running anything, when it is missing, damaged, over 64 MB or holds anything else.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise VoiceError(
                f"it has {path.stat().st_size >> 20} MB; voice latents take less than {MAX_FILE_BYTES >> 20}"
            )
        content = path.read_bytes()
        if content[:1] == b"\x80":
            raise VoiceError(f"it is in PyTorch's format of before 2020, or a bare pickle: {_CONVERT}")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            pickles = [i for i in archive.infolist() if i.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
                raise VoiceError("it is a zip file, but not one that torch.save wrote")
            prefix = pickles[0].filename.removesuffix("data.pkl")
            if f"{prefix}byteorder" in archive.namelist() and archive.read(f"{prefix}byteorder") != b"little":
                raise VoiceError(f"it was written by a big-endian machine: {_CONVERT}")
            data = _read(archive, pickles[0])
            _check_pickle(data)
            return _TensorReader(data, archive, prefix).load()
    except VoiceError as error:
        raise VoiceError(f"cannot use {path}: {error}") from error
    except Exception as error:  # damaged or hostile bytes: zipfile and pickle raise a dozen kinds of errors
        raise VoiceError(f"cannot use {path}: it is not a sound .pth file ({error!r})") from error


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(text)) + text.encode("ascii")


def _int_tuple(numbers: Sequence[int]) -> bytes:
    return pickle.MARK + b"".join(map(_int, numbers)) + pickle.TUPLE


def _int(number: int) -> bytes:
    return pickle.BININT + struct.pack("<i", number)


def _pickled_tensor(array: np.ndarray, key: int) -> bytes:
    """Opcodes that make torch rebuild a contiguous float32 tensor from storage ``key``."""
    strides = [step // array.itemsize for step in array.strides]
    storage = (
        pickle.MARK
        + _text("storage")
        + _global("torch", "FloatStorage")
        + _text(str(key))
        + _text("cpu")
        + _int(array.size)
        + pickle.TUPLE
        + pickle.BINPERSID
    )
    no_hooks = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = storage + _int(0) + _int_tuple(array.shape) + _int_tuple(strides) + pickle.NEWFALSE + no_hooks
    return (
        _global("torch._utils", "_rebuild_tensor_v2") + pickle.MARK + arguments + pickle.TUPLE + pickle.REDUCE
    )


def pth_bytes(*tensors: np.ndarray) -> bytes:
    """A .pth file of a tuple of float32 tensors (of the tensor itself when there is one), for torch.load."""
    arrays = [np.ascontiguousarray(t, "<f4") for t in tensors]
    pickled = b"".join(_pickled_tensor(array, key) for key, array in enumerate(arrays))
    if len(arrays) > 1:
        pickled = pickle.MARK + pickled + pickle.TUPLE
    entries = {
        "data.pkl": pickle.PROTO + b"\x02" + pickled + pickle.STOP,
        "byteorder": b"little",
        **{f"data/{key}": array.tobytes() for key, array in enumerate(arrays)},
        "version": b"3\n",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(
                zipfile.ZipInfo(f"latents/{name}"), data
            )  # without a date: same latents, same bytes
    return buffer.getvalue()
