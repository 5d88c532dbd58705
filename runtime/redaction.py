"""Text in [brackets]: spoken, so that it steers how the rest is said, and then cut out of the sound."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from .alignment import Spelt, Word, common_confidence, moved, require_aligner, spell, typical_confidence
from .engine import Array, Engine
from .errors import TextError
from .sentences import LONGEST, Sentence
from .spec import SAMPLE_RATE

#: typical confidence of a clip's words from which on they are believed to be where they were found. Of the small
#: aligner on the demo's speech: 0.37 and more with the right text, 0.12 and less with another.
SURE = 0.2
SURE_HERE = 0.05  #: common confidence of words in brackets and those beside them
WINDOW = round(0.010 * SAMPLE_RATE)  #: samples over which loudness is taken
FADE = round(0.005 * SAMPLE_RATE)  #: samples over which sound fades at a cut
MOST_JOINED = 2000  #: characters in brackets that hold sentences together
_PAIR = re.compile(r"\[([^\[\]]*)\]")
log = logging.getLogger("tortoise_rt")


class Part(NamedTuple):
    """Some of a text."""

    text: str
    inside: bool  #: brackets


@dataclass(frozen=True)
class Prompt:
    """A text as it is spoken."""

    text: str  #: without the brackets, cleaned where there are any
    words: tuple[Spelt, ...]
    inside: tuple[bool, ...]  #: of each word, whether it is to be cut out
    sure: bool = (
        True  #: whether an aligner can know what is in brackets: it has letters, or nothing to be said
    )

    @property
    def to_cut(self) -> list[str]:
        """What is in brackets, pair by pair: to be cut out of the sound."""
        return [_joined(self.words[first:end]) for first, end in _runs(self.inside)] if self.sure else []

    @property
    def to_hear(self) -> str:
        """What is left of the words then."""
        if not self.sure:
            return _joined(self.words)
        return _joined([word for word, inside in zip(self.words, self.inside, strict=True) if not inside])


def parts(text: str) -> list[Part]:
    """A text cut at its brackets; raises a TextError for one without a partner, or within others."""
    found, at = [], 0
    for pair in _PAIR.finditer(text):
        found += [Part(text[at : pair.start()], False), Part(pair[1], True)]
        at = pair.end()
    found.append(Part(text[at:], False))
    for part in found:
        if (odd := re.search(r"[\[\]]", part.text)) is not None:
            near = part.text[max(0, odd.start() - 20) : odd.start() + 20].strip()
            raise TextError(
                f'the "{odd[0]}" in "{near}" has no partner, or is within other brackets: every "[" needs a "]" behind it; '
                "to speak such text as it is, turn redaction off (--no-redaction, enable_redaction=False)"
            )
    return [part for part in found if part.text]


def outside(text: str) -> str:
    """What is heard of a text in the end; raises a TextError as :func:`parts`."""
    return "".join(part.text for part in parts(text) if not part.inside)


def all_in_brackets(text: str) -> bool:
    """Whether nothing would be heard of a text that has brackets; raises a TextError as :func:`parts`."""
    return any(part.inside for part in parts(text)) and not speaks(text)


def speaks(text: str) -> bool:
    """Whether there is a letter or digit outside a text's pairs of brackets."""
    return any(map(str.isalnum, _PAIR.sub("", text)))


def split_outside(text: str, mark: str) -> list[str]:
    """``text.split(mark)``, but for what is in pairs of brackets."""
    found, start = [], 0
    for match in re.finditer(rf"{_PAIR.pattern}|{re.escape(mark)}", text):
        if match[0] == mark:
            found.append(text[start : match.start()])
            start = match.end()
    return [*found, text[start:]]


def check(text: str, engine: Engine | None = None) -> bool:
    """Whether a text has [brackets]. Raises a TextError where they are wrong or hold all of it, an EngineError where
    ``engine`` cannot cut them out."""
    found = parts(text)
    if not any(part.inside for part in found):
        return False
    if all_in_brackets(text):
        raise TextError(
            "all of the text is in brackets, and so nothing of it would be heard: write what is to be said"
        )
    if engine is not None:
        first = next(part.text for part in found if part.inside)
        require_aligner(
            engine,
            f"cutting [{first[:60]}] out of the sound",
            "have words in brackets spoken (--no-redaction, enable_redaction=False)",
        )
    return True


