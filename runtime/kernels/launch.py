"""How kernels of a chain are launched."""

from __future__ import annotations

import functools
from typing import Any

import triton
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["early_start", "gdc_launch_dependents", "gdc_wait", "roomy"]

#: bytes; the GPUs of 9.0 and 10.0 have more, those of 8.0 163 kB, those of 8.6, 8.9, 12.0 and 12.1 99 kB
ROOMY = 200 << 10


def early_start(tensor: Any) -> dict[str, Any]:
    """Launch arguments by which a kernel starts, up to its ``gdc_wait``, while the one before it ends (from Hopper on).

    Every kernel of a chain waits so, and touches nothing before that its predecessors write.
    """
    early = tensor.is_cuda and _capability(tensor.device.index) >= 9
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}


def roomy(tensor: Any) -> bool:
    """Whether threads of a block share much memory on the tensor's device; elsewhere a kernel must keep less there."""
    return not tensor.is_cuda or _shared(tensor.device.index) > ROOMY


@functools.cache
def _shared(device: int) -> int:
    return triton.runtime.driver.active.utils.get_device_properties(device)["max_shared_mem"]


@functools.cache
def _capability(device: int) -> int:
    return triton.runtime.driver.active.get_current_target().arch // 10
