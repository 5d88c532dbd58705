"""Memory for caches on an ONNX Runtime provider's device: used again at the same addresses, cleared and copied there.

ONNX Runtime has no call for either. Two models of one operator do it, written here, as the runtime has no onnx. No GPU
has run this yet.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import EngineError
from .onnx_checks import first_line

MOST_FREE = 16  #: rows, in all free blocks together, or as many as the largest of them has
_CLEARED = 1 << 28  # elements at a time: operators on CUDA count them in 32 bits
_ITEM = 4  # bytes of an element, float32 to the models, whatever it holds


@dataclass(frozen=True, eq=False)
class Block:
    """(tensors, rows, bytes of a row), on the device. Its number is no other block's, as an address may be."""

    number: int
    rows: int
    value: Any  #: the OrtValue


class Lent:
    """A block, until nothing refers to this any more."""

    def __init__(self, block: Block, give_back: Callable[[Block], None]) -> None:
        self.block = block
        weakref.finalize(self, give_back, block).atexit = False


class CacheMemory:
    """Blocks of ``tensors`` tensors, of rows of ``row_bytes`` bytes each. Not for several threads at a time.

    What was given back, by whatever thread, is kept for the next of as many rows, the block that was made first before
    others: work that was recorded on its addresses is found again. Beyond MOST_FREE rows, what was free for longest goes.
    """

    def __init__(
        self,
        runtime: Any,
        device: tuple[str, int],
        open_session: Callable[[bytes], Any],
        tensors: int,
        row_bytes: int,
        forget: Callable[[Block], None],
    ) -> None:
        """runtime: the module; device: its kind and number; open_session: of a model; forget: told of blocks that go."""
        self._runtime, self._device, self._forget = runtime, device, forget
        self._tensors, self._row_bytes = tensors, row_bytes
        self._clearing, self._copying = open_session(clearing_model()), open_session(copying_model(tensors))
        self._given_back: deque[Block] = deque()  # may be added to at any moment
        self._free: list[Block] = []  # what has been free for longest first
        self._made = 0

    def lend(self, rows: int) -> Lent:
        """A block of zeros; raises EngineError where there is no memory."""
        self._sort()
        fitting = [block for block in self._free if block.rows == rows]
        block = min(fitting, key=lambda free: free.number, default=None) or self._allocate(rows)
        if block in fitting:
            self._free.remove(block)
        lent = Lent(block, self._given_back.append)
        self._clear(block)
        return lent

    def _sort(self) -> None:
        """Keep what was given back, as far as it is to be kept."""
        while self._given_back:
            self._free.append(self._given_back.popleft())
            while sum(rows := [block.rows for block in self._free]) > max(MOST_FREE, *rows):
                self._forget(self._free.pop(0))

    def _allocate(self, rows: int) -> Block:
        try:
            value = self._new_value(rows)
        except Exception:  # ONNX Runtime's exceptions share no base class
            self.trim()
            try:
                value = self._new_value(rows)
            except Exception as error:
                mebibytes = self._tensors * rows * self._row_bytes >> 20
                where = ":".join(map(str, self._device))
                raise EngineError(
                    f"no cache of {rows} rows, {mebibytes} MiB, on {where}: {first_line(error)}"
                ) from None
        self._made += 1
        return Block(self._made, rows, value)

    def _new_value(self, rows: int) -> Any:
        shape = (self._tensors, rows, self._row_bytes // _ITEM)
        return self._runtime.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, *self._device)

    def trim(self) -> None:
        """Let go of what is free.

        On CUDA it can be allocated again as other blocks, but not as anything else: ONNX Runtime's module has one arena for
        all OrtValues of a process, which gives nothing back to the driver.
        """
        self._sort()
        for block in self._free:
            self._forget(block)
        self._free.clear()

    def address(self, block: Block, tensor: int, row: int = 0) -> int:
        """Where a row of a tensor lies; the next rows lie behind it."""
        return int(block.value.data_ptr()) + (tensor * block.rows + row) * self._row_bytes

    def _clear(self, block: Block) -> None:
        """What lies behind the positions that a row holds must be finite numbers."""
        left, address = self._tensors * block.rows * self._row_bytes // _ITEM, self.address(block, 0)
        while left:
            count = min(left, _CLEARED)
            binding = self._clearing.io_binding()
            binding.bind_cpu_input("shape", np.array([count], np.int64))
            binding.bind_output("zeros", *self._device, np.float32, (count,), address)
            self._clearing.run_with_iobinding(binding)
            left, address = left - count, address + count * _ITEM

    def copy(self, target: Block, place: int, source: Block, row: int) -> None:
        """Copy a row, of all tensors, over another."""
        shape, binding = (self._row_bytes // _ITEM,), self._copying.io_binding()
        for tensor in range(self._tensors):
            origin, to = self.address(source, tensor, row), self.address(target, tensor, place)
            binding.bind_input(f"from_{tensor}", *self._device, np.float32, shape, origin)
            binding.bind_output(f"to_{tensor}", *self._device, np.float32, shape, to)
        self._copying.run_with_iobinding(binding)


# --- models, as ONNX's protobuf says them: numbers are those of its fields ---

_FLOAT32, _INT64 = 1, 7


def clearing_model() -> bytes:
    """shape: (1,) int64 -> zeros: float32 of that shape."""
    return _model([("ConstantOfShape", "shape", "zeros")], _INT64)


def copying_model(tensors: int) -> bytes:
    """from_0, from_1, ...: (n,) float32 -> to_0, to_1, ...: the same."""
    return _model([("Identity", f"from_{tensor}", f"to_{tensor}") for tensor in range(tensors)], _FLOAT32)


def _model(nodes: list[tuple[str, str, str]], takes: int) -> bytes:
    """A model of nodes (operator, input, output), all of vectors; what is taken is of one type, what is given float32."""
    graph = _text(2, "rows")
    for operator, origin, to in nodes:
        graph += _field(1, _text(1, origin) + _text(2, to) + _text(4, operator))
        graph += _field(11, _vector(origin, takes)) + _field(12, _vector(to, _FLOAT32))
    return _number(1, 8) + _field(7, graph) + _field(8, _number(2, 13))


def _vector(name: str, type_: int) -> bytes:
    shape = _field(1, _text(2, f"length of {name}"))
    return _text(1, name) + _field(2, _field(1, _number(1, type_) + _field(2, shape)))


def _number(field: int, value: int) -> bytes:
    return _digits(field << 3) + _digits(value)


def _text(field: int, text: str) -> bytes:
    return _field(field, text.encode())


def _field(field: int, content: bytes) -> bytes:
    return _digits(field << 3 | 2) + _digits(len(content)) + content


def _digits(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the last has no eighth bit."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
