"""When the sentences of a reading are drawn, and its pace: time that is worked, and time that is waited."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from scheduling import QUICK, STORY, TOKENIZER, WAIT, Counting, reader, scheduler, settings, settle, voice

from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.pipeline import Pipeline
from tortoise_rt.reading import Reader, _Said
from tortoise_rt.scheduler import Priority, Scheduler, StreamHandle, loop
from tortoise_rt.sentences import Sentence
from tortoise_rt.spec import SAMPLE_RATE
from tortoise_rt.streaming import CODE_SECONDS, Chunks, Pace
from tortoise_rt.text import Tokenizer


def test_the_next_sentence_is_drawn_while_the_present_one_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """But the first sound does not wait for that."""
    monkeypatch.setattr(loop, "PATIENCE", 1.0)  # however busy the machine is
    engine = Counting()

    def prompts() -> int:
        return sum(text > 0 for _, text, _ in engine.steps)

    with scheduler(engine) as made:
        drawn: list[int] = []  # steps before each clip is vocoded

        def before(graph: str, rows: int) -> None:
            time.sleep(0.003 if graph == "diffusion_denoise" else 0)
            if graph == "univnet":
                drawn.append(len(engine.steps))

        engine.before = before
        pieces = reader(made, decoder="diffusion", diffusion_iterations=40).read(STORY)
        next(pieces)
        alone = Counting()
        Pipeline(alone, Tokenizer(TOKENIZER)).synthesize(
            "The boat came in.", voice(alone), settings(**QUICK, decoder="diffusion"), 7
        )
        assert drawn[0] <= len(alone.steps) + 2
        next(pieces)
        denoised = sum(graph == "diffusion_denoise" for graph, _ in engine.runs)
        assert prompts() >= 3 and denoised < 3 * 40
        pieces.close()


@pytest.mark.parametrize("decoder", ["hifigan", "diffusion"])
def test_the_next_sentence_is_drawn_while_nobody_takes_the_present_ones_sound(decoder: str) -> None:
    """A loudspeaker takes the next piece when it has played the last. Meanwhile the next sentence arrives, and is drawn."""
    engine, played = Counting(), threading.Event()

    def text() -> Iterator[str]:
        yield "The boat came in. Who"
        played.wait(WAIT)
        yield " was on it? Nobody knew."

    with scheduler(engine) as made:
        reading = reader(made, decoder=decoder, diffusion_iterations=4)
        reading._chunks = Chunks(100, 100)  # a piece is a sentence
        pieces = reading.read(text())
        next(pieces)
        assert sum(text > 0 for _, text, _ in engine.steps) == 1
        played.set()
        until = time.monotonic() + WAIT
        while sum(text > 0 for _, text, _ in engine.steps) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert sum(text > 0 for _, text, _ in engine.steps) == 2
        pieces.close()
        settle(made)


def test_the_pace_of_a_reading() -> None:
    with scheduler(FakeEngine()) as made:
        made_reader = reader(made)
        wav = np.concatenate([piece.wav for piece in made_reader.read(STORY)])
    assert made_reader.pace.sound == pytest.approx(len(wav) / SAMPLE_RATE)
    assert 0 < made_reader.pace.first <= made_reader.pace.spent


class Clock:
    """Stands in for the module time: time passes where the engine works, and where a test sleeps while nothing is worked on."""

    def __init__(self, made: Scheduler, engine: Counting) -> None:
        self.now = self.worked = 0.0
        self._flight = made.lanes[0].flight
        engine.before = lambda graph, rows: self._work()

    def monotonic(self) -> float:
        return self.now

    def _work(self) -> None:
        self.now += 0.001
        self.worked += 0.001

    def sleep(self, seconds: float, until: Callable[[], bool] = lambda: True) -> None:
        limit = time.monotonic() + WAIT
        while time.monotonic() < limit:
            with self._flight.lock:
                jobs = self._flight.jobs.values()
                if until() and all(job.computes_since is None and job.waits_for is None for job in jobs):
                    self.now += seconds
                    return
            time.sleep(0.001)
        raise AssertionError("work goes on and on")


def test_whoever_is_slow_makes_no_bad_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a text that comes late, nor whoever takes sound late, makes the stream slow: only work does."""
    engine, heard = Counting(), set[int]()

    def late() -> Iterator[str]:
        for number, part in enumerate(("The boat came in. ", "Who was on it? ", "Nobody knew. ")):
            clock.sleep(0.4, until=lambda: len(heard) >= number - 1)  # noqa: B023
            yield part  # which makes the sentence before it certain

    with scheduler(engine) as made:
        clock = Clock(made, engine)
        for module in ("reading", "scheduler.flight", "scheduler.request"):
            monkeypatch.setattr(f"tortoise_rt.{module}.time", clock)

        def pace(made_reader: Reader, text: Any, seconds: float) -> Pace:
            clock.worked = 0.0
            heard.clear()
            for piece in made_reader.read(text):
                heard.add(piece.sentence)
                clock.sleep(seconds)
            found = made_reader.pace
            assert 0 < found.first <= found.spent < clock.worked + 1e-9 and found.gap < clock.worked + 1e-9
            return found

        waiting = pace(reader(made), late(), 0)
        assert len(heard) == 3 and waiting.idle == pytest.approx(0.4)  # 0.8 s more were before it began
        slow = pace(reader(made, chunks=Chunks(1, 1)), "The boat came in. Who was on it?", 0.05)
        assert len(heard) == 2 and slow.idle > 0.2
        text = "The boat came in. Who was on it? Nobody knew."
        done = pace(reader(made, decoder="diffusion", diffusion_iterations=2), text, 0.4)
        assert len(heard) == 3 and done.idle > 0.3


