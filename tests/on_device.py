"""What tests of kernels share: they run on a GPU where there is one, else in Triton's interpreter. Import it before Triton."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="needs Triton: pip install 'triton==3.6.0' 'numpy<2.4'")
if DEVICE == "cpu" and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    pytest.skip("Triton 3.6's interpreter does not work with NumPy from 2.4 on", allow_module_level=True)

#: type -> largest error of a kernel, of the output's range
TYPES = [(torch.float32, 1e-5), (torch.float16, 3e-3), (torch.bfloat16, 3e-2)]


def normal(*shape: int) -> np.ndarray:
    """The same numbers for a shape."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def there(array: np.ndarray, dtype: Any = None) -> Any:
    """A copy on the device."""
    return torch.from_numpy(array.copy()).to(DEVICE, dtype)


def here(tensor: Any) -> np.ndarray:
    """A copy on the host, float32 where it is not whole numbers."""
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()


def _multiply_bfloat16() -> None:
    """The interpreter holds bfloat16 as its bits, and would multiply those."""
    from triton.language import bfloat16, float32
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    multiply = InterpreterBuilder.create_dot

    def widened(factor: Any) -> Any:
        if factor.dtype.scalar != bfloat16:
            return factor
        return TensorHandle((factor.data.astype(np.uint32) << 16).view(np.float32), float32)

    def create_dot(self: Any, a: Any, b: Any, *more: Any) -> Any:
        return multiply(self, widened(a), widened(b), *more)

    InterpreterBuilder.create_dot = create_dot


if DEVICE == "cpu":
    _multiply_bfloat16()
