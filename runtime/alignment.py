"""Which word of a text is spoken when: what an aligner hears, and the likeliest path of the text's letters through it.

An aligner is trained by CTC (Graves et al. 2006): for every output it gives the probability of each of ``SYMBOLS``, the
first being "nothing new". The path is found by dynamic programming (Viterbi) over the letters with a gap before, between
and behind them; a gap is blank, and between words space as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .engine import Array, Engine
from .errors import EngineError
from .mel import FFT, ar_mel
from .resample import resample
from .spec import ALIGNER_STRIDE, CODE_RATE, HOP, SAMPLE_RATE, SYMBOLS, WAV2VEC2_RATE
from .text import transliterate

ALIGNERS = ("wav2vec2", "aligner")  #: graphs that hear letters, the better one first
PART, CONTEXT = 30.0, 2.0  #: seconds that are heard at once, and beside them, so that memory is bounded
FIRST_OUTPUT = 0.0125  #: the middle of wav2vec2's first output, seconds: it sees 25 ms
MOST_CELLS = 1 << 26  #: outputs times states of a path, a byte each: five minutes and 2,500 letters
LEAST = 1e-30  #: so that a logarithm can be taken
_LETTERS = {symbol: number for number, symbol in enumerate(SYMBOLS) if symbol.strip()}
_SPACE = len(SYMBOLS) - 1


@dataclass(frozen=True)
class Spelt:
    """A word, or a part of one, as an aligner knows it."""

    text: str
    letters: tuple[int, ...]  #: places in SYMBOLS, at least one
    apart: bool = True  #: whether a space is before it


@dataclass(frozen=True)
class Heard:
    """What an aligner hears in a clip."""

    scores: Array  #: (outputs, SYMBOLS) float32 log probabilities
    step: float  #: seconds from one output to the next
    first: float  #: the middle of the first, seconds
    seconds: float  #: of the clip

    def time(self, output: float) -> float:
        """Seconds to the middle of an output, or between two, within the clip."""
        return float(min(max(0.0, self.first + output * self.step), self.seconds))

    def reading(self, begin: int = 0, end: int | None = None) -> str:
        """The letters that are most likely heard at some outputs."""
        best = self.scores[begin:end].argmax(axis=1)
        changed = best[np.append(True, best[1:] != best[:-1])[: len(best)]]
        return " ".join("".join(SYMBOLS[i] for i in changed).split())


@dataclass(frozen=True)
class Word:
    """A word in a clip; times in seconds."""

    text: str
    start: float
    end: float
    confidence: float  #: from 0 to 1: how clearly its letters are heard where they are placed
    letters: tuple[float, float]  #: the middle of its first letter and of its last


@dataclass(frozen=True)
class Trace:
    """The likeliest path of some words: through gap, letter, gap, letter, ..., gap."""

    states: Array  #: (outputs,) int64: 2 n + 1 is letter n, 2 n the gap before it
    scores: Array  #: (outputs,) log probability of each
    letters: Array  #: (letters,) int64, places in SYMBOLS
    owner: Array  #: (letters,) int64, the word of each

    def outputs(self) -> tuple[Array, Array]:
        """The first and the last output (letters,) of each letter."""
        own = np.arange(1, 2 * len(self.letters), 2)
        return np.searchsorted(self.states, own), np.searchsorted(self.states, own, "right") - 1


def aligner_of(engine: Engine) -> str | None:
    """The engine's best graph that hears letters, None where it has none."""
    return next((graph for graph in ALIGNERS if engine.has(graph)), None)


def require_aligner(engine: Engine, purpose: str, instead: str) -> str:
    """The engine's aligner; raises an EngineError that says what needs it and what to do ``instead``."""
    if (graph := aligner_of(engine)) is None:
        raise EngineError(
            f"{purpose} needs an aligner, and {engine.info.source} has none: get one (tortoise-rt fetch --aligner) and "
            f"export the engine again, or {instead}"
        )
    return graph


def spell(text: str) -> list[Spelt]:
    """The words of a cleaned text that have letters."""
    found = []
    for number, word in enumerate(text.split()):
        letters = tuple(_LETTERS[c] for c in transliterate(word).lower() if c in _LETTERS)
        if any(SYMBOLS[letter] != "'" for letter in letters):
            found.append(Spelt(word, letters, number > 0 or text[0].isspace()))
    return found


