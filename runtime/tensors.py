"""PyTorch's tensors at the edge of the Python interface: taken as arrays, given back as tensors, never imported."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np


def is_tensor(x: Any) -> bool:
    """Whether ``x`` is a PyTorch tensor."""
    return type(x).__module__.partition(".")[0] == "torch"


def any_tensor(*values: Any) -> bool:
    """Whether there is a tensor among ``values``, or in a list or tuple among them."""
    return any(
        any_tensor(*value) if isinstance(value, (list, tuple)) else is_tensor(value) for value in values
    )


def to_array(x: Any) -> np.ndarray:
    """An array of a tensor's numbers, or of anything that NumPy takes; floats become float32."""
    if is_tensor(x):  # half precision has no NumPy dtype everywhere; whole numbers stay whole, to be refused
        x = x.detach().cpu()
        x = (x.float() if x.is_floating_point() else x).numpy()
    array = np.asarray(x)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def in_kind(array: np.ndarray | None, tensors: bool) -> Any:
    """``array`` as it is, or as a CPU tensor with ``tensors``; None stays None."""
    if array is None or not tensors:
        return array
    return sys.modules["torch"].from_numpy(np.ascontiguousarray(array))


def all_in_kind(arrays: Iterable[np.ndarray | None], tensors: bool) -> tuple[Any, ...]:
    """Each of ``arrays`` as :func:`in_kind` gives it."""
    return tuple(in_kind(array, tensors) for array in arrays)