def test_the_pace_of_sentences_that_overlap() -> None:
    """Two sentences wait for the same listener: that is idle once. One that is worked on while the other waits is not idle."""
    with scheduler(FakeEngine()) as made:
        reading = reader(made)
        reading._began = reading._told = 0.0
        said = [
            _Said(number, Sentence(""), StreamHandle(number, lambda: None, lambda: None))
            for number in range(2)
        ]
        for one, began, rests, ended in zip(
            said, (0.0, 2.0), ([(1.0, 4.0)], [(3.0, 5.0)]), (6.0, 9.0), strict=True
        ):
            one.handle.began, one.handle.rests, one.handle.ended = began, rests, ended
        reading._tell(1.0, 1.0, said[0], None)
        reading._tell(5.5, 1.0, *said)  # from 1 to 2 the first rests alone, from 3 to 4 both do
        assert reading.pace.idle == pytest.approx(2.0) and reading.pace.spent == pytest.approx(3.5)
        assert reading.pace.gap == pytest.approx(1.5)  # all was heard at 2, work went on at 4


def test_the_next_sentence_is_as_urgent_once_the_first_is_heard() -> None:
    engine, asked = Counting(), []
    with scheduler(engine) as made:
        raised, policy = threading.Event(), made.policy

        def prioritize(request: int, priority: Priority) -> None:
            asked.append((request, priority))
            raised.set()

        policy.prioritize = prioritize  # type: ignore[method-assign]
        engine.before = lambda graph, rows: time.sleep(0.003 if graph == "diffusion_denoise" else 0)
        pieces = reader(made, decoder="diffusion", diffusion_iterations=20).read(STORY)
        next(pieces)
        assert raised.wait(WAIT) and asked[0] == (1, Priority.STREAM)
        pieces.close()


def test_a_sentence_begins_with_as_much_as_the_sound_in_hand_allows() -> None:
    with scheduler(FakeEngine()) as made:
        reading = reader(made)
        for _ in reading.read(STORY):
            pass
        assert reading._code_seconds > 0  # the last sentence's
        quick, slow = CODE_SECONDS / 2, CODE_SECONDS * 2
        for seconds, in_hand, codes in (
            (0.0, 9.0, 8),
            (quick, 9.0, 60),
            (quick, 0.5, 12),
            (quick, 0.0, 8),
            (slow, 9.0, 8),
        ):
            reading._began, reading.pace, reading._code_seconds = time.monotonic(), Pace(), seconds
            reading.pace.add(0, in_hand)
            assert reading._beginning().first == pytest.approx(codes, abs=1)
        reading._chunks, reading._code_seconds = Chunks(5, 5), quick
        assert reading._beginning() == Chunks(5, 5)