def parse(text: str, clean: Callable[[str], str], brackets: bool = True) -> Prompt:
    """What is spoken of a text, word by word; with ``brackets`` off they are no more than characters."""
    if not (brackets and check(text)):
        words = spell(clean(text))
        return Prompt(text, tuple(words), (False,) * len(words))
    spoken, sure = "", True
    words, inside = [], []
    for part in parts(text):
        cleaned = clean(part.text)
        found = spell(cleaned)
        if found and (not spoken or spoken[-1].isspace()):
            found[0] = replace(found[0], apart=True)
        sure &= bool(found) or not (part.inside and any(c.isalnum() for c in cleaned))
        spoken += cleaned
        words += found
        inside += [part.inside] * len(found)
    return Prompt(spoken, tuple(words), tuple(inside), sure)


def cut(wav: Array, words: Sequence[Word], prompt: Prompt) -> tuple[Array, list[Word]]:
    """The clip (samples,) without what is in brackets -> it and the words left, where they are then.

    Cuts lie where it is quietest between two words. Where it is not sure that the words are where they were found, the
    whole clip is kept, and a warning says so.
    """
    if not any(prompt.inside) and prompt.sure:
        return wav, list(words)
    runs = list(_runs(prompt.inside))
    here = [common_confidence(words[max(0, a - 1) : b + 1]) for a, b in runs]
    if not prompt.sure or typical_confidence(words) < SURE or min(here) < SURE_HERE:
        log.warning(
            "it is not sure where the words in brackets are spoken, so the whole clip is kept: try another seed, or "
            "words that are easier to tell apart"
        )
        return wav, list(words)
    pieces, left = [], []
    start = removed = done = 0
    for first, end in [*runs, (len(words), len(words))]:
        stop = len(wav) if first == len(words) else _quietest(wav, words, first)
        pieces.append(_faded(wav[start:stop], begins=start > 0, ends=stop < len(wav)))
        left += [moved(word, -removed / SAMPLE_RATE) for word in words[done:first]]
        start, done = len(wav) if end == len(words) else _quietest(wav, words, end), end
        removed += start - stop
    return np.concatenate(pieces), left


def whole_brackets(sentences: Iterable[Sentence]) -> Iterator[Sentence]:
    """The sentences of a text, those joined that brackets hold together; one that is all in brackets is joined to the next.

    Where that becomes long, what stands before the bracket that is open is a sentence.
    """
    held: Sentence | None = None
    for sentence in sentences:
        held = sentence if held is None else held._replace(text=f"{held.text} {sentence.text}")
        if not _waits(held.text):
            yield held
            held = None
        elif len(held.text) > LONGEST and speaks(before := held.text[: held.text.rindex("[")]):
            yield held._replace(text=before.strip())
            held = Sentence(held.text[len(before) :])
    if held is not None:
        yield held


def halves(text: str, at: int) -> tuple[str, str]:
    """A text in two; brackets that are open there are closed and opened again."""
    first, second = text[:at], text[at:].strip()
    if first.rfind("[") > first.rfind("]"):
        return f"{first}]", f"[{second}"
    return first, second


def _waits(text: str) -> bool:
    """Whether more must follow: a bracket is open, or all is in brackets; not for ever."""
    rest = _PAIR.sub("", text)
    if "[" in rest and "]" not in rest:
        return len(rest) - rest.index("[") <= MOST_JOINED
    return "[" in text and not speaks(text) and len(text) <= MOST_JOINED


def _joined(words: Sequence[Spelt]) -> str:
    return "".join(f"{' ' * word.apart}{word.text}" for word in words).strip()


def _runs(inside: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """The first word of each run in brackets, and the one behind it."""
    edges = np.flatnonzero(np.diff(np.array([False, *inside, False]).astype(np.int8)))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _quietest(wav: Array, words: Sequence[Word], number: int) -> int:
    """The sample at which to cut before a word: the clip's start, or the quietest behind the word before it."""
    if number == 0:
        return 0
    begin, end = (
        round(time * SAMPLE_RATE) for time in (words[number - 1].letters[1], words[number].letters[0])
    )
    if end - begin <= WINDOW:
        return (begin + end) // 2
    power = np.cumsum(np.square(wav[begin:end], dtype=np.float64))
    return begin + WINDOW // 2 + int((power[WINDOW:] - power[:-WINDOW]).argmin())


def _faded(piece: Array, begins: bool, ends: bool) -> Array:
    """A piece that rises from silence where it ``begins`` at a cut, and falls to it where it ``ends`` at one."""
    piece, length = piece.copy(), min(FADE, len(piece))
    slope = (np.arange(length, dtype=np.float32) + 0.5) / max(1, length)
    if begins:
        piece[:length] *= slope
    if ends:
        piece[len(piece) - length :] *= slope[::-1]
    return piece
