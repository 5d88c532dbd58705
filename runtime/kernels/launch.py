"""How kernels of a chain are launched."""

from __future__ import annotations

import functools
from typing import Any

import triton
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["early_start", "gdc_launch_dependents", "gdc_wait"]


def early_start(tensor: Any) -> dict[str, Any]:
    """Launch arguments by which a kernel starts, up to its ``gdc_wait``, while the one before it ends (from Hopper on).

    Every kernel of a chain waits so, and touches nothing before that its predecessors write.
    """
    early = tensor.is_cuda and _capability(tensor.device.index) >= 9
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}


@functools.cache
def _capability(device: int) -> int:
    return triton.runtime.driver.active.get_current_target().arch // 10
