"""Backends: one module each. ``open_engine`` chooses once; nothing after it asks which backend runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..engine import Engine
from ..errors import BundleError, EngineError, MissingDependency, suggest

if TYPE_CHECKING:
    from ..bundle import Bundle

BACKENDS = ("auto", "onnx", "tensorrt", "torch", "fake")
log = logging.getLogger("tortoise_rt")


def open_engine(
    path: str | Path | None = None, backend: str = "auto", device: str = "auto", precision: str | None = None
) -> Engine:
    """An engine from a bundle, or from a folder of checkpoints (torch). None means the demo bundle that ships.

    ``device`` may name several, as "cuda:0,cuda:1": the model is then opened on each, and a scheduler gives each request to
    the one that has least to do. ``backend`` "auto" takes a bundle's own and torch for checkpoints. A bundle with ``backend="torch"`` runs
    the checkpoints that its manifest names. ``precision`` is torch's: "fp32" by default, "fp16" or "bf16"; a bundle has
    that of its export. What is named here is used or refused, never replaced.
    """
    devices = [name.strip() for name in device.split(",")]
    engines = [_open_engine(path, backend, name, precision) for name in devices]
    for engine in engines:
        log.info("engine: %s on %s from %s", engine.info.backend, engine.info.device, engine.info.source)
    if len(engines) == 1:
        return engines[0]
    from .group import EngineGroup

    return EngineGroup(engines)


def _open_engine(path: str | Path | None, backend: str, device: str, precision: str | None) -> Engine:
    """An engine on one device."""
    from .. import bundle as bundles

    if backend not in BACKENDS:
        raise EngineError(f"unknown backend {backend!r}. {suggest(backend, BACKENDS)}")
    if backend == "fake":
        _refuse(precision)
        from .fake import FakeEngine

        return FakeEngine()
    folder = bundles.demo_folder() if path is None else Path(path)
    if not folder.is_dir():
        aside = folder.parent / f".{folder.name}.old"
        hint = f". An export that was killed left the one before at {aside}" if aside.is_dir() else ""
        raise BundleError(
            f"no engine at {folder}: it must be a bundle (tortoise-rt export) or a folder of checkpoints{hint}"
        )
    is_bundle = (folder / bundles.MANIFEST).is_file()
    if backend in ("onnx", "tensorrt") or (backend == "auto" and is_bundle):
        if not is_bundle:
            raise BundleError(
                f"{folder} is not an engine bundle (no {bundles.MANIFEST}). "
                f"Make one: tortoise-rt export --checkpoints {folder} -o BUNDLE"
            )
        _refuse(precision)
        engine: Engine = _open_bundle(bundles.read_bundle(folder), backend, device)
    else:
        source = bundles.read_bundle(folder, verify=False).source_folder if is_bundle else folder
        try:
            from .torch import TorchEngine
        except ImportError as error:
            if error.name is None or not error.name.startswith("torch"):
                raise
            raise MissingDependency(
                f"{source} holds checkpoints, which need PyTorch: pip install 'tortoise-rt[export]', "
                "or export a bundle where PyTorch is installed"
            ) from None
        engine = TorchEngine(source, device, precision or "fp32")
    return engine


def _open_bundle(bundle: Bundle, backend: str, device: str) -> Engine:
    """An engine of the backend that a bundle was exported for, or the one that is named, which may refuse it."""
    if (bundle.manifest["target"]["backend"] if backend == "auto" else backend) == "tensorrt":
        from . import tensorrt

        return tensorrt.open_bundle(bundle, device)
    from . import onnx

    return onnx.open_bundle(bundle, device)


def _refuse(precision: str | None) -> None:
    """Raise an EngineError for a precision where there is none to choose."""
    if precision is not None:
        raise EngineError(
            f"precision {precision!r} is for the backend torch; a bundle has that of its export: leave it out, or run "
            "checkpoints"
        )
