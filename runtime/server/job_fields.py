"""What a job may say: the fields of its JSON, checked, and their schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import check_choice, check_flag, check_number
from ..errors import SettingsError
from .fields import COMMON, GOOD, MODELS, SPEECH, Schema, Wish, check_names, choice, flag, integer, parse

#: formats of a job's files, and when its clips are said
JOB_FORMATS, SUBTITLES = ("wav", "flac", "ogg", "mp3"), ("srt", "vtt")
_NOT_OF_JOBS = ("response_format", "pause", "stream_chunk_size", "first_chunk", "timeout")
#: fields of a job
JOB: Mapping[str, Schema] = {
    "input": {
        "type": "string",
        "minLength": 1,
        "description": "The text, with blank lines between paragraphs.",
    },
    "name": {"type": "string", "minLength": 1, "maxLength": 200, "description": "What the job is called."},
    "format": choice(JOB_FORMATS, "wav", "Of the files."),
    "by_chapter": flag(False, "A file for each chapter, instead of one."),
    "subtitles": choice(SUBTITLES, None, "Write when each clip is said."),
    "clip_length": integer(20, 1000, None, "Characters of a clip, about."),
    **{name: schema for name, schema in COMMON.items() if name not in _NOT_OF_JOBS},
    "model": choice(MODELS, GOOD, "As for speech."),
}


@dataclass(frozen=True)
class JobWish:
    """What is to be read, and how: its fields checked by themselves."""

    speech: Wish
    name: str
    format: str
    by_chapter: bool
    subtitles: str | None
    clip_length: int | None


def parse_job(body: Mapping[str, Any]) -> JobWish:
    """A job, whose text is in ``input`` or elsewhere."""
    check_names(body, JOB)
    given = {name: value for name, value in body.items() if value is not None}
    check_choice("format", given.get("format", "wav"), JOB_FORMATS)
    if "subtitles" in given:
        check_choice("subtitles", given["subtitles"], SUBTITLES)
    name = given.get("name", "text")
    if not isinstance(name, str) or not 0 < len(name) <= 200:
        raise SettingsError("name must be a text of 1 to 200 characters")
    length = given.get("clip_length")
    of_speech = {name: value for name, value in given.items() if name in COMMON}
    return JobWish(
        parse({"model": GOOD, "split": False, **of_speech}, SPEECH, None),
        name,
        given.get("format", "wav"),
        check_flag("by_chapter", given.get("by_chapter", False)),
        given.get("subtitles"),
        None if length is None else check_number("clip_length", length, 20, 1000, integer=True),
    )
