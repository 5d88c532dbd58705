"""Group norm over time of (rows, time, channels), with scale, shift and SiLU over it, laid out for what reads it.

Two kernels: means and spreads of stretches of time, then everything else. With ``taps`` 3 each position is written
beside its neighbours, so that a convolution of 3 taps is a plain matrix product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton
import triton.language as tl

EPSILON = 1e-5
STRETCH = 32  #: positions that a program sees
MOST_STRETCHES = 1024  #: of a row


def group_norm_ref(
    x: np.ndarray,
    gain: np.ndarray,
    shift: np.ndarray,
    groups: int,
    out: np.ndarray,
    modulation: np.ndarray | None = None,
    silu: bool = False,
) -> None:
    """As :func:`group_norm`, in NumPy."""
    rows, time, channels = x.shape
    grouped = x.reshape(rows, time, groups, -1)
    centred = grouped - grouped.mean(axis=(1, 3), keepdims=True)
    y = centred / np.sqrt((centred**2).mean(axis=(1, 3), keepdims=True) + EPSILON)
    y = y.reshape(x.shape) * gain + shift
    if modulation is not None:
        y = y * (1 + modulation[:, None, :channels]) + modulation[:, None, channels:]
    if silu:
        y = y / (1 + np.exp(-y))
    if out.shape[2] == channels:
        out[:] = y
    else:
        out[:] = np.pad(y, ((0, 0), (1, 1), (0, 0)))[:, np.arange(time)[:, None] + np.arange(3)].reshape(
            out.shape
        )


def group_norm(
    x: Any,
    gain: Any,
    shift: Any,
    groups: int,
    out: Any,
    modulation: Any = None,
    silu: bool = False,
) -> None:
    """Writes group norm of x (rows, time, channels), contiguous, to ``out``: (rows, time, channels or 3 * channels).

    gain, shift: (channels,); modulation: (rows, 2 * channels), a scale that 1 is added to and a shift, or None.
    With 3 * channels each position holds the one before it, itself and the one behind it; zeros beyond the ends.
    Statistics are float32, the same bits however many rows there are.
    """
    rows, time, channels = x.shape
    stretches = triton.cdiv(time, STRETCH)
    if stretches > MOST_STRETCHES:
        raise ValueError(f"{time} positions; the most is {STRETCH * MOST_STRETCHES}")
    found = x.new_empty((rows, stretches, 2, groups), dtype=_float32(x))
    width = channels // groups
    sizes = dict(
        CHANNELS=channels, WIDTH=width, WIDTH_BLOCK=triton.next_power_of_2(width), GROUPS=groups, STRETCH=STRETCH
    )  # fmt: skip
    _statistics[(stretches, rows, groups)](x, found, time, stretches, **sizes, num_warps=1)
    _apply[(stretches, rows, groups)](
        x, found, gain, shift, x if modulation is None else modulation, out, time, stretches,
        **sizes, STRETCHES=triton.next_power_of_2(stretches), EPSILON=EPSILON, TAPS=out.shape[2] // channels,
        MODULATED=modulation is not None, SILU=silu, num_warps=1,
    )  # fmt: skip


def _float32(x: Any) -> Any:
    """float32 in the words of x's library."""
    return x.new_empty(0).float().dtype


@triton.jit
def _statistics(
    x, found, time, stretches,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, WIDTH_BLOCK: tl.constexpr, GROUPS: tl.constexpr, STRETCH: tl.constexpr,
):  # fmt: skip
    """The mean of a group over a stretch, and the sum of squares about it."""
    stretch, row, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    when, within = stretch * STRETCH + tl.arange(0, STRETCH), tl.arange(0, WIDTH_BLOCK)
    inside = (when < time)[:, None] & (within < WIDTH)[None]
    at = (row * time + when)[:, None] * CHANNELS + (group * WIDTH + within)[None]
    part = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum(time - stretch * STRETCH, STRETCH) * WIDTH
    mean = tl.sum(part) / count
    off = tl.where(inside, part - mean, 0.0)
    place = found + (row * stretches + stretch) * 2 * GROUPS + group
    tl.store(place, mean)
    tl.store(place + GROUPS, tl.sum(off * off))


@triton.jit
def _apply(
    x, found, gain, shift, modulation, out, time, stretches,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, WIDTH_BLOCK: tl.constexpr, GROUPS: tl.constexpr, STRETCH: tl.constexpr,
    STRETCHES: tl.constexpr, EPSILON: tl.constexpr, TAPS: tl.constexpr, MODULATED: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    stretch, row, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    each = tl.arange(0, STRETCHES)
    place = found + (row * stretches + each) * 2 * GROUPS + group
    means = tl.load(place, mask=each < stretches, other=0.0)
    squares = tl.load(place + GROUPS, mask=each < stretches, other=0.0)
    counts = tl.maximum(tl.minimum(time - each * STRETCH, STRETCH), 0).to(tl.float32)
    mean = tl.sum(means * counts) / time
    variance = (tl.sum(squares) / WIDTH + tl.sum(counts * (means - mean) * (means - mean))) / time
    when, within = stretch * STRETCH + tl.arange(0, STRETCH), tl.arange(0, WIDTH_BLOCK)
    channel = group * WIDTH + within
    inside = (when < time)[:, None] & (within < WIDTH)[None]
    y = tl.load(x + (row * time + when)[:, None] * CHANNELS + channel[None], mask=inside, other=0.0)
    g = tl.load(gain + channel, mask=within < WIDTH, other=0.0).to(tl.float32)
    s = tl.load(shift + channel, mask=within < WIDTH, other=0.0).to(tl.float32)
    y = (y.to(tl.float32) - mean) / tl.sqrt(variance + EPSILON) * g[None] + s[None]
    if MODULATED:
        by = modulation + row * 2 * CHANNELS + channel
        y = y * (1 + tl.load(by, mask=within < WIDTH, other=0.0).to(tl.float32))[None]
        y += tl.load(by + CHANNELS, mask=within < WIDTH, other=0.0).to(tl.float32)[None]
    if SILU:
        y = y * tl.sigmoid(y)
    y = y.to(out.dtype.element_ty)
    here = out + (row * time + when)[:, None] * TAPS * CHANNELS + channel[None]
    if TAPS == 1:
        tl.store(here, y, mask=inside)
    else:
        tl.store(here + CHANNELS, y, mask=inside)
        tl.store(here + TAPS * CHANNELS, y, mask=inside & (when + 1 < time)[:, None])
        tl.store(here - (TAPS - 2) * CHANNELS, y, mask=inside & (when > 0)[:, None])
        tl.store(here, y * 0, mask=inside & (when == 0)[:, None])
        tl.store(here + 2 * CHANNELS, y * 0, mask=inside & (when + 1 == time)[:, None])
