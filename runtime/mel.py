"""Log-mel spectrograms: what the voice encoders hear and what the diffusion decoder draws."""

from __future__ import annotations

import functools

import numpy as np

from .errors import AudioError
from .spec import AR_MELS, CODE_RATE, HOP, MEL_MAX, MEL_MIN, MELS, SAMPLE_RATE

FFT = 1024  #: samples per frame
BINS = FFT // 2 + 1
_AR_MAX_HZ = 8000
_TAPS, _TILE = 192, 48  # taps summed at a time, and tile of the matrix product, see _magnitude
_HANN = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT) / FFT)
_FLOOR = 1e-5  # of a mel magnitude, before the logarithm

# Mean log-mel per band of the training data; the autoregressive side's mels are divided by it.
# fmt: off
MEL_NORMS = _MEL_NORMS = np.array([
    -7.0094604, -6.0832334, -4.643991, -3.3562171, -2.4547813, -2.0096862, -1.6035903, -1.8640903,
    -2.3727996, -2.3455493, -2.5947032, -2.6695044, -2.712865, -2.8554766, -3.0250936, -3.088925,
    -3.4261477, -3.6758707, -4.0779943, -4.462376, -4.7811594, -5.0074525, -5.128354, -5.2716646,
    -5.40056, -5.499322, -5.5310407, -5.5878043, -5.672626, -5.7015767, -5.794292, -5.883075,
    -5.953696, -5.998858, -6.0305257, -6.053944, -6.0747695, -6.116334, -6.148137, -6.247625,
    -6.31952, -6.4457083, -6.537699, -6.6109824, -6.648107, -6.6671314, -6.6539483, -6.6499467,
    -6.6793838, -6.783321, -6.9306965, -7.081806, -7.189355, -7.2439027, -7.316775, -7.3778706,
    -7.4491, -7.52332, -7.6223617, -7.7473035, -7.8994164, -8.060431, -8.218083, -8.399795,
    -8.555578, -8.716107, -8.848075, -8.95816, -9.037121, -9.086742, -9.1545925, -9.203839,
    -9.233387, -9.229236, -9.230441, -9.26798, -9.315551, -9.371553, -9.416545, -9.482238,
], np.float32)
# fmt: on


def htk_hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """The scale of the HTK Book: 2595 log10(1 + hz / 700)."""
    return 2595 * np.log10(1 + np.asarray(hz, np.float64) / 700)


def htk_mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """The inverse of :func:`htk_hz_to_mel`."""
    return 700 * (10 ** (np.asarray(mel, np.float64) / 2595) - 1)


# Slaney's Auditory Toolbox (1998): linear to 1 kHz at 200/3 Hz a mel, then 27 mels for each factor of 6.4.
_SLANEY_HZ, _SLANEY_KNEE, _SLANEY_LOG = 200 / 3, 1000.0, np.log(6.4) / 27


def slaney_hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """The scale of Slaney's Auditory Toolbox."""
    hz = np.asarray(hz, np.float64)
    above = _SLANEY_KNEE / _SLANEY_HZ + np.log(np.maximum(hz, _SLANEY_KNEE) / _SLANEY_KNEE) / _SLANEY_LOG
    return np.where(hz < _SLANEY_KNEE, hz / _SLANEY_HZ, above)


def slaney_mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """The inverse of :func:`slaney_hz_to_mel`."""
    mel = np.asarray(mel, np.float64)
    above = _SLANEY_KNEE * np.exp(_SLANEY_LOG * (mel - _SLANEY_KNEE / _SLANEY_HZ))
    return np.where(mel * _SLANEY_HZ < _SLANEY_KNEE, mel * _SLANEY_HZ, above)


def _triangles(edges: np.ndarray, rate: int) -> np.ndarray:
    """edges: (bands + 2,) Hz -> (bands, 513) float32 triangles between them, each of area 1 over frequency in Hz."""
    bins = np.arange(BINS) * (rate / FFT)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    area = 2 / (edges[2:] - edges[:-2])
    return (np.maximum(0, np.minimum(rising, falling)) * area[:, None]).astype(np.float32)


@functools.cache
def ar_filterbank() -> np.ndarray:
    """(80, 513) float32: HTK bands to 8 kHz, for 22.05 kHz audio."""
    return _triangles(
        htk_mel_to_hz(np.linspace(0, htk_hz_to_mel(np.array(_AR_MAX_HZ)), AR_MELS + 2)), CODE_RATE
    )


