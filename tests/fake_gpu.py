"""A GPU and a TensorRT of NumPy and ONNX Runtime: what the runner asks of them, on memory of the host.

Plans are the graphs of standard operators that plans would be built from, and kernels their references in NumPy.
"""

from __future__ import annotations

import ast
import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from fake_driver import FakeDriver
from fake_memory import Gpu, Stream, view

from tortoise_rt.backends.cubins import WARP, argument_types
from tortoise_rt.backends.device import Device, Kernel
from tortoise_rt.backends.tensorrt import TensorRTEngine
from tortoise_rt.config import ARSettings
from tortoise_rt.engine import Array, EngineInfo
from tortoise_rt.kernels import ahead
from tortoise_rt.profiles import profiles
from tortoise_rt.samplers import DenoisingStep, Update
from tortoise_rt.sampling import Drawing, penalize
from tortoise_rt.spec import GRAPHS, MELS, Dims

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class FakeDevice(Device):
    """One GPU of a driver of NumPy; ``room`` bytes can be allocated."""

    def __init__(self, room: int = 1 << 30, number: int = 0, driver: FakeDriver | None = None) -> None:
        made = driver or FakeDriver(room)
        super().__init__(number, made)
        self.gpu = made.gpus[number]

    @property
    def room(self) -> int:
        """Bytes that are left."""
        with self.turn():  # which frees what was given back
            return self.gpu.room

    @property
    def launched(self) -> int:
        return self.gpu.launched


# --- kernels ---


def arguments_of(kernel: ahead.Carried) -> list[str]:
    """The arguments of a kernel by its source, without those that are compiled in."""
    path = Path(ahead.__file__).with_name(f"{kernel.module}.py")
    functions = {f.name: f for f in ast.parse(path.read_text()).body if isinstance(f, ast.FunctionDef)}
    return [arg.arg for arg in functions[kernel.function].args.args if arg.annotation is None]


def fake_kernels(device: FakeDevice, driver: FakeDriver, dims: Dims) -> dict[str, Kernel]:
    """All that a bundle would carry, loaded; in place of what was compiled, references in NumPy."""
    made = {}
    for name, kernel in ahead.carried(dims).items():
        driver.kernels[name.encode()] = made_of(kernel, FUNCTIONS[name])
        made[name] = device.load(
            name.encode(), kernel.function, argument_types(kernel, 2), kernel.warps * WARP, 16
        )
    return made


