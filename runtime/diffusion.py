"""Latents -> mel spectrogram by denoising diffusion (Ho et al. 2020, Nichol & Dhariwal 2021)."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .config import DiffusionSettings
from .engine import Array, Engine
from .mel import denormalize_mel
from .rng import Randomness
from .samplers import DenoisingStep, make_updates, predict_start, update_mel
from .spec import MELS, TRAINED_STEPS, codes_to_frames

Progress = Callable[[int, int], None]
BLOCK_VALUES = 8 << 20  #: of the conditions that are computed at once


@dataclass(frozen=True)
class Schedule:
    """Constants of a schedule of ``len(timesteps)`` steps spaced over the trained ones. All (steps,) float64."""

    timesteps: Array  #: int64, on the trained scale, ascending
    betas: Array
    alphas_cumprod: Array
    alphas_cumprod_prev: Array
    posterior_variance: Array
    posterior_log_variance: Array  #: its first entry, log 0, replaced by the second
    posterior_mean_coef1: Array  #: of the predicted mel
    posterior_mean_coef2: Array  #: of the noisy mel
    sqrt_recip_alphas_cumprod: Array
    sqrt_recipm1_alphas_cumprod: Array

    def __len__(self) -> int:
        return len(self.timesteps)


def spaced_timesteps(steps: int) -> Array:
    """``steps`` of the trained timesteps, first and last included, rounded from an even spacing."""
    stride = (TRAINED_STEPS - 1) / (steps - 1) if steps > 1 else 1.0
    taken, place = [], 0.0
    for _ in range(steps):
        taken.append(round(place))
        place += stride  # accumulated, as in the reference: the sum's rounding decides some of the steps
    return np.array(sorted(set(taken)), np.int64)


def log_snr_timesteps(steps: int) -> Array:
    """``steps`` of the trained timesteps, first and last included, even in the logarithm of signal to noise.

    The spacing of DPM-Solver (Lu et al. 2022, arXiv:2206.00927, section 3.4). Where the trained ones are too few for
    that, the next are taken.
    """
    level = trained_levels()
    log_snr = np.log(level / (1 - level))
    wanted = np.interp(np.linspace(-log_snr[0], -log_snr[-1], steps), -log_snr, np.arange(TRAINED_STEPS))
    order = np.arange(steps)
    ascending = np.maximum.accumulate(np.rint(wanted).astype(np.int64) - order) + order  # none twice
    return np.minimum(ascending, TRAINED_STEPS - steps + order)


def trained_levels() -> Array:
    """(TRAINED_STEPS,) share of the signal's power that each trained timestep leaves.

    The linear schedule: beta 1e-4 to 0.02 over 1000 steps, rescaled to the trained number.
    """
    scale = 1000 / TRAINED_STEPS
    return np.cumprod(1 - np.linspace(scale * 1e-4, scale * 0.02, TRAINED_STEPS))


def make_schedule(steps: int, sampler: str = "ancestral") -> Schedule:
    """The trained schedule, spaced to ``steps`` as the sampler wants them."""
    timesteps = (
        log_snr_timesteps(steps) if sampler.startswith("dpm++") and steps > 1 else spaced_timesteps(steps)
    )
    trained = trained_levels()
    cumprod = trained[timesteps]
    betas = 1 - cumprod / np.append(1.0, cumprod[:-1])
    cumprod = np.cumprod(1 - betas)
    previous = np.append(1.0, cumprod[:-1])
    variance = betas * (1 - previous) / (1 - cumprod)
    floor = variance[1] if len(betas) > 1 else betas[0]
    return Schedule(
        timesteps=timesteps,
        betas=betas,
        alphas_cumprod=cumprod,
        alphas_cumprod_prev=previous,
        posterior_variance=variance,
        posterior_log_variance=np.log(np.append(floor, variance[1:])),
        posterior_mean_coef1=betas * np.sqrt(previous) / (1 - cumprod),
        posterior_mean_coef2=(1 - previous) * np.sqrt(1 - betas) / (1 - cumprod),
        sqrt_recip_alphas_cumprod=np.sqrt(1 / cumprod),
        sqrt_recipm1_alphas_cumprod=np.sqrt(1 / cumprod - 1),
    )


def guidance_scale(k: float, place: float) -> float:
    """Strength of conditioning-free guidance: ramps up to k as the mel clears; ``place`` is the share of steps to come."""
    return k * (1 - place)


def guidance_place(schedule: Schedule, i: int, sampler: str) -> float:
    """The share of steps to come at spaced step ``i``, as the reference counts them: steps that are even in time.

    For steps that are not, it is that of the same timestep, so that guidance is as strong at the same noise.
    """
    if sampler.startswith("dpm++"):
        return float(schedule.timesteps[i]) / TRAINED_STEPS
    return i / len(schedule)


def frame_index(codes: int, frames: int) -> Array:
    """(frames,) int64: the code each frame belongs to (nearest resize)."""
    return np.arange(frames, dtype=np.int64) * codes // frames


def latents_to_mel(
    engine: Engine,
    latents: Array,
    voice: Array,
    settings: DiffusionSettings,
    rand: Randomness,
    result: int = 0,
    progress: Progress = lambda done, total: None,
) -> Array:
    """Latents (1, codes, dim) and the diffusion voice latent (1, voice_dim) -> log mel (1, MELS, frames)."""
    codes = latents.shape[1]
    frames = codes_to_frames(codes)
    aligned, free = engine.run(
        "diffusion_align", latents=latents, voice=voice, frame_index=frame_index(codes, frames)
    )
    x = rand.start_noise(result, (1, MELS, frames)).astype(np.float32) * np.float32(settings.temperature)
    return denormalize_mel(denoise(engine, x, aligned, free, settings, rand, result, progress))


def denoise(
    engine: Engine,
    x: Array,
    aligned: Array,
    free: Array,
    settings: DiffusionSettings,
    rand: Randomness,
    result: int = 0,
    progress: Progress = lambda done, total: None,
    trace: Callable[[int, Array, Array], None] | None = None,
) -> Array:
    """The sampling loop: noise x (1, MELS, frames), aligned (1, frames, dim) -> mel in [-1, 1].

    With guidance the conditioned and the free row share a step. ``trace`` sees (step, x, predicted mel); an engine that
    denoises several steps at a time does so where there is none.
    """
    schedule = make_schedule(settings.iterations, settings.sampler)
    steps = plan(schedule, settings)
    if engine.denoises_ahead and trace is None:
        return _denoise_ahead(engine, x, aligned, free, steps, rand, result, progress)
    conditions = itertools.chain.from_iterable(
        conditions_ahead(engine, aligned, free if guided else None, np.array([s.timestep for s in some]))
        for guided, some in itertools.groupby(steps, key=lambda s: s.guidance is not None)
    )
    last: Array | None = None
    for done, (step, condition) in enumerate(zip(steps, conditions, strict=True)):
        rows = len(condition)
        timestep = np.full(rows, step.timestep, np.float32)
        (out,) = engine.run(
            "diffusion_denoise", x=np.repeat(x, rows, axis=0), condition=condition, timestep=timestep
        )
        noise_estimate = out[:1, :MELS]
        if (k := step.guidance) is not None:
            noise_estimate = np.float32(1 + k) * noise_estimate - np.float32(k) * out[1:, :MELS]
        x_start = predict_start(schedule, len(schedule) - 1 - done, x, noise_estimate)
        noise = _noise(rand, result, x.shape, steps, done, 0)
        x = update_mel(step.update, x, x_start, last, out[:1, MELS:], noise)
        last = x_start
        if trace is not None:
            trace(done, x, x_start)
        progress(done + 1, len(steps))
    return x


def _denoise_ahead(
    engine: Engine,
    x: Array,
    aligned: Array,
    free: Array,
    steps: Sequence[DenoisingStep],
    rand: Randomness,
    result: int,
    progress: Progress,
) -> Array:
    """As :func:`denoise`, several steps in each call of the engine."""
    last, done = np.zeros_like(x), 0
    for _, alike in itertools.groupby(steps, key=lambda step: step.guidance is not None):
        left = list(alike)
        while left:
            some, left = left[: engine.denoises_ahead], left[engine.denoises_ahead :]
            noise = functools.partial(_noise, rand, result, x.shape, steps, done)
            x, last = engine.denoise(x, last, aligned, free, some, noise)
            done += len(some)
            progress(done, len(steps))
    return x


def _noise(
    rand: Randomness, result: int, shape: tuple[int, ...], steps: Sequence[DenoisingStep], first: int, i: int
) -> Array:
    """That of step ``first + i``; zeros where it takes none."""
    if not steps[first + i].update.noisy:
        return np.zeros(shape, np.float32)
    return rand.step_noise(result, first + i, shape).astype(np.float32, copy=False)


def plan(schedule: Schedule, settings: DiffusionSettings) -> list[DenoisingStep]:
    """The steps in the order of execution, from the last timestep to the first."""
    guided = math.ceil(settings.cond_free_share * len(schedule)) if settings.cond_free else 0
    updates = make_updates(schedule, settings)
    steps = []
    for i in reversed(range(len(schedule))):
        k = guidance_scale(settings.cond_free_k, guidance_place(schedule, i, settings.sampler))
        steps.append(
            DenoisingStep(
                int(schedule.timesteps[i]),
                k if i < guided else None,
                float(schedule.sqrt_recip_alphas_cumprod[i]),
                float(schedule.sqrt_recipm1_alphas_cumprod[i]),
                updates[i],
            )
        )
    return steps


def conditions_ahead(engine: Engine, aligned: Array, free: Array | None, timesteps: Array) -> Iterator[Array]:
    """The condition (1 or 2, frames, dim) of each of the ``timesteps``.

    They do not depend on the noisy mel, so those of several steps are computed at once, as many as BLOCK_VALUES allow.
    The second row, of guidance, is ``free`` in every frame: it depends on length and schedule only, and is kept for
    other clips in the engine's memo where that has room for the whole clip's.
    """
    block = max(1, BLOCK_VALUES // aligned.size)
    timesteps = timesteps.astype(np.float32)
    for first in range(0, len(timesteps), block):
        steps = timesteps[first : first + block]

        def run(row: Array, steps: Array = steps) -> Array:
            rows = np.broadcast_to(row, (len(steps), *aligned.shape[1:]))
            return engine.run("diffusion_condition", aligned=rows, timestep=steps)[0]

        spoken = run(aligned[0])
        if free is None:
            yield from spoken[:, None]
        elif aligned.nbytes * len(timesteps) > engine.memo.most_bytes:
            yield from np.stack([spoken, run(free)], axis=1)
        else:
            key = ("diffusion_condition", aligned.shape[1], steps.tobytes())
            unspoken = engine.memo.get(key, lambda run=run: run(free))  # type: ignore[misc]
            yield from np.stack([spoken, unspoken], axis=1)
