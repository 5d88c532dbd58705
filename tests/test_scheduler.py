"""Many requests on one engine: what they share."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from scheduling import TEXTS, WAIT, Counting, assert_same, scheduler, settings, submit, voice

from tortoise_rt import autoregressive
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.errors import (
    SettingsError,
)
from tortoise_rt.scheduler import Scheduler, loop


@pytest.fixture
def fake() -> Iterator[Scheduler]:
    with scheduler(FakeEngine(), rows=4) as made:
        yield made


@pytest.mark.parametrize("samples", [1, 7, 16, 97])
def test_exactly_as_many_samples_as_asked(fake: Scheduler, samples: int) -> None:
    result = submit(fake, num_autoregressive_samples=samples).result(WAIT)
    assert result.codes.shape == (samples, 24)
    assert len({row.tobytes() for row in result.codes}) == samples
    assert_same(fake.engine, result, 1, num_autoregressive_samples=samples)


# --- what is shared ---


def test_a_prompt_is_read_once() -> None:
    engine = Counting()
    with scheduler(engine, rows=4) as made:
        handles = [submit(made, seed=seed, num_autoregressive_samples=9) for seed in range(3)]
        for handle in handles:
            handle.result(WAIT)
    assert [codes for _, text, codes in engine.steps if text] == [1] * 3
    passes = [(rows, codes) for rows, text, codes in engine.steps if not text and codes > 1]
    assert len(passes) == 3 and {rows for rows, _ in passes} == {1}  # over the codes of each request's best


def test_of_many_requests_some_prompts_are_read_again() -> None:
    """Few are kept for the latents of the best, whatever is in flight."""
    engine = Counting()
    with scheduler(engine, rows=24, queue=32) as made:
        handles = [submit(made, seed=seed, num_autoregressive_samples=2) for seed in range(12)]
        for seed, handle in enumerate(handles):
            assert_same(FakeEngine(), handle.result(WAIT), seed, num_autoregressive_samples=2)
    assert 12 <= len([codes for _, text, codes in engine.steps if text]) < 24


def test_streams_do_not_cost_others_their_prompts() -> None:
    """A stream needs its prompt no more once it has begun."""
    engine = Counting()
    with scheduler(engine, rows=16) as made:
        engine.before = lambda graph, rows: time.sleep(0.001)
        one = settings(num_autoregressive_samples=1, max_mel_tokens=200)
        streams = [made.stream(TEXTS[2], voice(engine), one, seed) for seed in range(6)]
        submit(made, num_autoregressive_samples=6, k=3).result(WAIT)
        for stream in streams:
            stream.cancel()
    assert sum(text > 0 for _, text, _ in engine.steps) == 7


def test_many_candidates_take_no_more_memory() -> None:
    engine = Counting()
    with scheduler(engine, rows=4) as made:
        result = submit(made, num_autoregressive_samples=9, k=6).result(WAIT)
    assert_same(FakeEngine(), result, 1, num_autoregressive_samples=9, k=6)
    assert max(rows for rows, _, codes in engine.steps if codes > 1) == 1


def test_rows_are_full_while_samples_wait() -> None:
    engine = Counting()
    with scheduler(engine, rows=4) as made:
        before_each: list[tuple[bool, int]] = []

        def note(graph: str, rows: int) -> None:
            if graph == "ar_step" and not engine.steps[-1][1]:
                before_each.append((made.policy.waiting, rows))

        engine.before = note
        submit(made, num_autoregressive_samples=40, max_mel_tokens=60).result(WAIT)
        assert made.rows is not None
        assert made.rows.computed == sum(
            rows for rows, text, codes in engine.steps if not text and codes == 1
        )
    full = [rows for waiting, rows in before_each if waiting]
    assert len(full) > 100 and set(full) == {4}


def test_a_request_keeps_to_its_batch_rows() -> None:
    engine = Counting()
    with scheduler(engine, rows=6) as made:
        submit(made, num_autoregressive_samples=9, batch_rows=2).result(WAIT)
        assert {rows for rows, text, _ in engine.steps if not text} <= {1, 2}
        engine.steps.clear()
        submit(made, num_autoregressive_samples=9).result(WAIT)
        assert max(rows for rows, text, _ in engine.steps if not text) == 6


def test_equal_steps_of_requests_run_as_one() -> None:
    engine = Counting()
    with scheduler(engine, rows=4) as made:
        blocked = threading.Event()
        engine.before = lambda graph, rows: (blocked.wait(WAIT), None)[1]
        same = dict(decoder="diffusion", num_autoregressive_samples=1, cond_free=False, seed=3)
        handles = [submit(made, **same) for _ in range(3)]
        blocked.set()
        results = [handle.result(WAIT) for handle in handles]
    denoised = [rows for graph, rows in engine.runs if graph == "diffusion_denoise"]
    assert sum(denoised) == 3 * 4 and max(denoised) >= 2
    np.testing.assert_array_equal(results[0].wavs[0], results[2].wavs[0])


def test_latents_come_with_the_codes_where_hifigan_decodes_all_samples() -> None:
    engine = Counting()
    arguments = dict(num_autoregressive_samples=2, k=2, max_mel_tokens=60)
    with scheduler(engine) as made:
        result = submit(made, **arguments).result(WAIT)
    assert max(codes for _, _, codes in engine.steps) == 1  # no pass over all codes
    assert_same(FakeEngine(), result, 1, **arguments)


def test_the_pool_keeps_to_its_budget() -> None:
    engine = FakeEngine()
    positions = 1 + engine.dims["ar.text_positions"] + engine.dims["ar.mel_positions"]
    row = positions * engine.position_bytes()
    assert scheduler(engine, rows=16, kv_budget=3 * row).policy.rows == 3
    assert scheduler(engine, rows=2, kv_budget=3 * row).policy.rows == 2
    with pytest.raises(SettingsError, match=f"kv_budget is 1 bytes; {row} are needed for one sample"):
        scheduler(engine, kv_budget=1)


def test_vocoder_windows_of_requests_run_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PATIENCE", 10.0)  # however slow the machine is
    engine = Counting()
    with scheduler(engine, rows=4) as made:
        blocked = threading.Event()
        entered = threading.Event()

        def block(graph: str, rows: int) -> None:
            if graph == "ar_voice":
                entered.set()
                blocked.wait(WAIT)

        engine.before = block
        other = made.call(lambda engine: engine.run("ar_voice", mel=np.zeros((1, 80, 20), np.float32)))
        assert entered.wait(WAIT)
        handles = [submit(made, seed=3, num_autoregressive_samples=1) for _ in range(3)]
        while any(job.waits_for is None for job in list(made.lanes[0].flight.jobs.values())):
            time.sleep(0.01)
        blocked.set()
        other.result(WAIT)
        for handle in handles:
            assert_same(FakeEngine(), handle.result(WAIT), 3, num_autoregressive_samples=1)
    assert [rows for graph, rows in engine.runs if graph == "hifigan"] == [3]


def test_codes_to_decode() -> None:
    drawn = np.array([5, 6, 9, 9, 9, 9], np.int64)
    assert autoregressive.codes_to_decode(drawn, 9, "hifigan").tolist() == [5, 6, 9]
    assert autoregressive.codes_to_decode(drawn, 9, "diffusion").tolist() == [5, 6, 83, 45, 45, 248]
