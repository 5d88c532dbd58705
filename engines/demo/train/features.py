"""Spectrograms as the networks hear them, in torch, over batches of training audio."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from tortoise_rt import mel
from tortoise_rt.spec import HOP

#: Log mels of silence, and what brings log mels near zero mean and unit deviation.
SILENCE, MEL_MEAN, MEL_SCALE = float(np.log(1e-5)), -6.0, 3.2


@functools.cache
def _window(size: int) -> Tensor:
    return torch.hann_window(size)


@functools.cache
def bands(name: str) -> Tensor:
    """(80, 513) of the voice encoder's "ar" or (100, 513) of the "vocoder": weights of the bins of magnitudes."""
    return torch.from_numpy(mel.ar_filterbank() if name == "ar" else mel.univnet_filterbank())


def magnitudes(wav: Tensor, size: int, hop: int) -> Tensor:
    """wav: (rows, samples) -> (rows, size / 2 + 1, frames)."""
    window = _window(size).to(wav.device)
    return torch.stft(wav, size, hop, size, window, return_complex=True).abs()


def log_mel(wav: Tensor) -> Tensor:
    """wav: (rows, samples) at 22.05 kHz -> (rows, 80, samples // 256) log power in HTK bands, not yet normalised."""
    power = magnitudes(wav, mel.FFT, HOP)[:, :, : wav.shape[1] // HOP] ** 2
    return torch.log(torch.clamp(bands("ar").to(wav.device) @ power, min=1e-5))


def vocoder_mel(wav: Tensor) -> Tensor:
    """wav: (rows, samples) at 24 kHz -> (rows, 100, 1 + samples // 256) log magnitude, what the diffusion decoder draws."""
    magnitude = magnitudes(wav.clamp(-1, 1), mel.FFT, HOP)
    return torch.log(torch.clamp(bands("vocoder").to(wav.device) @ magnitude, min=1e-5))


def mel_norms() -> Tensor:
    """(80,): what the voice encoder's mels are divided by."""
    return torch.from_numpy(mel.MEL_NORMS)
