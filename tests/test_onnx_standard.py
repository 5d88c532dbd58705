"""Steps that ``StandardEngine`` repeats, on ONNX Runtime's CPU provider: bound as if they were recorded."""

from __future__ import annotations

import gc
import logging
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from scheduling import TEXTS, WAIT, alone, scheduler, submit
from standard import cache_tensors, ragged, refusing, same, standard_engine, step, steps, watch

from tortoise_rt.backends import onnx, onnx_standard, onnx_steps, open_engine
from tortoise_rt.backends.onnx import OnnxEngine
from tortoise_rt.backends.onnx_calls import CALLS
from tortoise_rt.backends.onnx_standard import StandardEngine
from tortoise_rt.backends.onnx_steps import MOST_RECORDED, REPEATED_SPAN
from tortoise_rt.engine import Engine, EngineInfo
from tortoise_rt.errors import BundleError, EngineError
from tortoise_rt.export.parity import relative_error
from tortoise_rt.profiles import few_rows
from tortoise_rt.spec import GRAPHS, cache_capacity


@pytest.fixture
def engine(standard_graphs: EngineInfo) -> StandardEngine:
    return standard_engine(standard_graphs, records=True)


@pytest.fixture(scope="module")
def fused(random_bundle: Path) -> Engine:
    return open_engine(random_bundle, "onnx", "cpu")


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
    assert numbers == ["-1"] * 3 and not len(engine._steps)


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
    assert len(engine._steps) == 2 and engine.recorded == 1


def test_no_more_is_recorded_than_a_session_may_hold(
    engine: StandardEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Then another session takes its place, and the steps that come are recorded there."""
    for module in (onnx_steps, onnx_standard):
        monkeypatch.setattr(module, "MOST_RECORDED", 3)
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
    assert len(opened) == 2 and len(engine._steps) == 2
    for rows, arrays in wanted.items():
        assert same(steps(engine, engine.take_rows(cache, range(rows)), 2), arrays)
    assert {number for session in opened for number in session} == {"-1", "1", "2", "3"}
    assert len(opened) == 4
    assert [record.getMessage() for record in caplog.records] == [
        "ar_step is loaded again: a session records 3 steps at most"
    ] * 3


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


def test_a_large_pool_has_few_steps() -> None:
    """With the positions of the official model, which has room for 402 of text and 608 of codes."""
    spans = -(-cache_capacity({"ar.text_positions": 404, "ar.mel_positions": 608}) // REPEATED_SPAN)
    for most in (64, 256):
        rows = {few_rows(count, most) for count in range(1, most + 1)}
        assert len(rows) * spans <= MOST_RECORDED
    assert {few_rows(count, 256) for count in range(65, 257)} == {128, 192, 256}


def test_nothing_is_recorded_on_the_cpu(standard_graphs: EngineInfo) -> None:
    """Nor is any run alone."""
    engine, numbers = standard_engine(standard_graphs), []

    def told(number: str) -> None:
        numbers.append(number)
        assert not CALLS._recording

    watch(engine, told)
    steps(engine, ragged(engine, (2,)), 5)
    assert set(numbers) == {"-1"} and len(engine._steps) == 1 and engine.recorded == 0


def test_runs_are_alone_until_they_are_recorded(engine: StandardEngine) -> None:
    alone: list[bool] = []
    watch(engine, lambda number: alone.append(CALLS._recording))
    cache, recorded = ragged(engine, (2,)), []
    for seed in range(5):
        step(engine, cache, seed)
        recorded.append(engine.recorded)
    assert alone == [False] + [True] * 3 + [False] * 2 and recorded == [0, 0, 1, 1, 1]


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
    assert (engine.recorded, engine.records) == (0, False)


def test_what_is_recorded_is_asked_for(engine: StandardEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one graph, and no longer once it was refused."""
    monkeypatch.setattr(engine, "_kind", "cuda")
    options = SimpleNamespace(add_session_config_entry=lambda *given: None)
    asked = [graph for graph in GRAPHS if "enable_cuda_graph" in engine._provider_options(options, graph)]
    assert asked == ["ar_step"]
    engine.records = False
    assert "enable_cuda_graph" not in engine._provider_options(options, "ar_step")


def test_a_session_that_may_not_record(
    engine: StandardEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library does not make it where not all of a graph is on the GPU."""
    open_session = OnnxEngine._open
    tried: list[bool] = []

    def refuses(self: StandardEngine, model: str | bytes, graph: str) -> Any:
        if graph == "ar_step":
            tried.append(self.records)
            if broken or self.records:
                raise RuntimeError("This session cannot use the graph capture feature as requested")
        return open_session(self, model, graph)

    broken = False
    monkeypatch.setattr(OnnxEngine, "_open", refuses)
    steps(engine, ragged(engine, (2,)))
    assert tried == [True, False] and not engine.records
    assert [record.getMessage()[:28] for record in caplog.records] == ["ar_step is not recorded, and"]
    broken, engine.records = True, True
    engine.release("ar_step")
    with pytest.raises(BundleError, match="as requested"):
        step(engine, engine.new_cache(1, 8))
    assert tried == [True, False] * 2 and engine.records


def test_what_is_wrong_with_a_session_is_not_for_the_recording(
    engine: StandardEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is opened once."""
    opened: list[str] = []
    open_session = OnnxEngine._open

    def counted(self: StandardEngine, model: str | bytes, graph: str) -> Any:
        opened.append(graph)
        return open_session(self, model, graph)

    monkeypatch.setattr(OnnxEngine, "_open", counted)
    cache = engine.new_cache(1, 8)
    engine.release("ar_step")
    opened.clear()

    def wrong(*given: Any) -> None:
        raise EngineError("would run on the CPU in part")

    monkeypatch.setattr(onnx, "check_provider", wrong)
    with pytest.raises(EngineError, match="in part"):
        step(engine, cache)
    assert opened == ["ar_step"] and engine.records


@pytest.mark.parametrize("recovers", [True, False])
def test_a_session_goes_before_another_is_opened(engine: StandardEngine, recovers: bool) -> None:
    """There is no memory for the weights of two."""
    cache = ragged(engine, (1, 7))

    def told(number: str) -> None:
        if number != "-1" or not recovers:
            raise RuntimeError("operation not permitted when stream is capturing")

    watch(engine, told)
    sessions: list[weakref.ref[Any]] = []
    there: list[int] = []
    open_session = engine._open

    def watched(model: str | bytes, graph: str) -> Any:
        there.append(sum(ref() is not None for ref in sessions))
        sessions.append(weakref.ref(session := open_session(model, graph)))
        return session

    engine.release("ar_step")
    engine._open = watched  # type: ignore[method-assign]
    gc.collect()
    gc.disable()
    try:
        if recovers:
            step(engine, cache)
        else:
            with pytest.raises(EngineError, match="when stream is capturing") as raised:
                step(engine, cache)
            assert [ref() for ref in sessions] == [None, None], raised
    finally:
        gc.enable()
    assert there == [0, 0]


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
    assert (len(engine._steps), engine.records) == (0, True) and not caplog.records
    assert np.array_equal(cache.lengths, lengths)
    broken.clear()
    step(engine, cache)
    assert (len(engine._steps), engine.records) == (1, True)


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
    assert 0 < engine.recorded <= 12 and engine.records
