"""Memory of a process that speaks for days."""

from __future__ import annotations

import ctypes
import os
import sys

ARENA_MAX = -8  #: M_ARENA_MAX of glibc's malloc.h


def keep_memory_together() -> None:
    """Let all threads take memory from one pool, where glibc has it (a user's MALLOC_ARENA_MAX goes before).

    Otherwise each of the many short threads of a server takes from one of 8 pools a core, and what is freed in one is of no
    use in another: half an hour of load makes the process grow by a sixth, though nothing is kept.
    """
    if not sys.platform.startswith("linux") or "MALLOC_ARENA_MAX" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has one pool and no mallopt
    if mallopt is not None:
        mallopt(ARENA_MAX, 1)
