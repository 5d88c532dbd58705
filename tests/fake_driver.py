"""A driver of NVIDIA's of NumPy: what ``backends/device.py`` asks of it, on memory of the host.

Work is queued, and runs when its stream is synchronised, or when another stream waits for an event behind it; a recording
keeps the addresses that it was made with. So what reads before it may sees what was there before: bytes of 0xFF, NaN. Every
call must be made while its GPU is the thread's, as the real one wants it; everything must lie within one allocation, both
when it is queued and when it runs, and what is freed is not handed out again, but by a GPU that ``reuses``. A kernel is a function of Python:
``kernels[cubin]``, which gets its arguments as the real one would read them.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from fake_memory import FINE, CUresult, Event, Gpu, Graph, Module, Place, Pool, Stream, view, within


class FakeDriver:
    """As the module ``cuda.bindings.driver``."""

    CUresult = CUresult
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=0, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1
    )
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)
    CUpointer_attribute = SimpleNamespace(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL=9)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUmemorytype = SimpleNamespace(CU_MEMORYTYPE_DEVICE=2)
    CUDA_MEMCPY3D = SimpleNamespace
    CUmemAllocationType = SimpleNamespace(CU_MEM_ALLOCATION_TYPE_PINNED=1)
    CUmemLocationType = SimpleNamespace(CU_MEM_LOCATION_TYPE_DEVICE=1)
    CUmemPool_attribute = SimpleNamespace(CU_MEMPOOL_ATTR_RELEASE_THRESHOLD=4)
    cuuint64_t = ctypes.c_uint64

    def __init__(self, room: int = 1 << 30, count: int = 1, capability: str = "8.9") -> None:
        self.gpus = [Gpu(number, room) for number in range(count)]
        self.capability = [int(part) for part in capability.split(".")]
        self.kernels: dict[bytes, Callable[..., None]] = {}
        self.events = 0
        self._handles = itertools.count(7)
        self._thread = threading.local()

    def _gpu(self, stream: int) -> Gpu:
        """The thread's, whose stream this must be."""
        assert self._current is not None and stream in self._current.streams
        return self._current

    def _idle(self, stream: int) -> Gpu:
        """As ``_gpu``, for what must not be recorded."""
        gpu = self._gpu(stream)
        assert gpu.streams[stream].recording is None
        return gpu

    @property
    def _stack(self) -> list[Gpu | None]:
        return self._thread.__dict__.setdefault("stack", [])

    @property
    def _current(self) -> Gpu | None:
        return self._stack[-1] if self._stack else None

    # --- GPUs ---

    def cuInit(self, flags: int) -> tuple[CUresult]:
        return (FINE,)

    def cuDeviceGetCount(self) -> tuple[CUresult, int]:
        return FINE, len(self.gpus)

    def cuDeviceGet(self, number: int) -> tuple[CUresult, Gpu]:
        return FINE, self.gpus[number]

    def cuDevicePrimaryCtxRetain(self, gpu: Gpu) -> tuple[CUresult, Gpu]:
        gpu.users += 1
        return FINE, gpu

    def cuDevicePrimaryCtxRelease(self, gpu: Gpu) -> tuple[CUresult]:
        gpu.users -= 1
        return (FINE,)

    def cuDeviceGetName(self, most: int, gpu: Gpu) -> tuple[CUresult, bytes]:
        return FINE, b"Fake GPU\0\0"

    def cuDeviceGetAttribute(self, attribute: int, gpu: Gpu) -> tuple[CUresult, int]:
        return FINE, self.capability[attribute]

    def cuDriverGetVersion(self) -> tuple[CUresult, int]:
        return FINE, 13000

    def cuCtxPushCurrent(self, gpu: Gpu) -> tuple[CUresult]:
        self._stack.append(gpu)
        return (FINE,)

    def cuCtxPopCurrent(self) -> tuple[CUresult, Any]:
        return FINE, self._stack.pop()

    # --- streams ---

    def cuStreamCreate(self, flags: int) -> tuple[CUresult, int]:
        assert self._current is not None
        handle = next(self._handles)
        self._current.streams[handle] = Stream()
        return FINE, handle

    def cuStreamDestroy(self, stream: int) -> tuple[CUresult]:
        gone = self._idle(stream).streams.pop(stream)
        gone.run(gone.end)
        return (FINE,)

    def cuStreamSynchronize(self, stream: int) -> tuple[CUresult]:
        gpu = self._idle(stream)
        gpu.waited += 1
        gpu.streams[stream].run(gpu.streams[stream].end)
        for pool in gpu.pools:
            pool.trim(pool.threshold)
        return (FINE,)

    def cuEventCreate(self, flags: int) -> tuple[CUresult, Event]:
        assert self._current is not None and flags == 2
        self.events += 1
        return FINE, Event()

    def cuEventDestroy(self, event: Event) -> tuple[CUresult]:
        self.events -= 1
        return (FINE,)

    def cuEventRecord(self, event: Event, stream: int) -> tuple[CUresult]:
        of = self._idle(stream).streams[stream]
        event.after = of, of.end
        return (FINE,)

    def cuStreamWaitEvent(self, stream: int, event: Event, flags: int) -> tuple[CUresult]:
        assert event.after is not None and flags == 0
        other, end = event.after
        return self._idle(stream).streams[stream].queue(lambda: other.run(end))

    # --- memory ---

    def CUmemPoolProps(self) -> Any:
        return SimpleNamespace(location=SimpleNamespace())

    def cuMemPoolCreate(self, wanted: Any) -> tuple[CUresult, Pool]:
        gpu = self.gpus[wanted.location.id]
        assert self._current is gpu and (wanted.allocType, wanted.location.type) == (1, 1)
        gpu.pools.append(Pool())
        return FINE, gpu.pools[-1]

    def cuMemPoolSetAttribute(self, pool: Pool, attribute: int, value: ctypes.c_uint64) -> tuple[CUresult]:
        assert attribute == 4
        pool.threshold = value.value
        return (FINE,)

    def cuMemPoolTrimTo(self, pool: Pool, least: int) -> tuple[CUresult]:
        pool.trim(least)
        return (FINE,)

    def cuMemPoolDestroy(self, pool: Pool) -> tuple[CUresult]:
        assert pool.alive
        pool.alive = False
        return (FINE,)

    def cuMemAllocAsync(self, nbytes: int, stream: int) -> tuple[CUresult, int]:
        return self.cuMemAllocFromPoolAsync(nbytes, self._gpu(stream).pools[0], stream)

    def cuMemAllocFromPoolAsync(self, nbytes: int, pool: Pool, stream: int) -> tuple[CUresult, int]:
        gpu = self._idle(stream)
        assert pool in gpu.pools and pool.alive
        if nbytes > gpu.room:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0
        gpu.room -= nbytes
        if gpu.reuses and gpu.spare.get(nbytes):
            memory = gpu.spare[nbytes].pop(0)
        else:
            array = np.full(nbytes + 512, 0xFF, np.uint8)  # NaN
            memory = array[-array.ctypes.data % 256 :][:nbytes]
        address = memory.ctypes.data
        gpu.held[address], gpu.owners[address] = memory, pool
        pool.used += nbytes
        pool.kept = max(pool.kept, pool.used)
        gpu.streams[stream].queue(lambda: gpu.alive.update({address: memory}))
        return FINE, address

    def cuMemFreeAsync(self, address: int, stream: int) -> tuple[CUresult]:
        gpu = self._idle(stream)
        memory = gpu.held.pop(address)
        gpu.room += memory.nbytes
        gpu.owners.pop(address).used -= memory.nbytes
        gpu.spare.setdefault(memory.nbytes, []).append(memory)
        return gpu.streams[stream].queue(lambda: gpu.alive.pop(address).fill(0xFF))

    def cuMemGetInfo(self) -> tuple[CUresult, int, int]:
        assert self._current is not None
        return FINE, self._current.room, self._current.total

    def cuPointerGetAttribute(self, attribute: int, address: int) -> tuple[CUresult, int | None]:
        assert attribute == 9
        owners = [gpu.number for gpu in self.gpus if within((address, 1), gpu.held)]
        return (FINE, owners[0]) if owners else (CUresult.CUDA_ERROR_INVALID_VALUE, None)

    def cuMemHostAlloc(self, nbytes: int, flags: int) -> tuple[CUresult, int]:
        assert self._current is not None
        array = np.full(max(nbytes, 1), 0xFF, np.uint8)
        self._current.pinned[array.ctypes.data] = array
        return FINE, array.ctypes.data

    def cuMemFreeHost(self, address: int) -> tuple[CUresult]:
        if self._current is None:
            return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
        array = self._current.pinned.pop(address)
        array.fill(0xFF)
        self._current.gone.append(array)
        return (FINE,)

    def cuMemsetD8Async(self, address: int, value: int, nbytes: int, stream: int) -> tuple[CUresult]:
        gpu = self._gpu(stream)
        return gpu.touch(stream, [(address, nbytes)], lambda: view(address, (nbytes,), np.uint8).fill(value))

    def cuMemcpyHtoDAsync(self, address: int, source: int, nbytes: int, stream: int) -> tuple[CUresult]:
        return self._copy(stream, (address, nbytes), (source, nbytes), address, source)

    def cuMemcpyDtoHAsync(self, target: int, address: int, nbytes: int, stream: int) -> tuple[CUresult]:
        return self._copy(stream, (address, nbytes), (target, nbytes), target, address)

    def _copy(self, stream: int, device: Place, host: Place, to: int, origin: int) -> tuple[CUresult]:
        gpu = self._gpu(stream)
        assert within(host, gpu.pinned)

        def work() -> None:
            assert within(host, gpu.pinned), "a copy runs whose memory of the host is gone"
            ctypes.memmove(to, origin, host[1])

        return gpu.touch(stream, [device], work)

    def cuMemcpy3DAsync(self, what: Any, stream: int) -> tuple[CUresult]:
        assert what.WidthInBytes <= min(what.srcPitch, what.dstPitch)
        assert what.Height <= min(what.srcHeight, what.dstHeight)
        moves = [
            (
                what.dstDevice + (slice_ * what.dstHeight + row) * what.dstPitch,
                what.srcDevice + (slice_ * what.srcHeight + row) * what.srcPitch,
            )
            for slice_ in range(what.Depth)
            for row in range(what.Height)
        ]
        width = what.WidthInBytes

        def work() -> None:
            for to, origin in moves:
                ctypes.memmove(to, origin, width)

        return self._gpu(stream).touch(stream, [(place, width) for move in moves for place in move], work)

    # --- kernels ---

    def cuModuleLoadData(self, cubin: bytes) -> tuple[CUresult, Any]:
        assert self._current is not None
        if cubin not in self.kernels:
            return CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU, None
        self._current.modules += 1
        return FINE, Module(cubin, self._current)

    def cuModuleUnload(self, module: Module) -> tuple[CUresult]:
        assert self._current is module.gpu and module.alive
        module.gpu.modules -= 1
        module.alive = False
        return (FINE,)

    def cuModuleGetFunction(self, module: Module, name: bytes) -> tuple[CUresult, Any]:
        return FINE, (module.cubin, module, name.decode())

    def cuFuncSetAttribute(self, function: Any, attribute: int, value: int) -> tuple[CUresult]:
        assert attribute == 8 and value >= 0
        return (FINE,)

    def cuLaunchKernel(self, function: Any, *given: int) -> tuple[CUresult]:
        blocks, y, z, threads, ty, tz, shared, stream, places, extra = given
        cubin, module, name = function
        gpu = self._gpu(stream)
        assert (
            gpu is module.gpu
            and (y, z, ty, tz, extra) == (1, 1, 1, 1, 0)
            and threads % 32 == 0
            and shared >= 0
        )
        gpu.ran.append(name)
        work = self.kernels[cubin](gpu, blocks, places)

        def checked() -> None:
            assert module.alive, "a kernel runs whose module is gone"
            work()

        return gpu.streams[stream].queue(checked)

    # --- recordings ---

    def cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[CUresult]:
        self._idle(stream).streams[stream].recording = []
        return (FINE,)

    def cuStreamEndCapture(self, stream: int) -> tuple[CUresult, Any]:
        of = self._gpu(stream).streams[stream]
        work, of.recording = of.recording, None
        assert work is not None
        return FINE, Graph(work)

    def cuGraphInstantiate(self, graph: Graph, flags: int) -> tuple[CUresult, Any]:
        assert graph.alive
        return FINE, Graph(list(graph.work))

    def cuGraphDestroy(self, graph: Graph) -> tuple[CUresult]:
        assert graph.alive
        graph.alive = False
        return (FINE,)

    cuGraphExecDestroy = cuGraphDestroy

    def cuGraphLaunch(self, graph: Graph, stream: int) -> tuple[CUresult]:
        gpu = self._idle(stream)
        assert graph.alive
        gpu.launched += 1
        for work in graph.work:
            gpu.streams[stream].queue(work)
        return (FINE,)
