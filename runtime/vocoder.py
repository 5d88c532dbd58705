"""Mel or latents -> waveform."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .engine import Array, Engine
from .spec import (
    CODE_RATE,
    CODE_SAMPLES,
    HOP,
    MELS,
    SAMPLE_RATE,
    SILENT_MEL,
    VOCODER_NOISE,
    VOCODER_PAD,
    codes_to_frames,
)

UP = CODE_SAMPLES // HOP  #: positions between codes and frames: so many are interpolated for each code
WINDOW = 384  #: frames vocoded at a time, 4 s
UNIVNET_HALO = (
    16  #: frames that UnivNet sees to either side: its kernel predictor 9 of mel, the rest through samples
)
HIFIGAN_HALO = 13  #: frames of latents that HiFi-GAN sees, with the official kernels and dilations


def univnet(engine: Engine, mel: Array, noise: Array) -> Array:
    """Log mel (rows, MELS, frames), noise (rows, VOCODER_NOISE, frames + VOCODER_PAD) -> wav (rows, samples) in [-1, 1].

    Silent frames are put behind the mel and their sound is cut off again: they keep the end clean.
    """
    rows, _, frames = mel.shape
    padded = np.concatenate([mel, np.full((rows, MELS, VOCODER_PAD), SILENT_MEL, np.float32)], axis=2)

    def run(part: slice, wanted: range) -> Array:
        wav = engine.run("univnet", mel=padded[:, :, part], noise=noise[:, :, part])[0]
        return wav[:, wanted.start * HOP : wanted.stop * HOP]

    return np.clip(in_windows(run, frames + VOCODER_PAD, UNIVNET_HALO)[:, : frames * HOP], -1, 1)


def noise_shape(mel: Array) -> tuple[int, int, int]:
    """Shape of the noise that :func:`univnet` takes for ``mel``."""
    return len(mel), VOCODER_NOISE, mel.shape[2] + VOCODER_PAD


def hifigan(engine: Engine, latents: Array, voice: Array) -> Array:
    """Latents (rows, codes, dim) and the autoregressive voice latent (rows, dim) -> wav (rows, samples) in [-1, 1]."""
    fine = upsample_latents(latents)
    return hifigan_frames(engine, fine, voice, range(fine.shape[2]))


def hifigan_frames(engine: Engine, fine: Array, voice: Array, frames: range) -> Array:
    """The sound (rows, samples) of some ``frames`` of upsampled latents (rows, dim, frames)."""

    def run(part: slice, wanted: range) -> Array:
        ends = np.array([wanted.start, wanted.stop])
        return engine.run("hifigan", latents=fine[:, :, part], voice=voice, wanted=ends)[0]

    return in_windows(run, fine.shape[2], HIFIGAN_HALO, frames)


def in_windows(
    run: Callable[[slice, range], Array], frames: int, halo: int, wanted: range | None = None
) -> Array:
    """(rows, samples) of the ``wanted`` frames, all by default, vocoded WINDOW at a time, each with ``halo`` frames to either side.

    ``run`` gives the sound of some frames of a part of the clip.

    So far the vocoder sees, so every sample is what it is in the whole; the clip's own ends stay its ends. Memory is
    bounded, and the windows of all long clips have one shape, so that those of several requests run as one.
    """
    wanted = range(frames) if wanted is None else wanted
    pieces = []
    for start in wanted[::WINDOW]:
        end = min(start + WINDOW, wanted.stop)
        first, last = max(0, start - halo), min(frames, end + halo)
        pieces.append(run(slice(first, last), range(start - first, end - first)))
    return np.concatenate(pieces, axis=1)


def upsample_latents(latents: Array) -> Array:
    """(rows, codes, dim) at code rate -> (rows, dim, frames) at 93.75 Hz, by two linear interpolations.

    First by 4 (code rate to mel rate), then by 24000/22050. Positions are float64 functions of the frame number,
    so that a part of a clip is computed exactly as in the whole.
    """
    codes = latents.shape[1]
    return upsample_part(latents, 0, codes, range(codes_to_frames(codes)))


def upsample_part(latents: Array, first: int, codes: int, frames: range) -> Array:
    """Some ``frames`` of a clip of ``codes`` codes (rows, dim, frames), from its latents from code ``first`` on.

    ``latents`` must reach from the first to the last code of :func:`codes_seen`.
    """
    fine = _fine_seen(codes, frames)
    near = _interpolate(latents, first, codes, UP, 1, fine)
    far = _interpolate(near, fine.start, codes * UP, SAMPLE_RATE, CODE_RATE, frames)
    return np.ascontiguousarray(far.transpose(0, 2, 1))


def codes_seen(codes: int, frames: range) -> range:
    """The codes, of ``codes`` in all, that some ``frames`` are interpolated from."""
    fine = _fine_seen(codes, frames)
    left, _, _ = _places(np.array([fine.start, fine.stop - 1]), UP, 1, codes)
    return range(int(left[0]), min(int(left[1]) + 2, codes))


def certain_frames(codes: int) -> int:
    """How many frames at the beginning ``codes`` codes decide, whatever codes follow."""
    # Frames between two codes only: the last code's own place is UP * codes - UP / 2 in fine ones.
    last = UP * (codes - 0.5) - 0.5
    return max(0, math.ceil(last * SAMPLE_RATE / CODE_RATE - 0.5))


def _fine_seen(codes: int, frames: range) -> range:
    left, _, _ = _places(np.array([frames.start, frames.stop - 1]), SAMPLE_RATE, CODE_RATE, codes * UP)
    return range(int(left[0]), min(int(left[1]) + 2, codes * UP))


def _places(positions: Array, numerator: int, denominator: int, length: int) -> tuple[Array, Array, Array]:
    """Where positions of a sequence made longer lie in the one of ``length``: left and right neighbour, and the share of the right."""
    place = np.maximum((positions + 0.5) * denominator / numerator - 0.5, 0)
    left = np.minimum(place.astype(np.int64), length - 1)
    return left, np.minimum(left + 1, length - 1), (place - left).astype(np.float32)


def _interpolate(
    x: Array, first: int, length: int, numerator: int, denominator: int, positions: range
) -> Array:
    """Linear resize by numerator/denominator, ends held, centres aligned; x (rows, time, dim) begins at ``first`` of ``length``."""
    left, right, share = _places(np.asarray(positions), numerator, denominator, length)
    weight = share[None, :, None]
    return x[:, left - first] * (1 - weight) + x[:, right - first] * weight
