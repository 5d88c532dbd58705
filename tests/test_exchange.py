"""Arrays on a GPU of NumPy that go to and fro between the engine and another library, on streams of both."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

import torch
from fake_driver import FakeDriver
from fake_gpu import make_engine
from fake_memory import LEGACY, Gpu, view
from sharing import Capsule, Interface, Library, Unwilling, stand_ins
from test_guide import SECTIONS

from tortoise_rt import backends
from tortoise_rt.backends import dlpack
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.backends.tensorrt import TensorRTEngine
from tortoise_rt.engine import Array, Engine, EngineInfo
from tortoise_rt.errors import EngineError
from tortoise_rt.export.parity import random_inputs, relative_error
from tortoise_rt.spec import GRAPHS


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver(count=2)


@pytest.fixture
def engine(standard_graphs: EngineInfo, driver: FakeDriver) -> TensorRTEngine:
    return make_engine(standard_graphs, driver=driver)


def given(engine: Engine, graph: str, frames: int = 20, seed: int = 0) -> dict[str, Array]:
    sizes = {"rows": 2, "frames": frames, "codes": 5}
    return random_inputs(GRAPHS[graph], engine.dims, sizes, np.random.default_rng(seed))


@pytest.mark.parametrize("way", [Interface, Capsule])
@pytest.mark.parametrize("before", [0, 12])  # aligned as plans want it, and not
@pytest.mark.parametrize("first", ["caller", "engine"])  # whose stream runs
def test_arrays_of_a_stream_come_and_go_without_the_host(
    engine: TensorRTEngine, plain: Engine, driver: FakeDriver, way: Any, before: int, first: str
) -> None:
    """Inputs are still to be written when the engine is called; outputs still to be computed when they are read."""
    inputs, gpu = given(engine, "univnet"), driver.gpus[0]
    engine.run("univnet", **inputs)  # memory has grown
    library = Library(driver)
    places = {name: library.put(array, before) for name, array in inputs.items()}
    arrays = {name: way(place, inputs[name]) for name, place in places.items()}
    waited = gpu.waited
    (wav,) = engine.run_on_device("univnet", stream=library.stream, **arrays)
    for place in places.values():
        library.free(place - before)
    found = library.get(wav)
    assert gpu.waited == waited and (found == -1).all()
    if first == "engine":
        with engine._device.turn():
            engine._device.synchronize()
    library.wait()
    assert relative_error(found, plain.run("univnet", **inputs)[0]) <= 1e-6
    if way is Capsule:
        assert all(array.asked == [library.stream] for array in arrays.values())


def test_a_stream_that_an_array_names_is_waited_for(
    engine: TensorRTEngine, plain: Engine, driver: FakeDriver
) -> None:
    """And waits, so that its library may use the memory for something else."""
    inputs = given(engine, "diffusion_denoise")
    library = Library(driver)
    place = library.put(inputs["x"])
    x = Interface(place, inputs["x"], stream=library.stream, strides=inputs["x"].strides)
    (out,) = engine.run_on_device("diffusion_denoise", **{**inputs, "x": x})
    library.free(place)
    library.wait()
    assert out.stream == LEGACY
    assert relative_error(out.numpy(), plain.run("diffusion_denoise", **inputs)[0]) <= 1e-6


def test_stages_pass_arrays_on(engine: TensorRTEngine, plain: Engine, driver: FakeDriver) -> None:
    """What one graph gives the next takes, where it lies; arrays of the host may be among them."""
    aligned, step = given(engine, "diffusion_condition"), given(engine, "diffusion_denoise", seed=1)
    del step["condition"]
    gpu = driver.gpus[0]
    for stream in (0, 1):  # two names of the default stream
        (condition,) = engine.run_on_device("diffusion_condition", stream=stream, **aligned)
        waited = gpu.waited
        (out,) = engine.run_on_device("diffusion_denoise", condition=condition, **step)
        if stream:  # else memory grows
            assert gpu.waited == waited + 1  # x and timestep are read
        wanted = plain.run(
            "diffusion_denoise", condition=plain.run("diffusion_condition", **aligned)[0], **step
        )[0]
        assert relative_error(out.numpy(), wanted) <= 1e-5


def test_what_says_what_is_computed_stays_on_the_host(
    engine: TensorRTEngine, plain: Engine, driver: FakeDriver
) -> None:
    inputs, library = given(engine, "hifigan"), Library(driver)
    inputs["wanted"] = np.array([2, 7])
    arrays = {
        name: Interface(library.put(array), array) if name != "wanted" else array
        for name, array in inputs.items()
    }
    (wav,) = engine.run_on_device("hifigan", stream=library.stream, **arrays)
    del arrays
    found = library.get(wav)
    library.wait()
    assert relative_error(found, plain.run("hifigan", **inputs)[0]) <= 1e-6


def test_memory_is_free_once_its_reader_has_read(
    engine: TensorRTEngine, plain: Engine, driver: FakeDriver
) -> None:
    """The array is dropped, and its memory in use again, while the reader's work is still queued."""
    gpu, library = driver.gpus[0], Library(driver)
    gpu.reuses = True
    inputs = given(engine, "univnet")
    (wav,) = engine.run_on_device("univnet", stream=library.stream, **inputs)
    found, room = library.get(wav), gpu.room
    address = wav.memory.address
    del wav
    with engine._device.turn():
        assert gpu.room > room
    (again,) = engine.run_on_device("univnet", **given(engine, "univnet", seed=1))
    assert again.memory.address == address
    again.numpy()  # the engine's own stream has run
    library.wait()
    assert relative_error(found, plain.run("univnet", **inputs)[0]) <= 1e-6


