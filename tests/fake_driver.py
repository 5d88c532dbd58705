"""A driver of NVIDIA's of NumPy: what ``backends/device.py`` asks of it, on memory of the host.

Work runs at once, or later if it is being recorded; a recording keeps the addresses that it was made with. Every call must be
made while its GPU is the thread's, as the real one wants it, and everything must lie within one allocation. A kernel is a
function of Python: ``kernels[cubin]``, which gets its arguments as the real one would read them.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from tortoise_rt.engine import Array


class CUresult(enum.Enum):
    CUDA_SUCCESS = 0
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


class Gpu:
    """One of the driver's, with its only stream."""

    def __init__(self, number: int, room: int) -> None:
        self.number, self.room, self.total = number, room, room
        self.held: dict[int, Array] = {}
        self.pinned: dict[int, Array] = {}  #: of the host, and what holds memory of the device
        self.recording: list[Callable[[], None]] | None = None
        self.launched = 0  #: recordings
        self.ran: list[str] = []  #: kernels

    def inside(self, address: int, nbytes: int) -> None:
        assert any(base <= address and address + nbytes <= base + a.nbytes for base, a in self.held.items())

    def is_pinned(self, address: int, nbytes: int) -> None:
        assert any(base <= address and address + nbytes <= base + a.nbytes for base, a in self.pinned.items())

    def queue(self, work: Callable[[], None]) -> tuple[CUresult]:
        if self.recording is None:
            work()
        else:
            self.recording.append(work)
        return (FINE,)


