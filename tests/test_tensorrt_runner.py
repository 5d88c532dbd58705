"""The TensorRT backend's logic on a GPU and plans of NumPy and ONNX Runtime (``fake_gpu``)."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from fake_driver import FakeDriver
from fake_gpu import FakeContext, device, make_engine
from fake_memory import CUresult
from standard import DATA, ragged

from tortoise_rt.backends.tensorrt import TensorRTEngine
from tortoise_rt.config import make_settings
from tortoise_rt.engine import Array, Engine, EngineInfo
from tortoise_rt.errors import BundleError, EngineError
from tortoise_rt.export.checkpoints import Checkpoints
from tortoise_rt.export.parity import TRIALS, check_graphs, random_inputs, relative_error
from tortoise_rt.pipeline import Pipeline
from tortoise_rt.profiles import MOST_DECODED, profiles
from tortoise_rt.spec import GRAPHS, cache_capacity


@pytest.fixture(scope="module")
def engine(standard_graphs: EngineInfo) -> TensorRTEngine:
    return make_engine(standard_graphs)


def test_every_graph_agrees_with_its_module(engine: TensorRTEngine) -> None:
    report = list(check_graphs(engine, Checkpoints(DATA)))
    assert {parity.graph for parity in report} == set(GRAPHS)
    assert [(p.graph, p.error) for p in report if not p.ok] == []


def test_what_repeats_is_replayed_on_new_values(engine: TensorRTEngine, plain: Engine) -> None:
    rng = np.random.default_rng(0)
    before = device(engine).launched
    for seed in range(5):
        inputs = {
            "x": rng.standard_normal((2, 100, 19)).astype(np.float32),
            "condition": rng.standard_normal((2, 19, engine.dims["diffusion.dim"])).astype(np.float32),
            "timestep": np.array([seed, 900], np.float32),
        }
        found = engine.run("diffusion_denoise", **inputs)[0]
        assert relative_error(found, plain.run("diffusion_denoise", **inputs)[0]) <= 1e-6
    assert device(engine).launched - before == 3


def test_what_is_wanted_is_part_of_a_recording(engine: TensorRTEngine, plain: Engine) -> None:
    inputs = random_inputs(GRAPHS["hifigan"], engine.dims, TRIALS[1], np.random.default_rng(0))
    for wanted in ((0, 30), (5, 35), (0, 30), (5, 35), (0, 30), (5, 35)):
        inputs["wanted"] = np.array(wanted)
        found = engine.run("hifigan", **inputs)[0]
        assert relative_error(found, plain.run("hifigan", **inputs)[0]) <= 1e-6


def test_buffers_that_grow_forget_recordings(standard_graphs: EngineInfo, plain: Engine) -> None:
    engine = make_engine(standard_graphs)
    for frames in (8, 8, 8, 300, 8, 8, 8, 300, 300):
        inputs = random_inputs(
            GRAPHS["univnet"],
            engine.dims,
            {"rows": 1, "frames": frames, "codes": 1},
            np.random.default_rng(frames),
        )
        found = engine.run("univnet", **inputs)[0]
        assert relative_error(found, plain.run("univnet", **inputs)[0]) <= 1e-6


def test_scratch_that_grows_forgets_recordings(
    standard_graphs: EngineInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one for all plans, so what was recorded of another would compute in memory that is no more."""
    monkeypatch.setattr("tortoise_rt.backends.tensorrt_plans.LEAST_BUFFER", 1 << 16)
    engine = make_engine(standard_graphs)
    cache, other, one = engine.new_cache(1, 20), engine.new_cache(1, 20), np.ones((1, 1), np.int64)

    def step() -> Array:
        cache.lengths[:] = 0
        return engine.ar_step(cache, one, one)[0]

    found = [step() for _ in range(3)]
    held, buffers = engine._plans._scratch, dict(engine._plans._plans["ar_step"].buffers)
    voice = np.zeros((1, engine.dims["ar.dim"]), np.float32)
    engine.ar_step(other, one, one, voice, np.ones((1, 3), np.int64))  # a prompt, in which nothing else grows
    scratch = engine._plans._scratch
    assert (
        held
        and scratch
        and scratch.nbytes > held.nbytes
        and buffers == engine._plans._plans["ar_step"].buffers
    )
    del held
    np.testing.assert_array_equal(step(), found[0])