@functools.cache
def univnet_filterbank() -> np.ndarray:
    """(100, 513) float32: Slaney bands to 12 kHz, for 24 kHz audio."""
    return _triangles(
        slaney_mel_to_hz(np.linspace(0, slaney_hz_to_mel(np.array(SAMPLE_RATE / 2)), MELS + 2)), SAMPLE_RATE
    )


def _spectrum(wav: np.ndarray) -> np.ndarray:
    """wav: (clips, samples) -> (clips, frames, 513) complex128: Hann windows centred on every 256th sample.

    The clip is mirrored at its ends. Raises AudioError unless there are more than 512 samples.
    """
    return np.fft.rfft(_frames(np.asarray(wav, np.float64)) * _HANN)


def _frames(wav: np.ndarray) -> np.ndarray:
    """wav: (clips, samples) -> (clips, frames, FFT) overlapping views of the clip, mirrored at its ends."""
    if wav.ndim != 2 or wav.shape[1] <= FFT // 2:
        raise AudioError(
            f"a mel spectrogram takes (clips, samples) with more than {FFT // 2} samples, not {wav.shape}"
        )
    padded = np.pad(wav, ((0, 0), (FFT // 2, FFT // 2)), mode="reflect")
    return np.lib.stride_tricks.sliding_window_view(padded, FFT, axis=1)[:, ::HOP]


@functools.cache
def _dft_basis() -> np.ndarray:
    """(FFT, 2 * BINS, padded) float32: windowed cosines, then windowed negative sines, then zeros to whole tiles."""
    transform = np.fft.rfft(np.eye(FFT))
    waves = np.concatenate([transform.real, transform.imag], axis=1).astype(np.float32)
    return np.pad(waves * _HANN.astype(np.float32)[:, None], ((0, 0), (0, -waves.shape[1] % _TILE)))


def _magnitude(wav: np.ndarray) -> np.ndarray:
    """wav: (clips, samples) -> (clips, frames, 513) float32 magnitudes, with the reference's rounding.

    The reference takes the transform as a float32 convolution. What that rounds off is all there is in bands
    where a clip is silent (above the band limit of a resampled one), and its logarithm reaches 1e-4 of the mel's
    range. A matrix product summed over _TAPS taps at a time, in float32 and in whole tiles (a BLAS sums the rest
    in another order), rounds the same way.
    """
    frames = _frames(np.asarray(wav, np.float32))
    count = frames.shape[1]
    frames = np.pad(frames, ((0, 0), (0, -count % _TILE), (0, 0)))
    sums = np.zeros((*frames.shape[:2], _dft_basis().shape[1]), np.float32)
    for first in range(0, FFT, _TAPS):
        taps = slice(first, first + _TAPS)
        sums += np.ascontiguousarray(frames[..., taps]) @ _dft_basis()[taps]
    return np.sqrt(sums[:, :count, :BINS] ** 2 + sums[:, :count, BINS : 2 * BINS] ** 2)


def _log_bands(filterbank: np.ndarray, spectrum: np.ndarray) -> np.ndarray:
    """(bands, 513), (clips, frames, 513) real -> (clips, bands, frames)."""
    return np.log(np.maximum(filterbank @ spectrum.swapaxes(1, 2), _FLOOR))


def ar_mel(wav: np.ndarray) -> np.ndarray:
    """wav: (clips, samples), 22.05 kHz -> (clips, 80, 1 + samples // 256) float32, log power over the band's mean."""
    power = np.abs(_spectrum(wav)) ** 2
    return (_log_bands(ar_filterbank(), power) / _MEL_NORMS[:, None]).astype(np.float32)


def univnet_mel(wav: np.ndarray, normalize: bool = False) -> np.ndarray:
    """wav: (clips, samples), 24 kHz -> (clips, 100, 1 + samples // 256) float32, log magnitude.

    Samples beyond [-1, 1] are clipped. ``normalize`` maps the result to [-1, 1] (:func:`normalize_mel`).
    """
    mel = _log_bands(univnet_filterbank(), _magnitude(np.clip(wav, -1, 1)))
    return normalize_mel(mel) if normalize else mel


def normalize_mel(mel: np.ndarray) -> np.ndarray:
    """Log magnitudes from MEL_MIN..MEL_MAX to -1..1, float32."""
    return np.asarray(2 * ((np.asarray(mel, np.float32) - MEL_MIN) / (MEL_MAX - MEL_MIN)) - 1, np.float32)


def denormalize_mel(mel: np.ndarray) -> np.ndarray:
    """The inverse of :func:`normalize_mel`."""
    return np.asarray((np.asarray(mel, np.float32) + 1) / 2 * (MEL_MAX - MEL_MIN) + MEL_MIN, np.float32)
