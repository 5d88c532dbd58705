"""Randomness as an argument: counter-based streams, so that a draw depends on its place and on nothing else.

Every number is a function of (seed, stage, index, step): a sample's draws do not depend on what else is in
the batch, on its size or on the order of work.
"""

from __future__ import annotations

import secrets
from typing import Protocol, runtime_checkable

import numpy as np

_STAGES = ("sample", "diffusion_start", "diffusion_step", "vocoder", "voice_auto", "voice_diffusion")
MAX_SEED = 2**63 - 1


def fresh_seed() -> int:
    """A seed nobody named: short enough to be typed again."""
    return secrets.randbelow(2**32)


def nth_seed(seed: int, number: int) -> int:
    """The seed that stands ``number`` behind ``seed``: of a sentence of a text, or of another try."""
    return (seed + number) % (MAX_SEED + 1)


@runtime_checkable
class Randomness(Protocol):
    """All the random numbers of one synthesis. ``result`` counts returned clips from 0, best first."""

    def uniforms(self, sample: int, count: int) -> np.ndarray:
        """(count,) float64 in [0, 1): draw i of a sample uses element i."""

    def start_noise(self, result: int, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal noise that diffusion starts from."""

    def step_noise(self, result: int, step: int, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal noise of diffusion step ``step``, counted from 0 in order of execution."""

    def vocoder_noise(self, result: int, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal noise for UnivNet."""

    def voice_noise(self, part: str, size: int) -> np.ndarray:
        """(1, size) standard normal noise for a random voice; ``part`` is "auto" or "diffusion"."""


class Philox:
    """The randomness of a seed (Philox 4x64, Salmon et al. 2011)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def _stream(self, stage: str, index: int = 0, step: int = 0) -> np.random.Generator:
        counter = (step << 192) | (index << 128)
        key = (_STAGES.index(stage) << 64) | self.seed
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def uniforms(self, sample: int, count: int) -> np.ndarray:
        return self._stream("sample", sample).random(count)

    def start_noise(self, result: int, shape: tuple[int, ...]) -> np.ndarray:
        return self._stream("diffusion_start", result).standard_normal(shape, np.float32)

    def step_noise(self, result: int, step: int, shape: tuple[int, ...]) -> np.ndarray:
        return self._stream("diffusion_step", result, step).standard_normal(shape, np.float32)

    def vocoder_noise(self, result: int, shape: tuple[int, ...]) -> np.ndarray:
        return self._stream("vocoder", result).standard_normal(shape, np.float32)

    def voice_noise(self, part: str, size: int) -> np.ndarray:
        return self._stream(f"voice_{part}").standard_normal((1, size), np.float32)