def test_a_plan_ends_behind_what_it_runs(engine: TensorRTEngine, standard_graphs: EngineInfo) -> None:
    """Released, or dropped with its engine, while nobody has waited for the output."""
    noise = np.ones((1, engine.dims["rlg_auto.dim"]), np.float32)
    wanted = engine.run("rlg_auto", noise=noise)[0]
    (released,) = engine.run_on_device("rlg_auto", noise=noise)
    engine.release("rlg_auto")
    (dropped,) = make_engine(standard_graphs).run_on_device("rlg_auto", noise=noise)
    for latent in (released, dropped):
        np.testing.assert_array_equal(latent.numpy(), wanted)


def test_the_host_sees_what_a_library_has_changed(engine: TensorRTEngine, driver: FakeDriver) -> None:
    noise, library = np.ones((1, engine.dims["rlg_auto.dim"]), np.float32), Library(driver)
    (latent,) = engine.run_on_device("rlg_auto", stream=library.stream, noise=noise)
    place = latent.memory.address, latent.memory.nbytes
    array = view(place[0], latent.shape, np.float32)
    library.gpu.touch(library.stream, [place], lambda: array.__iadd__(1))
    np.testing.assert_array_equal(latent.numpy(), engine.run("rlg_auto", noise=noise)[0] + 1)


def test_numpy_gets_a_copy(engine: TensorRTEngine) -> None:
    noise = np.ones((1, engine.dims["rlg_auto.dim"]), np.float32)
    wanted = engine.run("rlg_auto", noise=noise)[0]
    (latent,) = engine.run_on_device("rlg_auto", noise=noise)
    for dtype in (None, np.float32, np.float64):
        found = np.asarray(latent, dtype)
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == (dtype or np.float32)
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        with pytest.raises(ValueError, match="lies on a GPU"):
            np.asarray(latent, copy=False)


# --- DLPack ---


@pytest.fixture
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory of the fake GPU is the host's: NumPy takes it, if it is called so."""
    monkeypatch.setattr(dlpack, "CUDA", 1)
    yield