def hear(engine: Engine, wav: Array) -> Heard:
    """wav: (samples,), 24 kHz -> what the engine's aligner hears. Raises EngineError where it has none."""
    graph = require_aligner(engine, "hearing words", "do without")
    small, seconds = graph == "aligner", len(wav) / SAMPLE_RATE
    rate, stride = (
        (CODE_RATE, ALIGNER_STRIDE * HOP) if small else (WAV2VEC2_RATE, engine.dims["wav2vec2.stride"])
    )
    wave = resample(wav, SAMPLE_RATE, rate)
    if not small and len(wave):  # as its processor does
        wave = (wave - wave.mean()) / np.sqrt(wave.var() + np.float32(1e-7))
    outputs, found = -(-len(wave) // stride), [np.zeros((0, len(SYMBOLS)), np.float32)]
    part, context = (round(s * rate / stride) for s in (PART, CONTEXT))
    for begin in range(0, outputs, part):
        before = min(begin, context)
        seen = wave[(begin - before) * stride : (begin + part + context) * stride]
        seen = np.pad(seen, (0, max(0, FFT - len(seen))))  # the shortest that can be heard
        (logits,) = engine.run(graph, **{"mel": ar_mel(seen[None])} if small else {"wav": seen[None]})
        found.append(logits[0, before : before + min(part, outputs - begin)])
    scores = np.concatenate(found).astype(np.float64)
    scores -= np.logaddexp.reduce(scores, axis=1, keepdims=True)
    return Heard(scores.astype(np.float32), stride / rate, 0.0 if small else FIRST_OUTPUT, seconds)


def trace(heard: Heard, words: Sequence[Spelt]) -> Trace | None:
    """The likeliest path of ``words``; None where there is none: no letters, or more of them than fit into the clip."""
    letters = np.array([letter for word in words for letter in word.letters], np.int64)
    owner = np.repeat(np.arange(len(words)), [len(word.letters) for word in words])
    if not len(letters) or len(heard.scores) * (2 * len(letters) + 1) > MOST_CELLS:
        return None
    between = np.append(np.array([word.apart for word in words])[owner[1:]] & (np.diff(owner) > 0), True)
    between = np.insert(between, 0, True)  # (letters + 1,): whether each gap parts words
    blank = heard.scores[:, :1]
    scores = np.empty((len(heard.scores), 2 * len(letters) + 1), np.float32)
    scores[:, ::2] = np.where(between, np.logaddexp(blank, heard.scores[:, _SPACE:]), blank)
    scores[:, 1::2] = heard.scores[:, letters]
    may_skip = np.zeros(scores.shape[1], bool)
    may_skip[3::2] = (letters[1:] != letters[:-1]) & ~between[1:-1]
    states = best_path(scores, may_skip)
    return None if states is None else Trace(states, scores[np.arange(len(scores)), states], letters, owner)


def best_path(scores: Array, may_skip: Array) -> Array | None:
    """The likeliest way through all states in their order.

    scores: (outputs, states), log probability of each state at each output; may_skip: (states,), whether a state may
    follow the one two before it. The way begins in one of the first two states and ends in one of the last two
    -> (outputs,) the state at each output; None where the outputs are too few.
    """
    outputs, states = scores.shape
    if outputs == 0:
        return None
    came = np.zeros((outputs, states), np.uint8)  # from how many states back
    ways = np.full((3, states), -np.inf)
    total = np.full(states, -np.inf)
    total[:2] = scores[0, :2]
    for output in range(1, outputs):
        ways[0], ways[1, 1:], ways[2, 2:] = total, total[:-1], total[:-2]
        ways[2, ~may_skip] = -np.inf
        came[output] = ways.argmax(axis=0)
        total = ways.max(axis=0) + scores[output]
    at = states - 1 - int(total[-2] > total[-1])
    if not np.isfinite(total[at]):
        return None
    path = np.empty(outputs, np.int64)
    for output in range(outputs - 1, -1, -1):
        path[output] = at
        at -= int(came[output, at])
    return path


def align(heard: Heard, words: Sequence[Spelt], path: Trace | None = None) -> list[Word]:
    """Where each word is spoken, by its trace. Without one they are spread evenly, with a confidence of 0."""
    path = path or trace(heard, words)
    if path is None:
        return _spread(heard, words)
    first, last = path.outputs()
    clear = [heard.scores[a : b + 1, n].max() for n, a, b in zip(path.letters, first, last, strict=True)]
    found = []
    bounds = np.searchsorted(path.owner, np.arange(len(words) + 1))
    for word, a, b in zip(words, bounds[:-1], bounds[1:], strict=True):
        begin, end = int(first[a]), int(last[b - 1])
        start = _sound_begins(heard, int(last[a - 1]) if a else None, begin)
        stop = _sound_ends(heard, end, int(first[b]) if b < len(first) else None)
        confidence = float(np.exp(np.mean(clear[a:b])))
        found.append(Word(word.text, start, stop, confidence, (heard.time(begin), heard.time(end))))
    return found


def typical_confidence(words: Sequence[Word]) -> float:
    """The median, which a few words that are not there leave as it is; 0 of none."""
    return float(np.median([word.confidence for word in words])) if words else 0.0


def common_confidence(words: Sequence[Word]) -> float:
    """The geometric mean, which every word must bear; 0 of none."""
    return float(np.exp(np.mean([np.log(word.confidence + LEAST) for word in words]))) if words else 0.0


def moved(word: Word, seconds: float) -> Word:
    """The word later by ``seconds``."""
    a, b = word.letters
    return replace(
        word, start=word.start + seconds, end=word.end + seconds, letters=(a + seconds, b + seconds)
    )


def _sound_ends(heard: Heard, last: int, following: int | None) -> float:
    """Seconds to the end of the word whose last letter is at output ``last``: space from there on, or half the way."""
    (spaces,) = np.nonzero(_silent(heard, last + 1, following))
    if len(spaces):
        return heard.time(last + 0.5 + spaces[0])
    return heard.time(last + 0.5 if following is None else (last + following) / 2)


def _sound_begins(heard: Heard, before: int | None, first: int) -> float:
    """Seconds to the beginning of the word whose first letter is at output ``first``."""
    begin = 0 if before is None else before + 1
    (spaces,) = np.nonzero(_silent(heard, begin, first))
    if len(spaces):
        return heard.time(begin + spaces[-1] + 0.5)
    return heard.time(first - 0.5 if before is None else (before + first) / 2)


def _silent(heard: Heard, begin: int, end: int | None) -> Array:
    """Whether space is likelier than blank, at each output of a gap."""
    return heard.scores[begin:end, _SPACE] > heard.scores[begin:end, 0]


def _spread(heard: Heard, words: Sequence[Spelt]) -> list[Word]:
    """Words as long as their letters are many, from the clip's start to its end: nobody knows better."""
    ends = np.cumsum([0, *(len(word.letters) for word in words)])
    times = (ends / max(1, ends[-1]) * heard.seconds).tolist()
    return [Word(w.text, a, b, 0.0, (a, b)) for w, a, b in zip(words, times[:-1], times[1:], strict=True)]
