"""What TensorRT for RTX compiles on the GPU that runs its plans: when, and where it is kept for the next start.

In shapes that are new to it the library would go on with slower kernels and compile better ones meanwhile; a recording
made then holds the slower ones for good. So work in new shapes waits. Plain TensorRT compiles nothing here.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Hashable
from pathlib import Path
from typing import Any

MOST_KEPT = 16  #: files in the folder; those that were written longest ago go
log = logging.getLogger("tortoise_rt")


class Compiled:
    """How a library's plans are set up. Not for several threads at a time."""

    def __init__(self, library: Any, kept: Path | None = None) -> None:
        """kept: the file that what was compiled is kept in, if any."""
        self._own = library.ExecutionContextAllocationStrategy.USER_MANAGED
        self._strategies = getattr(library, "DynamicShapesKernelSpecializationStrategy", None)
        self._kept, self._cache = kept, None
        self._known: set[int] = set()  # of works, by hash

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
                _read(self._cache, self._kept)
            config.set_runtime_cache(self._cache)
        return config

    def ran(self, work: Hashable) -> None:
        """Some work, shapes and all, was queued. Each time that the number of different ones doubles, what was compiled
        is written down: so a program that is killed leaves most of it, and few of many shapes cost a file each."""
        if self._cache is not None and self._kept is not None and hash(work) not in self._known:
            self._known.add(hash(work))
            if len(self._known).bit_count() == 1:
                _write(self._cache, self._kept)


def _read(cache: Any, path: Path) -> None:
    """What there is. The library itself refuses what is damaged, or of another GPU, driver or version."""
    with contextlib.suppress(OSError):
        if not cache.deserialize(path.read_bytes()):
            log.info("%s is not for this machine: kernels are compiled anew", path)


def _write(cache: Any, path: Path) -> None:
    """Readers see all of a file or nothing. A cache that cannot be written costs time at the next start, nothing else."""
    unfinished = path.with_name(f".{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished.write_bytes(cache.serialize())
        unfinished.replace(path)
        written = sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        for old in written[:-MOST_KEPT]:
            old.unlink()
    except OSError as error:
        log.info("what was compiled for this GPU is not kept in %s: %s", path, error)
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
