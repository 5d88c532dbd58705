"""``tortoise.utils``: audio, text and tokenizer."""

from . import audio, text, tokenizer

__all__ = ["audio", "text", "tokenizer"]
