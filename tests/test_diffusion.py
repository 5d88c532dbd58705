"""Schedules, and what must hold of the sampling loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortoise_rt.config import SAMPLERS, DiffusionSettings
from tortoise_rt.diffusion import (
    frame_index,
    guidance_place,
    guidance_scale,
    latents_to_mel,
    log_snr_timesteps,
    make_schedule,
    spaced_timesteps,
    trained_levels,
)
from tortoise_rt.engine import Array
from tortoise_rt.proxy_engine import ProxyEngine
from tortoise_rt.rng import Philox
from tortoise_rt.samplers import predict_start
from tortoise_rt.spec import MELS, TRAINED_STEPS, codes_to_frames

pytest.importorskip("torch")

from tortoise_rt.backends.torch import TorchEngine

SHORT = DiffusionSettings(iterations=4)
step_counts = st.integers(2, TRAINED_STEPS)


@given(step_counts)
def test_timesteps_span_the_trained_ones(steps: int) -> None:
    timesteps = spaced_timesteps(steps)
    assert len(timesteps) == steps
    assert (timesteps[0], timesteps[-1]) == (0, TRAINED_STEPS - 1)
    gaps = np.diff(timesteps)
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 2


@given(st.integers(2, TRAINED_STEPS))
def test_timesteps_even_in_signal_to_noise_span_the_trained_ones(steps: int) -> None:
    timesteps = log_snr_timesteps(steps)
    assert len(timesteps) == steps
    assert (timesteps[0], timesteps[-1]) == (0, TRAINED_STEPS - 1)
    assert np.diff(timesteps).min() >= 1
    level = trained_levels()[timesteps]
    if steps <= 12:  # more are not to be had at the clean end
        assert np.ptp(np.diff(np.log(level / (1 - level)))) < 0.6


def test_a_single_step_is_the_first() -> None:
    assert spaced_timesteps(1).tolist() == [0]
    assert len(make_schedule(1)) == 1


@settings(max_examples=30)
@given(step_counts)
def test_a_spaced_schedule_keeps_the_trained_noise_levels(steps: int) -> None:
    schedule, trained = make_schedule(steps), make_schedule(TRAINED_STEPS)
    np.testing.assert_allclose(schedule.alphas_cumprod, trained.alphas_cumprod[schedule.timesteps], rtol=1e-9)
    assert ((schedule.betas > 0) & (schedule.betas < 1)).all()
    assert (np.diff(schedule.alphas_cumprod) < 0).all()
    assert (schedule.alphas_cumprod_prev[1:] == schedule.alphas_cumprod[:-1]).all()
    # The variance lies between its two bounds, whose logarithms the network interpolates.
    assert (schedule.posterior_variance <= schedule.betas).all()
    assert np.isfinite(schedule.posterior_log_variance).all()


@settings(max_examples=30)
@given(step_counts)
def test_the_posterior_mean_keeps_the_signal(steps: int) -> None:
    """From x = sqrt(a) * start, a step goes to sqrt(a of the step before) * start."""
    schedule = make_schedule(steps)
    mean = schedule.posterior_mean_coef1 + schedule.posterior_mean_coef2 * np.sqrt(schedule.alphas_cumprod)
    np.testing.assert_allclose(mean, np.sqrt(schedule.alphas_cumprod_prev), rtol=1e-9)


@given(steps=step_counts, share=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 9))
def test_the_start_is_recovered_from_exact_noise(steps: int, share: float, seed: int) -> None:
    schedule, i = make_schedule(steps), int(share * steps)
    start, noise = np.random.default_rng(seed).uniform(-1, 1, (2, 3, 4))
    level = schedule.alphas_cumprod[i]
    x = np.sqrt(level) * start + np.sqrt(1 - level) * noise
    found = predict_start(schedule, i, x, noise)
    np.testing.assert_allclose(found, start, atol=1e-4)
    assert np.abs(predict_start(schedule, i, 1000 * x, noise)).max() <= 1


@given(st.floats(0, 10), step_counts)
def test_guidance_ramps_up_to_its_strength(k: float, steps: int) -> None:
    scales = [guidance_scale(k, step / steps) for step in reversed(range(steps))]
    assert scales == sorted(scales)
    assert scales[-1] == k
    assert scales[0] == pytest.approx(k / steps)


@pytest.mark.parametrize("steps", [10, 20, 60])
def test_guidance_is_as_strong_at_the_same_noise_whatever_the_spacing(steps: int) -> None:
    even, other = make_schedule(400), make_schedule(steps, "dpm++2m")
    strength = {
        int(t): guidance_scale(2.0, guidance_place(even, i, "ancestral"))
        for i, t in enumerate(even.timesteps)
    }
    for i, t in enumerate(other.timesteps):
        near = min(strength, key=lambda timestep: abs(timestep - t))
        assert guidance_scale(2.0, guidance_place(other, i, "dpm++2m")) == pytest.approx(
            strength[near], abs=0.01
        )


@given(st.integers(1, 700))
def test_every_code_has_its_frames(codes: int) -> None:
    index = frame_index(codes, codes_to_frames(codes))
    assert index[0] == 0
    assert index[-1] == codes - 1
    counts = np.bincount(index, minlength=codes)
    assert len(counts) == codes
    assert set(counts) <= {4, 5}


# --- the loop ---


@pytest.fixture(scope="module")
def engine(data: Path) -> TorchEngine:
    return TorchEngine(data, "cpu")


@pytest.fixture(scope="module")
def given_latents(data: Path) -> tuple[Array, Array]:
    """Latents (1, codes, dim) and a voice (1, dim)."""
    with np.load(data / "diffusion.npz") as file:
        return file["latents"].astype(np.float32)[:, :6], file["cond_latent"]


class NewStepNoise(Philox):
    """The randomness of a seed, but for the noise of the steps."""

    def step_noise(self, result: int, step: int, shape: tuple[int, ...]) -> Array:
        return Philox(self.seed + 1).step_noise(result, step, shape)


def test_a_mel_is_as_long_as_its_codes(engine: TorchEngine, given_latents: tuple[Array, Array]) -> None:
    seen: list[tuple[int, int]] = []
    mel = latents_to_mel(engine, *given_latents, SHORT, Philox(0), progress=lambda *n: seen.append(n))
    assert mel.shape == (1, MELS, codes_to_frames(6))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_seed_and_the_result_decide(engine: TorchEngine, given_latents: tuple[Array, Array]) -> None:
    def run(seed: int, result: int) -> Array:
        return latents_to_mel(engine, *given_latents, SHORT, Philox(seed), result)

    assert (run(1, 0) == run(1, 0)).all()
    assert (run(1, 0) != run(2, 0)).any()
    assert (run(1, 0) != run(1, 1)).any()


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"sampler": "ddim", "eta": 0.0}, True),
        ({"sampler": "ddim", "eta": 1.0}, False),
        ({"sampler": "ancestral"}, False),
        ({"sampler": "dpm++2m"}, True),
        ({"sampler": "dpm++2m_sde"}, False),
    ],
)
def test_only_solvers_of_equations_without_noise_take_no_noise_on_its_way(
    engine: TorchEngine, given_latents: tuple[Array, Array], changes: dict[str, object], same: bool
) -> None:
    chosen = replace(SHORT, **changes)  # type: ignore[arg-type]
    one = latents_to_mel(engine, *given_latents, chosen, Philox(3))
    other = latents_to_mel(engine, *given_latents, chosen, NewStepNoise(3))
    assert (one == other).all() == same


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guidance_of_strength_zero_is_none(
    engine: TorchEngine, given_latents: tuple[Array, Array], sampler: str
) -> None:
    free, zero, strong = (
        latents_to_mel(engine, *given_latents, replace(SHORT, sampler=sampler, **changes), Philox(3))
        for changes in ({"cond_free": False}, {"cond_free_k": 0.0}, {"cond_free_k": 2.0})
    )
    assert np.abs(zero - free).max() <= 1e-4 * np.ptp(free)
    assert np.abs(strong - free).max() > 1e-2 * np.ptp(free)


def test_a_share_of_the_steps_is_guided(engine: TorchEngine, given_latents: tuple[Array, Array]) -> None:
    rows: list[int] = []

    class Counting(ProxyEngine):
        def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
            if graph == "diffusion_denoise":
                rows.append(len(inputs["x"]))
            return super()._run(graph, inputs)

    counting = Counting(engine)
    clips = []
    for share in (0.0, 0.5, 1.0):
        clips.append(
            latents_to_mel(counting, *given_latents, replace(SHORT, cond_free_share=share), Philox(3))
        )
    assert rows == [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]
    free = latents_to_mel(engine, *given_latents, replace(SHORT, cond_free=False), Philox(3))
    assert (clips[0] == free).all()
    far, near = (np.abs(clip - clips[2]).max() for clip in clips[:2])
    assert near < far


def test_temperature_zero_starts_from_silence(
    engine: TorchEngine, given_latents: tuple[Array, Array]
) -> None:
    chosen = replace(SHORT, sampler="ddim", temperature=0.0)
    one, other = (latents_to_mel(engine, *given_latents, chosen, Philox(seed)) for seed in (1, 2))
    assert (one == other).all()
