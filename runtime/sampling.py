"""Drawing a mel code from logits: repetition penalty, typical, temperature, top-k, top-p, in this order.

The order and the ties are those of the reference's samplers (Hugging Face generate). All functions take one
row of logits (vocabulary,) float32; a filtered distribution is a pair of ids, ascending, and their scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .config import ARSettings

Array = np.ndarray
NOTHING = -1  #: in place of a code where none was drawn
NOT_FINITE = "the autoregressive network gives no finite numbers for this voice and text"


@dataclass(frozen=True)
class Drawing:
    """What a row needs to draw its next codes."""

    seen: Array  #: (vocabulary,) bool: codes that the repetition penalty falls on
    uniforms: Array  #: (codes,) float64: so many codes may be drawn, each by its own
    settings: ARSettings


def penalize(logits: Array, seen: Array, penalty: float) -> Array:
    """Divides positive and multiplies negative logits of ``seen`` codes (vocabulary,) bool by ``penalty``."""
    scaled, ids = logits.copy(), np.flatnonzero(seen)
    some = logits[ids]
    scaled[ids] = np.where(some < 0, some * np.float32(penalty), some / np.float32(penalty))
    return scaled


def softmax(scores: Array) -> Array:
    """Over the last axis, in float64."""
    exponent = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return exponent / exponent.sum(axis=-1, keepdims=True)


def keep_typical(scores: Array, mass: float) -> Array:
    """Mask of the locally typical codes (arXiv:2202.00666): nearest to the entropy until ``mass`` is reached."""
    probabilities = softmax(scores)
    information = -np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    distance = np.abs(information - (probabilities * information).sum())
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(probabilities[order]) < mass).sum()), len(order) - 1)
    return distance <= distance[order[last]]


def keep_top_k(scores: Array, k: int) -> Array:
    """Mask of the ``k`` largest and all that tie with the last of them; k = 0 keeps everything."""
    if k == 0 or k >= len(scores):
        return np.ones(len(scores), bool)
    return scores >= np.partition(scores, len(scores) - k)[len(scores) - k]


def keep_top_p(scores: Array, mass: float) -> Array:
    """Mask of the nucleus: the most likely codes that together reach ``mass``; at least one.

    Compared in float32, as the reference does: equal scores can sum to exactly what is to be left out.
    """
    order = np.argsort(scores, kind="stable")
    keep = np.ones(len(scores), bool)
    reached = np.cumsum(softmax(scores)[order].astype(np.float32), dtype=np.float64).astype(np.float32)
    keep[order[reached <= np.float32(1 - mass)]] = False
    keep[order[-1]] = True
    return keep


def distribution(logits: Array, seen: Array, settings: ARSettings) -> tuple[Array, Array]:
    """-> (ids ascending, probabilities float64) of the codes that may be drawn."""
    scores = penalize(logits, seen, settings.repetition_penalty)
    ids = np.arange(len(scores))
    if settings.typical:
        ids = ids[keep_typical(scores, settings.typical_mass)]
    scores = scores[ids] / np.float32(settings.temperature)
    keep = np.flatnonzero(keep_top_k(scores, settings.top_k))  # a mask of all codes takes longer to apply
    ids, scores = ids[keep], scores[keep]
    if settings.top_p < 1:
        keep = keep_top_p(scores, settings.top_p)
        ids, scores = ids[keep], scores[keep]
    return ids, softmax(scores)


def draw(logits: Array, seen: Array, u: float, forbidden: int, settings: ARSettings) -> int:
    """The code that the uniform number ``u`` selects: the first whose cumulative probability exceeds it.

    ``forbidden`` (the start code) is never drawn: where u falls on it, u's place within that interval
    selects among the others, which is the distribution without it and leaves all other draws as they are.
    """
    if settings.greedy:
        scores = penalize(logits, seen, settings.repetition_penalty)
        scores[forbidden] = -np.inf
        return int(scores.argmax())
    ids, probabilities = distribution(logits, seen, settings)
    choice, low, width = _select(probabilities, u)
    if ids[choice] == forbidden:
        others = ids != forbidden
        ids, probabilities = ids[others], probabilities[others]
        if not probabilities.any():
            return draw(
                np.where(np.arange(len(logits)) == forbidden, -np.inf, logits), seen, u, forbidden, settings
            )
        choice, _, _ = _select(probabilities / probabilities.sum(), (u - low) / width)
    return int(ids[choice])


def _select(probabilities: Array, u: float) -> tuple[int, float, float]:
    """-> (index that u selects, where its interval begins, its width)."""
    ends = np.cumsum(probabilities)
    # Rounding may leave the last end below u; what has no probability is not chosen even then.
    choice = int(min(np.searchsorted(ends, u, side="right"), np.searchsorted(ends, ends[-1])))
    return choice, float(ends[choice] - probabilities[choice]), float(probabilities[choice])
