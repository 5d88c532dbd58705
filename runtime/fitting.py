"""Texts that have more tokens than the model takes, in parts that it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .autoregressive import most_text_ids
from .engine import Engine
from .pipeline import Pipeline
from .redaction import halves
from .text import Tokenizer


def fitting(engine: Engine, tokenizer: Tokenizer | None = None) -> Callable[[str], int]:
    """How a text must be cut for ``engine``: -> in how many parts at least; 0 for one of which nothing can be said."""
    pipeline, most = Pipeline(engine, tokenizer), most_text_ids(engine.dims)
    return lambda text: -(-len(pipeline.encode(text)) // most)


def fitted(text: str, fits: Callable[[str], int], brackets: bool) -> Iterator[str]:
    """The text, halved as often as its tokens are too many; nothing where there is nothing to say.

    With ``brackets``, those that are open where it is cut are closed and opened again.
    """
    parts = fits(text)
    if parts == 1 or (parts and len(text) == 1):
        yield text
    elif parts > 1:
        middle = len(text) // 2
        space = text.rfind(" ", 0, middle + 1)
        at = space if space > 0 else max(1, middle)
        for half in halves(text, at) if brackets else (text[:at], text[at:]):
            yield from fitted(half.strip(), fits, brackets)
