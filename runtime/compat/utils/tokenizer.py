"""``tortoise.utils.tokenizer`` by its own names: the cleaners and the class."""

from __future__ import annotations

from ...errors import TextError
from ...tensors import to_array
from ...text import Tokenizer, clean_basic, clean_english, find_reference_tokenizer, transliterate


def english_cleaners(text):
    """ASCII, lower case, numbers and abbreviations in words."""
    return clean_english(text)


def basic_cleaners(text):
    """Lower case, runs of white space as one space."""
    return clean_basic(text)


def transliteration_cleaners(text):
    """ASCII and lower case, runs of white space as one space."""
    return clean_basic(transliterate(text))


class VoiceBpeTokenizer:
    """The tokenizer in a file; by default that of an installed tortoise-tts package."""

    def __init__(self, vocab_file=None, use_basic_cleaners=False):
        file = vocab_file or find_reference_tokenizer()
        if file is None:
            raise TextError("no tokenizer is named, and there is no tortoise-tts package: give vocab_file")
        self.tokenizer = Tokenizer(file, use_basic_cleaners)
        self.preprocess_text = self.tokenizer.clean

    def encode(self, txt):
        """Ids of the cleaned text."""
        return self.tokenizer.encode(txt)

    def decode(self, seq):
        """The text of ids, without stop and unknown tokens."""
        return self.tokenizer.decode(to_array(seq).reshape(-1))


__all__ = ["VoiceBpeTokenizer", "basic_cleaners", "english_cleaners", "transliteration_cleaners"]
