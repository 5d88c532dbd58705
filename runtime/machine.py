"""What figures were taken on."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ._version import __version__

PACKAGES = ("numpy", "onnxruntime", "torch", "faster-whisper", "ctranslate2", "speechmos", "resemblyzer")


def cpu_name() -> str:
    """The processor's model where the system tells it, else its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def resident_mib() -> float:
    """Memory that this process holds now; Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mib() -> int:
    """The most memory that this process has held since it began, or since :func:`reset_peak`.

    Where the system tells no better, with that of the process it was forked from.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) >> 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)


def reset_peak() -> None:
    """Let :func:`peak_mib` begin with what is held now; Linux only, elsewhere nothing."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def environment() -> dict[str, Any]:
    """This machine and what is installed on it; None for a package that is not."""
    versions: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "kind": "environment",
        "tortoise_rt": __version__,
        "python": platform.python_version(),
        **versions,
        "device": cpu_name(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("TORTOISE_RT_THREADS") or os.environ.get("OMP_NUM_THREADS"),
    }
