"""What runs on a GPU without PyTorch: kernels that bundles carry, TensorRT's plans, ONNX Runtime's CUDA provider.

What cannot run here is a row that says why; what breaks is one that is not ok.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt.backends import open_engine
from tortoise_rt.backends.device import Device
from tortoise_rt.backends.tensorrt_library import RTX_CAPABILITIES
from tortoise_rt.config import ARSettings
from tortoise_rt.engine import Engine
from tortoise_rt.export.bundle import export_bundle
from tortoise_rt.export.random_checkpoint import write_checkpoints
from tortoise_rt.kernels import ahead
from tortoise_rt.sampling import Drawing

from . import gpu_parity, gpu_speech
from .gpu_cubins import cubins
from .gpu_parts import Skip

Row = dict[str, Any]
TARGETS = (("tensorrt-rtx", "tensorrt_rtx"), ("tensorrt", "tensorrt"), ("cuda", "onnxruntime"))


def lean(size: str, speed: bool) -> dict[str, Callable[[], Iterator[Row]]]:
    """All parts, parity first. ``size``: of the random weights that are timed; ``speed``: whether any are."""
    parts: dict[str, Callable[[], Iterator[Row]]] = {"cubins": cubins}
    for precision in ("fp32", "fp16"):
        for target, module in TARGETS:
            parts[f"{target} in {precision}"] = lambda t=target, m=module, p=precision: parity(t, m, p)
    for target, module in TARGETS if speed else ():
        parts[f"{target}, {size}"] = lambda t=target, m=module: times(t, m, size)
    return parts


@contextlib.contextmanager
def exported(checkpoints: Path, target: str, module: str, precision: str) -> Iterator[tuple[Engine, float]]:
    """-> the engine of a bundle that is made here, and the seconds that it took to make."""
    if importlib.util.find_spec(module) is None:
        raise Skip(f"{module} is not installed")
    if module == "onnxruntime":
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise Skip(f"onnxruntime {onnxruntime.__version__} offers no CUDA")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        arguments: Row = {}
        if target == "tensorrt-rtx":  # building for all kinds of GPU would take longer
            own = Device().compute_capability
            if own not in RTX_CAPABILITIES:
                raise Skip(f"{module} is not for compute capability {own}")
            arguments = {"compute_capabilities": [own]}
        export_bundle(
            checkpoints, Path(folder) / "bundle", target=target, precision=precision, check=False, **arguments
        )
        yield open_engine(Path(folder) / "bundle", device="cuda:0"), time.perf_counter() - start


def parity(target: str, module: str, precision: str) -> Iterator[Row]:
    """Graphs, whole runs, and what the device does by itself, of the tiny checkpoint."""
    with exported(gpu_parity.TINY, target, module, precision) as (engine, seconds):
        yield {
            "kind": "bundle", "target": target, "precision": precision, "export_s": round(seconds, 1),
            "draws_ahead": engine.draws_ahead, "denoises_ahead": engine.denoises_ahead,
        }  # fmt: skip
        yield from gpu_parity.graphs(engine)
        if precision == "fp32":
            yield from gpu_parity.whole_runs(engine)
        if engine.draws_ahead or engine.denoises_ahead:
            yield from gpu_parity.loops(engine)


def times(target: str, module: str, size: str) -> Iterator[Row]:
    """Codes, whole sentences and streams in fp16, of random weights."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoints(Path(folder), size, stop_bias=-1000.0)
        with exported(Path(folder), target, module, "fp16") as (engine, seconds):
            about = {"backend": engine.info.backend, "target": target, "precision": "fp16", "size": size}
            yield about | {"kind": "bundle", "export_s": round(seconds, 1)}
            for rows in (1, 4, 16):
                yield about | code(engine, rows)
            for row in (*gpu_speech.sentences(engine, 16), *gpu_speech.streams(engine, (1, 8))):
                yield about | row


def code(engine: Engine, rows: int, context: int = 250, repeats: int = 20) -> Row:
    """Seconds of a code behind ``context`` positions: read alone and, where the engine does both, read and drawn."""
    rng, dims = np.random.default_rng(0), engine.dims
    cache = engine.new_cache(rows, context + 2 * ahead.DRAWS_AHEAD)
    codes, places = rng.integers(0, 8000 % dims["ar.start_code"], (rows, context)), np.arange(context)
    engine.ar_step(cache, codes, np.broadcast_to(places, codes.shape))
    found: Row = {"kind": "code", "rows": rows, "context": context}
    one = codes[:, :1], np.full((rows, 1), context)

    def reads() -> None:
        engine.ar_step(cache, *one)

    drawings = [
        Drawing(np.zeros(dims["ar.mel_codes"], bool), rng.random(ahead.DRAWS_AHEAD), ARSettings())
    ] * rows

    def draws() -> None:
        engine.ar_draw(cache, *one, drawings)

    for name, work, count in (("read_s", reads, 1), ("drawn_s", draws, engine.draws_ahead)):
        if count:
            seconds = []
            for _ in range(3 + repeats):
                cache.lengths[:] = context
                start = time.perf_counter()
                work()
                seconds.append(time.perf_counter() - start)
            found[name] = float(np.median(seconds[3:])) / count
    return found
