"""Several GPUs: which is used for what, and requests that are spread over them. GPUs and engines are stand-ins."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_driver import FakeDriver
from fake_torch_cuda import entered
from scheduling import TEXTS, WAIT, alone, scheduler, settings, settle, submit, voice

from tortoise_rt import backends
from tortoise_rt.backends import open_engine
from tortoise_rt.backends.device import Device
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.backends.group import EngineGroup
from tortoise_rt.engine import Array, EngineInfo, KVCache
from tortoise_rt.errors import EngineError, QueueFull
from tortoise_rt.scheduler import Scheduler


class Watched(FakeEngine):
    """Waits, where it is told to, and counts its steps."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.info = replace(self.info, device=device)
        self.steps, self.may_go = 0, threading.Event()
        self.may_go.set()

    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        assert self.may_go.wait(WAIT)
        self.steps += 1
        return super()._ar_step(cache, inputs)


def group(count: int = 2) -> EngineGroup:
    return EngineGroup([Watched(f"cuda:{number}") for number in range(count)])


def test_requests_are_spread_and_give_what_each_gives_alone() -> None:
    both = group()
    with scheduler(both) as made:
        handles = [submit(made, text, seed) for seed, text in enumerate(TEXTS * 2)]
        for seed, (text, handle) in enumerate(zip(TEXTS * 2, handles, strict=True)):
            wanted, found = alone(FakeEngine(), text, seed), handle.result(WAIT)
            np.testing.assert_array_equal(found.codes, wanted.codes)
            assert np.abs(found.wavs[0] - wanted.wavs[0]).max() <= 1e-6
        one = settings(num_autoregressive_samples=1)
        pieces = list(made.stream(TEXTS[0], voice(both), one, 3))
        assert (
            np.abs(
                np.concatenate(pieces) - alone(FakeEngine(), seed=3, num_autoregressive_samples=1).wavs[0]
            ).max()
            <= 1e-6
        )
        settle(made)
    assert all(engine.steps > 20 for engine in both.members)  # type: ignore[attr-defined]


def test_a_request_goes_to_the_engine_with_the_least_work() -> None:
    """Samples count, not requests; what has ended counts no more."""
    both = group()
    for engine in both.members:
        engine.may_go.clear()  # type: ignore[attr-defined]
    with scheduler(both) as made:
        first, second = made.lanes
        large = submit(made, num_autoregressive_samples=5)
        small = [submit(made, seed=seed, num_autoregressive_samples=2) for seed in (2, 3)]
        assert (first.work, second.work) == (5, 4)
        assert (len(first.policy), len(second.policy)) == (1, 2)
        one = submit(made, num_autoregressive_samples=1)
        assert (first.work, second.work) == (5, 5)
        small[0].cancel()
        second.engine.may_go.set()  # type: ignore[attr-defined]
        one.result(WAIT), small[1].result(WAIT)
        until_idle(made, 1)
        again = submit(made, seed=4)
        assert again.result(WAIT).codes.shape[0] == 3 and not large.done  # beside one that stands still
        first.engine.may_go.set()  # type: ignore[attr-defined]
        assert large.result(WAIT).codes.shape[0] == 5


def test_a_queue_is_full_only_where_no_engine_has_room() -> None:
    both = group()
    for engine in both.members:
        engine.may_go.clear()  # type: ignore[attr-defined]
    with scheduler(both, queue=3) as made:
        submit(made, num_autoregressive_samples=9)
        for seed in range(5):
            submit(made, seed=seed, num_autoregressive_samples=1)
        assert [len(lane.policy) for lane in made.lanes] == [3, 3]  # though the second has less to do
        with pytest.raises(QueueFull):
            submit(made, seed=6)
        for engine in both.members:
            engine.may_go.set()  # type: ignore[attr-defined]


def until_idle(made: Scheduler, lane: int) -> None:
    for _ in range(1000):
        if not made.lanes[lane].work:
            return
        threading.Event().wait(0.01)
    raise AssertionError("it does not become idle")


def test_closing_and_cancelling_reach_every_engine() -> None:
    both = group(3)
    for engine in both.members:
        engine.may_go.clear()  # type: ignore[attr-defined]
    made = scheduler(both)
    handles = [submit(made, seed=seed) for seed in range(6)]
    assert [lane.work for lane in made.lanes] == [6, 6, 6]
    for engine in both.members:
        engine.may_go.set()  # type: ignore[attr-defined]
    made.close()
    assert all(handle.done for handle in handles)


