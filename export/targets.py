"""What a bundle can be exported for, and what its manifest says of that."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tortoise_rt.backends.device import Device
from tortoise_rt.backends.tensorrt_library import RTX_CAPABILITIES, load_library
from tortoise_rt.errors import EngineError, MissingDependency, suggest

from . import quantize
from .onnx import standard
from .tensorrt import capability_names

AUTO = "auto"  #: the precision that is chosen by measurement
#: precision of a fused graph -> the first ONNX Runtime that runs it; two digits each, so that they order as text.
#: 1.22 is the first whose MatMulNBits on the CPU takes eight bits: 1.21.1 says "Only 4b quantization is supported".
MIN_ONNXRUNTIME: Mapping[str, str] = {"fp32": "1.20", "int8": "1.22", "int4": "1.22", "int8row": "1.20"}
FP8_SINCE = (8, 9)  #: the first compute capability that has it
#: of a standard graph on CUDA: the first that runs all of ar_step there, which is of operator set 24. 1.26 has that set's
#: TensorScatter, and leaves Reshape to the CPU (seen once, over stand-ins for CUDA's libraries; not recorded)
MIN_CUDA = "1.27"


@dataclass(frozen=True)
class Target:
    """A kind of machine, and the library that runs graphs there."""

    backend: str
    device: str
    family: str  #: of graphs, see ``export.onnx.FAMILIES``
    precisions: tuple[str, ...]
    library: str = ""  #: that builds plans; "" where the graphs are what runs

    def graph_precision(self, graph: str, precision: str) -> str:
        """What ``precision`` means for a graph."""
        family = quantize if self.family == "fused" else standard
        return family.graph_precision(graph, precision)


TARGETS: Mapping[str, Target] = {
    "cpu": Target("onnx", "cpu", "fused", (*quantize.PRECISIONS, AUTO)),
    "cuda": Target("onnx", "cuda", "standard", ("fp32", "fp16")),
    "tensorrt": Target("tensorrt", "cuda", "standard", tuple(standard.PRECISIONS), "tensorrt"),
    "tensorrt-rtx": Target("tensorrt", "cuda", "standard", tuple(standard.PRECISIONS), "tensorrt_rtx"),
}


def find_target(name: str, precision: str, capabilities: Sequence[str]) -> Target:
    """The target of that name; raises EngineError for one that is unknown or cannot do what is asked."""
    if name not in TARGETS:
        raise EngineError(f'the export target "{name}" is unknown. {suggest(name, TARGETS)}')
    target = TARGETS[name]
    if precision not in target.precisions:
        raise EngineError(
            f'no precision is called "{precision}" for {name}. {suggest(precision, target.precisions)}'
        )
    if capabilities and target.library != "tensorrt_rtx":
        raise EngineError(
            f"{name} builds for the machine that it runs on: --compute-capability is for tensorrt-rtx"
        )
    return target


def find_gpu(target: Target) -> tuple[Any, Device | None]:
    """-> the library that builds a target's plans, and this machine's GPU; None for what there is not.

    Raises MissingDependency without the library, EngineError without a GPU where plans are built on it.
    """
    if not target.library:
        return None, None
    library = load_library(target.library)
    try:
        return library, Device()
    except (EngineError, MissingDependency) as error:
        if target.library == "tensorrt":
            raise EngineError(
                f"tensorrt builds plans on the GPU that they are for: {error}. tensorrt-rtx builds them without one"
            ) from None
        return library, None


def choose_capabilities(
    target: Target, precision: str, library: Any, gpu: Device | None, named: Sequence[str]
) -> tuple[str, ...]:
    """The compute capabilities that plans are built for: those ``named``, or all that the library and the precision have.

    Raises EngineError, which says what can be used instead, where what is named or, if nothing is, this machine's GPU
    is not among these.
    """
    if not target.library:
        return ()
    here = [gpu.compute_capability] if gpu else []
    built = [name for name in RTX_CAPABILITIES if name in capability_names(library)]
    known = here if target.library == "tensorrt" else built
    able = [name for name in known if precision != "fp8" or _numbers(name) >= FP8_SINCE]
    for capability in named or here:
        if capability not in known:
            instead = "" if named else f"; or build for another GPU with --compute-capability {able[0]}"
            raise EngineError(
                f"{library.__name__} {library.__version__} is for compute capability {', '.join(known)}, not "
                f"{capability}: use --target tensorrt, on the GPU that has it{instead}"
            )
        if capability not in able:
            raise EngineError(
                f"fp8 came with compute capability 8.9; a GPU of {capability} lacks it: use --precision int8"
            )
    return tuple(named or able)


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))


def describe(
    target: Target, precisions: Iterable[str], library: Any, gpu: Device | None, capabilities: Sequence[str]
) -> dict[str, Any]:
    """What the manifest says of where a bundle of graphs in these precisions runs, and of what made it."""
    said: dict[str, Any] = {
        "backend": target.backend,
        "device": target.device,
        "device_name": platform.processor() or platform.machine(),
        "compute_capability": None,
        "driver": None,
        "libraries": {package: _version(package) for package in ("onnxruntime", "onnx", "torch", "numpy")},
    }
    if target.library:
        said |= {
            "library": target.library,
            "device_name": gpu.name if gpu else None,
            "compute_capability": list(capabilities),
            "driver": gpu.driver if gpu else None,
        }
        said["libraries"][target.library] = library.__version__
        return said
    fused = target.family == "fused"
    needed = max(MIN_ONNXRUNTIME[precision] for precision in precisions) if fused else MIN_CUDA
    provider = "CPUExecutionProvider" if target.device == "cpu" else "CUDAExecutionProvider"
    return said | {"provider": provider, "requires": {"onnxruntime": needed}}


def _version(package: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return None
