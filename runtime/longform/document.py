"""Files with texts -> chapters of paragraphs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import TextError

MAX_BYTES = 16 << 20  #: of a text: ten times the Bible's would not be read in a year
MARKDOWN = (".md", ".markdown")
EPUB = (".epub",)


class Block(NamedTuple):
    """A paragraph or a heading."""

    text: str  #: lines are kept
    level: int = 0  #: of a heading, 1 the highest; 0 is a paragraph


@dataclass(frozen=True)
class Chapter:
    """What is said under one heading."""

    title: str  #: "" for none; where there is one, it is the first paragraph as well
    paragraphs: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """A text to be read."""

    name: str  #: of its file
    chapters: tuple[Chapter, ...]


def read_document(path: str | Path) -> Document:
    """The text in a file: an EPUB (.epub), Markdown (.md, .markdown), or with any other suffix plain UTF-8.

    Plain text is one chapter, of paragraphs with blank lines between. Raises a TextError for a file that is missing,
    too large, damaged or empty, MissingDependency where a package is needed to read it.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise TextError(f"the text file {path} {problem}: give a .txt, .md or .epub file")
    suffix = path.suffix.lower()
    if suffix in EPUB:
        from .epub import read_epub

        return document(path.name, read_epub(path))
    if suffix in MARKDOWN:
        from .markdown import markdown_blocks

        return document(path.name, by_headings(markdown_blocks(read_text(path))))
    return plain_document(path.name, read_text(path))


def plain_document(name: str, text: str) -> Document:
    """A plain text as one chapter; raises a TextError for an empty one."""
    return document(name, [Chapter("", tuple(re.split(r"\n[^\S\n]*\n", "\n".join(text.splitlines()))))])


def document(name: str, chapters: Iterable[Chapter]) -> Document:
    """Chapters that hold something; raises a TextError where none does."""
    kept = []
    for chapter in chapters:
        if paragraphs := tuple(p.strip() for p in chapter.paragraphs if p.strip()):
            kept.append(Chapter(" ".join(chapter.title.split()), paragraphs))
    if not kept:
        raise TextError(f"{name} is empty: there is nothing to say")
    return Document(name, tuple(kept))


def read_text(path: Path) -> str:
    """A file's text; raises a TextError when it is too large or not UTF-8."""
    try:
        with path.open("rb") as file:
            return decoded(file.read(MAX_BYTES + 1), str(path))
    except OSError as error:
        raise TextError(f"cannot read {path}: {error.strerror}") from None


def decoded(data: bytes, name: str) -> str:
    """UTF-8 as text; raises a TextError for anything else, or for too much."""
    if len(data) > MAX_BYTES:
        raise TextError(f"{name} is over {MAX_BYTES >> 20} MiB of text: split it into several readings")
    try:
        return data.decode("utf-8-sig")
    except UnicodeError as error:
        raise TextError(f"{name} is not valid UTF-8 ({error}): convert it") from None


def by_headings(blocks: Iterable[Block]) -> list[Chapter]:
    """Chapters that begin at headings of the highest level that there are several of, or at any above it."""
    blocks = list(blocks)
    levels = [block.level for block in blocks if block.level]
    several = [level for level in levels if levels.count(level) > 1]
    lowest = min(several or levels, default=0)
    chapters: list[tuple[str, list[str]]] = [("", [])]
    for block in blocks:
        if 0 < block.level <= lowest:
            chapters.append((block.text, []))
        chapters[-1][1].append(block.text)
    return [Chapter(title, tuple(paragraphs)) for title, paragraphs in chapters]