def test_a_service_counts_all_of_them() -> None:
    pytest.importorskip("prometheus_client")
    from tortoise_rt.server.metrics import Metrics

    with scheduler(group(), rows=5) as made:
        for seed in (1, 2):
            submit(made, seed=seed).result(WAIT)
        settle(made)
        said = Metrics(made, lambda: 0).text().decode().splitlines()
    drawn = sum(lane.rows.used for lane in made.lanes if lane.rows)
    assert {"tortoise_rt_rows 10.0", "tortoise_rt_rows_used 0.0", "tortoise_rt_calls_in_flight 0.0"} <= {
        *said
    }
    counted = [line for line in said if line.startswith("tortoise_rt_codes_total{")]
    assert len(counted) == 2 and sum(float(line.split()[-1]) for line in counted) == drawn > 40


def test_one_engine_that_fails_fails_its_own_requests_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tortoise_rt.scheduler.lane.SHUNNED", 1e6)  # however slow this machine is
    both = group()

    def broken(*given: Any) -> Any:
        raise EngineError("the GPU fell off the bus")

    both.members[0]._ar_step = broken  # type: ignore[method-assign]
    with scheduler(both) as made:
        handles = [submit(made, seed=seed) for seed in (1, 2)]
        with pytest.raises(EngineError, match="fell off the bus"):
            handles[0].result(WAIT)
        np.testing.assert_array_equal(handles[1].result(WAIT).codes, alone(FakeEngine(), seed=2).codes)
        for seed in (3, 4):  # the one that failed is idle now, and comes last all the same
            np.testing.assert_array_equal(
                submit(made, seed=seed).result(WAIT).codes, alone(FakeEngine(), seed=seed).codes
            )
        made.lanes[1].loop.failed = time.monotonic()  # where all have failed none is better
        with pytest.raises(EngineError, match="fell off the bus"):
            submit(made, seed=5).result(WAIT)


# --- names of devices ---


def test_several_devices_are_opened_by_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def open_one(path: Any, backend: str, device: str, precision: str | None) -> FakeEngine:
        opened.append(device)
        return Watched(device)

    monkeypatch.setattr(backends, "_open_engine", open_one)
    engine = open_engine(None, device="cuda:1, cuda:0")
    assert opened == ["cuda:1", "cuda:0"] and engine.info.device == "cuda:1,cuda:0"
    assert [member.info.device for member in engine.members] == opened
    with pytest.raises(EngineError, match="devices cuda:0, cuda:0: name each once"):
        open_engine(None, device="cuda:0,cuda:0")


def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(
        EngineError, match=r"there is no cuda:2 here. Available: cuda:0 \(Fake GPU\), cuda:1 \(Fake GPU\)"
    ):
        Device(2, FakeDriver(count=2))


def test_torch_uses_the_gpu_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from tortoise_rt.backends import cuda
    from tortoise_rt.backends.torch import pick_device

    now = entered(
        monkeypatch,
        is_available=lambda: True,
        device_count=lambda: 2,
        current_device=lambda: 0,
        get_device_name=lambda number: f"GPU {number}",
    )
    assert pick_device("cuda") == torch.device("cuda:0") and pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(EngineError, match=r"no cuda:2 here. Available: cuda:0 \(GPU 0\), cuda:1 \(GPU 1\)"):
        pick_device("cuda:2")
    monkeypatch.setattr(cuda, "_problem_of_triton", lambda device: "")
    fast = cuda.Fast(pick_device("cuda:1"))
    with fast.running():
        assert now == [torch.device("cuda:1"), "stream of cuda:1"]
    assert not now


