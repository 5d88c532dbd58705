"""CUDA's libraries for ONNX Runtime, which looks for them where the system does, not where pip puts NVIDIA's wheels."""

from __future__ import annotations

import contextlib
import functools
import io
import threading
from typing import Any

from .onnx_checks import first_line

_LOADING = threading.Lock()


def load_libraries(runtime: Any) -> str:
    """Load, once, what pip has installed, else what the system has; -> the first that is missing and why, "" for none.

    runtime: the module. Never raises: a session says by itself where it cannot run.
    """
    with _LOADING:
        return _loaded(runtime)


@functools.cache
def _loaded(runtime: Any) -> str:
    said = io.StringIO()
    try:
        # It prints what it does not find, on the standard output, where a clip may go.
        with contextlib.redirect_stdout(said):
            getattr(runtime, "preload_dlls", lambda: None)()
    except Exception as error:
        return first_line(error)
    return next(iter(said.getvalue().splitlines()), "")