def test_a_call_that_failed_leaves_nothing_in_the_way(
    standard_graphs: EngineInfo, plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had queued reads the host's memory still, when the next call wants more of it."""
    engine, rng = make_engine(standard_graphs), np.random.default_rng(0)
    few, many = (
        random_inputs(GRAPHS["univnet"], engine.dims, {"rows": 1, "frames": frames, "codes": 1}, rng)
        for frames in (8, 300)
    )
    with monkeypatch.context() as patch:
        patch.setattr("fake_gpu.FakeContext.execute_async_v3", lambda self, stream: False)
        with pytest.raises(EngineError, match="failed on mel"):
            engine.run("univnet", **few)
    for inputs in (many, few):
        found, wanted = engine.run("univnet", **inputs)[0], plain.run("univnet", **inputs)[0]
        assert relative_error(found, wanted) <= 1e-6


def test_rows_beyond_a_plan_take_turns(engine: TensorRTEngine, plain: Engine) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 200, (MOST_DECODED + 3, 9))
    found, wanted = engine.run("clvp_speech", codes=codes), plain.run("clvp_speech", codes=codes)
    assert relative_error(found[0], wanted[0]) <= 1e-6
    cache, other = engine.new_cache(len(codes), 30), plain.new_cache(len(codes), 30)
    before = device(engine).launched
    for step in (slice(0, 4), *(slice(n, n + 1) for n in range(4, 9))):  # several codes, then one at a time
        positions = np.broadcast_to(np.arange(9)[step], codes[:, step].shape)
        found = engine.ar_step(cache, codes[:, step], positions)
        wanted = plain.ar_step(other, codes[:, step], positions)
        assert max(relative_error(a, b) for a, b in zip(found, wanted, strict=True)) <= 1e-5
    assert device(engine).launched - before >= 2 * 3  # two calls for these rows, from the third step on


