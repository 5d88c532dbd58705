"""Text of any length, or still arriving -> sound in pieces, sentence by sentence.

While a sentence is decoded and heard, the next is drawn. Sentence number n is said with seed + n, so that each can be
made again alone; a random voice is that of the seed, in all of them.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .conditioning import one_voice
from .config import Settings, check_number
from .engine import Array
from .errors import Cancelled, SettingsError, TextError
from .fitting import fitted, fitting
from .pipeline import Pipeline, check_seed
from .redaction import all_in_brackets, outside, whole_brackets
from .rng import nth_seed
from .scheduler import AnyScheduler, Handle, Priority, StreamHandle
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


def check(settings: Settings) -> Settings:
    """``settings``; raises a SettingsError where nothing can be read by them."""
    if settings.check:
        raise SettingsError(
            "clips are checked when they are complete, and a reading is heard before: leave check out"
        )
    return settings


def sentences_said(
    text: str | Iterable[str], fits: Callable[[str], int], brackets: bool, split: bool = True
) -> Iterator[Sentence]:
    """What is said one after the other: sentences, those joined that brackets hold together, those halved that are too long.

    ``fits`` as :func:`tortoise_rt.fitting.fitting` makes it. Sentences of which nothing is heard are passed over.
    """
    sentences = cut(text) if split or not isinstance(text, str) else iter([Sentence(text)])
    for sentence in whole_brackets(sentences) if brackets else sentences:
        if brackets and not fits(outside(sentence.text)):
            continue
        halved = fitted(sentence.text, fits, brackets)
        heard = [part for part in halved if not (brackets and all_in_brackets(part))]
        for number, part in enumerate(heard):
            yield Sentence(part, sentence.new_paragraph and number == 0)


class Reader:
    """Reads texts aloud on a scheduler."""

    def __init__(
        self,
        scheduler: AnyScheduler,
        voice: Voice | VoiceLatents | None,
        settings: Settings,
        seed: int,
        *,
        chunks: Chunks | None = None,
        pause: float = PAUSE,
        split: bool = True,
        heard: bool = True,
    ) -> None:
        """With the decoder hifigan and one sample a sentence is heard while it is drawn, else when it is done.

        Sentences with words in [brackets] are heard when they are done, too, as those words are cut out of the whole.
        chunks: how a sentence that is heard while it is drawn is cut. pause: seconds of silence between sentences;
        split: off, a text that is given whole is one sentence. heard: off, nobody listens before the end, and who does comes first.
        """
        self.pace = Pace()  #: of the latest reading
        self.complete = True  #: whether the voice stopped by itself each time
        self._by_pieces = settings.decoder == "hifigan" and settings.ar.samples == 1
        if chunks is not None and not self._by_pieces:
            raise SettingsError(
                "sizes of pieces are for hifigan and one sample; here a piece is a sentence: leave them out "
                "(--chunk, stream_chunk_size and the like)"
            )
        self._split, self._urgency = split, Priority.STREAM if heard else Priority.NORMAL
        self._scheduler, self._voice, self._settings = scheduler, voice, check(settings)
        self._seed, self._chunks = check_seed(seed), chunks or Chunks()
        self._code_seconds = 0.0  #: what a code of the last sentence has taken
        self._pause = float(check_number("pause", pause, 0, LONGEST_PAUSE))
        self._pipeline = Pipeline(scheduler.engine, scheduler.tokenizer)
        self._pipeline.check(voice, settings)
        self._fits = fitting(scheduler.engine, scheduler.tokenizer)
        self._cancelled = threading.Event()
        self._handles: deque[Handle[Any]] = deque(maxlen=2)  #: of the present sentence and the next
        self._sentences: _Sentences | None = None

    def cancel(self) -> None:
        """Give the reading up, from any thread and for good: whoever takes its pieces gets Cancelled."""
        self._cancelled.set()
        if self._sentences is not None:  # of which one may be waited for
            self._sentences.close()
        for handle in tuple(self._handles):
            handle.cancel()

    def read(self, text: str | Iterable[str]) -> Generator[Piece, None, None]:
        """The pieces of ``text``, or of the parts in which it comes. Closing the iterator gives up what is in flight.

        Raises TextError where there is nothing to say, and what a sentence failed with.
        """
        self.pace, self.complete = Pace(), True
        if self._voice is None:  # one for all sentences, whose seeds differ
            draw = partial(one_voice, voice=None, settings=self._settings, seed=self._seed)
            drawing = self._scheduler.call(draw)
            self._handles.append(drawing)
            if self._cancelled.is_set():  # looked at after the handle is there to be cancelled
                drawing.cancel()
            self._voice = drawing.result()
        whole = sentences_said(text, self._fits, self._settings.redaction, self._split)
        self._sentences = sentences = _Sentences(whole, live=not isinstance(text, str))
        if self._cancelled.is_set():
            sentences.close()
        present: _Said | None = None
        following: Future[_Said | None] | None = None
        try:
            first_sentence = sentences.next()
            self._began = self._told = time.monotonic()
            present = self._begin(first_sentence, self._urgency)
            while present is not None:
                following = self._ahead(present, sentences)
                first = True
                for wav in self._sound(present, following):
                    if first:  # there is time now
                        following.add_done_callback(self._hasten)
                    yield Piece(wav, present.number, present.sentence.text, first)
                    first = False
                present = following.result()
        finally:
            sentences.close()
            if present is not None:
                present.handle.cancel()
            if following is not None:  # which may still be waiting
                following.add_done_callback(_give_up)
        if self._cancelled.is_set():
            raise Cancelled("the reading was cancelled")
        if sentences.given == 0:
            raise TextError("there is nothing to say: the text is empty once cleaned")

    def _ahead(self, said: _Said, sentences: _Sentences) -> Future[_Said | None]:
        """:meth:`_after` in a thread that nobody waits for, at the program's end either: the text may never go on."""
        following: Future[_Said | None] = Future()

        def begin() -> None:
            try:
                following.set_result(self._after(said, sentences))
            except BaseException as error:  # whatever it is, the reader gets it
                following.set_exception(error)

        threading.Thread(target=begin, name="ahead", daemon=True).start()
        return following

    def _after(self, said: _Said, sentences: _Sentences) -> _Said | None:
        """The next sentence, begun once the present one is drawn and the next is there. The first sound comes before it."""
        said.handle.sampled.wait()
        if sentences.closed or said.handle.failed:
            return None
        following = sentences.next()
        waits = self._scheduler.hastens and not self.pace.sound
        return self._begin(following, Priority.NORMAL if waits else self._urgency, continues=True)

    def _hasten(self, following: Future[_Said | None]) -> None:
        said = _result(following)
        if said is not None:
            self._scheduler.prioritize(said.handle, self._urgency)

    def _begin(
        self,
        numbered: tuple[int, Sentence] | None,
        priority: Priority,
        continues: bool = False,
    ) -> _Said | None:
        if numbered is None:
            return None
        number, sentence = numbered
        request = sentence.text, self._voice, self._settings, nth_seed(self._seed, number)
        handle: Handle[Any]
        whole = self._pipeline.prompt(sentence.text, self._settings) is not None
        if self._by_pieces and not whole:
            chunks = self._beginning()
            handle = self._scheduler.stream(*request, chunks=chunks, priority=priority, continues=continues)
        else:
            handle = self._scheduler.submit(*request, priority=priority, continues=continues)
        self._handles.append(handle)
        if self._cancelled.is_set():
            handle.cancel()
            raise Cancelled("the reading was cancelled")
        return _Said(number, sentence, handle)

    def _sound(self, said: _Said, following: Future[_Said | None]) -> Iterator[Array]:
        handle = said.handle
        silence = self._silence(said) if said.number else 0
        for wav in handle if isinstance(handle, StreamHandle) else [handle.result().wavs[0]]:
            wav = np.concatenate([np.zeros(silence, np.float32), wav])
            made = handle.made if isinstance(handle, StreamHandle) else handle.ended
            self._tell(made, len(wav) / SAMPLE_RATE, said, _result(following) if following.done() else None)
            yield wav
            silence = 0
        result = handle.result()
        if isinstance(result, Pace):
            self._code_seconds = result.code_seconds or self._code_seconds  # 0 where one piece was all
        self.complete &= result.complete
        if not result.complete:
            log.warning(
                "the voice did not stop by itself, so words may be missing: %r", said.sentence.text[:60]
            )

    def _tell(self, made: float, seconds: float, *in_flight: _Said | None) -> None:
        """Tell the pace of a piece, and of the time before it in which none of the sentences could be worked on."""
        busy = sorted(times for said in in_flight if said is not None for times in said.handle.busy())
        for start, end in busy:
            if self._told < min(start, made):
                self.pace.rest(self._told - self._began, min(start, made) - self._began)
            self._told = max(self._told, min(end, made))
        self.pace.add(made - self._began, seconds)

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


def _result(following: Future[_Said | None]) -> _Said | None:
    """What came of it; waits for that."""
    return None if following.exception() else following.result()


def _give_up(following: Future[_Said | None]) -> None:
    said = _result(following)
    if said is not None:
        said.handle.cancel()


class _Sentences:
    """Sentences, numbered. Those of a text that is still arriving (``live``) are read in a thread, AHEAD at most."""

    def __init__(self, rest: Iterator[Sentence], live: bool) -> None:
        self.given = 0
        self._queue: queue.Queue[Sentence | BaseException | None] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._ended = False
        self._rest, self._live = rest, live
        if live:
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
