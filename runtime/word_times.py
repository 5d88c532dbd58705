"""When each word of a clip is spoken, as SRT, WebVTT or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .alignment import Word
from .errors import OutputError
from .output import complete_file

BRIEFEST = 0.01  #: seconds that a word is shown at least


def write_words(path: Path, words: Sequence[Word]) -> None:
    """Write the times of ``words``, in the format that the file's suffix names; raises OutputError."""
    make = FORMATS.get(path.suffix.lower())
    if make is None:
        raise OutputError(f"cannot write {path}: its suffix must be one of {', '.join(FORMATS)}")
    with complete_file(path) as temporary:
        temporary.write_text(make(words), "utf-8")


def srt(words: Sequence[Word]) -> str:
    """SubRip: a number, from --> to, the word."""
    return "".join(f"{n}\n{_span(word, ',')}\n{word.text}\n\n" for n, word in enumerate(words, 1))


def vtt(words: Sequence[Word]) -> str:
    """WebVTT (https://www.w3.org/TR/webvtt1/)."""
    escaped = ((w, w.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")) for w in words)
    return "WEBVTT\n\n" + "".join(f"{_span(word, '.')}\n{text}\n\n" for word, text in escaped)


def as_json(words: Sequence[Word]) -> str:
    """A list of objects, times in seconds."""
    rows = [
        {
            "word": word.text,
            "start": round(word.start, 3),
            "end": round(word.end, 3),
            "confidence": round(word.confidence, 3),
        }
        for word in words
    ]
    return json.dumps(rows, indent=1) + "\n"


#: suffix -> what writes it
FORMATS: Mapping[str, Callable[[Sequence[Word]], str]] = {".srt": srt, ".vtt": vtt, ".json": as_json}


def _span(word: Word, point: str) -> str:
    return f"{_clock(word.start, point)} --> {_clock(max(word.end, word.start + BRIEFEST), point)}"


def _clock(seconds: float, point: str) -> str:
    """hours:minutes:seconds and milliseconds behind ``point``."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
