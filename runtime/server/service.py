"""What a server does, whoever asks and by whatever protocol: takes requests for speech and says them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..checking import retried
from ..conditioning import one_voice
from ..config import Settings
from ..defaults import DEFAULT_PRESET, default_voice, settings_for
from ..engine import Engine
from ..errors import Cancelled, DeadlineExceeded, Refused, TortoiseError
from ..reading import Piece, Reader
from ..rng import fresh_seed
from ..scheduler import AnyScheduler, Handle, Scheduler
from ..spec import SAMPLE_RATE
from ..text import Tokenizer
from ..voice import Voice, find_voices, load_voice
from .fields import QUICK, Wish
from .limits import Gate, Limits
from .metrics import Metrics

T = TypeVar("T")
log = logging.getLogger("tortoise_rt.server")
WARM_UP = "Hello."
PER_REQUEST = 3  #: requests to the scheduler that one for speech has at a time, at most
PER_SOUND = 2.0  #: seconds longer that a request may take for each of sound that was given
LOOK = 0.1  #: seconds between two looks for requests whose time is over
SPARE = 64  #: more of them: those of jobs
UPLOADS, UPLOADS_EACH = 8, 4  #: bodies with files that are taken at a time, of all callers and of one


class Service:
    """Speech for many callers on one engine, or on those of a ``scheduler`` that is given."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | None,
        limits: Limits | None = None,
        *,
        rows: int = 16,
        strict: bool = False,
        voice_dirs: Sequence[Path] = (),
        scheduler: AnyScheduler | None = None,
    ) -> None:
        self.engine, self.tokenizer, self.voice_dirs = engine, tokenizer, voice_dirs
        self.limits = limits or Limits()
        self.gate = Gate(self.limits)
        self.uploads = Gate(replace(self.limits, queue=UPLOADS, each=UPLOADS_EACH))
        queue = PER_REQUEST * self.limits.queue + SPARE  # a text once begun is never cut off by a full queue
        self.scheduler = scheduler or Scheduler(engine, tokenizer, rows=rows, queue=queue, strict=strict)
        self.metrics = Metrics(self.scheduler, lambda: self.gate.inside)
        self.ready = False
        self._speaking: set[Speech] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="deadlines", daemon=True).start()

    def _watch(self) -> None:
        """End requests whose time is over."""
        while not self._closed.wait(LOOK):
            with self._lock:
                late = [speech for speech in self._speaking if speech.seconds > speech.limit]
            for speech in late:
                speech.cancel(DeadlineExceeded(f"the request was not done within its {speech.limit:g} s"))

    def warm_up(self) -> None:
        """Say a word, which loads what speech needs; then the service is ready. Raises what it fails with."""
        for _ in Speech(self, Wish(seed=0), WARM_UP).pieces():
            pass
        self.ready = True

    def voices(self) -> dict[str, Path]:
        """Name -> where it is."""
        return find_voices(self.voice_dirs)

    def settings(self, wish: Wish) -> Settings:
        """The settings of a request: what it names, else those of its model."""
        quick = wish.model == QUICK and not wish.preset
        named = dict(wish.settings)
        if quick and self.engine.has("hifigan"):
            named.setdefault("decoder", "hifigan")
        if quick and named.get("decoder") == "hifigan":
            named.setdefault("num_autoregressive_samples", 1)
        return settings_for(self.engine, wish.preset, DEFAULT_PRESET, **named)

    def load(self, voice: str | None) -> Voice | None:
        """The voice of a name, never a path; None: the engine's own. None is a random one."""
        return load_voice(voice or default_voice(self.engine), self.voice_dirs, paths=False)

    @contextlib.contextmanager
    def speech(self, wish: Wish, who: str, text: str | Iterator[str] | None = None) -> Iterator[Speech]:
        """A place for a request of ``who``, which is given up when the context is left. ``text``: instead of its own.

        Raises QueueFull or Refused where there is none.
        """
        with self.gate.enter(who):
            speech = Speech(self, wish, wish.text if text is None else text)
            with self._lock:
                self._speaking.add(speech)
            try:
                yield speech
            finally:
                speech.cancel()
                with self._lock:
                    self._speaking.discard(speech)
                self.metrics.note(speech)

    def give_up(self) -> None:
        """Take nothing more, and end what speaks."""
        self.gate.closed = True
        with self._lock:
            for speech in self._speaking:
                speech.cancel(Refused("the server was stopped", 503))

    def close(self) -> None:
        """Give up what is in flight, and wait until it has ended."""
        self.give_up()
        self._closed.set()
        self.scheduler.close()


