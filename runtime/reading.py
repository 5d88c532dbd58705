"""Text of any length, or still arriving -> sound in pieces, sentence by sentence.

While a sentence is decoded and heard, the next is drawn. Sentence number n is said with seed + n, so that each can be
made again alone.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .config import Settings, check_number
from .engine import Array
from .errors import Cancelled, SettingsError, TextError
from .fitting import fitted, fitting
from .pipeline import Pipeline, check_seed
from .redaction import outside, whole_brackets
from .rng import MAX_SEED
from .scheduler import Handle, Priority, Scheduler, StreamHandle
from .sentences import Sentence, cut
from .spec import SAMPLE_RATE
from .streaming import CODE_SECONDS, MOST_GROWN, Chunks, Pace
from .voice import Voice, VoiceLatents

log = logging.getLogger("tortoise_rt")
PAUSE = 0.25  #: seconds of silence between sentences
LONGEST_PAUSE = 60.0
PARAGRAPH = 2.5  #: times as long between paragraphs
AHEAD = 16  #: sentences of a text still arriving that are kept in hand


@dataclass
class Piece:
    """Some sound of a reading."""

    wav: Array  #: (samples,) float32 at 24 kHz
    sentence: int  #: its number
    text: str  #: of the sentence
    first: bool  #: whether it is the sentence's first; the silence before it is part of it


@dataclass
class _Said:
    """A sentence in flight."""

    number: int
    sentence: Sentence
    handle: Handle[Any]


class Reader:
    """Reads texts aloud on a scheduler."""

    def __init__(
        self,
        scheduler: Scheduler,
        voice: Voice | VoiceLatents | None,
        settings: Settings,
        seed: int,
        *,
        chunks: Chunks | None = None,
        pause: float = PAUSE,
        split: bool = True,
    ) -> None:
        """With the decoder hifigan and one sample a sentence is heard while it is drawn, else when it is done.

        Sentences with words in [brackets] are heard when they are done, too, as those words are cut out of the whole.
        chunks: how a sentence that is heard while it is drawn is cut. pause: seconds of silence between sentences;
        split: off, a text that is given whole is one sentence.
        """
        self.pace = Pace()  #: of the latest reading
        self.complete = True  #: whether the voice stopped by itself each time
        self._by_pieces = settings.decoder == "hifigan" and settings.ar.samples == 1
        if chunks is not None and not self._by_pieces:
            raise SettingsError(
                "sizes of pieces are for hifigan and one sample; here a piece is a sentence: leave them out "
                "(--chunk, stream_chunk_size and the like)"
            )
        self._split = split
        self._scheduler, self._voice, self._settings = scheduler, voice, settings
        self._seed, self._chunks = check_seed(seed), chunks or Chunks()
        self._code_seconds = 0.0  #: what a code of the last sentence has taken
        self._pause = float(check_number("pause", pause, 0, LONGEST_PAUSE))
        if settings.check:
            raise SettingsError(
                "clips are checked when they are complete, and a reading is heard before: leave check out"
            )
        self._given_up = False
        self._heard: Handle[Any] | None = None  #: the sentence that is heard
        self._sentences: _Sentences | None = None
        self._pipeline = Pipeline(scheduler.engine, scheduler.tokenizer)
        self._pipeline.check(voice, settings)
        self._fits = fitting(scheduler.engine, scheduler.tokenizer)

    def read(self, text: str | Iterable[str]) -> Generator[Piece, None, None]:
        """The pieces of ``text``, or of the parts in which it comes. Closing the iterator gives up what is in flight.

        Raises TextError where there is nothing to say, Cancelled after :meth:`cancel`, and what a sentence failed with.
        """
        self.pace, self.complete = Pace(), True
        whole = [Sentence(text)] if isinstance(text, str) and not self._split else None
        self._sentences = sentences = _Sentences(text, self._fitting, whole, self._settings.redaction)
        if self._given_up:  # looked at after the sentences are there to be closed
            raise Cancelled("the reading was given up")
        following: Future[_Said | None] | None = None
        with ThreadPoolExecutor(1, "ahead") as ahead:
            present = self._begin(sentences.next())
            self._began = self._ended = time.monotonic()
            try:
                while present is not None:
                    self._heard = present.handle
                    if self._given_up:  # looked at after the handle is there to be cancelled
                        break
                    self._scheduler.prioritize(present.handle, Priority.STREAM)
                    following = ahead.submit(self._after, present, sentences)
                    first = True
                    for wav in self._sound(present):
                        yield Piece(wav, present.number, present.sentence.text, first)
                        first = False
                    present = following.result()
            finally:
                sentences.close()
                if present is not None:
                    present.handle.cancel()
                said = None if following is None or following.exception() else following.result()
                if said is not None:
                    said.handle.cancel()
        if self._given_up:
            raise Cancelled("the reading was given up")
        if sentences.given == 0:
            raise TextError("there is nothing to say: the text is empty once cleaned")

    def cancel(self) -> None:
        """Give the reading up, from any thread: whoever reads gets Cancelled, and rows are free by the next step."""
        self._given_up = True
        if self._sentences is not None:
            self._sentences.close()
        if self._heard is not None:
            self._heard.cancel()

    def _after(self, said: _Said, sentences: _Sentences) -> _Said | None:
        """The next sentence, begun once the present one is drawn and the next is there. The first sound comes before it."""
        said.handle.sampled.wait()
        if sentences.closed:
            return None
        following = sentences.next()
        return self._begin(following, Priority.STREAM if self.pace.sound else Priority.NORMAL)

    def _begin(
        self, numbered: tuple[int, Sentence] | None, priority: Priority = Priority.STREAM
    ) -> _Said | None:
        if numbered is None:
            return None
        number, sentence = numbered
        seed = (self._seed + number) % (MAX_SEED + 1)
        request = sentence.text, self._voice, self._settings, seed
        handle: Handle[Any]
        whole = self._pipeline.prompt(sentence.text, self._settings) is not None
        if self._by_pieces and not whole:
            handle = self._scheduler.stream(*request, chunks=self._beginning(), priority=priority)
        else:
            handle = self._scheduler.submit(*request, priority=priority)
        return _Said(number, sentence, handle)

    def _sound(self, said: _Said) -> Iterator[Array]:
        handle, pace = said.handle, self.pace
        silence = self._silence(said) if said.number else 0
        pace.idle += max(0.0, handle.began - self._ended)  # there was no text, or nobody took the last sound
        idle = pace.idle
        for wav in handle if isinstance(handle, StreamHandle) else [handle.result().wavs[0]]:
            wav = np.concatenate([np.zeros(silence, np.float32), wav])
            made = handle.ended
            if isinstance(handle, StreamHandle):
                made, pace.idle = handle.made, idle + handle.blocked
            pace.add(made - self._began, len(wav) / SAMPLE_RATE)
            yield wav
            silence = 0
        self._ended = handle.ended
        result = handle.result()
        if isinstance(result, Pace):
            self._code_seconds = result.code_seconds or self._code_seconds  # 0 where one piece was all
        self.complete &= result.complete
        if not result.complete:
            log.warning(
                "the voice did not stop by itself, so words may be missing: %r", said.sentence.text[:60]
            )

    def _beginning(self) -> Chunks:
        """The next sentence's pieces: while others are heard the first may be as large as there is sound in hand for."""
        if not 0 < self._code_seconds < CODE_SECONDS or self._chunks.then is not None:
            return self._chunks
        in_hand = self.pace.in_hand(time.monotonic() - self._began)
        return replace(self._chunks, first=self._chunks.size(in_hand, self._code_seconds, MOST_GROWN))

    def _silence(self, said: _Said) -> int:
        """Samples before a sentence."""
        longer = PARAGRAPH if said.sentence.new_paragraph else 1.0
        return round(self._pause * longer * SAMPLE_RATE)

    def _fitting(self, sentence: Sentence) -> Iterator[Sentence]:
        """The sentence, halved as often as its tokens are too many; nothing where there is nothing to say."""
        brackets = self._settings.redaction
        if brackets and not self._fits(outside(sentence.text)):
            return
        for number, part in enumerate(fitted(sentence.text, self._fits, brackets)):
            yield Sentence(part, sentence.new_paragraph and number == 0)


