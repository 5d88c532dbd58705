"""What is behind the handles: an engine with its scheduler, voices, jobs and streams."""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import functools
import sys
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Settings as Chosen
from ..defaults import default_voice, settings_for
from ..errors import Cancelled, InputError, SettingsError, TextError
from ..incoming import IncomingText
from ..pipeline import Result, check_seed
from ..reading import PAUSE, Piece, Reader
from ..rng import fresh_seed
from ..scheduler import Handle, Priority, Scheduler
from ..tts import choose_engine, choose_tokenizer, chunks_of
from ..voice import Voice, VoiceLatents, find_voices, load_voice
from .status import Status
from .structs import Audio, EngineOptions, Request, Settings, decoded
from .tries import Tries

FLAGS = ("greedy", "typical_sampling", "cond_free", "enable_redaction", "check")  #: settings that are 0 or 1
OF_CLIPS = ("priority", "timeout")  #: fields of a request that streams refuse
OF_STREAMS = ("split", "pause", "chunk", "first_chunk")  #: fields that clips refuse
AnyVoice = Voice | VoiceLatents | None


class OpenEngine:
    """An engine with its scheduler."""

    def __init__(self, options: EngineOptions) -> None:
        given = options.given()
        tokenizer, voices = given.pop("tokenizer", None), given.pop("voices", None)
        scheduling = {name: given.pop(name) for name in ("rows", "queue") if name in given}
        strict = flag("strict", given.pop("strict", 0))
        self.voice_folders = [] if voices is None else [Path(voices)]
        find_voices(self.voice_folders)  # raises where one does not exist
        self.network = choose_engine(**given)
        tokens = choose_tokenizer(self.network, tokenizer)
        self.scheduler = Scheduler(self.network, tokens, strict=strict, **scheduling)

    @functools.cached_property
    def voice(self) -> Voice | None:
        """The engine's own."""
        return self.load_voice(default_voice(self.network), paths=False)

    def load_voice(self, name: str, paths: bool) -> Voice | None:
        return load_voice(name, self.voice_folders, paths=paths)


@dataclass
class OpenVoice:
    """A voice of an engine's; None is one that is drawn from the seed."""

    engine: OpenEngine
    voice: AnyVoice


@dataclass
class Job:
    """A clip in the making, or several to choose from."""

    engine: OpenEngine
    handle: Handle[Result] | Tries
    lent: bool = False  #: to a call under way, which closes it by itself

    def wait(self, seconds: float) -> Status:
        """As trt_job_wait; raises what it failed with."""
        if not self.handle.wait(patience(seconds)):
            return Status.PENDING
        self.handle.result()
        return Status.OK

    def cancel(self) -> None:
        self.handle.cancel()

    def join(self) -> None:
        """Until nothing is computed for it."""
        self.handle.wait()

    def audio(self, index: int) -> Audio:
        """What there is to say of clip number ``index``, beside its samples."""
        made = self.handle.result()
        stopped = (made.codes[made.chosen[index]] == made.stop_code).any()
        return Audio(
            count=len(made.wavs[index]), seed=made.drawn[index].seed, complete=int(stopped), tries=len(made.tries),
            problems=len(made.reports[index].problems) if made.reports else -1,
        )  # fmt: skip

    def problems(self, index: int) -> str:
        """What an aligner finds wrong with it."""
        made = self.handle.result()
        return "; ".join(made.reports[index].problems) if made.reports else ""

    def __len__(self) -> int:
        """Clips that it has made."""
        return len(self.handle.result().wavs)


class Stream:
    """A text that is being read; a thread takes the pieces from the reader, so that whoever waits for one can leave off."""

    def __init__(
        self, engine: OpenEngine, reader: Reader, text: str | IncomingText, lent: bool = False
    ) -> None:
        self.engine, self._reader, self.lent = engine, reader, lent
        self._text = text if isinstance(text, IncomingText) else None
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._news = threading.Condition()
        self._waiting: deque[Piece] = deque()
        self._cancelled = self._ended = False
        self._error: BaseException | None = None
        self._last: Piece | None = None  #: its samples are being heard
        self._given = 0
        self._thread = threading.Thread(target=self._read, args=(text,), name="stream", daemon=True)
        self._thread.start()

    def take(self, seconds: float) -> tuple[Piece, int] | Status:
        """-> the next piece and its number, PENDING or END. Raises what the reading failed with, behind its last piece."""
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._ended or self._cancelled, patience(seconds))
            if self._cancelled:
                raise Cancelled("the stream was given up")
            if self._waiting:
                self._last = self._waiting.popleft()
                self._given += 1
                self._news.notify_all()
                return self._last, self._given - 1
            if self._error is not None:
                raise self._error
            return Status.END if self._ended else Status.PENDING

    def feed(self, part: bytes, final: bool = False) -> None:
        """Go on with a text that is still being written; final: to its end. Parts may be cut within a character."""
        if self._text is None:
            raise InputError("the stream has its text: open it with trt_stream_open_live() to go on with it")
        with self._news:
            if self._cancelled:
                raise Cancelled("the stream was given up")
            if self._error is not None:
                raise self._error
            if self._text.ended:
                raise InputError("the text has ended: open another stream for another one")
            try:
                self._text.add(self._decode(part, final))
            except UnicodeDecodeError as error:
                raise TextError(f"the text is not UTF-8: {error}") from None
            if final:
                self._text.end()

    def cancel(self) -> None:
        with self._news:
            if self._waiting or not self._ended:
                self._cancelled = True
                self._waiting.clear()
                self._news.notify_all()
        self._reader.cancel()

    def join(self) -> None:
        """Until nothing is computed for it."""
        self._thread.join()

    def _read(self, text: str | IncomingText) -> None:
        error: BaseException | None = None
        try:
            with contextlib.closing(self._reader.read(text)) as pieces:
                for piece in pieces:
                    if not self._pass_on(piece):
                        break
        except BaseException as raised:  # whatever it is, whoever takes the pieces gets it
            error = raised
        with self._news:
            self._error, self._ended = error, True
            self._news.notify_all()
        if self._text is not None:  # which nobody reads any more
            self._text.end()

    def _pass_on(self, piece: Piece) -> bool:
        """Wait until the piece before is taken; -> whether to go on. The scheduler has made more meanwhile."""
        with self._news:
            self._news.wait_for(lambda: not self._waiting or self._cancelled)
            if not self._cancelled:
                self._waiting.append(piece)
                self._news.notify_all()
            return not self._cancelled


