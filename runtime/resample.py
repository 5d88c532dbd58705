"""Sample-rate conversion by a Hann-windowed sinc, the filter torchaudio uses by default.

For output n at time n / to_rate the filter weighs the inputs within six zero crossings of a sinc with
cut-off 0.99 * min(rates) / 2 (https://ccrma.stanford.edu/~jos/resample/). Weights repeat every
to_rate / gcd outputs, so they are computed once per phase.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from numbers import Integral

import numpy as np

from .errors import AudioError

ZERO_CROSSINGS = 6  #: of the sinc, to each side
ROLLOFF = 0.99  #: cut-off as a fraction of the lower rate's Nyquist frequency
MAX_RATE = 384_000  #: Hz; bounds the filter's table
_BLOCK = 1 << 18  # samples of one row taken in at once
_WORK = 1 << 22  # products computed at once: bounds memory to some tens of megabytes


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

    Raises AudioError for a rate that is not an integer from 1 to 384000 Hz.
    """
    check_rates(from_rate, to_rate)
    x = np.asarray(x, np.float32)
    rows = [
        np.concatenate([*resample_blocks(_blocks(row), from_rate, to_rate)])
        for row in x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    ]
    length = -(-x.shape[-1] * int(to_rate) // int(from_rate))
    return np.reshape(rows, (*x.shape[:-1], length)).astype(np.float32, copy=False)


def check_rates(*rates: int) -> None:
    """Raise an AudioError for a rate that is not an integer from 1 to 384000 Hz."""
    for rate in rates:
        if not isinstance(rate, Integral) or not 1 <= rate <= MAX_RATE:
            raise AudioError(f"cannot resample at {rate!r} Hz: rates are 1 to {MAX_RATE} Hz")


def _blocks(row: np.ndarray) -> Iterator[np.ndarray]:
    return (row[first : first + _BLOCK] for first in range(0, max(len(row), 1), _BLOCK))


def resample_blocks(blocks: Iterable[np.ndarray], from_rate: int, to_rate: int) -> Iterator[np.ndarray]:
    """The pieces (samples,) of a recording -> pieces which joined are the recording as :func:`resample` gives it.

    No more of it is held than a block. The rates are not checked.
    """
    divisor = math.gcd(int(from_rate), int(to_rate))
    step, phases = int(from_rate) // divisor, int(to_rate) // divisor
    if step == phases:
        yield from (block.astype(np.float32) for block in blocks)
        return
    weights, offset = _weights(step, phases)
    taps = weights.shape[1]
    held = np.zeros(-offset, np.float32)  # silence before the start, then what later outputs hear
    begin = made = read = 0  # begin: of held, counted from that silence on
    for block in blocks:
        held, read = np.concatenate([held, block], dtype=np.float32), read + len(block)
        # Output n hears from n * step // phases on; these hear nothing that is yet to come.
        ready = max(made, -(-(begin + len(held) - taps + 1) * phases // step))
        yield _outputs(held, begin, made, ready, step, weights)
        made = ready
        done = min(made * step // phases - begin, len(held))
        held, begin = held[done:].copy(), begin + done
    held = np.pad(held, (0, taps))
    yield _outputs(held, begin, made, -(-read * phases // step), step, weights)


def _outputs(
    held: np.ndarray, begin: int, first: int, end: int, step: int, weights: np.ndarray
) -> np.ndarray:
    """Outputs ``first`` to ``end`` from the padded input's samples from ``begin`` on."""
    phases, taps = weights.shape
    out = np.empty(end - first, np.float32)
    size = max(1, _WORK // taps)
    for at in range(first, end, size):
        n = np.arange(at, min(at + size, end), dtype=np.int64)  # n * step passes 2**31
        windows = np.lib.stride_tricks.sliding_window_view(held, taps)[n * step // phases - begin]
        out[at - first : at - first + size] = np.einsum("nk,nk->n", windows, weights[n % phases])
    return out
