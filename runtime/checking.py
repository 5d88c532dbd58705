"""Whether a clip says its text: words missing, said twice or added, a tail behind them, no stop; and drawing again.

The trace of the text's letters through what the aligner hears tells it, by log probabilities: a word is missing where
the clip is much likelier without it, and something was added where letters are heard in a gap. Greedy reading is for
people: of this project's own small aligner it has one letter in five wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from .alignment import Heard, Spelt, Trace, Word, align, trace, typical_confidence
from .redaction import SURE
from .rng import nth_seed

if TYPE_CHECKING:
    from .pipeline import Result

MISSING = 10.0  #: how much likelier, in nats, a clip is without a word that is missing; of words spoken 6 was the most
ADDED = (
    4.0  #: how much likelier letters are than silence in a gap, in nats, where they are heard; of silence 2
)
FEWEST_LETTERS = 2  #: that are an addition: a single one is a sound that was misheard
SUSPECT = 0.25  #: confidence of a word below which it may be missing
MOST_MISSING = 8  #: words looked for: a clip that lacks as many is bad enough
T = TypeVar("T")


class Drawn(NamedTuple):
    """Which clip of which try a clip is."""

    seed: int
    rank: int  #: among the clips of that seed, best first


@dataclass(frozen=True)
class Report:
    """How a clip compares with its text."""

    heard: str  #: what the aligner reads, as it spells
    missing: tuple[str, ...]  #: words that are not heard
    repeated: tuple[str, ...]  #: words that are heard twice in a row
    extra: tuple[str, ...]  #: what is heard between words and is not in the text
    tail: str  #: what is heard behind the text
    stopped: bool  #: whether the voice stopped by itself, rather than at the limit of codes
    confidence: float  #: from 0 to 1: how clearly the words are heard
    seed: int | None = None  #: that the clip was drawn with

    @property
    def ok(self) -> bool:
        """Whether the clip says its text, and no more."""
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """What is wrong, for a person."""
        found = [f'missing "{word}"' for word in self.missing]
        found += [f'"{word}" twice' for word in self.repeated]
        found += [f'extra "{sound}"' for sound in self.extra]
        if self.tail:
            found.append(f'goes on with "{self.tail}"')
        if not self.stopped:
            found.append("no stop within the limit of codes")
        if self.confidence < SURE:
            found.append(f"hardly understood (confidence {self.confidence:.2f})")
        return found

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {"ok": self.ok, **asdict(self), "confidence": round(self.confidence, 3)}


def judge(
    heard: Heard, spelt: Sequence[Spelt], stopped: bool, seed: int | None = None
) -> tuple[Report, list[Word]]:
    """How a clip compares with its words, and where they are."""
    path = trace(heard, spelt)
    words = align(heard, spelt, path)
    report = Report(heard.reading(), (), (), (), "", stopped, typical_confidence(words), seed)
    if path is None:
        return replace(report, missing=tuple(word.text for word in spelt)), words
    missing = _missing(heard, spelt, words, path)
    there = [word for number, word in enumerate(spelt) if number not in missing]
    path = trace(heard, there) if missing else path
    report = replace(report, missing=tuple(spelt[number].text for number in sorted(missing)))
    return (report if path is None else _with_added(report, heard, there, path)), words


def _missing(heard: Heard, spelt: Sequence[Spelt], words: Sequence[Word], path: Trace) -> set[int]:
    """Numbers of the words without which the clip is much likelier, the clearest case first."""
    found: set[int] = set()
    if typical_confidence(words) < SURE:  # it is another text, if it is any
        return found
    total = path.scores.sum()
    suspects = {number for number, word in enumerate(words) if word.confidence < SUSPECT}
    while suspects and len(found) < MOST_MISSING:
        without: dict[int, float] = {}
        for number in suspects:
            rest = trace(heard, [word for n, word in enumerate(spelt) if n not in found | {number}])
            without[number] = -np.inf if rest is None else float(rest.scores.sum())
        likeliest = max(without, key=lambda number: without[number])
        if without[likeliest] < total + MISSING:
            break
        found.add(likeliest)
        total = without[likeliest]
        suspects -= found
    return found


def _with_added(report: Report, heard: Heard, spelt: Sequence[Spelt], path: Trace) -> Report:
    """The report with what is heard in gaps: before the first word, and within or behind each."""
    strength = np.maximum(0, heard.scores[:, 1:-1].max(axis=1) - path.scores)
    strength[path.states % 2 == 1] = 0  # letters are what they should be
    behind = np.insert(path.owner, 0, -1)[path.states // 2]  # the word that each output is within or behind
    repeated, extra, tail = [], [], ""
    for number in range(-1, len(spelt)):
        added = np.where(behind == number, strength, 0)
        if added.sum() <= ADDED:
            continue
        (outputs,) = np.nonzero(added)
        sound = heard.reading(outputs[0], outputs[-1] + 1)
        if number >= 0 and _gain_of_twice(heard, spelt, number, path) > added.sum() / 2:
            repeated.append(spelt[number].text)
        elif len(sound.replace(" ", "")) < FEWEST_LETTERS:
            continue
        elif number == len(spelt) - 1:
            tail = sound
        else:
            extra.append(sound)
    return replace(report, repeated=tuple(repeated), extra=tuple(extra), tail=tail)


def _gain_of_twice(heard: Heard, spelt: Sequence[Spelt], number: int, path: Trace) -> float:
    """How much likelier the clip is with a word said twice, in nats."""
    again = trace(heard, [*spelt[: number + 1], replace(spelt[number], apart=True), *spelt[number + 1 :]])
    return -np.inf if again is None else float(again.scores.sum() - path.scores.sum())


def retried(say: Callable[[int], Result], seed: int, most: int) -> Result:
    """``say(seed)``; while some of its clips are bad, up to ``most`` times more with the next seeds, the best clips kept."""
    tries = {seed: say(seed)}
    kept = _best(tries)
    while len(tries) <= most and not all(tries[drawn.seed].reports[drawn.rank].ok for drawn in kept):
        again = nth_seed(seed, len(tries))
        tries[again] = say(again)
        kept = _best(tries)
    return gathered(tries, kept) if len(tries) > 1 else tries[seed]


def _best(tries: Mapping[int, Result]) -> list[Drawn]:
    """As many clips as a try has: those with the fewest problems, then the first."""
    clips = [Drawn(seed, rank) for seed, result in tries.items() for rank in range(len(result.reports))]
    clips.sort(key=lambda drawn: len(tries[drawn.seed].reports[drawn.rank].problems))
    return clips[: len(clips) // len(tries)]


def gathered(tries: Mapping[int, Result], kept: Sequence[Drawn]) -> Result:
    """One result of the clips ``kept``: codes are those of the tries (seed -> result) that they are of, times those of all."""
    used = {seed: result for seed, result in tries.items() if any(seed == drawn.seed for drawn in kept)}
    before = dict(
        zip(used, itertools.accumulate((len(r.codes) for r in used.values()), initial=0), strict=False)
    )

    def clips(of: Callable[[Result], list[T]]) -> list[T]:
        return [of(used[seed])[rank] for seed, rank in kept if of(used[seed])]

    stages = dict.fromkeys(stage for result in tries.values() for stage in result.seconds)
    return replace(
        used[kept[0].seed],
        wavs=clips(lambda result: result.wavs),
        codes=np.concatenate([result.codes for result in used.values()]),
        scores=np.concatenate([result.scores for result in used.values()]),
        chosen=np.array([before[seed] + used[seed].chosen[rank] for seed, rank in kept]),
        latents=clips(lambda result: result.latents),
        mels=clips(lambda result: result.mels),
        words=clips(lambda result: result.words),
        reports=clips(lambda result: result.reports),
        drawn=list(kept),
        tries=tuple(tries),
        seconds={stage: sum(r.seconds.get(stage, 0.0) for r in tries.values()) for stage in stages},
    )
