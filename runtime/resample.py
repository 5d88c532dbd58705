"""Sample-rate conversion by a Hann-windowed sinc, the filter torchaudio uses by default.

For output n at time n / to_rate the filter weighs the inputs within six zero crossings of a sinc with
cut-off 0.99 * min(rates) / 2 (https://ccrma.stanford.edu/~jos/resample/). Weights repeat every
to_rate / gcd outputs, so they are computed once per phase.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from .errors import AudioError

ZERO_CROSSINGS = 6  #: of the sinc, to each side
ROLLOFF = 0.99  #: cut-off as a fraction of the lower rate's Nyquist frequency
MAX_RATE = 768_000  #: Hz; bounds the filter's table
_BLOCK = 1 << 16  # outputs computed at once: bounds memory to some tens of megabytes


@functools.lru_cache(maxsize=8)
def _weights(from_rate: int, to_rate: int) -> tuple[np.ndarray, int]:
    """(phases, taps) float32 weights for coprime rates, and the offset of tap 0 from an output's input position.

    Times are rounded to float32 where torchaudio rounds them: the error this leaves, -100 dB, is what the encoders
    hear above the old Nyquist frequency, and exact weights would change the voice's mel there by 0.6 % of its range.
    """
    one = np.float32
    cutoff = min(from_rate, to_rate) * ROLLOFF
    reach = math.ceil(ZERO_CROSSINGS * from_rate / cutoff)
    phase = np.arange(to_rate, dtype=np.int64)
    tap = (phase * from_rate // to_rate)[:, None] + np.arange(-reach, reach + 2)
    time = tap.astype(one) / one(from_rate) - (phase.astype(one) / one(to_rate))[:, None]
    crossings = np.clip(time * one(cutoff), -ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = np.cos(crossings * one(np.pi) / one(ZERO_CROSSINGS) / one(2)) ** 2
    angle = crossings * one(np.pi)
    sinc = np.where(angle == 0, one(1), np.sin(angle) / np.where(angle == 0, one(1), angle))
    return sinc * (window * one(cutoff / from_rate)), -reach


def resample(x: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """x: (..., samples) at ``from_rate`` Hz -> (..., ceil(samples * to_rate / from_rate)) float32 at ``to_rate`` Hz.

    Raises AudioError for a rate that is not an integer from 1 to 768000 Hz.
    """
    for rate in (from_rate, to_rate):
        if rate != int(rate) or not 1 <= rate <= MAX_RATE:
            raise AudioError(
                f"cannot resample from {from_rate} Hz to {to_rate} Hz: rates are 1 to {MAX_RATE} Hz"
            )
    x = np.asarray(x, np.float32)
    divisor = math.gcd(int(from_rate), int(to_rate))
    step, phases = int(from_rate) // divisor, int(to_rate) // divisor
    if step == phases:
        return x.copy()
    weights, offset = _weights(step, phases)
    taps = weights.shape[1]
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    length = -(-x.shape[-1] * phases // step)
    out = np.empty((len(rows), length), np.float32)
    for row, result in zip(rows, out, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(row, (-offset, taps)), taps)
        for first in range(0, length, _BLOCK):
            n = np.arange(first, min(first + _BLOCK, length), dtype=np.int64)  # n * step passes 2**31
            result[first : first + _BLOCK] = np.einsum(
                "nk,nk->n", windows[n * step // phases], weights[n % phases]
            )
    return out.reshape(*x.shape[:-1], length)
