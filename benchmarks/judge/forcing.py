"""Samples of lengths that are decided beforehand, so that any weights will do to measure time."""

from __future__ import annotations

import numpy as np

from tortoise_rt import autoregressive, sampling
from tortoise_rt.config import ARSettings
from tortoise_rt.engine import Array
from tortoise_rt.rng import Philox
from tortoise_rt.scheduler import rows as pool

END = 2.0  #: where a uniform number stands for the stop code


class Forced(Philox):
    """Randomness by which sample n has lengths[n] codes, the stop among them. Needs :func:`force_lengths`."""

    def __init__(self, lengths: Array) -> None:
        super().__init__(0)
        self.lengths = lengths

    def uniforms(self, sample: int, count: int) -> Array:
        numbers = super().uniforms(sample, count)
        numbers[self.lengths[sample] - 1] = END
        return numbers


def force_lengths() -> None:
    """From now on, draw codes as before, but the stop code where the uniform number says so, and only there."""
    draw = sampling.draw

    def forced(logits: Array, seen: Array, u: float, forbidden: int, settings: ARSettings) -> int:
        stop = len(logits) - 1
        if u == END:
            return stop
        spoken = logits.copy()
        spoken[stop] = -np.inf
        return draw(spoken, seen, u, forbidden, settings)

    for module in (autoregressive, pool, sampling):
        module.draw = forced  # type: ignore[attr-defined]
