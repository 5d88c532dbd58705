"""Samplers against data whose best prediction and whose exact path are known: a normal distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortoise_rt.config import SAMPLERS, DiffusionSettings
from tortoise_rt.diffusion import make_schedule
from tortoise_rt.engine import Array
from tortoise_rt.samplers import make_step

MEAN, SPREAD = 0.3, 0.2  #: of the clean data


def predicted(x: Array, level: float) -> Array:
    """The mean of clean values given noisy ones, by Bayes' rule."""
    weight = np.sqrt(level) * SPREAD**2 / (level * SPREAD**2 + 1 - level)
    return (MEAN + weight * (x - np.sqrt(level) * MEAN)).astype(x.dtype)


def sampled(sampler: str, steps: int, noise: Array, eta: float = 0.0) -> Array:
    """What the sampler makes of starting noise, with predictions that are exact."""
    schedule = make_schedule(steps, sampler)
    step = make_step(schedule, DiffusionSettings(iterations=steps, sampler=sampler, eta=eta))
    rng = np.random.default_rng(3)
    x = noise.astype(np.float32)
    for i in reversed(range(steps)):
        x_start = predicted(x, schedule.alphas_cumprod[i])
        fresh = rng.standard_normal(x.shape).astype(np.float32) * (i > 0)
        x = step(i, x, x_start, np.full_like(x, -1), fresh)
    return x


def exact(noise: Array, steps: int) -> Array:
    """Where the ordinary differential equation takes the noise: its quantile never changes."""
    schedule = make_schedule(steps)
    first, last = schedule.alphas_cumprod[-1], schedule.alphas_cumprod[0]
    quantile = (noise - np.sqrt(first) * MEAN) / np.sqrt(first * SPREAD**2 + 1 - first)
    x = np.sqrt(last) * MEAN + np.sqrt(last * SPREAD**2 + 1 - last) * quantile
    return predicted(x, last)  # the last step goes straight to the prediction


def error(sampler: str, steps: int) -> float:
    noise = np.linspace(-2, 2, 41)
    return float(np.abs(sampled(sampler, steps, noise) - exact(noise, steps)).max())


def test_the_second_order_solver_needs_fewer_steps() -> None:
    assert error("dpm++2m", 12) < error("ddim", 12) / 4
    assert error("dpm++2m", 12) < error("ddim", 60)


def test_both_solvers_converge_with_their_order() -> None:
    first = [error("ddim", steps) for steps in (50, 100, 200)]
    second = [error("dpm++2m", steps) for steps in (50, 100, 200)]
    assert 1.6 < first[0] / first[1] < 2.6 and 1.6 < first[1] / first[2] < 2.6
    assert 2.8 < second[0] / second[1] < 5 and 2.8 < second[1] / second[2] < 5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_samples_are_distributed_as_the_data(sampler: str) -> None:
    noise = np.random.default_rng(4).standard_normal(40_000)
    made = sampled(sampler, 200, noise, eta=1.0)
    assert made.mean() == pytest.approx(MEAN, abs=0.01)
    assert made.std() == pytest.approx(SPREAD, rel=0.1)


@given(st.sampled_from(SAMPLERS), st.integers(2, 6))
def test_few_steps_are_finite_and_end_at_the_prediction(sampler: str, steps: int) -> None:
    made = sampled(sampler, steps, np.linspace(-3, 3, 7))
    assert made.dtype == np.float32
    assert np.isfinite(made).all()
    assert np.abs(made - MEAN).max() < 3
