"""``tortoise.utils.text``."""

from ...text import split_and_recombine_text

__all__ = ["split_and_recombine_text"]
