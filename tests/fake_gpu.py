"""A GPU and a TensorRT of NumPy and ONNX Runtime: what the runner asks of them, on memory of the host.

Plans are the graphs of standard operators that plans would be built from. A recording keeps the addresses that it was
made with, and nothing runs while it is made.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tortoise_rt.backends.device import Block, Memory, Recording, out_of_memory
from tortoise_rt.engine import Array
from tortoise_rt.errors import EngineError
from tortoise_rt.profiles import profiles
from tortoise_rt.spec import Dims

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


def view(address: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of what lies at an address."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not nbytes:
        return np.zeros(shape, dtype)
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address)).view(dtype).reshape(shape)


class FakeDevice:
    """As ``device.Device``; ``room`` bytes can be allocated."""

    number, stream = 0, 7
    name, compute_capability, driver = "Fake GPU", "8.9", "CUDA 13.0"

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = self.total = room
        self.launched = 0
        self._held: dict[int, Array] = {}
        self._recording: list[Callable[[], None]] | None = None

    def use(self) -> None:
        pass

    def allocate(self, nbytes: int, what: str) -> Memory:
        assert self._recording is None
        if nbytes > self.room:
            raise out_of_memory(nbytes, what, "cuda:0", self.room, self.total)
        array = np.zeros(max(nbytes, 1), np.uint8)
        self.room -= array.nbytes
        self._held[array.ctypes.data] = array
        return Memory(array.ctypes.data, array.nbytes, self._free)

    def _free(self, address: int) -> None:
        self.room += self._held.pop(address).nbytes

    def pinned(self, nbytes: int) -> Array:
        return np.zeros(nbytes, np.uint8)

    def upload(self, address: int, source: Array) -> None:
        self._inside(address, source.nbytes)
        view(address, source.shape, np.uint8)[:] = source

    def download(self, target: Array, address: int) -> None:
        self._inside(address, target.nbytes)
        target[:] = view(address, target.shape, np.uint8)

    def copy(self, target: Block, source: Block, width: int, height: int, depth: int) -> None:
        for slice_ in range(depth):
            for row in range(height):
                to, origin = (
                    block.address + (slice_ * block.height + row) * block.pitch for block in (target, source)
                )
                self._inside(to, width)
                self._inside(origin, width)
                ctypes.memmove(to, origin, width)

    def _inside(self, address: int, nbytes: int) -> None:
        """Every copy must lie within one allocation."""
        assert any(
            base <= address and address + nbytes <= base + array.nbytes for base, array in self._held.items()
        )

    def record(self, work: Callable[[], None]) -> Recording | None:
        self._recording = []
        try:
            work()
        except EngineError:
            self._recording = None
            return None
        recorded, self._recording = self._recording, None
        return Recording(recorded, lambda graph: None)

    def launch(self, recording: Recording) -> None:
        self.launched += 1
        for work in recording.graph:
            work()

    def queue(self, work: Callable[[], None]) -> None:
        """What a context does: at once, or later if it is being recorded."""
        if self._recording is None:
            work()
        else:
            self._recording.append(work)

    def synchronize(self) -> None:
        assert self._recording is None


class FakeLibrary:
    """As the module ``tensorrt``, as far as plans are run; ``folder`` is where they lie."""

    __name__, __version__ = "tensorrt_rtx", "1.7.0"
    TensorIOMode = SimpleNamespace(INPUT=0, OUTPUT=1)
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=2)

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3)

    def __init__(self, folder: Path, dims: Dims, device: FakeDevice) -> None:
        self.folder, self.dims, self.device = folder, dims, device

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(
            deserialize_cuda_engine=lambda plan: FakePlan(self, plan, logger) if plan != b"bad" else None
        )


class FakePlan:
    """As ICudaEngine."""

    def __init__(self, library: FakeLibrary, plan: bytes, logger: Any) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(library.folder)
        )
        self.session = onnxruntime.InferenceSession(plan, options, providers=["CPUExecutionProvider"])
        self.graph = self.session.get_modelmeta().graph_name
        self.device, self.logger = library.device, logger
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}
        self.ranges = profiles(self.graph, library.dims)
        self.num_io_tensors = len(self.inputs) + len(self.outputs)
        self.num_optimization_profiles = len(self.ranges)

    def get_tensor_name(self, number: int) -> str:
        return [*self.inputs, *self.outputs][number]

    def get_tensor_mode(self, name: str) -> int:
        return 0 if name in self.inputs else 1

    def is_shape_inference_io(self, name: str) -> bool:
        return name == "wanted"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = (self.inputs | self.outputs)[name].shape
        return tuple(size if isinstance(size, int) else -1 for size in shape)

    def get_tensor_profile_shape(self, name: str, number: int) -> list[tuple[int, ...]]:
        ranges = self.ranges[number]
        return [
            tuple(size if isinstance(size, int) else ranges[size][bound] for size in self.inputs[name].shape)
            for bound in range(3)
        ]

    def get_device_memory_size_for_profile_v2(self, number: int) -> int:
        return 1000 * (number + 1)

    def create_execution_context(self, strategy: int) -> FakeContext:
        assert strategy == 2
        return FakeContext(self)


class FakeContext:
    """As IExecutionContext."""

    def __init__(self, plan: FakePlan) -> None:
        self.plan, self.profile = plan, -1
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.memory = 0

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        self.profile = number
        return stream == FakeDevice.stream

    def set_device_memory(self, address: int, nbytes: int) -> None:
        assert nbytes >= self.plan.get_device_memory_size_for_profile_v2(self.profile)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.plan.get_tensor_profile_shape(name, self.profile)
        self.shapes[name] = shape
        return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.plan.inputs or name in self.plan.outputs

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._results(dict(self.addresses))[name].shape

    def execute_async_v3(self, stream: int) -> bool:
        assert set(self.addresses) == {*self.plan.inputs, *self.plan.outputs}
        for name in self.plan.inputs:  # as plans do: the cache is one
            if name.startswith(("key_", "value_")):
                assert self.addresses[name] == self.addresses[f"new_{name}"]
        addresses, shapes = dict(self.addresses), dict(self.shapes)

        def work() -> None:
            for name, array in self._results(addresses, shapes).items():
                view(addresses[name], array.shape, array.dtype)[:] = array

        self.plan.device.queue(work)
        return True

    def _results(
        self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]] | None = None
    ) -> dict[str, Array]:
        shapes = shapes or self.shapes
        given = {
            name: view(addresses[name], shapes[name], TYPES[value.type])
            for name, value in self.plan.inputs.items()
        }
        outputs = list(self.plan.outputs)
        return dict(zip(outputs, self.plan.session.run(outputs, given), strict=True))
