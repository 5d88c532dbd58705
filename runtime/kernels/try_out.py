"""A kernel that does next to nothing: where it can be launched, Triton works."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


def try_out(out: Any) -> None:
    """Launch it on the current stream, and wait: ``out``, (1,) int32, is 1 then. Raises what Triton raises where it fails."""
    _kernel[(1,)](out)
    if out.item() != 1:
        raise RuntimeError(f"a kernel that writes 1 left {out.item()}")


@triton.jit
def _kernel(out):
    tl.store(out, 1)
