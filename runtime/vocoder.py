"""Mel or latents -> waveform."""

from __future__ import annotations

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

WINDOW = 384  #: frames vocoded at a time, 4 s
UNIVNET_HALO = (
    16  #: frames that UnivNet sees to either side: its kernel predictor 9 of mel, the rest through samples
)
HIFIGAN_HALO = 14  #: frames of latents that HiFi-GAN sees, with the official kernels and dilations


def univnet(engine: Engine, mel: Array, noise: Array) -> Array:
    """Log mel (rows, MELS, frames), noise (rows, VOCODER_NOISE, frames + VOCODER_PAD) -> wav (rows, samples) in [-1, 1].

    Silent frames are put behind the mel and their sound is cut off again: they keep the end clean.
    """
    rows, _, frames = mel.shape
    padded = np.concatenate([mel, np.full((rows, MELS, VOCODER_PAD), SILENT_MEL, np.float32)], axis=2)

    def run(part: slice) -> Array:
        return engine.run("univnet", mel=padded[:, :, part], noise=noise[:, :, part])[0]

    return np.clip(in_windows(run, frames + VOCODER_PAD, UNIVNET_HALO)[:, : frames * HOP], -1, 1)


def noise_shape(mel: Array) -> tuple[int, int, int]:
    """Shape of the noise that :func:`univnet` takes for ``mel``."""
    return len(mel), VOCODER_NOISE, mel.shape[2] + VOCODER_PAD


def hifigan(engine: Engine, latents: Array, voice: Array) -> Array:
    """Latents (rows, codes, dim) and the autoregressive voice latent (rows, dim) -> wav (rows, samples) in [-1, 1]."""
    fine = upsample_latents(latents)

    def run(part: slice) -> Array:
        return engine.run("hifigan", latents=fine[:, :, part], voice=voice)[0]

    return in_windows(run, fine.shape[2], HIFIGAN_HALO)


def in_windows(run: Callable[[slice], Array], frames: int, halo: int) -> Array:
    """(rows, samples) of all frames, vocoded WINDOW of them at a time, each with ``halo`` frames to either side.

    So far the vocoder sees, so every sample is what it is in the whole; the clip's own ends stay its ends. Memory is
    bounded, and the windows of all long clips have one shape, so that those of several requests run as one.
    """
    pieces = []
    for start in range(0, frames, WINDOW):
        first, last = max(0, start - halo), min(frames, start + WINDOW + halo)
        pieces.append(run(slice(first, last))[:, (start - first) * HOP :][:, : WINDOW * HOP])
    return np.concatenate(pieces, axis=1)


def upsample_latents(latents: Array) -> Array:
    """(rows, codes, dim) at code rate -> (rows, dim, frames) at 93.75 Hz, by two linear interpolations.

    First by 4 (code rate to mel rate), then by 24000/22050. Positions are float64 functions of the frame number,
    so that a part of a clip is computed exactly as in the whole.
    """
    codes = latents.shape[1]
    up = CODE_SAMPLES // HOP
    frames = codes_to_frames(codes)
    fine = interpolate(latents, up, 1, codes * up)
    return np.ascontiguousarray(interpolate(fine, SAMPLE_RATE, CODE_RATE, frames).transpose(0, 2, 1))


def interpolate(x: Array, numerator: int, denominator: int, size: int) -> Array:
    """Linear resize of x (rows, time, dim) by numerator/denominator to ``size`` frames, ends held, centres aligned."""
    place = np.maximum((np.arange(size) + 0.5) * denominator / numerator - 0.5, 0)
    left = np.minimum(place.astype(np.int64), x.shape[1] - 1)
    right = np.minimum(left + 1, x.shape[1] - 1)
    weight = (place - left).astype(np.float32)[None, :, None]
    return x[:, left] * (1 - weight) + x[:, right] * weight
