"""What tests of readings in a folder share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scheduling import TOKENIZER, Counting, settings, voice

from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.engine import Engine
from tortoise_rt.errors import EngineError
from tortoise_rt.longform import Book, Chapter, Document
from tortoise_rt.text import Tokenizer

QUICK = dict(num_autoregressive_samples=1, max_mel_tokens=12)
STORY = "The boat came in.|Who was on it?|Nobody knew.|The harbour was quiet.|We went home.|It was late."


def document(text: str = STORY, *more: str) -> Document:
    return Document("t", tuple(Chapter(f"Chapter {n}", (part,)) for n, part in enumerate((text, *more))))


def open_book(
    folder: Path, engine: Engine | None = None, text: str | Document = STORY, **options: Any
) -> Book:
    engine = engine or FakeEngine()
    arguments = {
        key: options.pop(key) for key in list(options) if key not in ("seed", "cast", "update", "length")
    }
    speaker = arguments.pop("voice", voice(engine))
    return Book(
        folder,
        document(text) if isinstance(text, str) else text,
        engine,
        speaker,
        settings(**{**QUICK, **arguments}),
        options.pop("seed", 7),
        tokenizer=Tokenizer(TOKENIZER),
        **options,
    )


def read(folder: Path, engine: Engine | None = None, text: str | Document = STORY, **options: Any) -> int:
    """Render and join; -> how many clips were made."""
    with open_book(folder, engine, text, **options) as book:
        made = book.render()
        book.join()
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def clip_files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "clips").iterdir())


def failing(after: int) -> Counting:
    """An engine that gives up behind so many clips."""
    engine = Counting()
    decoded = 0

    def count(graph: str, rows: int) -> None:
        nonlocal decoded
        decoded += graph == "hifigan"
        if decoded > after:
            raise EngineError("the power is out")

    engine.before = count
    return engine