class FakeDriver:
    """As the module ``cuda.bindings.driver``."""

    CUresult = CUresult
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=0, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1
    )
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUmemorytype = SimpleNamespace(CU_MEMORYTYPE_DEVICE=2)
    CUDA_MEMCPY3D = SimpleNamespace

    def __init__(self, room: int = 1 << 30, count: int = 1, capability: str = "8.9") -> None:
        self.gpus = [Gpu(number, room) for number in range(count)]
        self.capability = [int(part) for part in capability.split(".")]
        self.kernels: dict[bytes, Callable[..., None]] = {}
        self._thread = threading.local()

    def _gpu(self, stream: int) -> Gpu:
        """The stream's, which must be the thread's."""
        assert self._current is not None and stream == 7 + self._current.number
        return self._current

    @property
    def _current(self) -> Gpu | None:
        return getattr(self._thread, "gpu", None)

    # --- GPUs ---

    def cuInit(self, flags: int) -> tuple[CUresult]:
        return (FINE,)

    def cuDeviceGetCount(self) -> tuple[CUresult, int]:
        return FINE, len(self.gpus)

    def cuDeviceGet(self, number: int) -> tuple[CUresult, Gpu]:
        return FINE, self.gpus[number]

    def cuDevicePrimaryCtxRetain(self, gpu: Gpu) -> tuple[CUresult, Gpu]:
        return FINE, gpu

    def cuDeviceGetName(self, most: int, gpu: Gpu) -> tuple[CUresult, bytes]:
        return FINE, b"Fake GPU\0\0"

    def cuDeviceGetAttribute(self, attribute: int, gpu: Gpu) -> tuple[CUresult, int]:
        return FINE, self.capability[attribute]

    def cuDriverGetVersion(self) -> tuple[CUresult, int]:
        return FINE, 13000

    def cuCtxSetCurrent(self, gpu: Gpu) -> tuple[CUresult]:
        self._thread.gpu = gpu
        return (FINE,)

    def cuCtxPushCurrent(self, gpu: Gpu) -> tuple[CUresult]:
        self._thread.below, self._thread.gpu = self._current, gpu
        return (FINE,)

    def cuCtxPopCurrent(self) -> tuple[CUresult, Any]:
        self._thread.gpu, gone = self._thread.below, self._current
        return FINE, gone

    def cuStreamCreate(self, flags: int) -> tuple[CUresult, int]:
        assert self._current is not None
        return FINE, 7 + self._current.number

    # --- memory ---

    def cuMemAllocAsync(self, nbytes: int, stream: int) -> tuple[CUresult, int]:
        gpu = self._gpu(stream)
        assert gpu.recording is None
        if nbytes > gpu.room:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0
        array = np.full(nbytes + 512, 0xFF, np.uint8)  # NaN
        address = -(-array.ctypes.data // 256) * 256
        gpu.room -= nbytes
        gpu.held[address] = view(address, (nbytes,), np.uint8)
        gpu.pinned[address] = array
        return FINE, address

    def cuMemFreeAsync(self, address: int, stream: int) -> tuple[CUresult]:
        gpu = self._gpu(stream)
        assert gpu.recording is None
        gpu.room += gpu.held.pop(address).nbytes
        del gpu.pinned[address]
        return (FINE,)

    def cuMemGetInfo(self) -> tuple[CUresult, int, int]:
        assert self._current is not None
        return FINE, self._current.room, self._current.total

    def cuMemHostAlloc(self, nbytes: int, flags: int) -> tuple[CUresult, int]:
        assert self._current is not None
        array = np.full(max(nbytes, 1), 0xFF, np.uint8)
        self._current.pinned[array.ctypes.data] = array
        return FINE, array.ctypes.data

    def cuMemFreeHost(self, address: int) -> tuple[CUresult]:
        if self._current is None:
            return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
        del self._current.pinned[address]
        return (FINE,)

    def cuMemsetD8Async(self, address: int, value: int, nbytes: int, stream: int) -> tuple[CUresult]:
        gpu = self._gpu(stream)
        gpu.inside(address, nbytes)
        return gpu.queue(lambda: view(address, (nbytes,), np.uint8).fill(value))

    def cuMemcpyHtoDAsync(self, address: int, source: int, nbytes: int, stream: int) -> tuple[CUresult]:
        gpu = self._gpu(stream)
        gpu.inside(address, nbytes)
        gpu.is_pinned(source, nbytes)
        return gpu.queue(lambda: ctypes.memmove(address, source, nbytes) and None)

    def cuMemcpyDtoHAsync(self, target: int, address: int, nbytes: int, stream: int) -> tuple[CUresult]:
        gpu = self._gpu(stream)
        gpu.inside(address, nbytes)
        gpu.is_pinned(target, nbytes)
        return gpu.queue(lambda: ctypes.memmove(target, address, nbytes) and None)

    def cuMemcpy3DAsync(self, what: Any, stream: int) -> tuple[CUresult]:
        gpu = self._gpu(stream)
        rows = [(slice_, row) for slice_ in range(what.Depth) for row in range(what.Height)]
        moves = [
            (
                what.dstDevice + (slice_ * what.dstHeight + row) * what.dstPitch,
                what.srcDevice + (slice_ * what.srcHeight + row) * what.srcPitch,
            )
            for slice_, row in rows
        ]
        for place in (place for move in moves for place in move):
            gpu.inside(place, what.WidthInBytes)

        def work() -> None:
            for to, origin in moves:
                ctypes.memmove(to, origin, what.WidthInBytes)

        return gpu.queue(work)

    # --- kernels ---

    def cuModuleLoadData(self, cubin: bytes) -> tuple[CUresult, Any]:
        assert self._current is not None
        if cubin not in self.kernels:
            return CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU, None
        return FINE, (cubin, self._current)

    def cuModuleGetFunction(self, module: Any, name: bytes) -> tuple[CUresult, Any]:
        return FINE, (*module, name.decode())

    def cuFuncSetAttribute(self, function: Any, attribute: int, value: int) -> tuple[CUresult]:
        assert attribute == 8 and value >= 0
        return (FINE,)

    def cuLaunchKernel(self, function: Any, *given: int) -> tuple[CUresult]:
        blocks, y, z, threads, ty, tz, shared, stream, places, extra = given
        cubin, of_gpu, name = function
        gpu = self._gpu(stream)
        assert (
            gpu is of_gpu and (y, z, ty, tz, extra) == (1, 1, 1, 1, 0) and threads % 32 == 0 and shared >= 0
        )
        work = self.kernels[cubin](gpu, blocks, places)
        gpu.ran.append(name)
        return gpu.queue(work)

    # --- recordings ---

    def cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[CUresult]:
        self._gpu(stream).recording = []
        return (FINE,)

    def cuStreamEndCapture(self, stream: int) -> tuple[CUresult, Any]:
        gpu = self._gpu(stream)
        graph, gpu.recording = gpu.recording, None
        return FINE, graph

    def cuGraphInstantiate(self, graph: Any, flags: int) -> tuple[CUresult, Any]:
        return FINE, list(graph)

    def cuGraphDestroy(self, graph: Any) -> tuple[CUresult]:
        return (FINE,)

    cuGraphExecDestroy = cuGraphDestroy

    def cuGraphLaunch(self, graph: Any, stream: int) -> tuple[CUresult]:
        gpu = self._gpu(stream)
        assert gpu.recording is None
        gpu.launched += 1
        for work in graph:
            work()
        return (FINE,)

    def cuStreamSynchronize(self, stream: int) -> tuple[CUresult]:
        assert self._gpu(stream).recording is None
        return (FINE,)
