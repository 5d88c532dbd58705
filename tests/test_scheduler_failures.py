"""What befalls a request of many on one engine befalls no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from scheduling import TEXTS, WAIT, Counting, assert_same, scheduler, settings, submit, voice

from tortoise_rt.backends import open_engine
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.engine import Array, KVCache
from tortoise_rt.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineError,
    QueueFull,
    RequestError,
    SettingsError,
    TextError,
)
from tortoise_rt.pipeline import Result
from tortoise_rt.scheduler import Priority, Scheduler
from tortoise_rt.voice import VoiceLatents


@pytest.fixture
def fake() -> Iterator[Scheduler]:
    with scheduler(FakeEngine(), rows=4) as made:
        yield made


def test_an_engine_failure_fails_what_it_touched() -> None:
    engine = Counting()
    with scheduler(engine, rows=4) as made:

        def fail_once(graph: str, rows: int) -> None:
            if graph == "clvp_speech":
                engine.before = lambda graph, rows: None
                raise EngineError("the graph exploded")

        engine.before = fail_once
        ranked = submit(made, num_autoregressive_samples=5, text="A boat.")
        single = submit(made, num_autoregressive_samples=1)
        with pytest.raises(EngineError, match="exploded"):
            ranked.result(WAIT)
        assert_same(FakeEngine(), single.result(WAIT), 1, num_autoregressive_samples=1)
        assert_same(FakeEngine(), submit(made).result(WAIT), 1)
        assert made.policy.free == 4


def test_a_failing_step_fails_the_samples_in_it() -> None:
    engine = Counting()
    with scheduler(engine, rows=2) as made:

        def fail_once(graph: str, rows: int) -> None:
            if graph == "ar_step" and rows == 2 and len(engine.steps) > 6:
                engine.before = lambda graph, rows: None
                raise EngineError("out of memory")

        engine.before = fail_once
        handles = [submit(made, seed=seed, num_autoregressive_samples=1) for seed in range(4)]
        ends = []
        for handle in handles:
            try:
                handle.result(WAIT)
                ends.append("done")
            except EngineError as error:
                ends.append(str(error))
        assert sorted(ends) == ["done", "done", "out of memory", "out of memory"]
        assert_same(FakeEngine(), submit(made).result(WAIT), 1)


@pytest.mark.parametrize("stuck", [(1,), (1, 2), (1, 3), (2, 3)])
def test_rows_that_cannot_be_moved_fail_their_requests(stuck: tuple[int, ...]) -> None:
    """The samples of two requests alternate, so that what fails leaves holes that others must be moved into."""

    class Stuck(FakeEngine):
        moves = 0

        def _put_rows(self, target: KVCache, places: Array, source: KVCache, rows: Array) -> None:
            if target is source:
                self.moves += 1
                if self.moves in stuck:
                    raise EngineError("stuck")
            super()._put_rows(target, places, source, rows)

    engine = Stuck()
    with scheduler(engine, rows=9) as made:
        arguments = dict(num_autoregressive_samples=3, max_mel_tokens=60)
        handles = {seed: submit(made, seed=seed, **arguments) for seed in range(3)}
        ends = []
        for seed, handle in handles.items():
            try:
                assert_same(FakeEngine(), handle.result(20), seed, **arguments)
                ends.append("done")
            except EngineError as error:
                ends.append(str(error))
        assert "stuck" in ends and set(ends) <= {"stuck", "done"} and made.policy.free == 9
        engine.moves = 100
        assert_same(FakeEngine(), submit(made).result(WAIT), 1)


def test_threads_that_compute_do_not_hold_up_the_rows() -> None:
    """Once the loop has waited for one, it goes on without it until that thread asks for something."""
    release = threading.Event()
    with scheduler(FakeEngine()) as made:
        submit(made).result(WAIT)
        slow = made.call(lambda engine: release.wait(WAIT))
        began = time.monotonic()
        submit(made, num_autoregressive_samples=1, max_mel_tokens=400).result(WAIT)
        assert time.monotonic() - began < 2  # 400 steps that wait 20 ms each take 8 s
        release.set()
        slow.result(WAIT)


def test_errors_that_cannot_be_copied_end_their_requests() -> None:
    class Particular(EngineError):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    engine = Counting()
    with scheduler(engine) as made:

        def fail_once(graph: str, rows: int) -> None:
            engine.before = lambda graph, rows: None
            raise Particular(1, 2)

        engine.before = fail_once
        with pytest.raises(EngineError, match="the engine failed: Particular: 1 and 2"):
            submit(made).result(WAIT)
        submit(made).result(WAIT)


def test_unusable_numbers_fail_their_own_request_alone() -> None:
    class Overflowing(FakeEngine):
        def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
            logits, latents = super()._ar_step(cache, inputs)
            if inputs["voice"].size and inputs["voice"].max() > 100:
                logits[:] = np.nan
            return logits, latents

    with scheduler(Overflowing(), rows=4) as made:
        good = {seed: submit(made, seed=seed, num_autoregressive_samples=3) for seed in (1, 2)}
        loud = VoiceLatents(voice(made.engine).auto * 1e6, voice(made.engine).diffusion)
        bad = made.submit(TEXTS[0], loud, settings(), 5)
        with pytest.raises(EngineError, match="no finite numbers for this voice and text"):
            bad.result(WAIT)
        for seed, handle in good.items():
            assert_same(FakeEngine(), handle.result(WAIT), seed, num_autoregressive_samples=3)


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_rows_forget_unusable_numbers(request: pytest.FixtureRequest, backend: str) -> None:
    source = request.getfixturevalue("data" if backend == "torch" else "random_bundle")
    engine = open_engine(source, backend, "cpu")
    signs = np.where(np.arange(engine.dims["ar.dim"]) % 2, 1, -1)
    loud = VoiceLatents((3e38 * signs[None]).astype(np.float32), voice(engine).diffusion)
    with scheduler(engine, rows=2) as made:
        for handle in [made.submit(TEXTS[2], loud, settings(), seed) for seed in range(2)]:
            with pytest.raises(EngineError, match="no finite numbers"):
                handle.result(WAIT)
        for handle in [submit(made, seed=seed) for seed in (1, 2)]:
            assert np.isfinite(handle.result(WAIT).wavs[0]).all()


def test_a_stream_does_not_wait_for_bulk_work() -> None:
    engine = Counting()
    with scheduler(engine, rows=4) as made:
        bulk = submit(made, decoder="diffusion", num_autoregressive_samples=1, diffusion_iterations=100,
                      priority=Priority.BULK)  # fmt: skip
        next(event for event in bulk.events() if event.stage == "diffusion")
        engine.before = lambda graph, rows: time.sleep(0.002)
        before = len(engine.runs)
        submit(made, num_autoregressive_samples=1, max_mel_tokens=60, priority=Priority.STREAM).result(WAIT)
        assert sum(graph == "diffusion_denoise" for graph, _ in engine.runs[before:]) <= 3
        bulk.cancel()


@pytest.mark.parametrize("name", ["tortoise-rt loop", "request 0"])
def test_a_thread_that_cannot_start_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    made = scheduler(FakeEngine())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            submit(made)
    assert_same(made.engine, submit(made).result(WAIT), 1)
    made.close()


@pytest.mark.parametrize("timeout", [float("inf"), float("nan"), -1])
def test_timeouts_are_times(fake: Scheduler, timeout: float) -> None:
    with pytest.raises(SettingsError, match="timeout"):
        submit(fake, timeout=timeout)
    submit(fake).result(WAIT)


def test_other_work_takes_its_turn(fake: Scheduler) -> None:
    samples = submit(fake, num_autoregressive_samples=9)
    mel = np.zeros((1, 80, 20), np.float32)
    (latent,) = fake.call(lambda engine: engine.run("ar_voice", mel=mel)).result(WAIT)
    np.testing.assert_array_equal(latent, FakeEngine().run("ar_voice", mel=mel)[0])
    samples.result(WAIT)


def test_what_is_wrong_with_a_request_is_its_own(fake: Scheduler) -> None:
    bad, good = submit(fake, text=" "), submit(fake)
    with pytest.raises(TextError, match="nothing to say"):
        bad.result(WAIT)
    assert_same(fake.engine, good.result(WAIT), 1)


def test_cancellation_frees_rows_at_once() -> None:
    engine = Counting()
    with scheduler(engine, rows=2) as made:
        engine.before = lambda graph, rows: time.sleep(0.002)
        large = submit(made, num_autoregressive_samples=500, priority=Priority.STREAM)
        next(large.events())
        small = submit(made, num_autoregressive_samples=1, priority=Priority.BULK)
        large.cancel()
        large.cancel()
        with pytest.raises(Cancelled, match="was cancelled"):
            large.result(WAIT)
        small.result(WAIT)
        small.cancel()  # nothing: it is done
        assert small.result().codes.shape[0] == 1 and made.policy.free == 2


def test_time_runs_out() -> None:
    engine = Counting()
    with scheduler(engine, rows=2) as made:
        engine.before = lambda graph, rows: time.sleep(0.005)
        late = submit(made, num_autoregressive_samples=500, timeout=0.1)
        other = submit(made, num_autoregressive_samples=2, timeout=WAIT)
        with pytest.raises(TimeoutError, match="not done after 0.001 s"):
            late.result(0.001)
        with pytest.raises(DeadlineExceeded, match="not done in its time"):
            late.result(WAIT)
        other.result(WAIT)


def test_too_many_requests_are_refused_at_once() -> None:
    engine = Counting()
    with scheduler(engine, rows=2, queue=2) as made:
        engine.before = lambda graph, rows: time.sleep(0.01)
        handles = [submit(made), submit(made)]
        with pytest.raises(QueueFull, match="try again later"):
            submit(made)
        handles[0].cancel()
        handles[1].result(WAIT)
        for _ in handles[0].events():
            pass
        submit(made).result(WAIT)


def test_when_it_is_closed_every_handle_has_ended() -> None:
    for _ in range(20):
        with scheduler(FakeEngine(), rows=2) as made:
            handles = [submit(made, seed=seed, num_autoregressive_samples=9) for seed in range(5)]
        assert all(handle.done for handle in handles)


def test_closing_ends_all() -> None:
    engine = Counting()
    made = scheduler(engine)
    engine.before = lambda graph, rows: time.sleep(0.005)
    handles = [submit(made, num_autoregressive_samples=100) for _ in range(3)]
    made.close()
    for handle in handles:
        with pytest.raises(Cancelled):
            handle.result(WAIT)
    with pytest.raises(RequestError, match="closed"):
        submit(made)
    made.close()


def test_events_tell_how_far_it_is(fake: Scheduler) -> None:
    handle = submit(fake, decoder="diffusion", num_autoregressive_samples=5)
    events = list(handle.events())
    assert [e for e in events if e.stage == "sampling"] == [("sampling", i, 5) for i in range(1, 6)]
    assert ("diffusion", 4, 4) in events and events[-1] == ("vocoder", 1, 1)
    assert handle.done and list(handle.events()) == []


def test_nothing_is_left_running_when_nothing_is_in_flight(fake: Scheduler) -> None:
    submit(fake).result(WAIT)
    end = time.monotonic() + 10
    while any(t.name.startswith(("tortoise-rt loop", "request")) for t in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_many_threads_may_submit(fake: Scheduler) -> None:
    results: dict[int, Result] = {}

    def work(seed: int) -> None:
        results[seed] = submit(fake, seed=seed, num_autoregressive_samples=2).result(WAIT)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    for seed in range(8):
        assert_same(fake.engine, results[seed], seed, num_autoregressive_samples=2)
