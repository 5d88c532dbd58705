"""Texts of any length, whole or still arriving, are read sentence by sentence."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scheduling import QUICK, STORY, TOKENIZER, WAIT, Counting, reader, scheduler, settings, settle, voice

from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.conditioning import random_latents
from tortoise_rt.engine import Array
from tortoise_rt.errors import Cancelled, EngineError, RequestError, SettingsError, TextError
from tortoise_rt.pipeline import Pipeline
from tortoise_rt.reading import PARAGRAPH, PAUSE, Reader, sentences_said
from tortoise_rt.rng import Philox
from tortoise_rt.scheduler import Scheduler
from tortoise_rt.spec import SAMPLE_RATE
from tortoise_rt.streaming import Chunks
from tortoise_rt.text import Tokenizer


def read(made: Scheduler, text: Any, **arguments: Any) -> Array:
    return np.concatenate([piece.wav for piece in reader(made, **arguments).read(text)])


def alone(text: str, seed: int, **arguments: Any) -> Array:
    pipeline = Pipeline(FakeEngine(), Tokenizer(TOKENIZER))
    return pipeline.synthesize(text, voice(pipeline.engine), settings(**{**QUICK, **arguments}), seed).wavs[0]


@pytest.mark.parametrize("arguments", [{}, {"num_autoregressive_samples": 3}, {"decoder": "diffusion"}])
def test_sentences_are_those_said_alone(arguments: dict[str, Any]) -> None:
    with scheduler(FakeEngine()) as made:
        found = read(made, STORY, **arguments)
    pause = np.zeros(round(PAUSE * SAMPLE_RATE), np.float32)
    longer = np.zeros(round(PARAGRAPH * PAUSE * SAMPLE_RATE), np.float32)
    said = ["The boat came in.", "Who was on it?", "Nobody knew.",
            "The harbour was quiet that evening; we went home."]  # fmt: skip
    clips = [alone(text, 7 + number, **arguments) for number, text in enumerate(said)]
    wanted = np.concatenate([clips[0], pause, clips[1], pause, clips[2], longer, clips[3]])
    assert found.shape == wanted.shape and np.abs(found - wanted).max() < 1e-5


@pytest.mark.parametrize("arguments", [{}, {"decoder": "diffusion"}])
def test_a_random_voice_is_one_voice(arguments: dict[str, Any]) -> None:
    """The same for all sentences: that of the seed, as the first sentence alone has it."""
    engine, chosen = FakeEngine(), settings(**{**QUICK, **arguments})
    drawn = random_latents(engine, Philox(7), chosen.decoder)
    texts = ["The boat came in.", "Who was on it?", "Nobody knew."]
    with scheduler(engine) as made:
        speaker = Reader(made, None, chosen, 7, pause=0)
        found = [np.concatenate([p.wav for p in speaker.read(" ".join(texts))]) for _ in range(2)]
    pipeline = Pipeline(FakeEngine(), Tokenizer(TOKENIZER))
    clips = [
        pipeline.synthesize(text, drawn, chosen, 7 + number).wavs[0] for number, text in enumerate(texts)
    ]
    for wav in found:
        assert np.abs(wav - np.concatenate(clips)).max() < 1e-5
    np.testing.assert_array_equal(clips[0], pipeline.synthesize(texts[0], None, chosen, 7).wavs[0])


def test_halves_that_are_all_in_brackets_are_passed_over() -> None:
    fits = lambda text: -(-len(text) // 40)  # noqa: E731
    text = f"[{'so very sad ' * 8}] please feed me. [Thanks.] ! One."
    assert [s.text for s in sentences_said(text, fits, brackets=True)] == [
        "[so very sad ] please feed me.", "[Thanks.] ! One.",
    ]  # fmt: skip


def test_a_text_can_be_one_clip() -> None:
    with scheduler(FakeEngine()) as made:
        found = read(made, "One. Two.", split=False)
    assert np.abs(found - alone("One. Two.", 7)).max() < 1e-5


def test_words_one_at_a_time_give_what_the_text_gives() -> None:
    words = [word + " " for word in STORY.replace("\n\n", " \n\n ").split(" ")]
    with scheduler(FakeEngine()) as made:
        live, whole = read(made, iter(words)), read(made, STORY)
    assert live.shape == whole.shape and np.abs(live - whole).max() < 1e-5


def test_sound_comes_before_the_text_ends() -> None:
    heard = threading.Event()

    def text() -> Iterator[str]:
        yield "The boat came in. Who was "
        assert heard.wait(WAIT)  # the rest is not written before the first sentence is heard
        yield "on it?"

    with scheduler(FakeEngine()) as made:
        pieces = reader(made).read(text())
        first = next(pieces)
        heard.set()
        rest = list(pieces)
    assert first.text == "The boat came in." and rest[-1].text == "Who was on it?"


def test_leaving_while_the_text_is_waited_for() -> None:
    gone = threading.Event()

    def text() -> Iterator[str]:
        yield "The boat came in. Who"
        gone.wait(WAIT)

    with scheduler(FakeEngine()) as made:
        pieces = reader(made).read(text())
        next(pieces)
        began = time.monotonic()
        pieces.close()
        assert time.monotonic() - began < 5
        gone.set()
        settle(made)


def test_long_words_are_cut_to_what_the_model_takes() -> None:
    class Small(FakeEngine):
        def __init__(self) -> None:
            super().__init__()
            self.info = type(self.info)(
                **{**vars(self.info), "dims": {**self.info.dims, "ar.text_positions": 20}}
            )

    with scheduler(Small()) as made:
        made_reader = Reader(made, voice(made.engine), settings(**QUICK), 1)
        texts = list(
            dict.fromkeys(p.text for p in made_reader.read("Incomprehensibilities abound, " * 3 + "x" * 90))
        )
    assert len(texts) >= 3 and "".join("".join(texts).split()).startswith("Incomprehensibilitiesabound,")


@pytest.mark.parametrize("text", ["", " \n ", iter(["", " "]), iter([])])
def test_nothing_to_say(text: Any) -> None:
    with scheduler(FakeEngine()) as made, pytest.raises(TextError, match="nothing to say"):
        list(reader(made).read(text))


def test_what_cannot_be_said_is_passed_over() -> None:
    with scheduler(FakeEngine()) as made:
        texts = [piece.text for piece in reader(made).read("\u200b. One.\n\n\u200b\n\nTwo.")]
    assert {"One.", "Two."} <= set(texts)


def test_errors_of_the_text_and_of_a_sentence() -> None:
    def broken() -> Iterator[str]:
        yield "One. Two"
        raise ValueError("the model that writes has gone")

    engine = Counting()
    with scheduler(engine) as made:
        with pytest.raises(ValueError, match="has gone"):
            list(reader(made).read(broken()))

        def fail(graph: str, rows: int) -> None:
            raise EngineError("exploded")

        engine.before = fail
        with pytest.raises(EngineError, match="exploded"):
            list(reader(made).read("One. Two."))
        with pytest.raises(SettingsError, match="pause is -1"):
            reader(made, pause=-1)


def test_closing_gives_up_what_is_in_flight() -> None:
    with scheduler(FakeEngine(), rows=2) as made:
        pieces = reader(made).read(STORY * 50)
        next(pieces)
        pieces.close()
        settle(made)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("request")]


def test_an_endless_text_is_read_no_further_than_it_is_heard() -> None:
    given = 0

    def endless() -> Iterator[str]:
        nonlocal given
        while True:
            given += 1
            yield "One more sentence. "

    with scheduler(FakeEngine()) as made:
        pieces = reader(made).read(endless())
        for _ in range(3):
            next(pieces)
        time.sleep(0.3)
        assert given < 30
        pieces.close()
        until = time.monotonic() + 10
        while any(thread.name == "text" for thread in threading.enumerate()) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(thread.name == "text" for thread in threading.enumerate())


def test_a_sentence_that_goes_on_is_taken_by_a_full_queue() -> None:
    with scheduler(FakeEngine(), queue=1) as made:
        assert {piece.sentence for piece in reader(made).read("The boat came in. Who was on it?")} == {0, 1}


def test_nothing_is_left_where_a_reading_cannot_begin() -> None:
    def endless() -> Iterator[str]:
        while True:
            yield "One more sentence. "

    made = scheduler(FakeEngine())
    reading = reader(made)
    made.close()
    with pytest.raises(RequestError, match="closed"):
        next(reading.read(endless()))
    until = time.monotonic() + 10
    while any(thread.name == "text" for thread in threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(thread.name == "text" for thread in threading.enumerate())


def test_pieces_have_sizes_only_where_there_are_pieces() -> None:
    with scheduler(FakeEngine()) as made, pytest.raises(SettingsError, match="here a piece is a sentence"):
        reader(made, decoder="diffusion", chunks=Chunks(8, 8))


def test_sentences_that_do_not_end_are_told(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("tortoise_rt").propagate = True
    with scheduler(FakeEngine()) as made, caplog.at_level(logging.WARNING, "tortoise_rt"):
        list(reader(made, max_mel_tokens=6).read("The boat came in, and nobody knew who was on it."))
    assert "did not stop by itself" in caplog.text and "The boat came in" in caplog.text


@pytest.mark.parametrize("live", [False, True])
def test_another_thread_may_give_a_reading_up(live: bool) -> None:
    """Before it begins, while it waits for text, and while it is heard: who reads gets Cancelled, and no row is held."""
    engine = Counting()
    waits = threading.Event()

    def parts() -> Iterator[str]:
        yield "Hello there. How are you, my "
        waits.wait(WAIT)

    with scheduler(engine) as made:
        early = reader(made)
        early.cancel()
        with pytest.raises(Cancelled):
            next(early.read(parts() if live else STORY))
        for seconds in (0.0, 0.3):
            engine.before = lambda graph, rows: time.sleep(0.02)
            reading = reader(made)
            threading.Timer(seconds, reading.cancel).start()
            began = time.monotonic()
            with pytest.raises(Cancelled):
                for _ in reading.read(parts() if live else " ".join([STORY] * 20)):
                    pass
            assert time.monotonic() - began < seconds + 2
            settle(made)
    waits.set()
