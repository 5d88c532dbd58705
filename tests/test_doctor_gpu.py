"""What doctor says is missing for a GPU."""

from __future__ import annotations

import pytest

from tortoise_rt.cli.doctor_gpu import Driver, explain

NONE = dict.fromkeys(
    ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt-rtx", "tensorrt", "cuda-bindings", "triton"), ""
)
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider, CPUExecutionProvider"
DRIVER = Driver(13000)


def test_no_driver() -> None:
    rows = dict(explain(Driver(problem="there is no NVIDIA driver"), NONE, CPU, "cpu"))
    assert rows["none"] == "there is no NVIDIA driver"
    assert "tortoise-rt export --target tensorrt-rtx" in rows["without one"]
    assert "pip install 'tortoise-rt[kernels]'" in rows["kernels"]


@pytest.mark.parametrize(
    ("way", "installed", "providers", "devices", "says"),
    [
        ("PyTorch", {}, CPU, "not installed", "pip install 'tortoise-rt[export]'"),
        ("PyTorch", {"torch": "2.9+cpu"}, CPU, "cpu", "2.9+cpu finds no GPU"),
        ("PyTorch", {"torch": "2.9"}, CPU, "cpu, NVIDIA X", "ready"),
        ("ONNX Runtime", {"onnxruntime": "1.30"}, CPU, "cpu", "pip uninstall onnxruntime, then pip install"),
        ("ONNX Runtime", {"onnxruntime": "1.30", "onnxruntime-gpu": "1.30"}, CUDA, "cpu", "hide each other"),
        ("ONNX Runtime", {"onnxruntime-gpu": "1.30"}, CPU, "cpu", "onnxruntime-gpu 1.30 offers no CUDA"),
        ("ONNX Runtime", {"onnxruntime-gpu": "1.30"}, CUDA, "cpu", "ready, if CUDA and cuDNN are"),
        ("TensorRT for RTX", {}, CPU, "cpu", "tensorrt-rtx and cuda-bindings not installed: pip install"),
        ("TensorRT for RTX", {"tensorrt-rtx": "1.7"}, CPU, "cpu", "cuda-bindings not installed"),
        (
            "TensorRT for RTX",
            {"tensorrt-rtx": "1.7", "cuda-bindings": "13.0"},
            CPU,
            "cpu",
            "ready: tortoise-rt export",
        ),
        ("TensorRT", {"cuda-bindings": "13.0"}, CPU, "cpu", "from NVIDIA's own package index"),
        (
            "kernels",
            {},
            CPU,
            "cpu",
            "carry no kernels, and PyTorch is slower: pip install 'tortoise-rt[kernels]'",
        ),
        ("kernels", {"triton": "3.6"}, CPU, "cpu", "ready: exports for TensorRT carry them"),
    ],
)
def test_what_is_missing(
    way: str, installed: dict[str, str], providers: str, devices: str, says: str
) -> None:
    assert says in dict(explain(DRIVER, NONE | installed, providers, devices))[way]


def test_an_old_driver() -> None:
    rows = dict(explain(Driver(12040), NONE | {"tensorrt-rtx": "1.7", "cuda-bindings": "13.0"}, CPU, "cpu"))
    assert rows["driver"] == "runs CUDA up to 12.4"
    assert "needs a driver for CUDA 12.9 or newer" in rows["TensorRT for RTX"]
