"""Memory of a GPU of NumPy: what waits for whom before it is used again, how it grows, and when the system has it back."""

from __future__ import annotations

import functools
import gc
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from fake_driver import FakeDriver
from fake_gpu import FakePlan, device, make_engine
from fake_memory import LEGACY, CUresult, Pool
from sharing import Library

from tortoise_rt.backends.device import Device
from tortoise_rt.backends.tensorrt import TensorRTEngine
from tortoise_rt.engine import Engine, EngineInfo
from tortoise_rt.errors import EngineError
from tortoise_rt.export.parity import random_inputs, relative_error
from tortoise_rt.spec import GRAPHS


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def engine(standard_graphs: EngineInfo, driver: FakeDriver) -> TensorRTEngine:
    return make_engine(standard_graphs, driver=driver)


def test_memory_is_free_once_whoever_took_it_has_read(engine: TensorRTEngine, driver: FakeDriver) -> None:
    """A capsule's reader works on another stream than the array's."""
    gpu, library, other = driver.gpus[0], Library(driver), Library(driver)
    gpu.reuses = True
    noise = np.ones((1, engine.dims["rlg_auto.dim"]), np.float32)
    wanted = engine.run("rlg_auto", noise=noise)[0]
    (latent,) = engine.run_on_device("rlg_auto", stream=library.stream, noise=noise)
    capsule = latent.__dlpack__(stream=other.stream)
    found, address = other.get(latent), latent.memory.address
    del latent, capsule
    (again,) = engine.run_on_device("rlg_auto", noise=2 * noise)
    assert again.memory.address == address
    again.numpy()  # the engine's own stream has run
    other.wait()
    np.testing.assert_array_equal(found, wanted)


