"""What programs written for the reference get: torch tensors where torch is installed, else arrays.

The one place of the runtime that imports torch, as these programs call its methods on what they are given.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np

from ..tensors import in_kind


def give(value: Any) -> Any:
    """``value`` with tensors for its arrays, those in lists and tuples too, where torch is installed."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(give, value))
    if not isinstance(value, (np.ndarray, np.generic)) or importlib.util.find_spec("torch") is None:
        return value
    importlib.import_module("torch")
    return in_kind(np.asarray(value), True)
