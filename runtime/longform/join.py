"""Clips -> one file: at one loudness, with pauses, written as it is read, so that a book takes no more memory than a clip."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .._version import __version__
from ..alignment import Word
from ..audio import WRITABLE
from ..config import check_choice, check_number
from ..engine import Array
from ..errors import OutputError
from ..output import complete_file
from ..reading import PARAGRAPH as LONGER
from ..reading import PAUSE
from ..spec import SAMPLE_RATE
from .plan import CHAPTER, CLIP, PARAGRAPH

#: suffix -> libsndfile's format and sample type
FORMATS: Mapping[str, tuple[str, str]] = {**WRITABLE, ".mp3": ("MP3", "MPEG_LAYER_III")}
MOST_WAV_BYTES = (1 << 32) - (
    1 << 16
)  #: of a wav's samples; beyond, its header has RF64's 64-bit lengths (EBU 3306)
MOST_GAIN = 10 ** (4 / 20)  #: 4 dB, by which a clip is made louder or softer at most
PEAK = 0.99  #: that no clip is raised above
SUBTITLES = (".srt", ".vtt")
CHAPTERS = 6  #: times as long as a pause is one between chapters
FRAME = SAMPLE_RATE // 50  #: samples over which loudness is taken
QUIET = 10 ** (-30 / 10)  #: of the loudest frame's power; frames below are pauses
_BLOCK = 1 << 16  # samples written at once

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Joining:
    """How clips become one file."""

    pause: float = PAUSE  #: seconds between clips
    paragraph_pause: float = PAUSE * LONGER  #: at a paragraph's end
    chapter_pause: float = PAUSE * CHAPTERS  #: at a chapter's end
    match_loudness: bool = True  #: bring speech to the median loudness of all clips, by MOST_GAIN at most
    by_chapter: bool = False  #: a file for each chapter
    subtitles: str | None = None  #: beside each file, when each clip is heard: ".srt" or ".vtt"
    comment: str = ""  #: of the files

    def __post_init__(self) -> None:
        for name in ("pause", "paragraph_pause", "chapter_pause"):
            check_number(name, getattr(self, name), 0, 60)
        if self.subtitles is not None:
            check_choice("subtitles", self.subtitles, SUBTITLES)

    def silence(self, ends: str) -> int:
        """Samples behind a clip with which ``ends`` ends."""
        seconds = {CLIP: self.pause, PARAGRAPH: self.paragraph_pause, CHAPTER: self.chapter_pause}[ends]
        return round(seconds * SAMPLE_RATE)


@dataclass
class Sound:
    """A clip to be joined."""

    path: Path
    samples: int
    ends: str  #: what ends with it: how long the pause behind it is
    text: str = ""
    title: str | None = None  #: of the chapter that begins with it


@dataclass
class Joined:
    """A file that clips were joined to."""

    path: Path
    seconds: float = 0.0
    chapters: list[tuple[str, float]] = field(default_factory=list)  #: title, and the second it begins at
    captions: list[Word] = field(default_factory=list)  #: when each clip is heard

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        chapters = [{"title": title, "start": start} for title, start in self.chapters]
        return {"name": self.path.name, "seconds": self.seconds, "chapters": chapters}


def check_format(suffix: str) -> tuple[str, str]:
    """libsndfile's format and sample type for a suffix; raises an OutputError where it cannot be written here."""
    import soundfile

    if suffix.lower() not in FORMATS:
        raise OutputError(
            f"cannot join clips to a file of type {suffix!r}; it must be one of {', '.join(FORMATS)}"
        )
    kind, subtype = FORMATS[suffix.lower()]
    if kind not in soundfile.available_formats():
        raise OutputError(
            f"libsndfile {soundfile.__libsndfile_version__} cannot write {suffix} (mp3 needs 1.1): pip install -U soundfile, "
            "or join to a wav"
        )
    return kind, subtype


def gains(levels: Sequence[tuple[float, float]]) -> list[float]:
    """(loudness, peak) of each clip -> by how much each is multiplied: to the median loudness, within bounds."""
    heard = [level for level, _ in levels if level > 0]
    target = statistics.median(heard) if heard else 0.0
    return [
        1.0 if level == 0 else min(max(target / level, 1 / MOST_GAIN), max(1.0, min(MOST_GAIN, PEAK / peak)))
        for level, peak in levels
    ]


def loudness(wav: Array) -> tuple[float, float]:
    """(samples,) -> (root mean square of its speech, peak): of frames of 20 ms, those within 30 dB of the loudest count."""
    if not len(wav):
        return 0.0, 0.0
    padded = np.pad(wav, (0, -len(wav) % FRAME)).reshape(-1, FRAME)
    power = np.mean(np.square(padded, dtype=np.float64), axis=1)
    return float(np.sqrt(power[power >= QUIET * power.max()].mean())), float(np.abs(wav).max())


def join(
    path: Path, sounds: Sequence[Sound], gained: Sequence[float], joining: Joining, progress: Progress
) -> Joined:
    """Write clips, each multiplied by its gain, to one file. It appears under its name only when it is complete."""
    import soundfile

    kind, subtype = check_format(path.suffix)
    joined = Joined(path)
    silences = [joining.silence(sound.ends) for sound in sounds[:-1]] + [0]
    if kind == "WAV" and 2 * (sum(sound.samples for sound in sounds) + sum(silences)) > MOST_WAV_BYTES:
        kind = "RF64"
    at = 0
    with (
        complete_file(path) as unfinished,
        soundfile.SoundFile(unfinished, "w", SAMPLE_RATE, channels=1, format=kind, subtype=subtype) as file,
    ):
        file.software = f"tortoise-rt {__version__}"
        if joining.comment:
            file.comment = joining.comment
        for number, (sound, gain, silence) in enumerate(zip(sounds, gained, silences, strict=True)):
            if sound.title is not None:
                joined.chapters.append((sound.title, round(at / SAMPLE_RATE, 3)))
            wav = read_clip(sound.path) * np.float32(gain)
            for block in (*_blocks(wav), *_blocks(np.zeros(silence, np.float32))):
                file.write(block)
            span = at / SAMPLE_RATE, (at + len(wav)) / SAMPLE_RATE
            joined.captions.append(Word(sound.text, *span, 1.0, span))
            at += len(wav) + silence
            progress("joining", number + 1, len(sounds))
    joined.seconds = round(at / SAMPLE_RATE, 3)
    return joined


def read_clip(path: Path) -> Array:
    """A clip's samples; raises an OutputError where they cannot be read."""
    with _opened(path) as file:
        return np.asarray(file.read(dtype="float32"))


def clip_samples(path: Path) -> int:
    """How many samples a clip has, by its header; raises as :func:`read_clip`."""
    with _opened(path) as file:
        return int(file.frames)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            if (file.samplerate, file.channels) != (SAMPLE_RATE, 1):
                raise RuntimeError(f"{file.samplerate} Hz, {file.channels} channels")
            yield file
    except (RuntimeError, OSError) as error:
        raise OutputError(f"the clip {path} is damaged ({error}): remove it to have it made again") from None


def _blocks(wav: Array) -> Iterator[Any]:
    """In pieces: libsndfile's Vorbis encoder takes no large ones."""
    return (wav[first : first + _BLOCK] for first in range(0, len(wav), _BLOCK))
