"""TensorRT and TensorRT for RTX as modules: finding one, which bundles it can run, hearing what it says."""

from __future__ import annotations

import importlib
import logging
import re
from typing import TYPE_CHECKING, Any

from ..errors import BundleMismatch, MissingDependency

if TYPE_CHECKING:
    from ..bundle import Bundle
    from .device import Device

#: module -> the export target and how it is installed
LIBRARIES = {
    "tensorrt": ("tensorrt", "pip install tensorrt cuda-bindings, from NVIDIA's own package index"),
    "tensorrt_rtx": ("tensorrt-rtx", "pip install 'tortoise-rt[tensorrt-rtx]'"),
}
#: compute capabilities that TensorRT for RTX is for. It knows 7.5 as well, but multiplies no matrices of float32 there
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
#: the warning that an input has no effect, which is all that is said of it
UNUSED = re.compile(r"Input Tensor (\S+) is unused")
log = logging.getLogger("tortoise_rt")


def load_library(name: str) -> Any:
    """One of LIBRARIES, imported when it is needed; raises MissingDependency."""
    try:
        library = importlib.import_module(name)
        library.Runtime  # noqa: B018  # the index has packages of this name that hold nothing
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingDependency(
            f"the library {name} cannot be loaded ({reason}): {LIBRARIES[name][1]}"
        ) from None
    return library


def rebuild_command(bundle: Bundle, gpu: Device | None = None) -> str:
    """What builds a bundle again on this machine, for this GPU where one is given."""
    manifest = bundle.manifest
    source = manifest["model"].get("folder") or "DIR"
    target = LIBRARIES[manifest["target"]["library"]][0]
    if gpu is not None and gpu.compute_capability not in RTX_CAPABILITIES:
        target = "tensorrt"
    precisions = sorted({*manifest["precision"].values()} - {"fp32"}, key=lambda name: name == "fp16")
    reduced = f" --precision {precisions[0]}" if precisions else ""  # of int8 and fp8 some graphs are fp16
    return f"tortoise-rt export --checkpoints {source} --target {target}{reduced} --force -o {bundle.folder}"


def check_version(bundle: Bundle, installed: str) -> None:
    """Raise a BundleMismatch unless the bundle's plans are of the library's version that is installed."""
    target = bundle.manifest["target"]
    built = target["libraries"].get(target["library"])
    if built != installed:
        raise BundleMismatch(
            f"{bundle.folder} was built with {target['library']} {built}; {installed} is installed, and plans are of one "
            f"version alone. Build it again: {rebuild_command(bundle)}"
        )


def check_gpu(bundle: Bundle, gpu: Device) -> None:
    """Raise a BundleMismatch unless the bundle's plans are for this GPU."""
    target = bundle.manifest["target"]
    capabilities, name = target["compute_capability"] or RTX_CAPABILITIES, target["device_name"]
    one_gpu = target["library"] == "tensorrt"
    if gpu.compute_capability not in capabilities or (one_gpu and name != gpu.name):
        made_for = name if one_gpu else f"compute capability {', '.join(capabilities)}"
        raise BundleMismatch(
            f"{bundle.folder} was built for {made_for}; this machine has {gpu.name} (compute capability "
            f"{gpu.compute_capability}). Build it here: {rebuild_command(bundle, gpu)}"
        )


class Messages:
    """A logger for the library, which passes on to ours what matters and keeps the last error."""

    def __init__(self, library: Any) -> None:
        self._last = ""
        self.unused: list[
            str
        ] = []  #: inputs of networks that have no effect, as far as the library found them out
        severity = library.ILogger.Severity
        levels = {
            severity.INTERNAL_ERROR: logging.ERROR,
            severity.ERROR: logging.ERROR,
            severity.WARNING: logging.INFO,
        }
        messages = self

        class Logger(library.ILogger):
            def __init__(self) -> None:
                library.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                level = levels.get(severity, logging.DEBUG)
                if level == logging.ERROR:  # it becomes an exception; a line of its own would say it twice
                    messages._last, level = message.strip(), logging.DEBUG
                messages.unused.extend(UNUSED.findall(message))
                log.log(level, "%s: %s", library.__name__, message)

        self.logger = Logger()

    def last(self) -> str:
        """The last error that was told, and no more of it."""
        last, self._last = self._last, ""
        return last.splitlines()[0] if last else "the library gives no reason"
