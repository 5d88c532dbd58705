"""Random numbers out of a recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tortoise_rt.engine import Array


@dataclass
class Recorded:
    """The ``Randomness`` of a recorded run. Asking for what was not recorded is an error."""

    uniforms_by_sample: Sequence[Array] = ()  #: (steps,) for each sample
    start: Sequence[Array] = ()  #: (1, bands, frames) for each result
    steps: Sequence[Array] = ()  #: (steps, bands, frames) for each result
    vocoder: Sequence[Array] = ()  #: (1, channels, frames) for each result
    voice: dict[str, Array] = field(default_factory=dict)  #: part -> (1, size)

    def uniforms(self, sample: int, count: int) -> Array:
        """Beyond the recorded steps, where no row of the recorded batch was alive, zeros."""
        drawn = self.uniforms_by_sample[sample][:count] if self.uniforms_by_sample else np.zeros(0)
        return np.pad(drawn, (0, count - len(drawn)))

    def start_noise(self, result: int, shape: tuple[int, ...]) -> Array:
        return self.start[result].reshape(shape)

    def step_noise(self, result: int, step: int, shape: tuple[int, ...]) -> Array:
        return self.steps[result][step].reshape(shape)

    def vocoder_noise(self, result: int, shape: tuple[int, ...]) -> Array:
        return self.vocoder[result].reshape(shape)

    def voice_noise(self, part: str, size: int) -> Array:
        return self.voice[part].reshape(1, size)
