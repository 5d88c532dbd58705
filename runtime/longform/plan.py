"""A document -> what each clip says, cut as the original's ``read`` cuts: about 200 characters, half as many more at most."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from ..errors import TextError
from ..fitting import fitted
from ..redaction import speaks, split_outside, whole_brackets
from ..sentences import Sentence
from ..text import split_and_recombine_text
from .document import Chapter, Document

LENGTH = 200  #: characters of a clip, about; the original's
MOST = 1.5  #: times as many at most
MARK = "|"  #: cuts a text where its writer wants it, brackets apart
CLIP, PARAGRAPH, CHAPTER = "clip", "paragraph", "chapter"  #: what ends with a clip, the longest pause last
ENDS = (CLIP, PARAGRAPH, CHAPTER)
_WHOLE = re.compile(r"[.!?…:;,—–-][\"'”’»)\]*_]*$")


@dataclass(frozen=True)
class Passage:
    """What a clip says."""

    text: str
    speaker: str = ""  #: a name of the cast; "" is the narrator
    chapter: int = 0  #: its number, from 0
    ends: str = CLIP  #: what ends with it, one of ENDS


@dataclass
class _Stretch:
    """Text of one voice that may be cut anywhere."""

    speaker: str
    paragraphs: list[str]
    ends: str  #: what ends with it


def plan(
    document: Document,
    fits: Callable[[str], int],
    cast: Collection[str] = (),
    length: int = LENGTH,
    brackets: bool = True,
) -> tuple[Passage, ...]:
    """The clips of a document, in order.

    Sentences are cut and joined as the original's ``split_and_recombine_text`` does, to about ``length`` characters,
    across paragraphs that end a sentence and close their quotations; a title stands alone. "|" cuts where the writer
    wants: what lies between two is a clip unless it is too long. A line that begins with a name of ``cast`` and a colon
    is that voice's, up to the next such line or the paragraph's end; the name is not said. With ``brackets`` they are not cut.
    Raises a TextError where nothing can be said.
    """
    passages: list[Passage] = []
    for number, chapter in enumerate(document.chapters):
        said = [
            p for stretch in _stretches(chapter, cast) for p in _cut(stretch, number, fits, length, brackets)
        ]
        if said:
            said[-1] = replace(said[-1], ends=CHAPTER)
        passages += said
    if not passages:
        raise TextError(f"{document.name}: there is nothing to say: the text is empty once cleaned")
    return tuple(passages)


def heard(passages: Iterable[Passage]) -> tuple[Passage, ...]:
    """Those that are not all in brackets, as "[Illustration]" is; what ends with the others ends with those before them."""
    kept: list[Passage] = []
    for passage in passages:
        if speaks(passage.text):
            kept.append(passage)
        elif kept:
            kept[-1] = replace(kept[-1], ends=max(kept[-1].ends, passage.ends, key=ENDS.index))
    if not kept:
        raise TextError("all of the text is in brackets, and so nothing of it would be heard")
    return tuple(kept)


def _stretches(chapter: Chapter, cast: Collection[str]) -> list[_Stretch]:
    found: list[_Stretch] = []
    for paragraph in chapter.paragraphs:
        for speaker, text in _lines(paragraph, cast):
            before = found[-1] if found else None
            if before and before.speaker == speaker and _whole(before.paragraphs[-1]) and _whole(text):
                before.paragraphs.append(text)
            else:
                found.append(_Stretch(speaker, [text], CLIP))
        if found:
            found[-1].ends = PARAGRAPH
    return found


def _whole(paragraph: str) -> bool:
    """Whether it ends a sentence, as titles do not, and no quotation stays open, as none can be told from text behind it."""
    return bool(_WHOLE.search(paragraph.rstrip())) and sum(map(paragraph.count, '"“”')) % 2 == 0


def _lines(paragraph: str, cast: Collection[str]) -> Iterator[tuple[str, str]]:
    """(speaker, text) of each part of a paragraph."""
    if not cast:
        yield "", paragraph
        return
    names = "|".join(map(re.escape, sorted(cast, key=len, reverse=True)))
    parts = re.split(rf"^[^\S\n]*({names})[^\S\n]*:", paragraph, flags=re.MULTILINE)
    for speaker, text in zip(["", *parts[1::2]], parts[::2], strict=True):
        if text.strip():
            yield speaker, text


def _cut(
    stretch: _Stretch, chapter: int, fits: Callable[[str], int], length: int, brackets: bool
) -> list[Passage]:
    """The clips of a stretch. Where paragraphs end is told by their letters and digits, none of which is lost."""
    ends, letters = set(), 0
    for paragraph in stretch.paragraphs:
        letters += _letters(paragraph)
        ends.add(letters)
    passages: list[Passage] = []
    reached = 0
    for piece in _pieces("\n".join(stretch.paragraphs), length, brackets):
        reached += _letters(piece)
        end = CLIP if reached not in ends else stretch.ends if reached == letters else PARAGRAPH
        parts = list(fitted(piece, fits, brackets))
        passages += [Passage(part, stretch.speaker, chapter) for part in parts]
        if passages:  # a piece of which nothing can be said leaves its end to the one before
            passages[-1] = replace(passages[-1], ends=max(passages[-1].ends, end, key=ENDS.index))
    return passages


def _letters(text: str) -> int:
    return sum(map(str.isalnum, text))


def _pieces(text: str, length: int, brackets: bool) -> Iterator[str]:
    most = int(MOST * length)
    parts = split_outside(text, MARK) if brackets else text.split(MARK)
    for part in parts:
        words = " ".join(part.split())
        if len(parts) > 1 and len(words) <= most:
            yield words
        elif brackets:
            yield from _whole_brackets(split_and_recombine_text(words, length, most))
        else:
            yield from split_and_recombine_text(words, length, most)


def _whole_brackets(pieces: Iterable[str]) -> list[str]:
    """The pieces, joined where brackets hold them together or one of them is all in brackets."""
    joined = [sentence.text for sentence in whole_brackets(map(Sentence, pieces))]
    if len(joined) > 1 and not speaks(joined[-1]):
        joined[-2:] = [" ".join(joined[-2:])]
    return joined
