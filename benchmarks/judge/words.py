"""Word errors, counted fairly where a transcript has numbers in digits.

The reference is what the engine is asked to say: the text through ``clean_english``, so numbers are words. How a
number in a transcript was said, its digits do not tell ("9:45", "945" and "nine forty-five" sound the same), so each
stands for all its usual readings and the one nearest to the reference counts. Both sides are in lower case, apostrophes
are kept, hyphens separate, other punctuation is dropped, and a few spellings of one word are made alike ("mr" and
"mister"). Contractions, homophones and words run together count as errors.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence

from tortoise_rt.number_words import cardinal
from tortoise_rt.text import clean_english, transliterate

Reading = tuple[str, ...]

#: signs that a recogniser writes for words; the dot of initials ("a.m.") separates nothing
_SIGNS = {"%": " percent ", "°": " degrees ", "¢": " cents ", "&": " and ", "#": " number "}
_INITIAL = re.compile(r"\b([a-zA-Z])\.(?=[a-zA-Z]\b)")
_ALIKE = {"mr": "mister", "mrs": "misess", "missus": "misess", "dr": "doctor", "ok": "okay", "o": "oh"}

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
_PIECE = re.compile(
    r"(?P<amount>[$£€][0-9.,]*[0-9](?: (?:thousand|million|billion|trillion)\b)?|[0-9][0-9,]*(?:st|nd|rd|th))"
    r"|(?P<number>[0-9](?:[0-9,]*[0-9])?)"
    r"|(?P<joint>(?<=[0-9])[-.](?=[0-9]))"
    r"|[^0-9$£€]+?(?=[-.]?[0-9$£€]|$)|."
)
_LONGEST = 6  #: digits of a number that is said as one, or in pairs
_SPOKEN_JOINTS = {"-": "to", ".": "point"}


def reference_words(text: str) -> list[str]:
    """The words that ``text`` is to be said with."""
    for sign, word in _SIGNS.items():
        text = text.replace(sign, word)
    said = clean_english(_INITIAL.sub(r"\1", text))
    return [_ALIKE.get(word, word) for word in _WORD.findall(said)]


def heard_words(transcript: str) -> Iterator[Sequence[Reading]]:
    """What a transcript may stand for: for each of its words and numbers, the readings that are possible."""
    for sign, word in _SIGNS.items():
        transcript = transcript.replace(sign, word)
    for match in _PIECE.finditer(_INITIAL.sub(r"\1", transliterate(transcript).lower())):
        if match["number"]:
            yield number_readings(match["number"].replace(",", ""))
        elif match["joint"]:
            yield ((_SPOKEN_JOINTS[match[0]],), ())
        else:
            yield from (((word,),) for word in reference_words(match[0]))


def number_readings(digits: str) -> Sequence[Reading]:
    """The ways to say a run of digits: as a number or a year, digit by digit, in pairs from the right; 0 may be "oh", 00 a full hour's."""
    ways = [digits, " ".join(digits)]
    if len(digits) <= _LONGEST:
        pairs = re.sub(r"(?=(?:..)+$)", " ", digits)
        ways += [cardinal(int(digits)), re.sub(r"\b0(?=[0-9])", "0 ", pairs)]
    readings = [tuple(reference_words(way)) for way in ways]
    if digits == "00":  # of a time
        readings += [("o'clock",), ("hundred",), ()]
    with_oh = [tuple("oh" if word == "zero" else word for word in reading) for reading in readings]
    return list(dict.fromkeys(readings + with_oh))


def word_errors(text: str, transcript: str) -> tuple[int, int]:
    """-> words of ``transcript`` that are wrong, missing or too many, by its kindest reading; words of ``text``."""
    reference = reference_words(text)
    row = list(range(len(reference) + 1))  # edits from what was heard so far to each start of the reference
    for readings in heard_words(transcript):
        rows = [
            functools.reduce(lambda before, word: _hear(reference, before, word), reading, row)
            for reading in readings
        ]
        row = [min(column) for column in zip(*rows, strict=True)]
    return row[-1], len(reference)


def _hear(reference: Sequence[str], row: list[int], word: str) -> list[int]:
    """The row of edit distances after one more word."""
    after = [row[0] + 1]
    for i, expected in enumerate(reference):
        after.append(min(row[i + 1] + 1, after[i] + 1, row[i] + (word != expected)))
    return after