def submit(engine: OpenEngine, voice: AnyVoice, request: Request, lent: bool = False) -> Job:
    """Have a clip made, or several; lent: for a call that gives one, and closes the job itself."""
    given = fields_of(request, OF_STREAMS)
    settings = settings_of(engine, request, one=lent)
    text, seed = text_of(request), seed_of(request)
    if not 0 <= (priority := given.get("priority", Priority.NORMAL)) < len(Priority):
        raise SettingsError(f"priority is {priority}; it must be an enum trt_priority, or -1")
    place, timeout = Priority(priority), given.get("timeout")
    handle: Handle[Result] | Tries
    if settings.check:
        handle = Tries(engine.scheduler, text, voice, settings, seed, priority=place, timeout=timeout)
    else:
        handle = engine.scheduler.submit(text, voice, settings, seed, priority=place, timeout=timeout)
    return Job(engine, handle, lent)


def stream(
    engine: OpenEngine, voice: AnyVoice, request: Request, lent: bool = False, live: bool = False
) -> Stream:
    """Begin to read a text; live: of which the request has the beginning, or nothing."""
    given = fields_of(request, OF_CLIPS)
    chunk, first = given.get("chunk"), given.get("first_chunk")
    reader = Reader(
        engine.scheduler, voice, settings_of(engine, request, True, num_autoregressive_samples=1, decoder="hifigan"),
        seed_of(request), chunks=None if chunk is first is None else chunks_of(chunk, first),
        pause=given.get("pause", PAUSE), split=flag("split", given.get("split", 1)),
    )  # fmt: skip
    text = text_of(request) if request.text or not live else ""
    if not live:
        return Stream(engine, reader, text, lent)
    coming = IncomingText(sys.maxsize)
    coming.add(text)
    return Stream(engine, reader, coming, lent)


def text_of(request: Request) -> str:
    if not request.text:
        raise TextError("the request has no text: set it behind trt_request_init()")
    return decoded(ctypes.string_at(request.text), "text", TextError)


def fields_of(request: Request, refused: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a request that are set; raises SettingsError for one of ``refused``."""
    given = request.given()
    if wrong := [name for name in refused if name in given]:
        whose = "clips, not of streams" if wrong[0] in OF_CLIPS else "streams, not of clips"
        raise SettingsError(f"{wrong[0]} is {given[wrong[0]]}, which is of {whose}: leave it at -1")
    return given


def settings_of(engine: OpenEngine, request: Request, one: bool, **quick: Any) -> Chosen:
    """The settings of a request; without a preset, ``quick`` ones where nothing else is said.

    Raises SettingsError where there is room for ``one`` clip only, and several are asked for.
    """
    given = Settings.read(request.settings or 0).given()
    if one and given.get("k", 1) > 1:
        raise SettingsError(
            f"k is {given['k']}, and only jobs (trt_submit) give several clips: leave it at -1"
        )
    given.update({name: flag(name, given[name]) for name in FLAGS if name in given})
    return settings_for(engine.network, **{**({} if "preset" in given else quick), **given})


def seed_of(request: Request) -> int:
    return fresh_seed() if request.seed < 0 else check_seed(request.seed)


def flag(name: str, value: int) -> bool:
    if value not in (0, 1):
        raise SettingsError(f"{name} is {value}; it must be 0 or 1, or -1 where nothing is said")
    return bool(value)


def patience(seconds: float) -> float | None:
    """Seconds to wait as Python says it: None for ever."""
    return min(seconds, threading.TIMEOUT_MAX) if seconds >= 0 else None