class _Sentences:
    """The numbered sentences of a text. One that is still arriving is read in a thread, AHEAD sentences at most."""

    def __init__(
        self,
        text: str | Iterable[str],
        fitting: Callable[[Sentence], Iterator[Sentence]],
        whole: Iterable[Sentence] | None,
        brackets: bool,
    ) -> None:
        """whole: the sentences, where the text is not to be cut; brackets: whether they hold sentences together."""
        self.given = 0
        self._queue: queue.Queue[Sentence | BaseException | None] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._ended = False
        self._live = not isinstance(text, str)
        sentences = whole or (whole_brackets(cut(text)) if brackets else cut(text))
        self._rest = (part for sentence in sentences for part in fitting(sentence))
        if self._live:
            threading.Thread(target=self._read, name="text", daemon=True).start()

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def next(self) -> tuple[int, Sentence] | None:
        """The next sentence and its number, once it is there; None at the end. Raises what reading the text raised."""
        if self._ended:
            return None
        found: Sentence | BaseException | None
        found = self._queue.get() if self._live else next(self._rest, None)
        if isinstance(found, BaseException):
            self._ended = True
            raise found
        if found is None:
            self._ended = True
            return None
        self.given += 1
        return self.given - 1, found

    def close(self) -> None:
        """Let the thread end, once the text gives something; whoever waits for a sentence gets none."""
        self._closed.set()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)

    def _read(self) -> None:
        try:
            for sentence in self._rest:
                if not self._put(sentence):
                    return
            self._put(None)
        except BaseException as error:  # whatever the text raises, the reader gets it
            self._put(error)

    def _put(self, found: Sentence | BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(found, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False
