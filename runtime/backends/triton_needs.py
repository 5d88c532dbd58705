"""What Triton needs beside itself: it compiles C to start and to launch each kernel, though not to compile kernels for bundles."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path


def lacking() -> str:
    """What Triton would not find here, and what to do; "" for nothing.

    It takes the compiler that CC names, else gcc or clang, and Python.h from where this Python was built to have it.
    """
    named = os.environ.get("CC")
    if named is not None and shutil.which(named) is None:
        return f"CC names {named!r}, which is no program here: correct it, or unset it and install gcc"
    if named is None and shutil.which("gcc") is None and shutil.which("clang") is None:
        return "there is no C compiler: install gcc or clang (apt install gcc), or name one in CC"
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme  # Debian's own, where headers are not
    header = Path(sysconfig.get_paths(scheme)["include"], "Python.h")
    if not header.is_file():
        return f"there is no {header}: install Python's headers (apt install python3-dev)"
    return ""
