"""Rules that take a noisy mel one step down the schedule, given the clean mel that the network predicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .engine import Array

if TYPE_CHECKING:
    from .config import DiffusionSettings
    from .diffusion import Schedule

#: (spaced step, noisy mel, predicted clean mel, learned variance, noise) -> the mel one step less noisy
Step = Callable[[int, Array, Array, Array, Array], Array]


def make_step(schedule: Schedule, settings: DiffusionSettings) -> Step:
    """The rule of ``settings.sampler`` for one clip: some remember the step before."""
    if settings.sampler == "ancestral":
        return lambda *state: ancestral_step(schedule, *state)
    if settings.sampler == "ddim":
        return lambda *state: ddim_step(schedule, *state, eta=settings.eta)
    return SecondOrder(schedule, stochastic=settings.sampler == "dpm++2m_sde")


def predict_start(schedule: Schedule, i: int, x: Array, noise_estimate: Array) -> Array:
    """The clean mel that x and the estimated noise imply, clamped to [-1, 1]."""
    recip = np.float32(schedule.sqrt_recip_alphas_cumprod[i])
    recipm1 = np.float32(schedule.sqrt_recipm1_alphas_cumprod[i])
    return np.clip(recip * x - recipm1 * noise_estimate, -1, 1)


def ancestral_step(
    schedule: Schedule, i: int, x: Array, x_start: Array, variance: Array, noise: Array
) -> Array:
    """One step of DDPM; ``variance`` in [-1, 1] interpolates between the bounds of the log variance."""
    mean = (
        np.float32(schedule.posterior_mean_coef1[i]) * x_start
        + np.float32(schedule.posterior_mean_coef2[i]) * x
    )
    share = (variance + 1) / 2
    log_variance = share * np.float32(np.log(schedule.betas[i])) + (1 - share) * np.float32(
        schedule.posterior_log_variance[i]
    )
    return mean + np.exp(0.5 * log_variance) * noise


def ddim_step(
    schedule: Schedule, i: int, x: Array, x_start: Array, variance: Array, noise: Array, *, eta: float
) -> Array:
    """One step of DDIM (Song et al. 2021), its equation 12; the noise is derived anew from the clamped mel."""
    recip = np.float32(schedule.sqrt_recip_alphas_cumprod[i])
    recipm1 = np.float32(schedule.sqrt_recipm1_alphas_cumprod[i])
    estimate = (recip * x - x_start) / recipm1
    now, previous = schedule.alphas_cumprod[i], schedule.alphas_cumprod_prev[i]
    sigma = eta * np.sqrt((1 - previous) / (1 - now)) * np.sqrt(1 - now / previous)
    direction = np.float32(np.sqrt(max(1 - previous - sigma**2, 0.0)))
    return x_start * np.float32(np.sqrt(previous)) + direction * estimate + np.float32(sigma) * noise


class SecondOrder:
    """DPM-Solver++(2M), algorithm 2 of Lu et al. 2022 (arXiv:2211.01095), and its stochastic form (its appendix).

    The clean mel is extrapolated from this prediction and the one before, in the logarithm of signal to noise. The
    first step has none before it, and the last goes straight to the prediction.
    """

    def __init__(self, schedule: Schedule, stochastic: bool = False) -> None:
        self._schedule, self._stochastic = schedule, stochastic
        self._before: tuple[float, Array] | None = None  #: width of the step before, and its prediction

    def __call__(self, i: int, x: Array, x_start: Array, variance: Array, noise: Array) -> Array:
        now, to = self._schedule.alphas_cumprod[i], self._schedule.alphas_cumprod_prev[i]
        if to >= 1:
            return x_start
        width = _log_snr(to) - _log_snr(now)
        guess = x_start
        if self._before is not None:
            last_width, last = self._before
            guess = x_start + np.float32(width / last_width / 2) * (x_start - last)
        self._before = width, x_start
        shrink = math.sqrt((1 - to) / (1 - now))
        if self._stochastic:
            gain = -math.expm1(-2 * width)
            kept = np.float32(shrink * math.exp(-width)) * x + np.float32(math.sqrt(to) * gain) * guess
            return kept + np.float32(math.sqrt((1 - to) * gain)) * noise
        return np.float32(shrink) * x - np.float32(math.sqrt(to) * math.expm1(-width)) * guess


def _log_snr(alphas_cumprod: float) -> float:
    """Logarithm of signal over noise, both as amplitudes."""
    return 0.5 * math.log(alphas_cumprod / (1 - alphas_cumprod))
