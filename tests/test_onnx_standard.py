"""What ``StandardEngine`` keeps and moves on its device, on ONNX Runtime's CPU provider: no recording is made there."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

import onnx
from scheduling import TEXTS, WAIT, alone, scheduler, submit
from standard import cache_tensors, refusing, standard_engine, watch
from test_standard_graphs import ragged

from tortoise_rt.backends import onnx_memory, onnx_steps, open_engine
from tortoise_rt.backends.onnx import OnnxEngine
from tortoise_rt.backends.onnx_calls import Calls
from tortoise_rt.backends.onnx_memory import MOST_FREE, clearing_model, copying_model
from tortoise_rt.backends.onnx_standard import StandardEngine
from tortoise_rt.backends.onnx_steps import MOST_RECORDED, REPEATED_SPAN
from tortoise_rt.engine import Array, Engine, EngineInfo, KVCache
from tortoise_rt.errors import EngineError
from tortoise_rt.export.parity import relative_error
from tortoise_rt.profiles import few_rows
from tortoise_rt.spec import cache_capacity


@pytest.fixture
def engine(standard_graphs: EngineInfo) -> StandardEngine:
    return standard_engine(standard_graphs)


@pytest.fixture(scope="module")
def fused(random_bundle: Path) -> Engine:
    return open_engine(random_bundle, "onnx", "cpu")


def step(engine: Engine, cache: KVCache, seed: int = 0) -> tuple[Array, Array]:
    """A code of each row."""
    codes = np.random.default_rng(seed).integers(0, 200, (cache.rows, 1))
    return engine.ar_step(cache, codes, np.maximum(cache.lengths[:, None] - 10, 0))


def steps(engine: Engine, cache: KVCache, count: int = 4) -> list[Array]:
    return [array for seed in range(count) for array in step(engine, cache, seed)]


def same(found: list[Array], wanted: list[Array]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


# --- steps that repeat ---


def test_a_step_is_bound_once(engine: StandardEngine, standard_graphs: EngineInfo, fused: Engine) -> None:
    """And gives to the bit what it gives when all is bound anew each time."""
    anew, numbers = standard_engine(standard_graphs), []
    watch(engine, numbers.append)
    ours, theirs = ragged(engine, (1, 7, 20, 4)), ragged(anew, (1, 7, 20, 4))
    assert set(numbers) == {"-1"}
    first = steps(engine, ours)
    assert numbers[-4:] == ["1"] * 4 and engine.recorded == 1
    wanted = []
    for seed in range(4):
        wanted += step(anew, theirs, seed)
        anew._forget_recorded()
    assert same(first, wanted)
    assert np.array_equal(cache_tensors(engine, ours), cache_tensors(anew, theirs))
    others = steps(fused, ragged(fused, (1, 7, 20, 4)))
    assert max(relative_error(a, b) for a, b in zip(first, others, strict=True)) <= 1e-4


def test_outputs_are_the_callers_own(engine: StandardEngine) -> None:
    cache = ragged(engine, (3,))
    logits, latents = step(engine, cache)
    kept = logits.copy(), latents.copy()
    step(engine, cache, 1)
    assert np.array_equal(logits, kept[0]) and np.array_equal(latents, kept[1])


def test_prompts_and_several_codes_are_not_recorded(engine: StandardEngine) -> None:
    numbers: list[str] = []
    watch(engine, numbers.append)
    cache = ragged(engine, (2, 5))
    engine.ar_step(cache, np.ones((2, 3), np.int64), np.ones((2, 3), np.int64))
    assert numbers == ["-1"] * 3 and engine.recorded == 0


def test_rows_are_added_to_few_numbers_of_them(engine: StandardEngine) -> None:
    """Rows that are no part of a step keep what they hold, but for the last position, behind all."""
    pool, numbers = engine.new_cache(16, 64), []
    source = ragged(engine, (3, 9, 5, 8, 1, 2))
    watch(engine, numbers.append)
    engine.release("ar_step")
    engine.put_rows(pool, range(6), source, range(6))
    before = cache_tensors(engine, pool).copy()
    five, wanted = engine.first_rows(pool, 5), engine.take_rows(source, range(5))
    found, alone = step(engine, five), step(engine, wanted)
    assert max(relative_error(a, b) for a, b in zip(found, alone, strict=True)) <= 1e-6
    assert [array.shape[0] for array in found] == [5, 5] and pool.lengths[:6].tolist() == [*five.lengths, 12]
    after = cache_tensors(engine, pool)
    assert np.array_equal(after[:, 5:, :, :-1], before[:, 5:, :, :-1])
    for count in range(1, 17):
        step(engine, engine.first_rows(pool, count))
    rows = {key[1] for key in engine._steps._known if key[0] == pool.state.block.number}
    assert rows == {1, 2, 4, 8, 12, 16} and len(set(numbers)) == 7  # and that of the six rows


def test_as_many_positions_are_seen_as_are_held(engine: StandardEngine, fused: Engine) -> None:
    """A row that grows past what its step attends to has another step, and sees all."""
    caches = []
    for runs in (engine, fused):
        cache = runs.new_cache(1, cache_capacity(engine.dims))
        rng = np.random.default_rng(0)
        codes, places = rng.integers(0, 200, (1, REPEATED_SPAN - 2)), np.zeros((1, REPEATED_SPAN - 2), int)
        runs.ar_step(cache, codes, places)
        caches.append(cache)
    for code in range(5):
        one = np.array([[code]]), np.array([[code]])
        found, wanted = engine.ar_step(caches[0], *one), fused.ar_step(caches[1], *one)
        assert max(relative_error(a, b) for a, b in zip(found, wanted, strict=True)) <= 1e-4
    assert engine.recorded == 2


def test_no_more_is_recorded_than_a_session_may_hold(
    engine: StandardEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then another session takes its place, and the steps that come are recorded there."""
    monkeypatch.setattr(onnx_steps, "MOST_RECORDED", 3)
    opened: list[list[str]] = []
    open_session = engine._open

    def counted(model: str | bytes, graph: str) -> Any:
        if graph == "ar_step":
            opened.append([])
        return open_session(model, graph)

    engine._open = counted  # type: ignore[method-assign]
    watch(engine, lambda number: opened[-1].append(number))
    cache = ragged(engine, (1,) * 16)
    wanted = {rows: steps(engine, engine.take_rows(cache, range(rows)), 2) for rows in (1, 2, 4, 8, 16)}
    assert len(opened) == 2 and engine.recorded == 2
    for rows, arrays in wanted.items():
        assert same(steps(engine, engine.take_rows(cache, range(rows)), 2), arrays)
    assert {number for session in opened for number in session} == {"-1", "1", "2", "3"}
    assert len(opened) == 4


