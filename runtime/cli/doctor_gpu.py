"""What ``doctor`` says of a GPU: whether there is one, what can use it, and what is missing for that."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from ..backends import driver
from ..backends.tensorrt_library import LIBRARIES, RTX_CAPABILITIES

_NVIDIA_QUERY = ("--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader")
LEAST_CUDA = 12090  #: of the driver, for TensorRT for RTX; 12.9
#: results of cuInit that say what to do
_PROBLEMS = {
    100: "the driver finds no GPU: in a container, start it with --gpus all",
    803: "the driver's parts are of different versions: restart the machine",
    804: "the driver is too old for the libraries that are installed: update it",
}


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver."""

    cuda: int = 0  #: newest CUDA that it runs, as 13000; 0 where it cannot be used
    problem: str = ""  #: why not
    capabilities: tuple[str, ...] = ()  #: compute capability of each GPU


def find_driver() -> Driver:
    """The driver, asked as programs ask it."""
    library = driver.find()
    if library is None:
        return Driver(problem="there is no NVIDIA driver")
    if code := library.cuInit(0):
        return Driver(problem=_PROBLEMS.get(code, f"the NVIDIA driver does not start (error {code})"))
    version = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    return Driver(version.value, capabilities=tuple(capability for _, capability in driver.gpus(library)))


def find_gpus() -> list[str]:
    """One line per NVIDIA GPU: name, driver, memory, compute capability."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        answer = subprocess.run(
            [program, *_NVIDIA_QUERY], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return [f"nvidia-smi fails: {error}"]
    return answer.stdout.strip().splitlines()


def explain(
    driver: Driver,
    installed: Mapping[str, str],
    providers: str,
    cuda_lacks: str,
    torch_devices: str,
    triton_lacks: str,
) -> list[tuple[str, str]]:
    """What each way to use a GPU needs here.

    installed: package -> version, "" for none; providers, torch_devices: as doctor says; cuda_lacks: as ``onnx_cuda``;
    triton_lacks: as ``triton_needs``.
    """
    if not driver.cuda:
        return [
            ("none", driver.problem),
            (
                "without one",
                "engines can be built for other machines: tortoise-rt export --target tensorrt-rtx",
            ),
            ("kernels", _kernels(installed, triton_lacks)),
        ]
    return [
        ("driver", f"runs CUDA up to {driver.cuda // 1000}.{driver.cuda % 1000 // 10}"),
        ("PyTorch", _torch(installed, torch_devices)),
        ("ONNX Runtime", _onnxruntime(installed, providers, cuda_lacks)),
        ("TensorRT for RTX", _tensorrt("tensorrt_rtx", driver, installed)),
        ("TensorRT", _tensorrt("tensorrt", driver, installed)),
        ("kernels", _kernels(installed, triton_lacks)),
    ]


def _torch(installed: Mapping[str, str], devices: str) -> str:
    if not installed["torch"]:
        return "not installed; runs checkpoints: pip install 'tortoise-rt[export]'"
    if devices in ("cpu", "not installed"):
        return f"{installed['torch']} finds no GPU: install its build for CUDA (see pytorch.org)"
    return "ready: tortoise-rt say --checkpoints DIR --device cuda --precision fp16"


def _onnxruntime(installed: Mapping[str, str], providers: str, cuda_lacks: str) -> str:
    if installed["onnxruntime"] and installed["onnxruntime-gpu"]:
        return "both builds are installed, and hide each other: pip uninstall onnxruntime onnxruntime-gpu, then pip install 'tortoise-rt[gpu]'"
    if not installed["onnxruntime-gpu"]:
        return "its build for GPUs is not installed: pip uninstall onnxruntime, then pip install 'tortoise-rt[gpu]'"
    if "CUDAExecutionProvider" not in providers:
        return f"onnxruntime-gpu {installed['onnxruntime-gpu']} offers no CUDA: pip install --force-reinstall 'tortoise-rt[gpu]'"
    if cuda_lacks:
        return f"CUDA and cuDNN are not all there: pip install 'tortoise-rt[gpu]' brings them ({cuda_lacks})"
    return "ready: tortoise-rt export --target cuda"


def _tensorrt(name: str, driver: Driver, installed: Mapping[str, str]) -> str:
    target, command = LIBRARIES[name]
    if name == "tensorrt_rtx" and not {*driver.capabilities} & {*RTX_CAPABILITIES}:
        return f"not for compute capability {', '.join(driver.capabilities)}: use TensorRT"
    if not installed[target] or not installed["cuda-bindings"]:
        missing = [package for package in (target, "cuda-bindings") if not installed[package]]
        return f"{' and '.join(missing)} not installed: {command}"
    if name == "tensorrt_rtx" and driver.cuda < LEAST_CUDA:
        return f"{installed[target]} needs a driver for CUDA 12.9 or newer: update the driver"
    return f"ready: tortoise-rt export --target {target}"


def _kernels(installed: Mapping[str, str], triton_lacks: str) -> str:
    if not installed["triton"]:
        return (
            "Triton is not installed: bundles that are exported here carry no kernels, and PyTorch is slower: "
            "pip install 'tortoise-rt[kernels]'"
        )
    carried = "exports for TensorRT carry them, and engines that run those need no Triton"
    return f"{carried}; PyTorch is slower, as {triton_lacks}" if triton_lacks else f"ready: {carried}"
