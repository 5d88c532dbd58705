"""The end of a step of the diffusion loop in one pass: guidance, the clean mel, the next mel.

Its reference is ``ahead.denoising_update_ref``.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .ahead import BLOCK, UPDATE_WARPS


def denoising_update(x: Any, last: Any, out: Any, noise: Any, numbers: Any) -> None:
    """Takes x (1, mels, frames) one step down, in place, and ``last``, like it, from one predicted clean mel to the next.

    out: (1 or 2, 2 * mels, frames), the network's noise and variance, of the second row, which is not conditioned, the noise
    alone; noise: like x; numbers: (NUMBERS,) of ``ahead.step_row``, on the device. x, last, noise and numbers are float32.
    """
    size = x.numel()
    _kernel[(triton.cdiv(size, BLOCK),)](
        x, last, out, out[-1], noise, numbers, size, GUIDED=len(out) == 2, BLOCK=BLOCK, num_warps=UPDATE_WARPS
    )


@triton.jit
def _kernel(x, last, out, free, noise, numbers, size, GUIDED: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    mel = tl.load(x + at, mask=inside, other=0.0)
    found = tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
    share = (tl.load(out + size + at, mask=inside, other=0.0).to(tl.float32) + 1) / 2
    if GUIDED:
        k = tl.load(numbers)
        found = (1 + k) * found - k * tl.load(free + at, mask=inside, other=0.0).to(tl.float32)
    start = tl.load(numbers + 1) * mel - tl.load(numbers + 2) * found
    start = tl.minimum(tl.maximum(start, -1.0), 1.0)
    made = tl.load(numbers + 4) * start + tl.load(numbers + 3) * mel
    made += tl.load(numbers + 5) * tl.load(last + at, mask=inside, other=0.0)
    variance = share * tl.load(numbers + 7) + (1 - share) * tl.load(numbers + 6)
    made += tl.exp(0.5 * variance) * tl.load(noise + at, mask=inside, other=0.0)
    tl.store(x + at, made, mask=inside)
    tl.store(last + at, start, mask=inside)
