"""What doctor says is missing for a GPU."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from tortoise_rt.cli.doctor_gpu import Driver, explain, find_driver

NONE = dict.fromkeys(
    ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt-rtx", "tensorrt", "cuda-bindings", "triton"), ""
)
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider, CPUExecutionProvider"
DRIVER = Driver(13000, capabilities=("9.0", "8.9"))


def test_no_driver() -> None:
    rows = dict(explain(Driver(problem="there is no NVIDIA driver"), NONE, CPU, "", "cpu", ""))
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
        ("ONNX Runtime", {"onnxruntime-gpu": "1.30"}, CUDA, "cpu", "ready: tortoise-rt export --target cuda"),
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
    assert says in dict(explain(DRIVER, NONE | installed, providers, "", devices, ""))[way]


def test_libraries_of_cuda_that_are_missing() -> None:
    rows = dict(
        explain(DRIVER, NONE | {"onnxruntime-gpu": "1.30"}, CUDA, "libcublas.so.13: no such file", "cpu", "")
    )
    assert rows["ONNX Runtime"].endswith(
        "pip install 'tortoise-rt[gpu]' brings them (libcublas.so.13: no such file)"
    )


def test_an_old_driver() -> None:
    rows = dict(
        explain(
            Driver(12040, "", ("8.9",)),
            NONE | {"tensorrt-rtx": "1.7", "cuda-bindings": "13.0"},
            CPU,
            "",
            "cpu",
            "",
        )
    )
    assert rows["driver"] == "runs CUDA up to 12.4"
    assert "needs a driver for CUDA 12.9 or newer" in rows["TensorRT for RTX"]


@pytest.mark.parametrize(
    "installed", [{}, {"tensorrt-rtx": "1.7", "tensorrt": "10.9", "cuda-bindings": "13.0"}]
)
def test_a_gpu_that_tensorrt_for_rtx_is_not_for(installed: dict[str, str]) -> None:
    rows = dict(explain(Driver(13000, capabilities=("9.0", "7.5")), NONE | installed, CPU, "", "cpu", ""))
    assert rows["TensorRT for RTX"] == "not for compute capability 9.0, 7.5: use TensorRT"
    assert rows["TensorRT"].startswith("ready" if installed else "tensorrt and cuda-bindings not installed")


def test_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, by the calls and numbers of cuda.h."""
    numbers = {(75, 0): 9, (76, 0): 0, (75, 1): 12, (76, 1): 1}

    def give(place: Any, value: int) -> int:
        place._obj.value = value
        return 0

    library = SimpleNamespace(
        cuInit=lambda flags: 0,
        cuDriverGetVersion=lambda place: give(place, 13010),
        cuDeviceGetCount=lambda place: give(place, 2),
        cuDeviceGetName=lambda place, size, gpu: 0,
        cuDeviceGetAttribute=lambda place, attribute, gpu: give(place, numbers[attribute, gpu]),
    )
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert find_driver() == Driver(13010, "", ("9.0", "12.1"))
