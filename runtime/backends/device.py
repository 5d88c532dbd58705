"""An NVIDIA GPU through the driver: memory, one stream, recorded graphs. Needs cuda-bindings, no torch.

No error of the driver is passed over: each becomes an EngineError that says what was tried.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine import Array
from ..errors import EngineError, MissingDependency
from .given_back import Call, GivenBack, free_all, name_of, order

CType = Callable[[int], Any]  #: c_int32 or c_uint64
_WITHOUT_TIMES = 2  # CU_EVENT_DISABLE_TIMING
_ALL = 2**64 - 1  # bytes


@dataclass(frozen=True)
class Block:
    """A block of bytes within an array (depth, height, pitch): where it begins, and how the array goes on."""

    address: int
    pitch: int  #: bytes from one row to the next
    height: int  #: rows from one slice to the next


class Memory:
    """Memory on a device, given back when nothing refers to it any more.

    ``readers``: streams of somebody else's that it is used on, waited for before it is used for something else.
    """

    def __init__(
        self, address: int, nbytes: int, readers: set[int], free: Callable[[int, set[int]], None]
    ) -> None:
        self.address, self.nbytes, self.readers = address, nbytes, readers
        weakref.finalize(self, free, address, readers).atexit = False


class Recording:
    """Work that was recorded, given back when nothing refers to it any more."""

    def __init__(self, graph: Any, free: Callable[[Any], None]) -> None:
        self.graph = graph
        weakref.finalize(self, free, graph).atexit = False


@dataclass(frozen=True)
class Kernel:
    """A function that was loaded from a cubin."""

    function: Any
    types: tuple[CType, ...]  #: of its arguments
    threads: int  #: of a block
    shared: int  #: bytes of memory that a block's threads share


class Device:
    """One GPU and a stream of its own. Copies and runs are only queued; ``synchronize`` waits for them.

    Threads take turns: what works on memory is called within ``turn``. What was given back, by whatever thread, is
    freed there: not while the stream records, nor while another GPU is the thread's.
    """

    def __init__(self, number: int = 0, driver: Any = None) -> None:
        """driver: the module of cuda-bindings, or one like it."""
        self._driver = driver = driver or _driver()
        self._given_back = GivenBack(driver.CUresult.CUDA_SUCCESS)
        self.number = number
        try:
            self._check("start the driver", driver.cuInit(0))
        except RuntimeError:  # of cuda-bindings, which looks for the driver only now
            raise EngineError("there is no NVIDIA driver here. See tortoise-rt doctor") from None
        count = self._check("count GPUs", driver.cuDeviceGetCount())
        if number >= count:
            there = [self._name(self._check("find a GPU", driver.cuDeviceGet(n))) for n in range(count)]
            raise no_such_gpu(number, there)
        device = self._check("find the GPU", driver.cuDeviceGet(number))
        self._context = self._check("use the GPU", driver.cuDevicePrimaryCtxRetain(device))
        self._ends: list[Call] = []  # of what is made here
        ends = self._ends
        end = functools.partial(driver.cuDevicePrimaryCtxRelease, device)
        weakref.finalize(self, free_all, driver, self._context, self._given_back, ends, end).atexit = False
        self._lock = threading.RLock()
        self.name = self._name(device)
        attributes = driver.CUdevice_attribute
        major, minor = (
            self._check("ask what the GPU can do", driver.cuDeviceGetAttribute(attribute, device))
            for attribute in (
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        self.compute_capability = f"{major}.{minor}"
        version = self._check("ask the driver's version", driver.cuDriverGetVersion())
        self.driver = f"CUDA {version // 1000}.{version % 1000 // 10}"
        with self.turn():
            own = 1  # which does not wait for the default stream
            self._stream = self._check("make a stream", driver.cuStreamCreate(own))
            ends.append(functools.partial(driver.cuStreamDestroy, self._stream))
            self._event = self._check("make an event", driver.cuEventCreate(_WITHOUT_TIMES))
            ends.append(functools.partial(driver.cuEventDestroy, self._event))
            self._pool = self._make_pool()
            ends.append(functools.partial(driver.cuMemPoolDestroy, self._pool))
        self.stream = int(self._stream)

    def _name(self, device: Any) -> str:
        name = self._check("ask the GPU's name", self._driver.cuDeviceGetName(128, device))
        return name.split(b"\0")[0].decode()

    def _make_pool(self) -> Any:
        """Memory of this GPU that is freed and allocated again without the system, till ``trim``; nobody else's."""
        driver, wanted = self._driver, self._driver.CUmemPoolProps()
        wanted.allocType = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        wanted.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        wanted.location.id = self.number
        pool = self._check("make a pool of memory", driver.cuMemPoolCreate(wanted))
        threshold = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        self._check("keep memory", driver.cuMemPoolSetAttribute(pool, threshold, driver.cuuint64_t(_ALL)))
        return pool

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """This GPU is the calling thread's, and no other thread's, to the end; then the thread has the one that it had."""
        with self._lock:
            self._check("use the GPU", self._driver.cuCtxPushCurrent(self._context))
            try:
                self._given_back.free()
                yield
            finally:
                self._check("leave the GPU", self._driver.cuCtxPopCurrent())

    def allocate(self, nbytes: int, what: str, reader: int | None = None, zeros: bool = False) -> Memory:
        """Memory for ``what``; raises EngineError when there is not enough.

        reader: the first of its ``readers``; zeros: what it holds, which else may be anything.
        """
        self._given_back.free()
        nbytes = max(nbytes, 1)
        lacking = self._driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY
        error, address = self._driver.cuMemAllocFromPoolAsync(nbytes, self._pool, self._stream)
        if error == lacking:
            self.trim()  # what is kept in pieces that are too small
            error, address = self._driver.cuMemAllocFromPoolAsync(nbytes, self._pool, self._stream)
        if error == lacking:
            raise out_of_memory(nbytes, what, f"cuda:{self.number}", *self.memory())
        self._check(f"allocate {nbytes} bytes", (error,))
        if zeros:
            self._check("clear memory", self._driver.cuMemsetD8Async(address, 0, nbytes, self._stream))
        return Memory(int(address), nbytes, set() if reader is None else {reader}, self._give_back)

    def memory(self) -> tuple[int, int]:
        """Bytes that are free, those that ``trim`` would free not among them, and all."""
        free, total = self._check("ask for free memory", self._driver.cuMemGetInfo())
        return free, total

    def trim(self) -> None:
        """Wait for all that is queued, and let other programs have what was freed."""
        self._given_back.free()
        self.synchronize()
        self._check("give memory back", self._driver.cuMemPoolTrimTo(self._pool, 0))

    def _give_back(self, address: int, readers: set[int]) -> None:
        orders = (order(self._driver, self._event, reader, self._stream) for reader in readers)
        free = functools.partial(self._driver.cuMemFreeAsync, address, self._stream)
        self._given_back.add(*itertools.chain.from_iterable(orders), free)

    def order(self, first: int, then: int) -> None:
        """Have what one stream is given from here on wait for what another was given; the host waits for neither."""
        for call in order(self._driver, self._event, first, then):
            self._check("have a stream wait for another", call())

    def owner(self, address: int) -> int:
        """The number of the GPU whose memory an address lies in; raises EngineError for what is no GPU's."""
        attribute = self._driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        return int(
            self._check("find whose memory that is", self._driver.cuPointerGetAttribute(attribute, address))
        )

    def pinned(self, nbytes: int) -> Array:
        """Bytes on the host that the GPU reads and writes directly: (nbytes,) uint8."""
        address = self._check(f"pin {nbytes} bytes of memory", self._driver.cuMemHostAlloc(nbytes, 0))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(int(address)))
        free = functools.partial(self._driver.cuMemFreeHost, address)
        weakref.finalize(array, self._given_back.add, free).atexit = False
        return array

    def load(self, cubin: bytes, function: str, types: Sequence[CType], threads: int, shared: int) -> Kernel:
        """A kernel of a cubin for this GPU, as long as the device is there; ``types``, of its arguments, are those of ctypes.

        A turn of its own.
        """
        driver = self._driver
        with self.turn():
            module = self._check("load a kernel", driver.cuModuleLoadData(cubin))
            unload = functools.partial(driver.cuModuleUnload, module)
            # The last is called first: no kernel runs any more when its module goes, and no recording has it.
            self._ends += [unload, functools.partial(driver.cuStreamSynchronize, self._stream)]
            found = self._check("find a kernel", driver.cuModuleGetFunction(module, function.encode()))
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._check("give a kernel memory", driver.cuFuncSetAttribute(found, attribute, shared))
        return Kernel(found, tuple(types), threads, shared)

    def run(self, kernel: Kernel, blocks: int, arguments: Sequence[int]) -> None:
        """Queue a kernel on ``arguments``: addresses and numbers; 0 for those that are left out."""
        given = [*arguments, *[0] * (len(kernel.types) - len(arguments))]
        values = [type_(value) for type_, value in zip(kernel.types, given, strict=True)]
        places = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        call = self._driver.cuLaunchKernel(
            kernel.function, blocks, 1, 1, kernel.threads, 1, 1, kernel.shared, self._stream, ctypes.addressof(places), 0
        )  # fmt: skip
        self._check("run a kernel", call)

    def upload(self, address: int, source: Array) -> None:
        """Queue a copy of pinned bytes to the device."""
        call = self._driver.cuMemcpyHtoDAsync(address, source.ctypes.data, source.nbytes, self._stream)
        self._check("copy to the GPU", call)

    def download(self, target: Array, address: int) -> None:
        """Queue a copy of a device's bytes to pinned ones."""
        call = self._driver.cuMemcpyDtoHAsync(target.ctypes.data, address, target.nbytes, self._stream)
        self._check("copy from the GPU", call)

    def copy(self, target: Block, source: Block, width: int, height: int, depth: int) -> None:
        """Queue a copy on the device: ``width`` bytes, a pitch at most, of ``height`` rows of ``depth`` slices."""
        parameters = self._driver.CUDA_MEMCPY3D()
        parameters.srcMemoryType = parameters.dstMemoryType = self._driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        parameters.srcDevice, parameters.srcPitch, parameters.srcHeight = (
            source.address,
            source.pitch,
            source.height,
        )
        parameters.dstDevice, parameters.dstPitch, parameters.dstHeight = (
            target.address,
            target.pitch,
            target.height,
        )
        parameters.WidthInBytes, parameters.Height, parameters.Depth = width, height, depth
        self._check("copy on the GPU", self._driver.cuMemcpy3DAsync(parameters, self._stream))

    def record(self, work: Callable[[], Any]) -> Recording:
        """What ``work`` queues, to be launched; nothing is run. Raises EngineError where it cannot be recorded."""
        driver, mode = self._driver, self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._check("record", driver.cuStreamBeginCapture(self._stream, mode))
        try:
            work()
        except BaseException:  # what was begun is ended, whatever happened
            error, graph = driver.cuStreamEndCapture(self._stream)
            if error == driver.CUresult.CUDA_SUCCESS:
                driver.cuGraphDestroy(graph)
            raise
        graph = self._check("end a recording", driver.cuStreamEndCapture(self._stream))
        made = driver.cuGraphInstantiate(graph, 0)
        self._check("forget a graph", driver.cuGraphDestroy(graph))
        return Recording(self._check("prepare a recording", made), self._forget)

    def _forget(self, graph: Any) -> None:
        self._given_back.add(functools.partial(self._driver.cuGraphExecDestroy, graph))

    def launch(self, recording: Recording) -> None:
        """Queue what was recorded."""
        self._check("launch a graph", self._driver.cuGraphLaunch(recording.graph, self._stream))

    def synchronize(self) -> None:
        """Wait for all that is queued."""
        self._check("run on the GPU", self._driver.cuStreamSynchronize(self._stream))

    def _check(self, what: str, answer: tuple[Any, ...]) -> Any:
        """The answer of a call of the driver; raises EngineError for an error."""
        error, *values = answer
        if error != self._driver.CUresult.CUDA_SUCCESS:
            raise EngineError(f"the GPU could not {what}: {name_of(error)}. See tortoise-rt doctor")
        return values[0] if len(values) == 1 else tuple(values)


def no_such_gpu(number: int, there: Sequence[str]) -> EngineError:
    """The error for a GPU that is not there; ``there``: the names of those that are."""
    names = ", ".join(f"cuda:{n} ({name})" for n, name in enumerate(there))
    return EngineError(f"there is no cuda:{number} here. Available: {names or 'no NVIDIA GPU'}")


def out_of_memory(nbytes: int, what: str, device: str, free: int, total: int) -> EngineError:
    """The error for memory that a device does not have."""
    return EngineError(
        f"{device} has {free >> 20} of {total >> 20} MiB free; {what} needs {-(-nbytes >> 20)} MiB more: draw fewer "
        "samples at a time (--batch-rows), serve fewer requests at once, or end other programs on the GPU"
    )


def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError:
        raise MissingDependency(
            "TensorRT engines need cuda-bindings, which is not installed: pip install 'tortoise-rt[tensorrt-rtx]'"
        ) from None
    return driver
