"""The diffusion decoder, its sampling loops and its schedules."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from tortoise_rt.conditioning import mean_latent
from tortoise_rt.config import DiffusionSettings
from tortoise_rt.diffusion import denoise, frame_index, guidance_scale, make_schedule
from tortoise_rt.engine import Array
from tortoise_rt.spec import codes_to_frames

from .randomness import Recorded
from .recording import CONSTANTS, Check, Recording, Subject, elementwise_error, largest_difference

PAIR_TIMESTEPS = [10, 3000]  #: of the recorded batch of two, if the README says nothing else
LONG_TIMESTEP = [500]  #: of the recorded long input, likewise
GUIDANCE = 2.0  #: k of the recorded guidance ramps and ddim loops
CODE_COUNTS = range(1, 605)  #: lengths for which the nearest resize was recorded

FIRST_START = (
    1e-3  #: of the first predicted mel: the network's rounding, multiplied by 160 at the noisiest step
)
CLAMPED = 1e-3  #: share of a mel's values that may be clamped or not as rounding decides

#: recorded name of a constant -> field of Schedule
CONSTANT_FIELDS = {
    "timestep_map": "timesteps",
    "betas": "betas",
    "alphas_cumprod": "alphas_cumprod",
    "posterior_variance": "posterior_variance",
    "posterior_log_variance_clipped": "posterior_log_variance",
    "posterior_mean_coef1": "posterior_mean_coef1",
    "posterior_mean_coef2": "posterior_mean_coef2",
    "sqrt_recip_alphas_cumprod": "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod": "sqrt_recipm1_alphas_cumprod",
}


def align(recording: Recording, subject: Subject) -> tuple[Array, Array]:
    """-> (aligned (1, frames, dim), free (dim,)) for the recorded latents."""
    latents, frames = recording["latents"], recording["x"].shape[2]
    aligned, free = subject.engine.run(
        "diffusion_align",
        latents=latents,
        voice=recording["cond_latent"],
        frame_index=frame_index(latents.shape[1], frames),
    )
    return aligned, free


def estimate(subject: Subject, x: Array, aligned: Array, timesteps: Array) -> Array:
    """The network's output at ``timesteps`` (rows,), for one x and aligned or one per row."""
    rows = len(timesteps)
    timestep = np.asarray(timesteps, np.float32)
    repeated = np.broadcast_to(aligned, (rows, *aligned.shape[1:]))
    (condition,) = subject.engine.run("diffusion_condition", aligned=repeated, timestep=timestep)
    x = np.broadcast_to(x, (rows, *x.shape[1:]))
    (out,) = subject.engine.run("diffusion_denoise", x=x, condition=condition, timestep=timestep)
    return out


def check_voice(recording: Recording, subject: Subject) -> None:
    recording.compare("cond_latent", mean_latent(subject.engine, "diffusion_voice", recording["cond_mel"][0]))


def check_align(recording: Recording, subject: Subject) -> None:
    recording.compare("ti_emb", align(recording, subject)[0].swapaxes(1, 2))


def check_code_path(recording: Recording, subject: Subject) -> None:
    """The path from codes instead of latents, which the reference trains but never runs."""
    module, codes, frames = subject.module("diffusion"), recording["codes"], recording["x"].shape[2]
    index = torch.from_numpy(frame_index(codes.shape[1], frames))
    with torch.inference_mode():
        aligned, _ = module.align_codes(
            torch.from_numpy(codes), torch.from_numpy(recording["cond_latent"]), index
        )
        aligned = aligned.transpose(1, 2)
        mel = module.mel_head(aligned)
    for name, full in (("ti_codes_emb", aligned), ("ti_codes_melpred", mel)):
        recording.compare(name, recording.thin(name, full.numpy()), inner=True)


def check_condition(recording: Recording, subject: Subject) -> None:
    aligned, _ = align(recording, subject)
    for match in recording.matches(r"t(\d+)_code_emb"):
        timestep = np.array([match[1]], np.float32)
        (condition,) = subject.engine.run("diffusion_condition", aligned=aligned, timestep=timestep)
        recording.compare(match[0], recording.thin(match[0], condition.swapaxes(1, 2)))


def check_time(recording: Recording, subject: Subject) -> None:
    with torch.inference_mode():
        embedded = subject.module("diffusion").embed_time(torch.from_numpy(recording["ts"]))
    recording.compare("time_emb", embedded.numpy(), inner=True)


def check_denoise(recording: Recording, subject: Subject) -> None:
    aligned, free = align(recording, subject)
    x, timesteps = recording["x"], recording["ts"]
    unconditioned = np.broadcast_to(free, aligned.shape)
    for name, conditioning in (("out_cond", aligned), ("out_uncond", unconditioned)):
        recording.compare(name, recording.thin(name, estimate(subject, x, conditioning, timesteps)))