def test_long_clips_take_turns(
    standard_graphs: EngineInfo, plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows of the usual length share a diffusion step; two of a longer clip do not."""
    monkeypatch.setattr("tortoise_rt.profiles.USUAL_CODES", 20)
    engine = make_engine(standard_graphs)
    assert len(profiles("diffusion_condition", engine.dims)) == 2
    usual = profiles("diffusion_condition", engine.dims)[0]["frames"][2]
    for frames in (usual, usual + 5):
        sizes = {"rows": 2, "frames": frames, "codes": 1}
        inputs = random_inputs(GRAPHS["diffusion_condition"], engine.dims, sizes, np.random.default_rng(0))
        found = engine.run("diffusion_condition", **inputs)[0]
        assert relative_error(found, plain.run("diffusion_condition", **inputs)[0]) <= 1e-5


def test_prompts_and_codes_of_many_lengths_have_few_shapes(
    standard_graphs: EngineInfo, plain: Engine
) -> None:
    """Each shape is compiled or recorded, so they are padded, and nobody sees it; not where there is no room."""
    engine, rng = make_engine(standard_graphs), np.random.default_rng(0)
    dims, shapes = engine.dims, set()
    call = engine._plans.call

    def counted(graph: str, inputs: dict[str, Array], cache: Any) -> Any:
        shapes.add(tuple(array.shape for array in inputs.values()))
        return call(graph, inputs, cache)

    engine._plans.call = counted  # type: ignore[method-assign]
    most = dims["ar.text_positions"], dims["ar.mel_positions"]
    for text, codes in ((3, 1), (9, 30), (14, 2), (11, 1), (20, 7), most):
        given = {
            "voice": rng.standard_normal((1, dims["ar.dim"])).astype(np.float32),
            "text_ids": rng.integers(3, dims["ar.text_ids"], (1, text)),
        }
        ours, theirs = (runs.new_cache(1, cache_capacity(dims)) for runs in (engine, plain))
        for count, inputs in ((1, given), (codes - 1, {}), (1, {})):
            if not count or theirs.lengths[0] + count > 1 + sum(most):
                continue
            read = rng.integers(0, 200, (1, count)), rng.integers(0, most[1], (1, count))
            found, wanted = (
                runs.ar_step(cache, *read, **inputs) for runs, cache in ((engine, ours), (plain, theirs))
            )
            assert [a.shape for a in found] == [a.shape for a in wanted]
            assert max(relative_error(a, b) for a, b in zip(found, wanted, strict=True)) <= 1e-5
        if (text, codes) == (20, 7):
            assert len(shapes) == 3  # a prompt, several codes, one


def test_rows_are_moved_on_the_device(engine: TensorRTEngine, plain: Engine) -> None:
    ours, theirs = ragged(engine, (1, 7, 20)), ragged(plain, (1, 7, 20))
    for runs, cache in ((engine, ours), (plain, theirs)):
        runs.put_rows(cache, [0, 2], cache, [2, 0])  # an exchange
    ours, theirs = (runs.take_rows(c, [2, 1, 0, 2]) for runs, c in ((engine, ours), (plain, theirs)))
    codes, positions = np.array([[1], [2], [3], [4]]), np.array([[1], [7], [20], [1]])
    found, wanted = (runs.ar_step(c, codes, positions) for runs, c in ((engine, ours), (plain, theirs)))
    assert max(relative_error(a, b) for a, b in zip(found, wanted, strict=True)) <= 1e-5
    first = engine.first_rows(ours, 2)
    found = engine.ar_step(first, codes[:2], positions[:2] + 1)
    wanted = plain.ar_step(theirs, codes, positions + 1)
    assert max(relative_error(a, b[:2]) for a, b in zip(found, wanted, strict=True)) <= 1e-5


def test_rows_behind_those_that_step_are_left_alone(engine: TensorRTEngine, plain: Engine) -> None:
    """Three rows step as four, for which a shape is known; the fourth, and its length, stay as they are."""
    ours, theirs = (ragged(runs, (1, 7, 20, 3, 5)) for runs in (engine, plain))
    codes, positions = np.arange(5)[:, None], np.array([[1], [7], [20], [3], [5]])
    for count in (3, 5):
        first = [runs.first_rows(c, count) for runs, c in ((engine, ours), (plain, theirs))]
        found, wanted = (
            runs.ar_step(c, codes[:count], positions[:count])
            for runs, c in zip((engine, plain), first, strict=True)
        )
        assert [a.shape for a in found] == [a.shape for a in wanted]
        assert max(relative_error(a, b) for a, b in zip(found, wanted, strict=True)) <= 1e-5
        np.testing.assert_array_equal(ours.lengths, theirs.lengths)


def test_memory_is_given_back(engine: TensorRTEngine) -> None:
    held = device(engine).room
    cache = engine.new_cache(3, 10)
    capacity, layers, dim = cache_capacity(engine.dims), engine.dims["ar.layers"], engine.dims["ar.dim"]
    assert held - device(engine).room == 4 * 2 * layers * 3 * capacity * dim
    assert engine.position_bytes() == 4 * 2 * layers * dim
    del cache
    assert device(engine).room == held


def test_out_of_memory(standard_graphs: EngineInfo) -> None:
    engine = make_engine(standard_graphs, room=8 << 20)
    with pytest.raises(
        EngineError, match=r"cuda:0 has \d+ of 8 MiB free; a cache of 99 rows needs \d+ MiB more: draw"
    ):
        engine.new_cache(99, 100)
    assert engine.new_cache(1, 100).rows == 1


def test_what_a_plan_was_not_built_for(engine: TensorRTEngine) -> None:
    rows = np.zeros((1, 100, 500), np.float32)
    with pytest.raises(
        EngineError, match=r'"univnet" was built for at most mel \(4, 100, 416\), .*given mel \(1, 100, 500\)'
    ):
        engine.run("univnet", mel=rows, noise=rows[:, :64])
    with pytest.raises(EngineError, match="a cache of 9999 positions; this engine was built for"):
        engine.new_cache(1, 9999)


def test_a_failure_names_graph_and_shapes(
    standard_graphs: EngineInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(standard_graphs)
    monkeypatch.setattr("fake_gpu.FakeContext.execute_async_v3", lambda self, stream: False)
    with pytest.raises(
        EngineError, match=r'graph "rlg_auto" failed on noise \(1, \d+\): the library gives no reason'
    ):
        engine.run("rlg_auto", noise=np.zeros((1, engine.dims["rlg_auto.dim"]), np.float32))


@pytest.mark.parametrize("step", ["cuStreamEndCapture", "cuGraphInstantiate", "cuGraphLaunch"])
def test_what_cannot_be_recorded_runs_as_it_is(
    standard_graphs: EngineInfo,
    plain: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
) -> None:
    """And is not tried again, which is said once. What a launch says is no reason to go on."""
    engine, tried = make_engine(standard_graphs), []
    real = getattr(FakeDriver, step)

    def refuse(driver: FakeDriver, *given: Any) -> Any:
        tried.append(step)
        real(driver, *given)
        return CUresult.CUDA_ERROR_INVALID_VALUE, None

    monkeypatch.setattr(FakeDriver, step, refuse)
    noise = np.ones((1, engine.dims["rlg_auto.dim"]), np.float32)
    for call in range(5):
        if step == "cuGraphLaunch" and call == 2:
            with pytest.raises(EngineError, match="could not launch a graph: CUDA_ERROR_INVALID_VALUE"):
                engine.run("rlg_auto", noise=noise)
            break
        found = engine.run("rlg_auto", noise=noise)[0]
        assert relative_error(found, plain.run("rlg_auto", noise=noise)[0]) <= 1e-6
    assert len(tried) == 1
    launches, replays = step == "cuGraphLaunch", engine._plans.replays
    assert (replays.recorded, replays.refused) == (int(launches), int(not launches))
    said = ["rlg_auto is not recorded, and takes longer", "CUDA_ERROR_INVALID_VALUE"]
    assert [[part in message for part in said] for message in caplog.messages] == [[True, True]][launches:]


def test_what_fails_while_it_is_recorded(
    standard_graphs: EngineInfo,
    plain: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The warning says what failed; what was recorded so far is forgotten."""
    engine, forgotten = make_engine(standard_graphs), []
    noise = np.ones((1, engine.dims["rlg_auto.dim"]), np.float32)
    real, destroy = FakeContext.execute_async_v3, FakeDriver.cuGraphDestroy
    monkeypatch.setattr(
        FakeContext,
        "execute_async_v3",
        lambda self, stream: self.plan.stream.recording is None and real(self, stream),
    )
    monkeypatch.setattr(
        FakeDriver, "cuGraphDestroy", lambda self, graph: forgotten.append(graph) or destroy(self, graph)
    )
    for _ in range(4):
        found = engine.run("rlg_auto", noise=noise)[0]
        assert relative_error(found, plain.run("rlg_auto", noise=noise)[0]) <= 1e-6
    (message,) = caplog.messages
    assert message.startswith('rlg_auto is not recorded, and takes longer: graph "rlg_auto" failed on noise')
    assert engine._plans.replays.refused == len(forgotten) == 1


def test_whatever_ends_a_recording_ends_it(
    standard_graphs: EngineInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that is not the project's own goes on to the caller, and the engine goes on as well."""
    engine = make_engine(standard_graphs)
    noise = np.ones((1, engine.dims["rlg_auto.dim"]), np.float32)
    first = engine.run("rlg_auto", noise=noise)[0]
    real = FakeContext.execute_async_v3

    def stop(context: FakeContext, stream: int) -> bool:
        if context.plan.stream.recording is not None:
            raise KeyboardInterrupt
        return real(context, stream)

    with monkeypatch.context() as patch:
        patch.setattr(FakeContext, "execute_async_v3", stop)
        with pytest.raises(KeyboardInterrupt):
            engine.run("rlg_auto", noise=noise)
    for _ in range(3):
        np.testing.assert_array_equal(engine.run("rlg_auto", noise=noise)[0], first)
    assert device(engine).launched > 0


def test_a_damaged_plan(standard_graphs: EngineInfo, tmp_path: Path) -> None:
    (tmp_path / "rlg_auto.onnx").write_bytes(b"bad")
    engine = make_engine(replace(standard_graphs, source=str(tmp_path)))
    with pytest.raises(BundleError, match="rlg_auto.onnx cannot be loaded"):
        engine.run("rlg_auto", noise=np.zeros((1, engine.dims["rlg_auto.dim"]), np.float32))


def test_a_released_graph_is_loaded_again(standard_graphs: EngineInfo) -> None:
    """Into memory at the same addresses, it may be: what was recorded is another plan's."""
    engine = make_engine(standard_graphs)
    device(engine).gpu.reuses = True
    noise = np.ones((1, engine.dims["rlg_auto.dim"]), np.float32)
    room = device(engine).room
    before = [engine.run("rlg_auto", noise=noise)[0] for _ in range(3)]
    addresses = {n: memory.address for n, (memory, _) in engine._plans._plans["rlg_auto"].buffers.items()}
    engine.release("rlg_auto")
    assert device(engine).room == room
    assert np.array_equal(engine.run("rlg_auto", noise=noise)[0], before[0])
    again = {n: memory.address for n, (memory, _) in engine._plans._plans["rlg_auto"].buffers.items()}
    assert addresses == again


def test_threads_take_turns(engine: TensorRTEngine, plain: Engine) -> None:
    noises = [np.full((1, engine.dims["rlg_auto.dim"]), n, np.float32) for n in range(8)]
    wanted = [plain.run("rlg_auto", noise=noise)[0] for noise in noises]
    wrong: list[int] = []

    def ask(number: int) -> None:
        for _ in range(20):
            found = engine.run("rlg_auto", noise=noises[number])[0]
            if relative_error(found, wanted[number]) > 1e-6:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_whole_clip(engine: TensorRTEngine, plain: Engine) -> None:
    """Drawing, ranking, diffusion and vocoding: codes and wave as ONNX Runtime's."""
    settings = make_settings(num_autoregressive_samples=3, diffusion_iterations=3, max_mel_tokens=12)
    ours, theirs = (
        Pipeline(runs).synthesize([5, 60, 7, 80, 9], None, settings, seed=3) for runs in (engine, plain)
    )
    assert np.array_equal(ours.codes, theirs.codes)
    assert relative_error(ours.wavs[0], theirs.wavs[0]) <= 1e-3