def test_a_reader_that_is_gone_is_nobody_else_s_trouble(
    engine: TensorRTEngine,
    driver: FakeDriver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Others' calls go on, and the memory is free."""
    library, real = Library(driver), FakeDriver.cuEventRecord
    noise = np.ones((1, engine.dims["rlg_auto.dim"]), np.float32)
    wanted = engine.run("rlg_auto", noise=noise)[0]
    room = device(engine).room
    (latent,) = engine.run_on_device("rlg_auto", stream=library.stream, noise=noise)
    library.wait()

    def record(driver: FakeDriver, event: Any, stream: int) -> Any:
        return (
            (CUresult.CUDA_ERROR_INVALID_VALUE,) if stream == library.stream else real(driver, event, stream)
        )

    monkeypatch.setattr(FakeDriver, "cuEventRecord", record)
    del latent
    np.testing.assert_array_equal(engine.run("rlg_auto", noise=noise)[0], wanted)
    assert device(engine).room == room
    assert caplog.messages == ["the GPU could not free what was given back: CUDA_ERROR_INVALID_VALUE"]


def test_scratch_grows_without_room_for_both(
    standard_graphs: EngineInfo, plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old goes before the new comes; where there is no room for the new, what needs less goes on."""
    needed = {"rlg_auto": 1 << 20, "univnet": 3 << 20, "rlg_diffuser": 9 << 20}
    monkeypatch.setattr(
        FakePlan, "get_device_memory_size_for_profile_v2", lambda plan, number: needed[plan.graph]
    )
    engine, rng = make_engine(standard_graphs), np.random.default_rng(0)
    sizes = {"rows": 1, "frames": 8, "codes": 1}
    given = {graph: random_inputs(GRAPHS[graph], engine.dims, sizes, rng) for graph in needed}

    def right(graph: str) -> bool:
        (found,), (wanted,) = (runs.run(graph, **given[graph]) for runs in (engine, plain))
        return relative_error(found, wanted) <= 1e-6

    assert [right("rlg_auto") for _ in range(3)] == [True] * 3
    device(engine).gpu.room = (2 << 20) + (1 << 19)
    assert [right(graph) for graph in ("univnet", "rlg_auto") * 3] == [True] * 6
    with pytest.raises(EngineError, match='graph "rlg_diffuser" needs 9 MiB more'):
        engine.run("rlg_diffuser", **given["rlg_diffuser"])
    assert [right(graph) for graph in ("rlg_auto", "univnet") * 3] == [True] * 6


def test_buffers_grow_without_room_for_both(standard_graphs: EngineInfo, plain: Engine) -> None:
    engine, rng = make_engine(standard_graphs), np.random.default_rng(0)
    given = {
        frames: random_inputs(GRAPHS["univnet"], engine.dims, {"rows": 1, "frames": frames, "codes": 1}, rng)
        for frames in (150, 300, 400)
    }

    def right(frames: int) -> bool:
        (found,), (wanted,) = (runs.run("univnet", **given[frames]) for runs in (engine, plain))
        return relative_error(found, wanted) <= 1e-6

    assert [right(150) for _ in range(3)] == [True] * 3
    # 100, 64 and 256 floats of each frame, in powers of two, which double; and some to compute in.
    device(engine).gpu.room = (1 << 16) + (1 << 16) + (1 << 18) + 4096
    assert right(300) and right(150)
    with pytest.raises(EngineError, match='the tensor "mel" needs 1 MiB more'):
        engine.run("univnet", **given[400])
    assert right(300) and right(150)


def test_only_what_must_be_finite_is_cleared(
    standard_graphs: EngineInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caches; not what a run writes."""
    engine, cleared, real = make_engine(standard_graphs), [], FakeDriver.cuMemsetD8Async
    monkeypatch.setattr(
        FakeDriver, "cuMemsetD8Async", lambda self, *given: cleared.append(given[2]) or real(self, *given)
    )
    noise = np.ones((1, engine.dims["rlg_auto.dim"]), np.float32)
    engine.run_on_device("rlg_auto", noise=noise)
    assert cleared == []
    cache = engine.new_cache(2, 10)
    assert cleared == [cache.state.memory.nbytes]


def test_released_memory_is_the_system_s(standard_graphs: EngineInfo) -> None:
    engine = make_engine(standard_graphs)
    _, pool = device(engine).gpu.pools
    engine.run("rlg_auto", noise=np.ones((1, engine.dims["rlg_auto.dim"]), np.float32))
    used = pool.used
    engine.release("rlg_auto")
    assert pool.kept == pool.used < used


def test_memory_is_kept_for_the_next_until_it_is_trimmed() -> None:
    """It is the system's again with a graph that is released, or with the device; others' pools are left alone."""
    driver = FakeDriver()
    device, gpu = Device(0, driver), driver.gpus[0]
    default, own = gpu.pools
    with device.turn():
        kept, memory = device.allocate(10, "a"), device.allocate(100, "b")
        del memory
    with device.turn():
        device.synchronize()
        assert (own.used, own.kept) == (10, 110)
        device.trim()
        assert own.kept == 10 and default.kept == default.threshold == 0
    del kept, device
    assert own.used == 0 and not own.alive
    assert (gpu.users, driver.events, [*gpu.streams]) == (0, 0, [LEGACY])


def test_kernels_go_with_the_device_once_they_have_run() -> None:
    """Those of its own alone; also one that is still queued, and one that was recorded."""
    driver, done = FakeDriver(), []
    driver.kernels[b"a"] = driver.kernels[b"b"] = lambda gpu, blocks, places: lambda: done.append(blocks)
    first, other, gpu = Device(0, driver), Device(0, driver), driver.gpus[0]
    kernels = [device.load(cubin, "f", [], 32, 0) for device in (first, other) for cubin in (b"a", b"b")]
    assert gpu.modules == 4
    with first.turn():
        recording = first.record(functools.partial(first.run, kernels[1], 7, []))
        first.launch(recording)
        first.run(kernels[0], 8, [])
    assert done == []
    del recording, first
    assert (done, gpu.modules, gpu.users) == ([7, 8], 2, 1)
    with other.turn():
        other.run(kernels[2], 9, [])
        other.synchronize()
    del other
    assert (done, gpu.modules, gpu.users) == ([7, 8, 9], 0, 0)


def test_an_engine_s_kernels_go_with_it(standard_graphs: EngineInfo) -> None:
    driver = FakeDriver()
    engine = make_engine(standard_graphs, ahead=True, driver=driver)
    assert driver.gpus[0].modules == 5
    del engine
    gc.collect()
    assert (driver.gpus[0].modules, driver.gpus[0].users) == (0, 0)


def test_what_is_kept_goes_before_memory_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that were freed may all be too small."""
    driver, real = FakeDriver(), FakeDriver.cuMemAllocFromPoolAsync

    def allocate(driver: FakeDriver, nbytes: int, pool: Pool, stream: int) -> Any:
        in_pieces = pool.kept > pool.used
        return (CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0) if in_pieces else real(driver, nbytes, pool, stream)

    monkeypatch.setattr(FakeDriver, "cuMemAllocFromPoolAsync", allocate)
    device = Device(0, driver)
    with device.turn():
        memory = device.allocate(100, "a")
        del memory
    with device.turn():
        device.synchronize()
        assert device.allocate(200, "b").nbytes == 200
