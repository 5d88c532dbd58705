"""What TensorRT for RTX compiles on the GPU that runs its plans: when, and where it is kept for the next start.

In shapes that are new to it the library would go on with slower kernels and compile better ones meanwhile; a recording
made then holds the slower ones for good. So work in new shapes waits. Plain TensorRT compiles nothing here.

A file is a line of JSON, which says of what work it holds the kernels, and behind it the library's own bytes. Engines that
run one bundle at the same time, in other processes too, write over each other's: what the last did not compile, the next
start does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
from collections.abc import Hashable
from pathlib import Path
from typing import Any

MOST_KEPT = 16  #: files in the folder; those that were used longest ago go
PART = 32  #: new work waits to be written until it is this part of what the file holds
log = logging.getLogger("tortoise_rt")


class Compiled:
    """How a library's plans are set up. Not for several threads at a time."""

    def __init__(self, library: Any, kept: Path | None = None) -> None:
        """kept: the file that what was compiled is kept in, if any."""
        self._own = library.ExecutionContextAllocationStrategy.USER_MANAGED
        self._strategies = getattr(library, "DynamicShapesKernelSpecializationStrategy", None)
        self._kept, self._cache = kept, None
        self._written: set[str] = set()  # works that the file holds
        self._new: set[str] = set()  # works that were not in it at the start

    def way(self, engine: Any) -> Any:
        """What ``engine.create_execution_context`` takes for memory of ours; to be held as long as the engine."""
        if self._strategies is None:
            return self._own
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._own)
        config.dynamic_shapes_kernel_specialization_strategy = self._strategies.EAGER
        if self._kept is not None:
            if self._cache is None:  # all engines share one
                self._cache = config.create_runtime_cache()
                self._written = _read(self._cache, self._kept)
            config.set_runtime_cache(self._cache)
        return config

    def ran(self, work: Hashable) -> None:
        """Some work, shapes and all, was queued. If it is new to the file, what was compiled is written down, at once while
        there is little. Later several share a write, since each writes all; what a program leaves unwritten at its end is
        less than half of what it compiled, so that the next starts come to an end of it."""
        if self._cache is None or self._kept is None:
            return
        name = str(work)
        if name in self._written or name in self._new:
            return
        self._new.add(name)
        works = self._written | self._new
        if len(self._new).bit_count() == 1 or PART * len(works - self._written) >= len(works):
            _write(self._cache, works, self._kept)
            self._written = works


def _read(cache: Any, path: Path) -> set[str]:
    """What there is -> the works that it is of. The library itself refuses what is damaged, or of another GPU, driver or version."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        works, _, compiled = path.read_bytes().partition(b"\n")
        if cache.deserialize(compiled):
            path.touch()
            return set(json.loads(works))
        log.info("%s is not for this machine: kernels are compiled anew", path)
    return set()


def _write(cache: Any, works: set[str], path: Path) -> None:
    """Readers see all of a file or nothing. A cache that cannot be written costs time at the next start, nothing else."""
    unfinished = path.with_name(f".{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(json.dumps(sorted(works)).encode() + b"\n")
            file.write(cache.serialize())
        unfinished.replace(path)
        written = sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        for old in written[:-MOST_KEPT]:
            old.unlink()
    except OSError as error:
        log.info("what was compiled for this GPU is not kept in %s: %s", path, error)
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
