"""What ``fake_driver`` is made of: GPUs of NumPy, their memory, their streams, and work that waits in these."""

from __future__ import annotations

import ctypes
import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tortoise_rt.engine import Array

LEGACY = 1  #: the default stream
Place = tuple[int, int]  #: address, bytes


class CUresult(enum.Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209


FINE = CUresult.CUDA_SUCCESS


def view(address: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of what lies at an address."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not nbytes:
        return np.zeros(shape, dtype)
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address)).view(dtype).reshape(shape)


def within(place: Place, held: dict[int, Array]) -> bool:
    address, nbytes = place
    return any(base <= address and address + nbytes <= base + a.nbytes for base, a in held.items())


class Stream:
    """Work in its order, which is run when somebody waits for it."""

    def __init__(self) -> None:
        self._queued: deque[Callable[[], None]] = deque()
        self._done = 0
        self.recording: list[Callable[[], None]] | None = None

    @property
    def end(self) -> int:
        """Pieces of work so far."""
        return self._done + len(self._queued)

    def queue(self, work: Callable[[], None]) -> tuple[CUresult]:
        (self._queued if self.recording is None else self.recording).append(work)
        return (FINE,)

    def run(self, end: int) -> None:
        """Run what is queued, up to a piece of work."""
        while self._done < end:
            work = self._queued.popleft()
            self._done += 1
            try:
                work()
            except BaseException:  # what is behind a fault does not run
                self._done += len(self._queued)
                self._queued.clear()
                raise


@dataclass
class Event:
    after: tuple[Stream, int] | None = None


@dataclass
class Graph:
    """What was recorded; it may be launched while it is alive."""

    work: list[Callable[[], None]]
    alive: bool = True


@dataclass
class Module:
    """Kernels that were loaded; they may be launched and run while it is alive."""

    cubin: bytes
    gpu: Gpu
    alive: bool = True


@dataclass
class Pool:
    """Memory that is allocated by a stream's work, and freed by it; at a wait, what it has too much goes to the system."""

    threshold: int = 0
    used: int = 0
    kept: int = 0  #: bytes of the GPU that are its, used or not
    alive: bool = True

    def trim(self, least: int) -> None:
        self.kept = max(self.used, min(self.kept, least))


class Gpu:
    """One of the driver's."""

    def __init__(self, number: int, room: int) -> None:
        self.number, self.room, self.total = number, room, room
        self.held: dict[int, Array] = {}  #: memory, by what the host has asked for
        self.alive: dict[int, Array] = {}  #: memory, by what has run
        self.pinned: dict[int, Array] = {}  #: of the host
        self.streams: dict[int, Stream] = {LEGACY: Stream()}
        self.users = 0  #: who use its context
        self.launched = 0  #: recordings
        self.waited = 0  #: times that the host has
        self.modules = 0  #: that are loaded
        self.ran: list[str] = []  #: kernels
        self.pools: list[Pool] = [Pool()]  #: the first is the default one
        self.owners: dict[int, Pool] = {}  #: address -> whose memory it is
        self.reuses = False  #: memory that was freed for the next of its size, as the real one does
        self.spare: dict[int, list[Array]] = {}  #: bytes -> memory
        self.gone: list[Array] = []  #: of the host: else NumPy would use its memory again

    def lives(self, *places: Place) -> None:
        assert all(within(place, self.alive) for place in places), (
            "memory is used that is not there (yet, or any more)"
        )

    def touch(self, stream: int, places: list[Place], work: Callable[[], None]) -> tuple[CUresult]:
        """Queue work on some memory of the device."""
        assert all(within(place, self.held) for place in places), "work is queued on memory that is not there"

        def checked() -> None:
            self.lives(*places)
            work()

        return self.streams[stream].queue(checked)
