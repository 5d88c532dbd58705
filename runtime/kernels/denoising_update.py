"""The end of a step of the diffusion loop in one pass: guidance, the clean mel, the next mel."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton
import triton.language as tl

from ..samplers import DenoisingStep, update_mel

NUMBERS = 8  #: of a step, as :func:`step_row` orders them
BLOCK = 1024


def step_row(step: DenoisingStep) -> np.ndarray:
    """(NUMBERS,) float32: guidance, what the clean mel is made of, and the update."""
    update = step.update
    numbers = [step.guidance or 0.0, step.recip, step.recipm1]
    return np.array([*numbers, update.x, update.start, update.last, update.low, update.high], np.float32)


def denoising_update_ref(
    x: np.ndarray, last: np.ndarray, out: np.ndarray, noise: np.ndarray, step: DenoisingStep
) -> None:
    """As :func:`denoising_update`, in NumPy; ``step`` for its numbers."""
    mels, k = x.shape[1], np.float32(step.guidance or 0.0)
    found = out[:1, :mels] if len(out) == 1 else (1 + k) * out[:1, :mels] - k * out[1:, :mels]
    start = np.clip(np.float32(step.recip) * x - np.float32(step.recipm1) * found, -1, 1)
    x[:] = update_mel(step.update, x, start, last, out[:1, mels:], noise)
    last[:] = start


def denoising_update(x: Any, last: Any, out: Any, noise: Any, numbers: Any) -> None:
    """Takes x (1, mels, frames) one step down, in place, and ``last``, like it, from one predicted clean mel to the next.

    out: (1 or 2, 2 * mels, frames), the network's noise and variance, of the second row, which is not conditioned, the noise
    alone; noise: like x; numbers: (NUMBERS,) of :func:`step_row`, on the device. x, last, noise and numbers are float32.
    """
    size = x.numel()
    _kernel[(triton.cdiv(size, BLOCK),)](
        x, last, out, noise, numbers, size, GUIDED=len(out) == 2, BLOCK=BLOCK, num_warps=4
    )


@triton.jit
def _kernel(x, last, out, noise, numbers, size, GUIDED: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    mel = tl.load(x + at, mask=inside, other=0.0)
    found = tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
    share = (tl.load(out + size + at, mask=inside, other=0.0).to(tl.float32) + 1) / 2
    if GUIDED:
        k = tl.load(numbers)
        free = tl.load(out + 2 * size + at, mask=inside, other=0.0).to(tl.float32)
        found = (1 + k) * found - k * free
    start = tl.load(numbers + 1) * mel - tl.load(numbers + 2) * found
    start = tl.minimum(tl.maximum(start, -1.0), 1.0)
    made = tl.load(numbers + 4) * start + tl.load(numbers + 3) * mel
    made += tl.load(numbers + 5) * tl.load(last + at, mask=inside, other=0.0)
    variance = share * tl.load(numbers + 7) + (1 - share) * tl.load(numbers + 6)
    made += tl.exp(0.5 * variance) * tl.load(noise + at, mask=inside, other=0.0)
    tl.store(x + at, made, mask=inside)
    tl.store(last + at, start, mask=inside)
