"""Rules that take a noisy mel one step down the schedule, given the clean mel that the network predicts.

Every rule is a weighted sum of the noisy mel, the prediction, the prediction of the step before and new noise, so a step is
a few numbers, whoever computes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .engine import Array

if TYPE_CHECKING:
    from .config import DiffusionSettings
    from .diffusion import Schedule

#: (spaced step, noisy mel, predicted clean mel, learned variance, noise) -> the mel one step less noisy
Step = Callable[[int, Array, Array, Array, Array], Array]
SILENT = -1e4  #: log variance of no noise


@dataclass(frozen=True)
class Update:
    """The weights of a step's sum."""

    x: float  #: of the noisy mel
    start: float  #: of the clean mel that is predicted
    last: float = 0.0  #: of the one predicted a step before
    low: float = SILENT  #: log variance of the noise where the learned variance is -1,
    high: float = SILENT  #: and where it is 1

    @property
    def noisy(self) -> bool:
        """Whether it takes noise at all."""
        return max(self.low, self.high) > SILENT


@dataclass(frozen=True)
class DenoisingStep:
    """A step of the loop, in numbers."""

    timestep: int  #: on the trained scale
    guidance: float | None  #: strength of guidance, None: there is no free row
    recip: float  #: the predicted clean mel is this times the noisy mel,
    recipm1: float  #: less this times the noise that is found in it
    update: Update


def make_updates(schedule: Schedule, settings: DiffusionSettings) -> list[Update]:
    """The update of every spaced step by the rule of ``settings.sampler``."""
    if settings.sampler == "ancestral":
        return [_ancestral(schedule, i) for i in range(len(schedule))]
    if settings.sampler == "ddim":
        return [_ddim(schedule, i, settings.eta) for i in range(len(schedule))]
    stochastic = settings.sampler == "dpm++2m_sde"
    return [_second_order(schedule, i, stochastic) for i in range(len(schedule))]


def make_step(schedule: Schedule, settings: DiffusionSettings) -> Step:
    """The rule of ``settings.sampler`` for one clip: some remember the step before."""
    updates = make_updates(schedule, settings)
    last: Array | None = None

    def step(i: int, x: Array, x_start: Array, variance: Array, noise: Array) -> Array:
        nonlocal last
        made = update_mel(updates[i], x, x_start, last, variance, noise)
        last = x_start
        return made

    return step


def update_mel(
    update: Update, x: Array, x_start: Array, last: Array | None, variance: Array, noise: Array
) -> Array:
    """The mel one step less noisy; ``variance`` in [-1, 1] interpolates between the bounds of the log variance."""
    mean = np.float32(update.start) * x_start + np.float32(update.x) * x
    if update.last and last is not None:
        mean += np.float32(update.last) * last
    share = (variance + 1) / 2
    log_variance = share * np.float32(update.high) + (1 - share) * np.float32(update.low)
    return mean + np.exp(0.5 * log_variance) * noise


def predict_start(schedule: Schedule, i: int, x: Array, noise_estimate: Array) -> Array:
    """The clean mel that x and the estimated noise imply, clamped to [-1, 1]."""
    recip = np.float32(schedule.sqrt_recip_alphas_cumprod[i])
    recipm1 = np.float32(schedule.sqrt_recipm1_alphas_cumprod[i])
    return np.clip(recip * x - recipm1 * noise_estimate, -1, 1)


def _ancestral(schedule: Schedule, i: int) -> Update:
    """DDPM, its variance learned; no noise behind the last step."""
    low, high = float(schedule.posterior_log_variance[i]), math.log(schedule.betas[i])
    noise = (low, high) if i > 0 else (SILENT, SILENT)
    return Update(
        float(schedule.posterior_mean_coef2[i]), float(schedule.posterior_mean_coef1[i]), 0.0, *noise
    )


def _ddim(schedule: Schedule, i: int, eta: float) -> Update:
    """DDIM (Song et al. 2021), its equation 12; the noise is derived anew from the clamped mel."""
    now, previous = schedule.alphas_cumprod[i], schedule.alphas_cumprod_prev[i]
    sigma = eta * math.sqrt((1 - previous) / (1 - now)) * math.sqrt(1 - now / previous)
    direction = math.sqrt(max(1 - previous - sigma**2, 0.0)) / schedule.sqrt_recipm1_alphas_cumprod[i]
    weight = direction * schedule.sqrt_recip_alphas_cumprod[i]
    return Update(float(weight), float(math.sqrt(previous) - direction), 0.0, *_of_strength(sigma))


def _second_order(schedule: Schedule, i: int, stochastic: bool) -> Update:
    """DPM-Solver++(2M), algorithm 2 of Lu et al. 2022 (arXiv:2211.01095), and its stochastic form (its appendix).

    The clean mel is extrapolated from this prediction and the one before, in the logarithm of signal to noise. The
    first step has none before it, and the last goes straight to the prediction.
    """
    now, to = schedule.alphas_cumprod[i], schedule.alphas_cumprod_prev[i]
    if to >= 1:
        return Update(0.0, 1.0)
    width = _log_snr(to) - _log_snr(now)
    beyond = 0.0
    if i + 1 < len(schedule):
        beyond = width / (_log_snr(now) - _log_snr(schedule.alphas_cumprod[i + 1])) / 2
    shrink = math.sqrt((1 - to) / (1 - now))
    if stochastic:
        gain = -math.expm1(-2 * width)
        kept, weight = shrink * math.exp(-width), math.sqrt(to) * gain
        sigma = math.sqrt((1 - to) * gain)
    else:
        kept, weight, sigma = shrink, -math.sqrt(to) * math.expm1(-width), 0.0
    return Update(kept, weight * (1 + beyond), -weight * beyond, *_of_strength(sigma))


def _of_strength(sigma: float) -> tuple[float, float]:
    """Bounds of the log variance of noise whose strength is not learned."""
    log_variance = 2 * math.log(sigma) if sigma > 0 else SILENT
    return log_variance, log_variance


def _log_snr(alphas_cumprod: float) -> float:
    """Logarithm of signal over noise, both as amplitudes."""
    return 0.5 * math.log(alphas_cumprod / (1 - alphas_cumprod))
