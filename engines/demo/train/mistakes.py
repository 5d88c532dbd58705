"""Mistakes made on purpose, for CLVP to tell from what was meant: in the codes, and in the text where splices tell nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .examples import SPACE_TOKEN, Example
from .tokens import ALPHABET, ENTRIES, SPECIAL
from .vqvae import CODES

FIRST_LETTER = len(SPECIAL) + ALPHABET.index("a")  #: text ids below are silent


@dataclass(frozen=True)
class Words:
    """Where the words of an example are: [first, end) in its text and in its codes."""

    text: list[tuple[int, int]]
    codes: list[tuple[int, int]]

    @classmethod
    def of(cls, example: Example) -> Words:
        spaces = np.flatnonzero(example.text == SPACE_TOKEN)
        text = list(zip([0, *(spaces + 1)], [*spaces, len(example.text)], strict=True))
        read = np.maximum.accumulate(example.reading)
        codes = [
            tuple(np.searchsorted(read, (first - 0.5 * (first > 0), end)).tolist()) for first, end in text
        ]
        return cls(text, codes)


def spoken(example: Example) -> tuple[int, int]:
    """[first, end) of the codes that are no silence."""
    loud = np.flatnonzero((example.phonemes > 0).any(1))
    return (int(loud[0]), int(loud[-1]) + 1) if len(loud) else (0, len(example.codes))


def _run(example: Example, rng: np.random.Generator, least: int, most: int) -> tuple[int, int]:
    """A random run of ``least`` to ``most`` spoken codes."""
    first, end = spoken(example)
    count = min(int(rng.integers(least, most + 1)), end - first)
    start = int(rng.integers(first, end - count + 1))
    return start, start + count


def _word(example: Example, rng: np.random.Generator) -> tuple[int, int]:
    """The codes of a random word; a run where the word is too short to have some."""
    first, end = spoken(example)
    spans = [(max(a, first), min(b, end)) for a, b in Words.of(example).codes]
    spans = [(a, b) for a, b in spans if b - a > 1]
    return spans[rng.integers(len(spans))] if spans else _run(example, rng, 2, 6)


def _piece(example: Example, rng: np.random.Generator) -> tuple[int, int]:
    """A word, or a run of about a syllable."""
    return _word(example, rng) if rng.random() < 0.5 else _run(example, rng, 2, 6)


def _sounds(example: Example, first: int, end: int) -> np.ndarray:
    """The phonemes of some codes, each once for as long as it lasts."""
    found = example.phonemes[first:end].ravel()
    return found[np.append(True, found[1:] != found[:-1])]


def _spliced(codes: np.ndarray, first: int, end: int, instead: np.ndarray) -> np.ndarray:
    return np.concatenate([codes[:first], instead, codes[end:]])


def skipped(example: Example, other: Example, rng: np.random.Generator) -> np.ndarray:
    return _spliced(example.codes, *_piece(example, rng), example.codes[:0])


def repeated(example: Example, other: Example, rng: np.random.Generator) -> np.ndarray:
    first, end = _piece(example, rng)
    return _spliced(example.codes, end, end, example.codes[first:end])


def wrong(example: Example, other: Example, rng: np.random.Generator) -> np.ndarray:
    """A word of another sentence instead of one."""
    (first, end), (start, stop) = _word(example, rng), _word(other, rng)
    if np.array_equal(_sounds(example, first, end), _sounds(other, start, stop)):
        return foreign(example, other, rng)
    return _spliced(example.codes, first, end, other.codes[start:stop])


def foreign(example: Example, other: Example, rng: np.random.Generator) -> np.ndarray:
    """As many codes of another sentence instead of some."""
    first, end = _run(other, rng, 3, 8)
    start, stop = _run(example, rng, end - first, end - first)
    return _spliced(example.codes, start, stop, other.codes[first : first + stop - start])


def exchanged(example: Example, other: Example, rng: np.random.Generator) -> np.ndarray:
    """A word changes places with as much behind it, or one half of the sentence with the other."""
    low, high = spoken(example)
    first, middle = _word(example, rng)
    end = min(2 * middle - first, high)
    if end - middle < 2:
        first, middle, end = low, (low + high) // 2, high
    turned = np.concatenate([example.codes[middle:end], example.codes[first:middle]])
    return _spliced(example.codes, first, end, turned)


def cut(example: Example, other: Example, rng: np.random.Generator) -> np.ndarray:
    """The end is missing, seldom the beginning."""
    first, end = spoken(example)
    count = int(rng.integers(2, 3 + (end - first) // 3))
    return example.codes[first + count :] if rng.random() < 0.2 else example.codes[: max(1, end - count)]


def babbled(example: Example, other: Example, rng: np.random.Generator) -> np.ndarray:
    """Some codes are any."""
    first, end = _run(example, rng, 3, 8)
    return _spliced(example.codes, first, end, rng.integers(0, CODES, end - first))


def continued(example: Example, other: Example, rng: np.random.Generator) -> np.ndarray:
    """Speech goes on after the last word."""
    _, end = spoken(example)
    first, last = _run(other if rng.random() < 0.7 else example, rng, 3, 12)
    source = other if rng.random() < 0.7 else example
    return np.concatenate([example.codes[:end], source.codes[first:last], example.codes[end:]])


Mistake = Callable[[Example, Example, np.random.Generator], np.ndarray]
#: of codes: (example, another, rng) -> codes
MISTAKES: dict[str, Mistake] = {
    f.__name__: f for f in (skipped, repeated, wrong, foreign, exchanged, cut, babbled, continued)
}


def misread(example: Example, other: Example, rng: np.random.Generator) -> np.ndarray:
    """Text ids that the codes do not say: a word too few, too many, another, in another place, or misspelt."""
    words, text = Words.of(example).text, example.text
    at = int(rng.integers(len(words)))
    first, end = words[at]
    kind = rng.random()
    if kind < 0.2 and len(words) > 1:
        made = np.delete(text, slice(first - (at > 0), end + (at == 0)))
    elif kind < 0.35:
        made = np.insert(text, end, [SPACE_TOKEN, *text[first:end]])
    elif kind < 0.55:
        found = Words.of(other).text
        start, stop = found[rng.integers(len(found))]
        made = _spliced(text, first, end, other.text[start:stop])
    elif kind < 0.7 and len(words) > 1:
        (a, b), (c, d) = words[max(0, at - 1) : max(0, at - 1) + 2]
        made = np.concatenate([text[:a], text[c:d], text[b:c], text[a:b], text[d:]])
    else:
        made = text
    if np.array_equal(made, text):
        made = text.copy()
        spot = rng.choice(np.flatnonzero(text >= FIRST_LETTER))
        made[spot] = FIRST_LETTER + (text[spot] - FIRST_LETTER + rng.integers(1, ENTRIES - FIRST_LETTER)) % (
            ENTRIES - FIRST_LETTER
        )
    return made


def stretched(example: Example, rng: np.random.Generator, share: float = 0.06) -> Example:
    """The same said with some codes longer or shorter: splices that are no mistakes."""
    same = example.phonemes[:, 0] == example.phonemes[:, 1]
    inside = same.copy()
    inside[1:] &= example.phonemes[1:, 0] == example.phonemes[:-1, 1]
    inside[:-1] &= example.phonemes[:-1, 1] == example.phonemes[1:, 0]
    chance = rng.random(len(same))
    times = np.ones(len(same), np.int64)
    times[same & (chance < share)] = 2
    times[inside & (chance > 1 - share)] = 0
    times[0] = 1
    kept = np.repeat(np.arange(len(same)), times)
    return replace(
        example, codes=example.codes[kept], reading=example.reading[kept], phonemes=example.phonemes[kept]
    )
