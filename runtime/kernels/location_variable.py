"""UnivNet's convolution by kernels of each frame's own, with the layers about it in the same pass: bias and leaky ReLU
before, bias, gate and residual behind.

By the library that is a copy of three shifted signals, a batched product, a transposition and eight passes over all samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton
import triton.language as tl

TAPS = 3
SLOPE = 0.2  #: of the leaky ReLU
SAMPLES = 64  #: at most, of a frame, that are computed at a time
LEAST = 16  #: of channels and of samples that are multiplied
SAMPLES_WARP = (
    8  #: that a warp computes: with fewer warps the kernels of a frame do not fit into their registers
)
STAGES = 1  #: reading the next samples meanwhile would take 114 kB of shared memory, more than many GPUs have


def location_variable_ref(
    x: np.ndarray, h: np.ndarray, shift: np.ndarray, kernels: np.ndarray, biases: np.ndarray
) -> None:
    """As :func:`location_variable`, in NumPy."""
    rows, channels, samples = x.shape
    frames = kernels.shape[-1]
    h = h + shift[:, None]
    h = np.pad(np.where(h > 0, h, SLOPE * h), ((0, 0), (0, 0), (1, 1)))
    taps = np.stack([h[..., t : t + samples] for t in range(TAPS)]).reshape(TAPS, rows, channels, frames, -1)
    y = np.einsum("trcfs,rcotf->rofs", taps, kernels) + biases[..., None]
    gate, value = np.split(y.reshape(rows, 2 * channels, samples), 2, axis=1)
    x += np.tanh(value) / (1 + np.exp(-gate))


def location_variable(x: Any, h: Any, shift: Any, kernels: Any, biases: Any) -> None:
    """Adds to x, in place, sigmoid(gate) * tanh(value) of what each frame's kernel makes of leaky_relu(h + shift).

    x, h: (rows, channels, frames * hop), contiguous, and zero beyond their ends once they have been shifted; shift:
    (channels,); kernels: (rows, channels, 2 * channels, TAPS, frames) and biases: (rows, 2 * channels, frames), of which
    the first half of 2 * channels are the gates. These may lie in any order; a frame's own side by side is best.
    Products are taken in the type of the kernels, sums are float32.
    """
    rows, channels, samples = x.shape
    frames = kernels.shape[-1]
    hop = samples // frames
    tile = min(SAMPLES, max(LEAST, triton.next_power_of_2(hop)))
    _kernel[(frames, rows)](
        x, h, shift, kernels, biases, samples, *kernels.stride(), *biases.stride(),
        HOP=hop, SAMPLES=tile, CHANNELS=channels, BLOCK=max(LEAST, triton.next_power_of_2(channels)), SLOPE=SLOPE,
        num_warps=tile // SAMPLES_WARP, num_stages=STAGES,
    )  # fmt: skip


@triton.jit
def _kernel(
    x, h, shift, kernels, biases, samples, k_row, k_channel, k_out, k_tap, k_frame, b_row, b_out, b_frame,
    HOP: tl.constexpr, SAMPLES: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """One frame of one row. Its kernel is read once, and kept while its samples go by."""
    frame, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    held = channel < CHANNELS
    square = held[:, None] & held[None]
    gates = kernels + row * k_row + frame * k_frame + channel[:, None] * k_out + channel[None] * k_channel
    values = gates + CHANNELS * k_out
    gate_0 = tl.load(gates, mask=square, other=0.0)
    gate_1 = tl.load(gates + k_tap, mask=square, other=0.0)
    gate_2 = tl.load(gates + 2 * k_tap, mask=square, other=0.0)
    value_0 = tl.load(values, mask=square, other=0.0)
    value_1 = tl.load(values + k_tap, mask=square, other=0.0)
    value_2 = tl.load(values + 2 * k_tap, mask=square, other=0.0)
    bias = biases + row * b_row + frame * b_frame + channel * b_out
    gate_bias = tl.load(bias, mask=held, other=0.0).to(tl.float32)
    value_bias = tl.load(bias + CHANNELS * b_out, mask=held, other=0.0).to(tl.float32)
    before = tl.load(shift + channel, mask=held, other=0.0).to(tl.float32)
    lines = (row * CHANNELS + channel)[:, None] * samples
    for start in range(0, HOP, SAMPLES):
        within = start + tl.arange(0, SAMPLES)
        when = frame * HOP + within
        a = _signal(h + lines, when - 1, samples, held, before, SLOPE).to(gate_0.dtype)
        b = _signal(h + lines, when, samples, held, before, SLOPE).to(gate_0.dtype)
        c = _signal(h + lines, when + 1, samples, held, before, SLOPE).to(gate_0.dtype)
        gate = tl.dot(
            gate_0, a, tl.zeros((BLOCK, SAMPLES), tl.float32) + gate_bias[:, None], input_precision="tf32x3"
        )
        gate = tl.dot(gate_1, b, gate, input_precision="tf32x3")
        gate = tl.dot(gate_2, c, gate, input_precision="tf32x3")
        value = tl.dot(
            value_0, a, tl.zeros((BLOCK, SAMPLES), tl.float32) + value_bias[:, None], input_precision="tf32x3"
        )
        value = tl.dot(value_1, b, value, input_precision="tf32x3")
        value = tl.dot(value_2, c, value, input_precision="tf32x3")
        made = tl.sigmoid(gate) * (2 * tl.sigmoid(2 * value) - 1)  # the second factor is tanh(value)
        place, written = x + lines + when[None], held[:, None] & (within < HOP)[None]
        made += tl.load(place, mask=written, other=0.0).to(tl.float32)
        tl.store(place, made.to(x.dtype.element_ty), mask=written)


@triton.jit
def _signal(lines, when, samples, held, before, SLOPE: tl.constexpr):
    """leaky_relu(signal + before) at some samples, float32; zeros beyond the ends."""
    inside = held[:, None] & ((when >= 0) & (when < samples))[None]
    y = tl.load(lines + when[None], mask=inside, other=0.0).to(tl.float32) + before[:, None]
    return tl.where(inside, tl.where(y > 0, y, SLOPE * y), 0.0)