class Speech:
    """One request that is said. Its pieces are taken by one thread; any may cancel it."""

    def __init__(self, service: Service, wish: Wish, text: str | Iterator[str]) -> None:
        self.wish = wish
        self.seed = fresh_seed() if wish.seed is None else wish.seed
        self.began = time.monotonic()
        self.first: float | None = None  #: seconds to the first sound
        self.samples = 0  #: given so far
        self.complete = True  #: whether the voice stopped by itself each time, and an aligner heard the text
        self.outcome = Cancelled.__name__  #: "done" or the name of an error
        self._service, self._text = service, text
        self._given_up: BaseException | None = None
        self._reader: Reader | None = None
        self._handle: Handle[Any] | None = None

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    @property
    def audio_seconds(self) -> float:
        return self.samples / SAMPLE_RATE

    @property
    def limit(self) -> float:
        """Seconds that it may take. Whoever says no time may listen while it is made, so sound given makes it longer."""
        most = self._service.limits.timeout + PER_SOUND * self.audio_seconds
        return most if self.wish.timeout is None else min(self.wish.timeout, most)

    def cancel(self, error: BaseException | None = None) -> None:
        """Give it up, which frees its rows by the next step; whoever takes its pieces gets ``error``, or Cancelled."""
        if self._given_up is None:
            self._given_up = error or Cancelled("the request was given up")
        if self._reader is not None:
            self._reader.cancel()
        if self._handle is not None:
            self._handle.cancel()

    def pieces(self) -> Generator[Piece, None, None]:
        """The sound, as it is made. Raises what it fails with: InputError before the first piece, if for its fields."""
        try:
            with contextlib.closing(self._said()) as said:
                for piece in said:
                    if self.first is None:
                        self.first = self.seconds
                    self.samples += len(piece.wav)
                    yield piece
            self.outcome = "done"
        except Cancelled:
            error = self._given_up or Cancelled("the request was given up")
            self.outcome = type(error).__name__
            raise error from None
        except TortoiseError as error:
            self.outcome = type(error).__name__
            raise
        except GeneratorExit:
            raise
        except BaseException:
            self.outcome = "Failed"
            raise

    def _said(self) -> Generator[Piece, None, None]:
        service, wish = self._service, self.wish
        settings = service.settings(wish)
        voice = service.load(wish.voice)
        if settings.check:
            yield self._checked(voice, settings)
            return
        self._reader = Reader(
            service.scheduler,
            voice,
            settings,
            self.seed,
            chunks=wish.chunks,
            pause=wish.pause,
            split=wish.split,
            heard=wish.stream or wish.sse,
        )
        if self._given_up is not None:  # looked at after the reader is there to be cancelled
            raise self._given_up
        yield from self._reader.read(self._text)
        self.complete = self._reader.complete

    def _checked(self, voice: Voice | None, settings: Settings) -> Piece:
        """The text as one clip, drawn again while an aligner hears something else."""
        scheduler, text = self._service.scheduler, self._text
        assert isinstance(text, str)

        def done(handle: Handle[T]) -> T:
            self._handle = handle
            if self._given_up is not None:  # looked at after the handle is there to be cancelled
                handle.cancel()
            return handle.result()

        one = done(scheduler.call(partial(one_voice, voice=voice, settings=settings, seed=self.seed)))
        result = retried(
            lambda seed: done(scheduler.submit(text, one, settings, seed)), self.seed, settings.max_retries
        )
        self.complete = result.complete and all(report.ok for report in result.reports)
        return Piece(result.wavs[0], 0, text, True)
