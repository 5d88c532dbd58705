"""Whoever takes the pieces of a stream: slowly, not to the end, or many at once."""

from __future__ import annotations

import functools
import threading
import time

import numpy as np
import pytest
from scheduling import ONE, TEXTS, TOKENIZER, WAIT, Counting, scheduler, settings, settle, voice

from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.config import Settings
from tortoise_rt.engine import Array, Engine
from tortoise_rt.errors import Cancelled, DeadlineExceeded, EngineError, TextError
from tortoise_rt.pipeline import Pipeline
from tortoise_rt.scheduler import Priority, Scheduler
from tortoise_rt.scheduler.request import MOST_PIECES
from tortoise_rt.streaming import Chunks
from tortoise_rt.text import Tokenizer

BOUND = 1e-5


def test_a_slow_consumer_bounds_what_is_made() -> None:
    engine = Counting()
    with scheduler(engine) as made:
        handle = made.stream(TEXTS[2], voice(engine), settings(**ONE), 2, chunks=Chunks(1, 1))
        time.sleep(1)
        assert sum(graph == "hifigan" for graph, _ in engine.runs) <= MOST_PIECES + 1
        other = made.submit(TEXTS[1], voice(engine), settings(**ONE), 6)
        other.result(10)  # nobody waits for the slow one
        wav = np.concatenate(list(handle))
    whole = Pipeline(FakeEngine(), Tokenizer(TOKENIZER)).synthesize(
        TEXTS[2], voice(engine), settings(**ONE), 2
    )
    assert np.abs(wav - whole.wavs[0]).max() <= BOUND


def test_whoever_leaves_gives_up() -> None:
    with scheduler(Counting(), rows=2) as made:
        handle = made.stream(TEXTS[2], voice(made.engine), settings(**ONE), 2, chunks=Chunks(1, 1))
        pieces = iter(handle)
        next(pieces)
        pieces.close()
        with pytest.raises(Cancelled):
            handle.result(WAIT)
        handle = made.stream(TEXTS[2], voice(made.engine), settings(**ONE), 2)
        handle.cancel()
        with pytest.raises(Cancelled):
            list(handle)
        settle(made)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("how", ["cancel", "close", "error"])
def test_what_a_given_up_stream_held_is_free(how: str, strict: bool) -> None:
    """Its thread waits for a listener and ends without the loop, while its sample is in the pool."""
    engine, long = Counting(), settings(num_autoregressive_samples=1, max_mel_tokens=400)
    seeds = longest(long)
    engine.before = lambda graph, rows: time.sleep(0.01) if graph == "ar_step" else None
    with scheduler(engine, rows=2, strict=strict) as made:
        for seed in seeds:
            handle = made.stream(TEXTS[2], voice(engine), long, seed, chunks=Chunks(1, 1))
            pieces = iter(handle)
            next(pieces)
            if how == "error":
                handle.put = lambda piece: 1 / 0  # type: ignore[method-assign]  # its own thread fails
            else:
                while handle.has_room:
                    time.sleep(0.001)
                time.sleep(0.02)
                handle.cancel() if how == "cancel" else pieces.close()
            handle.wait(WAIT)
            others = [
                made.submit(TEXTS[0], voice(engine), settings(max_mel_tokens=24), seed) for seed in (1, 2)
            ]
            for other in others:
                other.result(WAIT)
        settle(made)


@functools.cache
def longest(chosen: Settings) -> list[int]:
    """The seeds of three samples of many codes: about half of them are heard before a stream is given up."""
    pipeline = Pipeline(FakeEngine(), Tokenizer(TOKENIZER))

    def codes(seed: int) -> int:
        result = pipeline.synthesize(TEXTS[2], voice(pipeline.engine), chosen, seed)
        return int((result.codes[0] != result.stop_code).sum())

    lengths = {seed: codes(seed) for seed in range(40)}
    seeds = sorted(lengths, key=lambda seed: -lengths[seed])[:3]
    assert min(lengths[seed] for seed in seeds) > 25
    return seeds


def test_closing_ends_a_stream_that_nobody_takes() -> None:
    made = scheduler(FakeEngine())
    handle = made.stream(TEXTS[2], voice(made.engine), settings(**ONE), 2, chunks=Chunks(1, 1))
    time.sleep(0.3)
    closing = threading.Thread(target=made.close)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
    with pytest.raises(Cancelled):
        list(handle)


def test_errors_come_behind_the_last_piece() -> None:
    engine = Counting()
    with scheduler(engine) as made:
        handle = made.stream(TEXTS[2], voice(engine), settings(**ONE), 2, chunks=Chunks(8, 8))
        pieces = iter(handle)
        next(pieces)

        def fail(graph: str, rows: int) -> None:
            raise EngineError("gone")

        engine.before = fail
        with pytest.raises(EngineError, match="gone"):
            list(pieces)
        engine.before = lambda graph, rows: time.sleep(0.01)
        late = made.stream(TEXTS[2], voice(engine), settings(**ONE), 2, timeout=0.05)
        with pytest.raises(DeadlineExceeded):
            list(late)
        with pytest.raises(TextError, match="nothing to say"):
            list(made.stream("  ", voice(engine), settings(**ONE), 2))


def test_many_streams_at_once(engine: Engine) -> None:
    pipeline = Pipeline(engine, Tokenizer(TOKENIZER))
    wanted = {
        seed: pipeline.synthesize(TEXTS[seed % 4], voice(engine), settings(**ONE), seed).wavs[0]
        for seed in range(6)
    }
    found: dict[int, Array] = {}

    def listen(made: Scheduler, seed: int) -> None:
        priority = list(Priority)[seed % 3]
        handle = made.stream(TEXTS[seed % 4], voice(engine), settings(**ONE), seed, priority=priority)
        found[seed] = np.concatenate(list(handle))

    with scheduler(engine, rows=3) as made:
        threads = [threading.Thread(target=listen, args=(made, seed)) for seed in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    for seed, wav in wanted.items():
        assert found[seed].shape == wav.shape and np.abs(found[seed] - wav).max() <= BOUND
