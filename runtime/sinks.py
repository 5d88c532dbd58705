"""Where sound goes while it is made: a file, a pipe, the loudspeaker. Each takes (samples,) float32 at 24 kHz."""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import numpy as np

from ._version import __version__
from .audio import SYNTHETIC_NOTICE, WRITABLE
from .engine import Array
from .errors import MissingDependency, OutputError
from .spec import SAMPLE_RATE

UNKNOWN = 0xFFFFFFFF  #: length of a wav that is still being written, as readers of pipes take it


class Sink(Protocol):
    """A context manager: what was written is whole and in place when it is left, however that comes about."""

    def write(self, wav: Array) -> None: ...

    def __enter__(self) -> Sink: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class FileSink:
    """A wav, flac or ogg file, by its suffix. It appears under its name when the sink is left, with what there is by then."""

    def __init__(self, path: Path, comment: str = "") -> None:
        self.path, self._comment = path, comment
        self._unfinished = path.with_name(f".{secrets.token_hex(8)}.part")
        self._file: Any = None
        self._samples = 0

    def __enter__(self) -> FileSink:
        import soundfile

        kind, subtype = WRITABLE[self.path.suffix.lower()]
        with self._failures():
            self._file = soundfile.SoundFile(
                self._unfinished, "w", SAMPLE_RATE, channels=1, format=kind, subtype=subtype
            )
            self._file.software = f"tortoise-rt {__version__}"
            if self._comment:
                self._file.comment = self._comment
        return self

    def write(self, wav: Array) -> None:
        with self._failures():
            self._file.write(np.clip(wav, -1, 1))
        self._samples += len(wav)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._failures():
                self._file.close()
                if self._samples:
                    self._unfinished.replace(self.path)
        finally:
            with contextlib.suppress(OSError):
                self._unfinished.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _failures(self) -> Any:
        try:
            yield
        except (OSError, RuntimeError) as error:  # libsndfile's are RuntimeErrors
            raise OutputError(
                f"cannot write {self.path} ({error}): check the folder's permissions and free space"
            ) from error


class PipeSink:
    """16-bit samples on a pipe, as a wav whose length is left open, or ``raw`` (little-endian, one channel).

    ``write`` raises BrokenPipeError when nobody reads any more; either way of failing, what is left goes nowhere.
    """

    def __init__(self, pipe: BinaryIO, comment: str = "", *, raw: bool = False) -> None:
        self._pipe = pipe
        self._header = b"" if raw else wav_header(comment)

    def __enter__(self) -> PipeSink:
        return self

    def write(self, wav: Array) -> None:
        try:
            self._pipe.write(self._header + to_16_bits(wav))
            self._header = b""
            self._pipe.flush()
        except OSError as error:
            with open(os.devnull, "wb") as nowhere:  # or Python would try again when it ends
                os.dup2(nowhere.fileno(), self._pipe.fileno())
            if isinstance(error, BrokenPipeError):
                raise
            raise OutputError(f"cannot write to standard output: {error.strerror}") from error

    def __exit__(self, *_: object) -> None:
        pass


SLICE = SAMPLE_RATE // 20  #: samples that a loudspeaker is given at a time


class PlayerSink:
    """The loudspeaker, by the package sounddevice. ``write`` waits while more than the device takes is in hand."""

    def __init__(self) -> None:
        try:
            import sounddevice
        except (ImportError, OSError) as error:  # OSError: PortAudio is not there
            raise MissingDependency(
                f"nothing to play sound with ({error}): pip install 'tortoise-rt[play]', or write to a file or a pipe "
                "(-o hello.wav, or -o - | a player)"
            ) from None
        try:
            self._stream = sounddevice.RawOutputStream(SAMPLE_RATE, channels=1, dtype="int16")
        except sounddevice.PortAudioError as error:
            raise OutputError(
                f"no sound device can be opened ({error}): write to a file or a pipe instead (-o hello.wav)"
            ) from None

    def __enter__(self) -> PlayerSink:
        self._stream.start()
        return self

    def write(self, wav: Array) -> None:
        for start in range(0, len(wav), SLICE):  # an interrupt is heard of between two
            self._stream.write(to_16_bits(wav[start : start + SLICE]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._stream.stop()  # when all is heard
        else:
            self._stream.abort()
        self._stream.close()


def to_16_bits(wav: Array) -> bytes:
    """(samples,) in [-1, 1], clipped to it -> little-endian 16-bit samples."""
    return np.rint(np.clip(wav, -1, 1) * 32767).astype("<i2").tobytes()


def wav_header(comment: str = "") -> bytes:
    """Of a wav file of unknown length: one channel, 16 bits, with a comment where one is given."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)
    notes = b""
    if comment:
        text = comment.encode("utf-8") + b"\0"
        text += b"\0" * (len(text) % 2)
        body = b"INFO" + struct.pack("<4sI", b"ICMT", len(text)) + text
        notes = struct.pack("<4sI", b"LIST", len(body)) + body
    return (
        struct.pack("<4sI4s", b"RIFF", UNKNOWN, b"WAVE")
        + form
        + notes
        + struct.pack("<4sI", b"data", UNKNOWN)
    )


def open_sink(output: Path | None, comment: str, *, raw: bool) -> Sink:
    """None: the loudspeaker; "-": standard output; else a file."""
    if output is None:
        return PlayerSink()
    if str(output) == "-":
        if sys.stdout is None:
            raise OutputError("standard output is closed: write to a file (-o hello.wav)")
        if sys.stdout.isatty():
            raise OutputError(
                "standard output is a terminal, which sound would garble: pipe it, or write to a file"
            )
        return PipeSink(sys.stdout.buffer, comment, raw=raw)
    return FileSink(output, comment)


def synthetic_comment(mark: bool, comment: str) -> str:
    """What a file's comment says: that a machine speaks, unless ``mark`` is off, and ``comment``."""
    return " ".join(filter(None, [SYNTHETIC_NOTICE if mark else "", comment]))
