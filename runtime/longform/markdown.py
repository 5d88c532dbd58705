"""Markdown -> its headings and paragraphs, without what is not to be said: code, pictures, HTML."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import MissingDependency
from .document import Block

if TYPE_CHECKING:
    from markdown_it.token import Token

_SAID = {"text", "code_inline"}
_BREAKS = {"softbreak", "hardbreak"}


def markdown_blocks(text: str) -> Iterator[Block]:
    """The blocks of a text in CommonMark with tables, whose cells are paragraphs. Raises MissingDependency."""
    try:
        from markdown_it import MarkdownIt
    except ImportError:
        raise MissingDependency(
            "Markdown is read with markdown-it-py: pip install 'tortoise-rt[books]'"
        ) from None
    level = 0
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "heading_open":
            level = int(token.tag[1:])
        elif token.type == "inline":
            yield Block(_said(token), level)
        elif token.type == "heading_close":
            level = 0


def _said(inline: Token) -> str:
    """The words of a paragraph; lines are kept."""
    parts = []
    for token in inline.children or ():
        if token.type in _BREAKS:
            parts.append("\n")
        elif token.type in _SAID:
            parts.append(token.content)
    return "".join(parts)
