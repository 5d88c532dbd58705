"""Text that may still be arriving -> sentences, each as soon as it is certain.

Where a sentence ends depends on the text before its end and on the first character behind it, never on how the text
was fed: word by word or all at once, the sentences are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

LONGEST = 200  #: characters, about 13 s of speech: longer sentences are cut where they breathe
BLOCK = 2048  #: characters of a text that are looked at before the first sentence is said
_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)")
_BREATH = re.compile(r"[,;:—–](?=\s)|\s[-—–](?=\s)")
#: words whose full stop does not end a sentence
_ABBREVIATIONS = frozenset(
    [
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "st",
        "sr",
        "jr",
        "rev",
        "hon",
        "gen",
        "col",
        "capt",
        "lt",
        "sgt",
        "messrs",
        "mme",
        "mlle",
        "vs",
        "etc",
        "e.g",
        "i.e",
        "cf",
        "al",
        "vol",
        "pp",
        "ch",
        "fig",
        "approx",
        "dept",
        "est",
        "inc",
        "ltd",
        "co",
        "corp",
    ]
)
#: with a capital letter only: the sun, he sat
_DATES = frozenset(
    [
        "Jan",
        "Feb",
        "Mar",
        "Apr",
        "Jun",
        "Jul",
        "Aug",
        "Sep",
        "Sept",
        "Oct",
        "Nov",
        "Dec",
        "Mon",
        "Tue",
        "Wed",
        "Thu",
        "Fri",
        "Sat",
        "Sun",
    ]
)
_BEFORE_NUMBERS = frozenset(["no", "nos"])  #: before a number only


class Sentence(NamedTuple):
    """What is said in one go."""

    text: str
    new_paragraph: bool = False  #: whether a blank line stands before it


class SentenceCutter:
    """Takes text in pieces of any size and gives the sentences that are certain."""

    def __init__(self) -> None:
        self._text = ""  #: not yet given; runs of white space are one space, one or two line feeds
        self._space = ""  #: at its end, of which more may come
        self._new_paragraph = False

    def feed(self, text: str) -> list[Sentence]:
        """More of the text -> the sentences that this makes certain."""
        for part in re.split(r"(\s+)", text):
            if part.isspace():
                self._space += part
            elif part:
                self._new_paragraph |= not self._text and self._space.count("\n") > 1
                self._text += self._white() + part
                self._space = ""
        return list(self._certain())

    def finish(self) -> list[Sentence]:
        """The text is at its end -> what is left of it."""
        self._space = "\n\n"
        found = list(self._certain())
        if self._text:
            found.append(self._sentence(self._text))
        self._text = ""
        return found

    def _white(self) -> str:
        if not self._space or not self._text:
            return ""
        return "\n\n" if self._space.count("\n") > 1 else "\n" if "\n" in self._space else " "

    def _certain(self) -> Iterator[Sentence]:
        while (end := self._first_end()) is not None:
            yield self._sentence(self._text[:end])
            rest = self._text[end:].lstrip()
            self._new_paragraph = bool(rest) and self._text[end:].startswith("\n\n")
            self._text = rest

    def _sentence(self, text: str) -> Sentence:
        return Sentence(" ".join(text.split()), self._new_paragraph)

    def _first_end(self) -> int | None:
        """Where the first sentence ends, None as long as that is not certain."""
        text = (self._text[: LONGEST + 8] + self._white())[: LONGEST + 8]
        ends = [match.end() for match in _END.finditer(text) if self._ends(text, match)]
        if (blank := text.find("\n\n")) > 0:
            ends.append(blank)
        if ends and min(ends) <= LONGEST:
            return min(ends)
        if len(self._text) <= LONGEST:
            return None
        breaths = [match.end() for match in _BREATH.finditer(text, LONGEST // 3, LONGEST + 1)]
        spaces = [match.start() for match in re.finditer(r"\s", text[: LONGEST + 1])]
        return (breaths or spaces or [LONGEST])[-1]

    @staticmethod
    def _ends(text: str, match: re.Match[str]) -> bool:
        if text[match.end()] == "\n":
            return True
        behind = text[match.end() :].lstrip()
        if not behind or behind[0].islower():  # the next word must tell
            return False
        if not match[0].startswith(".") or len(match[0].rstrip("\"'”’»)]")) > 1:
            return True
        word = re.search(r"[^\W\d_](?:\.?[^\W\d_])*$", text[: match.start()])
        return word is None or not (
            word[0].lower() in _ABBREVIATIONS
            or word[0] in _DATES
            or (word[0].lower() in _BEFORE_NUMBERS and behind[0].isdigit())
            or (len(word[0]) == 1 and word[0].isupper() and word[0] != "I")
        )


def cut(text: str | Iterable[str]) -> Iterator[Sentence]:
    """The sentences of a text, or of the pieces in which it comes."""
    cutter = SentenceCutter()
    for piece in [text] if isinstance(text, str) else text:
        for start in range(0, len(piece), BLOCK):
            yield from cutter.feed(piece[start : start + BLOCK])
    yield from cutter.finish()
