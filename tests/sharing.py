"""Other libraries on a fake GPU: arrays that they share, and take."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import numpy as np
from fake_driver import FakeDriver
from fake_memory import view

from tortoise_rt.backends import dlpack
from tortoise_rt.backends.exchange import DeviceArray
from tortoise_rt.engine import Array


class Library:
    """Another library on one GPU: its calls are queued on a stream of its own, which nobody has waited for."""

    def __init__(self, driver: FakeDriver, number: int = 0, stream: int | None = None) -> None:
        self.driver, self.gpu = driver, driver.gpus[number]
        driver.cuCtxPushCurrent(self.gpu)
        self.stream = stream or driver.cuStreamCreate(0)[1]
        driver.cuCtxPopCurrent()

    def put(self, array: Array, before: int = 0) -> int:
        """-> where a copy of an array will lie, ``before`` bytes behind the beginning of its memory."""
        self.driver.cuCtxPushCurrent(self.gpu)
        base = self.driver.cuMemAllocAsync(array.nbytes + before, self.stream)[1]
        self.driver.cuCtxPopCurrent()
        kept, address = array.copy(), base + before
        place = view(address, (array.nbytes,), np.uint8)
        self.gpu.touch(
            self.stream,
            [(address, array.nbytes)],
            lambda: np.copyto(place, np.frombuffer(kept.tobytes(), np.uint8)),
        )
        return address

    def free(self, address: int) -> None:
        self.driver.cuCtxPushCurrent(self.gpu)
        self.driver.cuMemFreeAsync(address, self.stream)
        self.driver.cuCtxPopCurrent()

    def get(self, array: DeviceArray) -> Array:
        """An array that will hold a copy, once the stream is waited for."""
        said = array.__cuda_array_interface__
        assert said["version"] == 3 and said["strides"] is None and said["typestr"] == "<f4"
        address, nbytes = said["data"][0], 4 * int(np.prod(said["shape"]))
        found = np.full(said["shape"], -1, np.float32)
        self.gpu.touch(
            self.stream, [(address, nbytes)], lambda: np.copyto(found, view(address, found.shape, np.float32))
        )
        return found

    def wait(self) -> None:
        self.driver.cuCtxPushCurrent(self.gpu)
        self.driver.cuStreamSynchronize(self.stream)
        self.driver.cuCtxPopCurrent()


class Interface:
    """An array that shares by ``__cuda_array_interface__``."""

    def __init__(self, address: int, array: Array, **more: Any) -> None:
        typestr = array.dtype.str
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": typestr, "data": (address, False), "version": 3, **more,
        }  # fmt: skip


class Capsule:
    """An array that shares by DLPack; its capsule is NumPy's."""

    def __init__(self, address: int, array: Array) -> None:
        self.memory = view(address, array.shape, array.dtype)
        self.asked: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, 0

    def __dlpack__(self, *, stream: int) -> Any:
        self.asked.append(stream)
        return self.memory.__dlpack__()


class Unwilling(Capsule):
    """An array whose library raises an error of its own."""

    def __init__(self, address: int, array: Array, error: Exception) -> None:
        super().__init__(address, array)
        self.error = error

    def __dlpack__(self, *, stream: int) -> Any:
        raise self.error


class Taken(Interface):
    """As pycuda's array of memory that another holds."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, base: Any, gpudata: int) -> None:
        super().__init__(gpudata, np.empty(shape, dtype))
        self.base = base


def stand_ins(driver: FakeDriver) -> dict[str, Any]:
    """As much of torch and pycuda as the guide uses, on the fake GPU."""
    library = Library(driver)
    stream = SimpleNamespace(cuda_stream=library.stream, handle=library.stream)
    rng = np.random.default_rng(7)

    def tensor(array: Array, device: str) -> Capsule:
        assert device == "cuda"
        return Capsule(library.put(array), array)

    torch = SimpleNamespace(
        cuda=SimpleNamespace(Stream=lambda: stream, stream=contextlib.nullcontext),
        zeros=lambda shape, device: tensor(np.zeros(shape, np.float32), device),
        randn=lambda shape, device: tensor(rng.standard_normal(shape).astype(np.float32), device),
        from_dlpack=lambda array: dlpack.opened(array.__dlpack__(stream=library.stream)),
    )
    gpuarray = SimpleNamespace(
        to_gpu_async=lambda array, stream: Interface(library.put(array), array, stream=None), GPUArray=Taken
    )
    driver_module = SimpleNamespace(Stream=lambda: stream)
    pycuda = SimpleNamespace(autoprimaryctx=None, driver=driver_module, gpuarray=gpuarray)
    return {
        "torch": torch, "pycuda": pycuda, "pycuda.autoprimaryctx": pycuda, "pycuda.driver": driver_module,
        "pycuda.gpuarray": gpuarray, "library": library,
    }  # fmt: skip