def made_of(kernel: ahead.Carried, function: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """A kernel as the driver launches it: arguments are read where the real one would read them, in the source's order."""
    names = arguments_of(kernel)
    assert names == list(kernel.arguments)

    def launch(gpu: Gpu, blocks: int, places: int) -> Callable[[], None]:
        addresses = (ctypes.c_uint64 * (len(names) + 2)).from_address(places)
        given = {}
        for name, address in zip(names, addresses, strict=False):
            type_ = ctypes.c_int32 if kernel.arguments[name] == "i32" else ctypes.c_uint64
            given[name] = type_.from_address(address).value
            assert given[name] % kernel.multiples.get(name, 1) == 0, (
                "a kernel was compiled for rounder numbers"
            )
        assert [ctypes.c_uint64.from_address(address).value for address in addresses[len(names) :]] == [0, 0]

        def see(name: str, shape: tuple[int, ...], dtype: Any) -> Array:
            gpu.lives((given[name], int(np.prod(shape)) * np.dtype(dtype).itemsize))
            return view(given[name], shape, dtype)

        return lambda: function(SimpleNamespace(**kernel.constants), given, see, blocks)

    return launch


def settings_of(row: Array) -> ARSettings:
    penalty, temperature, k, left_out, mass, greedy = row
    return ARSettings(
        repetition_penalty=penalty,
        temperature=temperature,
        top_k=int(k),
        top_p=1 - left_out if left_out >= 0 else 1.0,
        typical=mass > 0,
        typical_mass=float(np.nextafter(mass, 1)) if mass > 0 else 0.9,
        greedy=bool(greedy),
    )


def gather(c: Any, given: dict[str, int], see: Any, rows: int) -> None:
    counts, scores = see("counts", (rows,), np.int32), see("scores", (rows, c.FEW), np.float32)
    ids, lengths = see("ids", (rows, c.FEW), np.int32), see("steps", (rows,), np.int64)
    logits = see("logits", (rows, given["stride"]), np.float32)[:, : c.VOCABULARY]
    seen = see("seen", (rows, c.VOCABULARY), np.bool_)
    numbers = see("numbers", (rows, c.SETTINGS + c.MOST), np.float64)
    counts[:] = 0
    for row in np.flatnonzero((lengths >= 0) & np.isfinite(logits).all(axis=1)):
        settings = settings_of(numbers[row, : c.SETTINGS])
        if 0 < settings.top_k <= c.FEW // 2 and not settings.typical and not settings.greedy:
            score = penalize(logits[row], seen[row], settings.repetition_penalty)
            kept = np.flatnonzero(score >= np.sort(score)[-settings.top_k])
            if len(kept) <= c.FEW:
                counts[row] = len(kept)
                scores[row, : len(kept)], ids[row, : len(kept)] = score[kept], kept


def draw_among_few(c: Any, given: dict[str, int], see: Any, rows: int) -> None:
    counts, scores = see("counts", (rows,), np.int32), see("scores", (rows, c.FEW), np.float32)
    ids = see("ids", (rows, c.FEW), np.int32)
    logits = np.full((rows, c.VOCABULARY), -1e30, np.float32)
    for row, count in enumerate(counts):
        logits[row, ids[row, :count]] = scores[row, :count]
    draw_rows(c, given, see, logits, counts > 0, penalty=1.0)


def draw_among_all(c: Any, given: dict[str, int], see: Any, rows: int) -> None:
    logits = see("logits", (rows, given["stride"]), np.float32)[:, : c.VOCABULARY]
    draw_rows(c, given, see, logits, see("counts", (rows,), np.int32) == 0)


def draw_rows(
    c: Any, given: dict[str, int], see: Any, logits: Array, wanted: Array, penalty: float | None = None
) -> None:
    """A code for each row that is ``wanted``."""
    rows = len(logits)
    numbers = see("numbers", (rows, c.SETTINGS + c.MOST), np.float64)
    seen, drawn = see("seen", (rows, c.VOCABULARY), np.bool_), see("drawn", (rows, c.MOST), np.int64)
    steps = see("steps", (ahead.STEPS, given["rows"]), np.int64)
    drawings: list[Drawing | None] = []
    for row in range(rows):
        row_numbers = numbers[row].copy()
        row_numbers[0] = penalty or row_numbers[0]
        settings = settings_of(row_numbers[: c.SETTINGS]) if wanted[row] and steps[0, row] >= 0 else None
        drawings.append(settings and Drawing(seen[row], row_numbers[c.SETTINGS :], settings))
    ahead.draw_codes_ref(logits, drawings, steps, drawn, c.START, c.STOP)


def update(c: Any, given: dict[str, int], see: Any, blocks: int) -> None:
    frames = given["size"] // MELS
    assert given["size"] == frames * MELS and blocks == -(-given["size"] // c.BLOCK)
    x, last, noise, free = (
        see(name, (1, MELS, frames), np.float32) for name in ("x", "last", "noise", "free")
    )
    out = see("out", (1, 2 * MELS, frames), np.float32)
    k, recip, recipm1, *weights = see("numbers", (ahead.NUMBERS,), np.float32).tolist()
    step = DenoisingStep(0, k if c.GUIDED else None, recip, recipm1, Update(*weights))
    if c.GUIDED:
        out = np.concatenate([out, np.concatenate([free, free], axis=1)])
    ahead.denoising_update_ref(x, last, out, noise, step)


FUNCTIONS: dict[str, Callable[..., None]] = {
    "gather": gather,
    "draw_among_few": draw_among_few,
    "draw_among_all": draw_among_all,
    "update_guided": update,
    "update_free": update,
}


# --- plans ---


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
        self.types = {name: TYPES[value.type] for name, value in self.inputs.items()}
        self.shapes: dict[Any, dict[str, tuple[int, ...]]] = {}  #: of outputs, as they were found
        self.ranges = profiles(self.graph, library.dims)
        self.num_io_tensors = len(self.inputs) + len(self.outputs)
        self.num_optimization_profiles = len(self.ranges)

    @property
    def stream(self) -> Stream:
        return self.device.gpu.streams[self.device.stream]

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        outputs = list(self.outputs)
        return dict(zip(outputs, self.session.run(outputs, inputs), strict=True))

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
        self.scratch = 0, 0  #: address, bytes
        self.alive = [True]  #: empty behind its end

    def __del__(self) -> None:
        self.alive.clear()

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        self.profile = number
        return stream == self.plan.device.stream and self.plan.stream.recording is None

    def set_device_memory(self, address: int, nbytes: int) -> None:
        self.scratch = address, self.plan.get_device_memory_size_for_profile_v2(self.profile)
        assert nbytes >= self.scratch[1]

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.plan.get_tensor_profile_shape(name, self.profile)
        self.shapes[name] = shape
        return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        if name != "wanted":
            assert address % 256 == 0
        return name in self.plan.inputs or name in self.plan.outputs

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """By the shapes of inputs and the values of "wanted" alone: what is on the device may not be there yet."""
        wanted = self._wanted()
        key = tuple(self.shapes.items()), *(array.tobytes() for array in wanted.values())
        if key not in self.plan.shapes:
            empty = {n: np.zeros(shape, self.plan.types[n]) for n, shape in self.shapes.items()} | wanted
            self.plan.shapes[key] = {n: array.shape for n, array in self.plan.run(empty).items()}
        return self.plan.shapes[key][name]

    def _wanted(self) -> dict[str, Array]:
        """The values of the input that the host reads, when it is asked."""
        names = self.addresses.keys() & {"wanted"}
        return {n: view(self.addresses[n], self.shapes[n], self.plan.types[n]).copy() for n in names}

    def execute_async_v3(self, stream: int) -> bool:
        plan, scratch = self.plan, self.scratch
        assert set(self.addresses) == {*plan.inputs, *plan.outputs}
        for name in plan.inputs:  # as plans do: the cache is one
            if name.startswith(("key_", "value_")):
                assert self.addresses[name] == self.addresses[f"new_{name}"]
        addresses, shapes, wanted = dict(self.addresses), dict(self.shapes), self._wanted()
        places = [(addresses[n], 1) for n in addresses.keys() - wanted.keys()]

        def see(name: str, shape: tuple[int, ...], dtype: Any) -> Array:
            plan.device.gpu.lives((addresses[name], int(np.prod(shape)) * np.dtype(dtype).itemsize))
            return view(addresses[name], shape, dtype)

        alive = self.alive

        def work() -> None:
            assert alive, "a plan runs that is no more"
            view(scratch[0], scratch[1:], np.uint8).fill(0xFF)  # it is computed in
            device = {n: see(n, shapes[n], plan.types[n]) for n in plan.inputs.keys() - wanted.keys()}
            for name, array in plan.run(device | wanted).items():
                see(name, array.shape, array.dtype)[:] = array

        plan.device.gpu.touch(stream, [*places, scratch], work)
        return stream == plan.device.stream


def make_engine(
    info: EngineInfo,
    room: int = 1 << 30,
    ahead: bool = False,
    driver: FakeDriver | None = None,
    number: int = 0,
) -> TensorRTEngine:
    """An engine on plans of all graphs of ``write_standard``; ``ahead``: with the kernels of its loops."""
    folder, driver = Path(info.source), driver or FakeDriver(room)
    device = FakeDevice(number=number, driver=driver)
    files = {graph: f"{graph}.onnx" for graph in GRAPHS}
    info = replace(info, backend="tensorrt", device=f"cuda:{number}")
    kernels = fake_kernels(device, driver, info.dims) if ahead else None
    library = FakeLibrary(folder, info.dims, device)
    return TensorRTEngine(folder, info, files, library, device, kernels=kernels)


def device(engine: TensorRTEngine) -> FakeDevice:
    return engine._device  # type: ignore[return-value]
