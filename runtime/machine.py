"""What figures were taken on."""

from __future__ import annotations

import contextlib
import os
import platform
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