def test_onnxruntime_uses_the_gpu_that_is_named(
    monkeypatch: pytest.MonkeyPatch, standard_graphs: EngineInfo
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from pathlib import Path

    from tortoise_rt.backends import onnx
    from tortoise_rt.backends.onnx_standard import StandardEngine

    asked: list[Any] = []

    def session(path: str, options: Any, **arguments: Any) -> Any:
        asked.append(arguments)
        raise RuntimeError("there is no GPU")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnx, "gpu_names", lambda: ["A", "B"])
    files = {"rlg_auto": "rlg_auto.onnx"}
    engine = StandardEngine(Path(standard_graphs.source), standard_graphs, files, "cuda:1")
    with pytest.raises(EngineError, match=r'"rlg_auto" cannot run on cuda:1: there is no GPU'):
        engine.session("rlg_auto")
    (arguments,) = asked
    assert arguments["providers"] == ["CUDAExecutionProvider"]
    assert arguments["provider_options"][0]["device_id"] == "1"
    placed, value = [], SimpleNamespace(data_ptr=lambda: 0)
    make = SimpleNamespace(
        ortvalue_from_shape_and_type=lambda shape, dtype, *device: placed.append(device) or value
    )
    binding = SimpleNamespace(
        bind_cpu_input=lambda *given: None,
        bind_output=lambda name, kind, number, *given: placed.append((kind, number)),
    )
    opened = SimpleNamespace(io_binding=lambda: binding, run_with_iobinding=lambda given: None)
    monkeypatch.setattr(engine._runtime, "OrtValue", make)
    monkeypatch.setattr(engine, "_open", lambda *given: opened)
    monkeypatch.setattr(engine, "_cache_shape", lambda *given: (8, 1, 4, 64, 16))
    engine.new_cache(1, 8)
    assert placed == [("cuda", 1)] * 2  # allocated and cleared there
    with pytest.raises(EngineError, match=r"no cuda:2 here. Available: cuda:0 \(A\), cuda:1 \(B\)"):
        StandardEngine(Path(standard_graphs.source), standard_graphs, files, "cuda:2")


# --- two GPUs of one driver ---


def test_two_tensorrt_engines_side_by_side(standard_graphs: EngineInfo) -> None:
    """One thread that uses both by turns, many that use them at once: each works on its own GPU, which the driver sees to."""
    from fake_gpu import make_engine

    driver = FakeDriver(count=2)
    engines = [make_engine(standard_graphs, ahead=True, driver=driver, number=number) for number in range(2)]
    assert [engine.info.device for engine in engines] == ["cuda:0", "cuda:1"]
    noises = [np.full((1, engines[0].dims["rlg_auto.dim"]), n, np.float32) for n in range(4)]
    wanted = [engines[0].run("rlg_auto", noise=noise)[0] for noise in noises]
    wrong: list[Any] = []

    def ask(number: int) -> None:
        for turn in range(12):
            engine = engines[(turn + number) % 2]
            cache = engine.new_cache(1, 10)  # given back by this thread, while the other GPU may be its own
            if not np.array_equal(engine.run("rlg_auto", noise=noises[number])[0], wanted[number]):
                wrong.append((number, turn))
            engines[turn % 2].run("rlg_auto", noise=noises[number])
            del cache

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    group = EngineGroup(engines)
    one = settings(num_autoregressive_samples=2, max_mel_tokens=10)
    with Scheduler(group, rows=2) as made:
        handles = [made.submit([5, 60, 7], voice(group), one, seed) for seed in (1, 2, 1, 2)]
        results = [handle.result(WAIT) for handle in handles]
    for first, second in ((0, 2), (1, 3)):
        np.testing.assert_array_equal(results[first].codes, results[second].codes)
    assert all(gpu.launched > 10 and gpu.ran for gpu in driver.gpus)


def test_what_a_gpu_held_is_freed_in_its_turn_or_with_the_last_of_it() -> None:
    driver = FakeDriver(count=2)
    device, other = Device(1, driver), Device(0, driver)
    gpu = driver.gpus[1]
    with device.turn():
        kept, memory, pinned = device.allocate(10, "a"), device.allocate(100, "b"), device.pinned(50)
    with other.turn():
        del memory, pinned
        assert gpu.room == gpu.total - 110 and gpu.pinned  # not now: that is another's turn
        with device.turn():
            assert gpu.room == gpu.total - 10 and not gpu.pinned
        assert driver._current is driver.gpus[0]
        del device
        del kept
        assert gpu.room == gpu.total and driver._current is driver.gpus[0]


def test_a_thread_keeps_the_gpu_that_it_has(standard_graphs: EngineInfo) -> None:
    """Whoever opens and calls an engine may use another GPU, or none, by other means."""
    from fake_gpu import make_engine

    driver = FakeDriver(count=2)
    for mine in (None, driver.gpus[0]):
        if mine is not None:
            driver.cuCtxPushCurrent(mine)
        engine = make_engine(standard_graphs, ahead=True, driver=driver, number=1)
        assert driver._current is mine
        noise = np.zeros((1, engine.dims["rlg_auto.dim"]), np.float32)
        engine.run("rlg_auto", noise=noise)
        engine.release("rlg_auto")
        with pytest.raises(EngineError):
            engine.new_cache(1 << 20, 10)  # no memory
        assert driver._current is mine
