"""Sound -> bytes of an audio format, as it comes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .._version import __version__
from ..engine import Array
from ..sinks import to_16_bits, wav_header
from ..spec import SAMPLE_RATE


class Format(NamedTuple):
    """An audio format."""

    media_type: str
    kind: str = ""  #: soundfile's; "" for 16-bit samples by ourselves
    subtype: str = ""
    options: Mapping[str, Any] = {}


#: name, as OpenAI's API has it -> format. An mp3 has 96 kbit/s all along: players take the length from its first frame.
FORMATS: Mapping[str, Format] = {
    "mp3": Format(
        "audio/mpeg",
        "MP3",
        "MPEG_LAYER_III",
        {"bitrate_mode": "CONSTANT", "compression_level": 0.4},
    ),
    "opus": Format("audio/ogg; codecs=opus", "OGG", "OPUS"),
    "flac": Format("audio/flac", "FLAC", "PCM_16"),
    "ogg": Format("audio/ogg; codecs=vorbis", "OGG", "VORBIS"),
    "wav": Format("audio/wav"),
    "pcm": Format(f"audio/pcm; rate={SAMPLE_RATE}; channels=1; bits=16"),
}

#: formats that programs refuse where the header does not say how long they are (libsndfile does)
WHOLE = frozenset({"flac"})


class _Growing(io.RawIOBase):
    """A file that libsndfile writes, and whose end is taken while it grows. What goes back to its head is lost."""

    def __init__(self) -> None:
        self._taken = bytearray()
        self._at = self._end = 0

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._end)[whence]
        return self._at

    def write(self, data: Any) -> int:
        new = bytes(data)
        if self._at + len(new) > self._end:  # heads written anew, with the length, lie before
            self._taken += new[max(0, self._end - self._at) :]
        self._at += len(new)
        self._end = max(self._end, self._at)
        return len(new)

    def take(self) -> bytes:
        taken = bytes(self._taken)
        self._taken.clear()
        return taken


class Encoder:
    """Bytes of a format whose length is left open, so that they can be sent while sound is made."""

    def __init__(self, name: str, comment: str = "") -> None:
        """``comment``: what the file says of itself; pcm has no place for it."""
        self._chosen = chosen = FORMATS[name]
        self._file: Any = None
        self._head = wav_header(comment) if name == "wav" else b""
        if chosen.kind:
            self._target = _Growing()
            self._file = _open(self._target, chosen, comment)

    def feed(self, wav: Array) -> bytes:
        """(samples,) in [-1, 1] -> what is certain by then; codecs keep some back."""
        if self._file is None:
            head, self._head = self._head, b""
            return head + to_16_bits(wav)
        self._file.write(_kept(wav, self._chosen))
        return self._target.take()

    def finish(self) -> bytes:
        """The rest."""
        if self._file is None:
            return b""
        self._file.close()
        return self._target.take()


def encode(name: str, wav: Array, comment: str = "") -> bytes:
    """(samples,) in [-1, 1] -> a whole file, with its length."""
    chosen = FORMATS[name] if name != "wav" else Format("", "WAV", "PCM_16")
    if not chosen.kind:
        return to_16_bits(wav)
    target = io.BytesIO()
    with _open(target, chosen, comment) as file:
        file.write(_kept(wav, chosen))
    return target.getvalue()


def _kept(wav: Array, chosen: Format) -> Array:
    """What soundfile is given: 16 bits where it keeps as many, which it would round otherwise than we do."""
    if chosen.subtype == "PCM_16":
        return np.frombuffer(to_16_bits(wav), "<i2")
    return np.clip(wav, -1, 1)


def _open(target: Any, chosen: Format, comment: str) -> Any:
    import soundfile

    file = soundfile.SoundFile(
        target,
        "w",
        SAMPLE_RATE,
        channels=1,
        format=chosen.kind,
        subtype=chosen.subtype,
        **chosen.options,
    )
    file.software = f"tortoise-rt {__version__}"
    if comment:
        file.comment = comment
    return file