def test_a_session_that_records_nothing_stays(
    engine: StandardEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is bound is forgotten for what comes."""
    monkeypatch.setattr(onnx_steps, "MOST_RECORDED", 3)
    refusing(engine)
    cache = ragged(engine, (1,) * 16)
    step(engine, cache)
    session = engine.session("ar_step")
    for rows in (1, 2, 4, 8):
        step(engine, engine.take_rows(cache, range(rows)))
        assert len(engine._steps) <= 3
    assert engine.session("ar_step") is session


def test_a_large_pool_has_few_steps(engine: StandardEngine) -> None:
    rows = {few_rows(count, 64) for count in range(1, 65)}
    assert len(rows) * -(-1024 // REPEATED_SPAN) <= MOST_RECORDED


# --- memory ---


def test_rows_are_moved_on_the_device(engine: StandardEngine) -> None:
    """Onto each other, from one cache into another, and several times: what numpy says of what they hold."""
    a, b = ragged(engine, (3, 9, 5)), ragged(engine, (2, 6), seed=4)
    held, other = cache_tensors(engine, a).copy(), cache_tensors(engine, b).copy()
    taken = engine.take_rows(a, [2, 0, 2])
    assert np.array_equal(cache_tensors(engine, taken)[:, :3], held[:, [2, 0, 2]])
    assert not cache_tensors(engine, taken)[:, 3:].any() and cache_tensors(engine, taken).shape[1] == 4
    engine.put_rows(a, [0, 1, 2], a, [1, 2, 0])
    assert np.array_equal(cache_tensors(engine, a)[:, :3], held[:, [1, 2, 0]])
    engine.put_rows(a, [2], a, [0])
    assert np.array_equal(cache_tensors(engine, a)[:, :3], held[:, [1, 2, 1]])
    engine.put_rows(a, [2, 0], b, [1, 1])
    assert np.array_equal(
        cache_tensors(engine, a)[:, :3], np.stack([other[:, 1], held[:, 2], other[:, 1]], 1)
    )
    assert np.array_equal(cache_tensors(engine, b), other)


def test_memory_is_used_again_and_cleared(engine: StandardEngine) -> None:
    """So that its steps need not be recorded again, whatever order caches go in."""
    for _ in range(3):
        prompt = ragged(engine, (4,))
        sample = engine.take_rows(prompt, [0])
        step(engine, sample)
        numbers = prompt.state.block.number, sample.state.block.number
        del prompt
        gc.collect()
        steps(engine, sample, 2)
        cache_tensors(engine, sample)[:] = np.nan
        del sample
        gc.collect()
    assert numbers[1] in {key[0] for key in engine._steps._known} and engine.recorded == 1
    fresh = engine.new_cache(1, 8)
    assert fresh.state.block.number in numbers and not cache_tensors(engine, fresh).any()


def test_little_is_kept_that_nobody_uses(engine: StandardEngine) -> None:
    caches = [engine.new_cache(1, 8) for _ in range(5)]
    for cache in caches:
        cache.lengths[:] = 8
        cache.capacity = 64
        step(engine, cache)
    assert engine.recorded == 5
    first = [cache.state.block.number for cache in caches[:MOST_FREE]]
    del cache
    caches.clear()
    gc.collect()
    again = [engine.new_cache(1, 8).state.block.number for _ in range(2)]  # each given back at once
    assert again == [first[0]] * 2
    assert engine.recorded == MOST_FREE and len(engine._cache_memory._free[1]) <= MOST_FREE  # type: ignore[union-attr]
    engine.release("ar_step")
    assert engine.recorded == 0 and not engine._cache_memory._free  # type: ignore[union-attr]


def test_what_is_kept_goes_before_memory_is_out(
    engine: StandardEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    step(engine, ragged(engine, (3,)))
    gc.collect()
    memory, make = engine._memory(), engine._memory()._new_value
    tries: list[int] = []

    def scarce(rows: int) -> Any:
        tries.append(rows)
        if memory._free or rows > 8:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1\nand more")
        return make(rows)

    monkeypatch.setattr(memory, "_new_value", scarce)
    engine.new_cache(8, 8)
    assert tries == [8, 8] and engine.recorded == 0
    with pytest.raises(
        EngineError, match=r"^no cache of 12 rows, \d+ MiB, on cpu:0: Failed to alloc.*size 1$"
    ):
        engine.new_cache(10, 8)


def test_memory_is_cleared_in_parts(engine: StandardEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what operators can count."""
    monkeypatch.setattr(onnx_memory, "_CLEARED", 1000)
    cache = engine.new_cache(2, 8)
    cache_tensors(engine, cache)[:] = np.inf
    engine._memory()._clear(cache.state.block)
    assert not cache_tensors(engine, cache).any()


def test_a_copy_that_fails_says_so(engine: StandardEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ragged(engine, (1, 2))
    monkeypatch.setattr(engine._memory(), "_copying", None)
    with pytest.raises(EngineError, match=r"^2 rows of a cache could not be copied: 'NoneType'"):
        engine.take_rows(cache, [0, 1])


@pytest.mark.parametrize("model", [clearing_model(), copying_model(60)], ids=["clearing", "copying"])
def test_models_are_onnx(model: bytes) -> None:
    onnx.checker.check_model(model, full_check=True)


# --- recordings that are refused ---


def test_what_cannot_be_recorded_goes_on_and_says_so_once(
    engine: StandardEngine, standard_graphs: EngineInfo, caplog: pytest.LogCaptureFixture
) -> None:
    refusing(engine)
    found = steps(engine, ragged(engine, (1, 7)))
    others = standard_engine(standard_graphs)
    assert same(found, steps(others, ragged(others, (1, 7))))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and warnings[0].startswith("ar_step is not recorded, and takes longer: ")
    assert warnings[0].endswith("operation not permitted when stream is capturing")
    assert (engine.recorded, engine.refused) == (0, 1)
    assert "enable_cuda_graph" not in engine._provider_options(None, "ar_step")


def test_a_session_that_may_not_record(
    engine: StandardEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library does not make it where not all of a graph is on the GPU."""
    create = OnnxEngine._create_session

    def refuses(self: StandardEngine, graph: str) -> Any:
        if not self.refused:
            raise EngineError("This session cannot use the graph capture feature as requested")
        return create(self, graph)

    monkeypatch.setattr(OnnxEngine, "_create_session", refuses)
    steps(engine, ragged(engine, (2,)))
    assert engine.refused == 1 and [r.getMessage()[:28] for r in caplog.records] == [
        "ar_step is not recorded, and"
    ]
    monkeypatch.setattr(OnnxEngine, "_create_session", lambda *given: refuses(SimpleNamespace(refused=0), ""))
    engine.release("ar_step")
    with pytest.raises(EngineError, match="as requested"):
        engine.session("ar_step")


def test_what_fails_without_recording_is_no_refusal(
    engine: StandardEngine, caplog: pytest.LogCaptureFixture
) -> None:
    cache, broken = ragged(engine, (2,)), [True]

    def told(number: str) -> None:
        if broken:
            raise RuntimeError("CUDA failure 2: out of memory\nat a place")

    watch(engine, told)
    engine.release("ar_step")
    lengths = cache.lengths.copy()
    with pytest.raises(
        EngineError, match=r'^graph "ar_step" failed on codes \(1, 1\).*: CUDA failure 2: out of memory$'
    ):
        step(engine, cache)
    assert (engine.recorded, engine.refused) == (0, 0) and not caplog.records
    assert np.array_equal(cache.lengths, lengths)
    broken.clear()
    step(engine, cache)
    assert (engine.recorded, engine.refused) == (1, 0)


# --- threads ---


def test_all_threads_calls_are_made_by_one(engine: StandardEngine, standard_graphs: EngineInfo) -> None:
    """Of the engine's own: one at a time, and what each gets is what it gets alone."""
    threads, running = set(), threading.Lock()

    def told(number: str) -> None:
        assert running.acquire(blocking=False)
        threads.add(threading.get_ident())
        time.sleep(0.001)
        running.release()

    watch(engine, told)
    lengths = [(1, 7), (3,), (2, 9, 4), (5,), (8, 8)]
    others = standard_engine(standard_graphs)
    wanted = [steps(others, ragged(others, rows), 6) for rows in lengths]
    with ThreadPoolExecutor(len(lengths)) as pool:
        found = list(pool.map(lambda rows: steps(engine, ragged(engine, rows), 6), lengths))
    assert all(map(same, found, wanted))
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_a_recording_is_alone_in_the_process() -> None:
    calls, log = Calls(), []
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with calls.beside_others():
            log.append("other")
            inside.set()
            assert leave.wait(WAIT)
            log.append("other ends")

    def recording() -> None:
        with calls.alone():
            log.append("recording")
            time.sleep(0.05)
            log.append("recording ends")

    def late() -> None:
        with calls.beside_others():
            log.append("late")

    with ThreadPoolExecutor(3) as pool:
        made = [pool.submit(other)]
        assert inside.wait(WAIT)
        with calls.beside_others():  # those that record nothing do not wait for each other
            log.append("beside")
        made.append(pool.submit(recording))
        while not calls._recording:
            time.sleep(0.001)
        made.append(pool.submit(late))
        time.sleep(0.02)
        assert log == ["other", "beside"]
        leave.set()
        for future in made:
            future.result(WAIT)
    assert log[2:] == ["other ends", "recording", "recording ends", "late"]


def test_an_engine_that_goes_takes_its_thread_along(standard_graphs: EngineInfo) -> None:
    def running() -> Iterator[threading.Thread]:
        return (thread for thread in threading.enumerate() if thread.name.startswith("onnxruntime"))

    before = set(running())
    engine = standard_engine(standard_graphs)
    step(engine, ragged(engine, (2,)))
    (own,) = set(running()) - before
    del engine
    gc.collect()
    own.join(WAIT)
    assert not own.is_alive()


# --- whole clips ---


def test_whole_clips_are_those_of_the_cpu(engine: StandardEngine, fused: Engine) -> None:
    """Alone, and in a scheduler, whose rows come and go."""
    wanted = [alone(fused, text, seed) for seed, text in enumerate(TEXTS)]
    found = [alone(engine, text, seed) for seed, text in enumerate(TEXTS)]
    with scheduler(engine) as made:
        handles = [submit(made, text, seed) for seed, text in enumerate(TEXTS)]
        found += [handle.result(WAIT) for handle in handles]
    for ours, theirs in zip(found, wanted * 2, strict=True):
        assert np.array_equal(ours.codes, theirs.codes)
        assert relative_error(ours.wavs[0], theirs.wavs[0]) <= 1e-3
    assert 0 < engine.recorded <= 12 and not engine.refused