def check_pair(recording: Recording, subject: Subject) -> None:
    aligned, _ = align(recording, subject)
    x = recording["x2"]
    timesteps = recording.documented("out_b2", r"ts=\[(\d+),(\d+)\]", PAIR_TIMESTEPS)
    own = estimate(subject, x, aligned[:, : x.shape[2]], np.array(timesteps))
    recording.compare("out_b2", own)


def check_long(recording: Recording, subject: Subject) -> None:
    aligned, _ = align(recording, subject)
    x = recording["x_long"]
    timestep = recording.documented("out_long", r"t=(\d+)", LONG_TIMESTEP)
    stretched = aligned[:, frame_index(aligned.shape[1], x.shape[2])]
    own = estimate(subject, x, stretched, np.array(timestep))
    recording.compare("out_long", recording.thin("out_long", own))


def run_loop(
    recording: Recording, subject: Subject, settings: DiffusionSettings
) -> tuple[list[Array], list[Array]]:
    """-> (x after every step, predicted mel at every step) of a sampling loop with the recorded noise."""
    aligned, free = align(recording, subject)
    rand = Recorded(steps=[recording["p_step_noise"]])
    xs, starts = [], []

    def trace(step: int, x: Array, x_start: Array) -> None:
        xs.append(x)
        starts.append(x_start)

    denoise(subject.engine, recording["p_init_noise"], aligned, free, settings, rand, trace=trace)
    return xs, starts


def check_ancestral(recording: Recording, subject: Subject) -> None:
    iterations = len(recording["p_step_noise"])
    for match in recording.matches(r"p_(no)?cf(\d*)_samples"):
        settings = DiffusionSettings(
            iterations=iterations, cond_free=match[1] is None, cond_free_k=float(match[2] or GUIDANCE)
        )
        xs, starts = run_loop(recording, subject, settings)
        name, prefix = match[0], match[0].removesuffix("_samples")
        spread = [0, (iterations - 1) // 2, iterations - 1]
        steps = recording.documented(name, r"after steps (\d+),(\d+),(\d+)", spread)
        recording.compare(name, np.concatenate([xs[step] for step in steps]))
        recording.compare(f"{prefix}_xstart0", recording.thin(f"{prefix}_xstart0", starts[0]), FIRST_START)
        clamped = np.array([np.mean(np.abs(start) == 1) for start in starts])
        recording.compare(f"{prefix}_sat", clamped, CLAMPED, measure=largest_difference)


def check_ddim(recording: Recording, subject: Subject) -> None:
    iterations = len(recording["p_step_noise"])
    for match in recording.matches(r"ddim_eta(\d+)"):
        settings = DiffusionSettings(
            iterations=iterations, sampler="ddim", eta=float(match[1]), cond_free=True, cond_free_k=GUIDANCE
        )
        recording.compare(match[0], run_loop(recording, subject, settings)[0][-1])


def check_constants(recording: Recording, subject: Subject) -> None:
    for name, field in CONSTANT_FIELDS.items():
        for match in recording.matches(rf"{name}_(\d+)"):
            own = getattr(make_schedule(int(match[1])), field)
            measure = None if own.dtype.kind == "i" else elementwise_error
            recording.compare(match[0], own, CONSTANTS, measure=measure)


def check_guidance(recording: Recording, subject: Subject) -> None:
    for match in recording.matches(r"cfk_(\d+)"):
        steps = int(match[1])
        own = np.array([guidance_scale(GUIDANCE, i / steps) for i in range(steps)])
        recording.compare(match[0], own, CONSTANTS, measure=elementwise_error)


def check_nearest(recording: Recording, subject: Subject) -> None:
    for match in recording.matches(r"nearest_(\d+)"):
        codes = int(match[1])
        recording.compare(match[0], frame_index(codes, codes_to_frames(codes)))
    differing = []
    for codes in CODE_COUNTS:
        frames = codes_to_frames(codes)
        index = torch.arange(codes, dtype=torch.float32)[None, None]
        nearest = F.interpolate(index, size=frames, mode="nearest")[0, 0].numpy()
        if unequal := np.count_nonzero(nearest != frame_index(codes, frames)):
            differing.append((codes, unequal))
    lengths, counts = np.array(differing, np.int64).reshape(-1, 2).T
    recording.compare("nearest_mismatch_S", lengths)
    recording.compare("nearest_mismatch_count", counts)


CHECKS: tuple[Check, ...] = (
    check_voice,
    check_align,
    check_code_path,
    check_condition,
    check_time,
    check_denoise,
    check_pair,
    check_long,
    check_ancestral,
    check_ddim,
)
SCHEDULE_CHECKS: tuple[Check, ...] = (check_constants, check_guidance, check_nearest)