def test_numpy_takes_a_capsule(engine: TensorRTEngine, driver: FakeDriver, on_the_host: None) -> None:
    """And holds the memory until it is done with it."""
    gpu: Gpu = driver.gpus[0]
    noise = np.ones((1, engine.dims["rlg_auto.dim"]), np.float32)
    wanted = engine.run("rlg_auto", noise=noise)[0]
    room = engine._device.room  # type: ignore[attr-defined]
    (latent,) = engine.run_on_device("rlg_auto", noise=noise.tolist())
    taken = np.from_dlpack(latent)  # type: ignore[arg-type]
    latent.numpy()  # waited for
    np.testing.assert_array_equal(taken, wanted)
    untaken = latent.__dlpack__(stream=-1)
    del latent
    gc.collect()
    assert engine._device.room < room  # type: ignore[attr-defined]
    np.testing.assert_array_equal(taken, wanted)
    del taken
    assert engine._device.room < room  # type: ignore[attr-defined]
    del untaken
    assert engine._device.room == room and not dlpack._lent  # type: ignore[attr-defined]
    assert gpu.room == room


def test_who_refuses_a_capsule_keeps_nothing(
    engine: TensorRTEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """NumPy takes no array of a GPU. It drops the capsule with an error pending, which is logged."""
    noise = np.ones((1, engine.dims["rlg_auto.dim"]), np.float32)
    engine.run("rlg_auto", noise=noise)  # memory has grown
    room = engine._device.room  # type: ignore[attr-defined]
    (latent,) = engine.run_on_device("rlg_auto", noise=noise)
    with pytest.raises(SystemError):  # as its own has gone
        np.from_dlpack(latent)  # type: ignore[arg-type]
    assert len(caplog.messages) == 1 and "evice" in caplog.messages[0]
    assert caplog.messages[0].endswith("NumPy takes array.numpy()")
    del latent
    gc.collect()
    assert engine._device.room == room and not dlpack._lent  # type: ignore[attr-defined]


def test_a_capsule_is_for_the_stream_that_asks(engine: TensorRTEngine, driver: FakeDriver) -> None:
    library, other = Library(driver), Library(driver)
    noise = np.ones((1, engine.dims["rlg_auto.dim"]), np.float32)
    wanted = engine.run("rlg_auto", noise=noise)[0]
    (latent,) = engine.run_on_device("rlg_auto", stream=library.stream, noise=noise)
    assert latent.__dlpack_device__() == (2, 0)
    capsule = latent.__dlpack__(stream=other.stream, max_version=(1, 0), dl_device=(2, 0))
    found = other.get(latent)
    other.wait()
    np.testing.assert_array_equal(found, wanted)
    opened = dlpack.opened(capsule)
    assert opened == (latent.memory.address, wanted.shape, np.float32, None)
    for refused in (dict(copy=True), dict(dl_device=(1, 0)), dict(dl_device=(2, 1))):
        with pytest.raises(BufferError, match="shared where it is"):
            latent.__dlpack__(**refused)  # type: ignore[arg-type]


def test_arrays_may_outlive_everything(on_the_host: None) -> None:
    """Python ends while another library holds an array, and another nobody has taken."""
    program = """
import numpy as np
from tortoise_rt.backends import dlpack
class Shared:
    def __dlpack_device__(self): return (1, 0)
    def __dlpack__(self, **given): return dlpack.capsule(memory.ctypes.data, (2, 3), 0, memory)
dlpack.CUDA = 1
memory = np.arange(6, dtype=np.float32)
taken, untaken = np.from_dlpack(Shared()), Shared().__dlpack__()
assert taken.tolist() == [[0, 1, 2], [3, 4, 5]]
import builtins
builtins.kept = taken, untaken
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# --- the guide's programs ---


@pytest.mark.parametrize("number", [0, 1])
def test_the_guide_s_programs(
    engine: TensorRTEngine, plain: Engine, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    program = [block.text for block in SECTIONS["Arrays on a GPU"] if block.kind == "py"][number]
    modules = stand_ins(driver)
    library = modules.pop("library")
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(backends, "open_engine", lambda path: engine)
    made: dict[str, Any] = {}
    exec(program, made)
    found = library.get(made["wav"])
    library.wait()
    rng = np.random.default_rng(7 if number == 0 else 0)
    noise = rng.standard_normal((1, 64, 94)).astype(np.float32)
    wanted = plain.run("univnet", mel=np.zeros((1, 100, 94), np.float32), noise=noise)[0]
    assert wanted.shape == (1, 24064) and relative_error(found, wanted) <= 1e-6
    if number == 0:
        assert made["sound"][:2] == (made["wav"].memory.address, (1, 24064))
    else:
        assert made["sound"].__cuda_array_interface__["data"][0] == made["wav"].memory.address
        np.testing.assert_array_equal(made["heard"], found)


# --- what is refused ---


def test_what_cannot_be_shared_is_refused(engine: TensorRTEngine, driver: FakeDriver) -> None:
    inputs = given(engine, "univnet")
    here, there = Library(driver), Library(driver, 1)
    mel, noise = inputs["mel"], inputs["noise"]
    wide = np.zeros((2, 100, 40), np.float32)
    address = here.put(wide)
    refused: list[tuple[Any, str]] = [
        (Interface(there.put(mel), mel), "mel lies on cuda:1, the engine on cuda:0: copy it there"),
        (Interface(here.put(mel.astype("f8")), mel.astype("f8")), "mel must be float32, not float64"),
        (Interface(address, mel, strides=wide.strides), "mel must lie in C order without gaps: make it contiguous"),
        (Interface(mel.ctypes.data, mel), "could not find whose memory that is: CUDA_ERROR_INVALID_VALUE"),
        (Interface(address, mel, mask=1), "an array with a mask cannot be shared"),
        (Interface(address, mel[:, :50]), r"mel has 50 100 where the model has 100 \(shape \(2, 50, 20\)\)"),
        (Capsule(address, np.zeros((2, 100, 20), np.complex64)), "an array of this type cannot be shared"),
        (mel.astype(int), "mel must be .*float32.*, not int64"),
    ]  # fmt: skip
    for wrong, message in refused:
        with pytest.raises(EngineError, match=message):
            engine.run_on_device("univnet", mel=wrong, noise=noise)
    for error in (BufferError("Can't export tensors that require gradient"), TypeError("no stream, please")):
        message = f"mel is not shared by its library: {type(error).__name__}: {error}. Give a plain array"
        with pytest.raises(EngineError, match=re.escape(message)):
            engine.run_on_device("univnet", mel=Unwilling(address, mel, error), noise=noise)
    tracked = torch.zeros(mel.shape, requires_grad=True)  # on the host
    with pytest.raises(EngineError, match="mel is not shared by its library: RuntimeError: .*requires grad"):
        engine.run_on_device("univnet", mel=tracked, noise=noise)
    wanted = np.array([0, 3])
    with pytest.raises(EngineError, match="wanted says what is computed: give an array of the host"):
        engine.run_on_device(
            "hifigan", **given(engine, "hifigan") | {"wanted": Interface(here.put(wanted), wanted)}
        )
    with pytest.raises(EngineError, match="extends a cache"):
        engine.run_on_device("ar_step")
    long = np.zeros((1, 100, 500), np.float32)
    with pytest.raises(EngineError, match="was built for at most mel"):
        engine.run_on_device("univnet", mel=long, noise=long[:, :64])
    with pytest.raises(EngineError, match="the fake backend keeps arrays on the host: call run()"):
        FakeEngine().run_on_device("rlg_auto", noise=np.zeros((1, 16), np.float32))
    assert driver._current is None
    assert engine.run_on_device("univnet", **inputs)[0].shape == engine.run("univnet", **inputs)[0].shape
