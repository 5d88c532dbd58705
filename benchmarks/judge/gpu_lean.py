"""What runs on a GPU without PyTorch: kernels that bundles carry, TensorRT's plans, ONNX Runtime's CUDA provider.

What cannot run here is a row that says why; what breaks is one that is not ok. Rows are like those of the run with PyTorch,
to be read beside them: tortoise-tts's own classes, and what the card multiplies, need PyTorch, and are in that run alone.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt.backends import open_engine
from tortoise_rt.backends.device import Block, Device
from tortoise_rt.backends.tensorrt_library import RTX_CAPABILITIES
from tortoise_rt.config import ARSettings
from tortoise_rt.engine import Engine
from tortoise_rt.errors import MissingDependency
from tortoise_rt.export.random_checkpoint import write_checkpoints
from tortoise_rt.kernels import ahead
from tortoise_rt.sampling import Drawing

from . import gpu_parity, gpu_speech
from .gpu_cubins import cubins
from .gpu_parts import MOST, Skip

Row = dict[str, Any]
PLANS = ("fp32", "fp16", "bf16", "int8", "fp8")
#: target -> the module that runs it, and what it can be exported in
TARGETS = {
    "tensorrt-rtx": ("tensorrt_rtx", PLANS),
    "tensorrt": ("tensorrt", PLANS),
    "cuda": ("onnxruntime", ("fp32", "fp16")),
}
FEW = 64  #: streams at once; more only where there is time
PITCH = 1 << 20  #: bytes of a row of what is copied
TIMED = ("fp16", "int8", "fp8")  #: of a code: the eight bits beside the sixteen


def lean(size: str, speed: bool) -> dict[str, Callable[[], Iterator[Row]]]:
    """All parts, what matters most first. ``size``: of the random weights that are timed; ``speed``: whether any are."""
    parts: dict[str, Callable[[], Iterator[Row]]] = {"cubins": cubins}
    for precision in PLANS[:2]:
        parts |= checks(precision)
    if speed:
        parts["ceilings"] = ceilings
        parts |= {f"{target}, {size}": functools.partial(speech, target, size) for target in TARGETS}
    for precision in TIMED if speed else ():
        for target in here(precision):
            work = functools.partial(codes, target, precision, size)
            parts[f"codes by {target} in {precision}, {size}"] = work
    for precision in PLANS[2:]:
        parts |= checks(precision)
    return parts


def here(precision: str) -> list[str]:
    """The targets that can be exported in it."""
    return [target for target, (_, precisions) in TARGETS.items() if precision in precisions]


def checks(precision: str) -> dict[str, Callable[[], Iterator[Row]]]:
    """A part for each target."""
    return {
        f"{target} in {precision}": functools.partial(parity, target, precision) for target in here(precision)
    }


def ceilings(device: Device | None = None, nbytes: int = 1 << 30, repeats: int = 5) -> Iterator[Row]:
    """What the card copies, by the driver alone; ``nbytes``: a multiple of PITCH."""
    device, seconds = device or Device(), []
    with device.turn():
        memories = [device.allocate(nbytes, "a copy", zeros=True) for _ in range(2)]
        target, source = (Block(memory.address, PITCH, nbytes // PITCH) for memory in memories)
        for _ in range(3 + repeats):
            device.synchronize()
            start = time.perf_counter()
            device.copy(target, source, PITCH, nbytes // PITCH, 1)
            device.synchronize()
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[3:])
    yield {
        "kind": "ceiling", "what": "copy", "by": "cuMemcpy3DAsync", "gb_per_s": 2 * nbytes / median / 1e9, "median_s": median,
        "min_s": min(seconds[3:]), "max_s": max(seconds[3:]), "repeats": repeats,
    }  # fmt: skip


@contextlib.contextmanager
def exported(checkpoints: Path, target: str, precision: str) -> Iterator[tuple[Engine, float]]:
    """-> the engine of a bundle that is made here, and the seconds that it took to make."""
    module, _ = TARGETS[target]
    if importlib.util.find_spec(module) is None:
        raise Skip(f"{module} is not installed")
    if module == "onnxruntime":
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise Skip(f"onnxruntime {onnxruntime.__version__} offers no CUDA")
    from tortoise_rt.export.bundle import export_bundle  # here: kernels are checked without onnx as well
    from tortoise_rt.export.targets import FP8_SINCE

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        arguments: Row = {}
        own = Device().compute_capability if target != "cuda" else ""
        if precision == "fp8" and tuple(map(int, own.split("."))) < FP8_SINCE:
            raise Skip(f"compute capability {own} has no fp8")
        if target == "tensorrt-rtx":  # building for all kinds of GPU would take longer
            if own not in RTX_CAPABILITIES:
                raise Skip(f"{module} is not for compute capability {own}")
            arguments = {"compute_capabilities": [own]}
        export_bundle(
            checkpoints, Path(folder) / "bundle", target=target, precision=precision, check=False, **arguments
        )
        yield open_engine(Path(folder) / "bundle", device="cuda:0"), time.perf_counter() - start


def parity(target: str, precision: str) -> Iterator[Row]:
    """Graphs, whole runs, and what the device does by itself, of the tiny checkpoint."""
    with exported(gpu_parity.TINY, target, precision) as (engine, seconds):
        yield {
            "kind": "bundle", "target": target, "precision": precision, "export_s": round(seconds, 1),
            "draws_ahead": engine.draws_ahead, "denoises_ahead": engine.denoises_ahead,
        }  # fmt: skip
        yield from gpu_parity.graphs(engine)
        if precision == "fp32":
            yield from gpu_parity.whole_runs(engine)
        if engine.draws_ahead or engine.denoises_ahead:
            yield from gpu_parity.loops(engine)
        yield from gpu_parity.moved_rows(engine)
        code(engine, 1, context=9, repeats=1)  # as often as recordings take
        yield recordings(engine) | {"target": target, "precision": precision}


def recordings(engine: Any) -> Row:
    """What of the work that repeats could be recorded. Of ONNX Runtime: steps that were run as often as takes, unrefused."""
    if engine.info.backend == "onnx":
        recorded, refused = engine.recorded, int(not engine.records)
    else:
        recorded, refused = engine._plans.replays.recorded, engine._plans.replays.refused
    return {
        "kind": "recordings",
        "recorded": recorded,
        "refused": refused,
        "ok": recorded > 0 and not refused,
    }


@contextlib.contextmanager
def of_random_weights(
    target: str, precision: str, size: str, only: list[str] | None = None
) -> Iterator[tuple[Engine, Row]]:
    """-> the engine, and what is said of it in each row."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoints(Path(folder), size, only=only, stop_bias=-1000.0)
        with exported(Path(folder), target, precision) as (engine, seconds):
            about = {"backend": engine.info.backend, "target": target, "precision": precision, "size": size}
            yield engine, about | {"export_s": round(seconds, 1)}


def codes(target: str, precision: str, size: str) -> Iterator[Row]:
    """Codes of one row and of several."""
    with of_random_weights(target, precision, size, ["autoregressive"]) as (engine, about):
        for rows in (1, 4, 16):
            yield about | code(engine, rows)
        yield about | recordings(engine)


def speech(target: str, size: str) -> Iterator[Row]:
    """Whole sentences and streams in fp16; the most streams only where there is time and memory."""
    start = time.perf_counter()
    with of_random_weights(target, "fp16", size) as (engine, about):
        few = [count for count in gpu_speech.TOGETHER if count <= FEW]
        for row in itertools.chain(gpu_speech.sentences(engine, 16), gpu_speech.streams(engine, few, room)):
            yield about | row
        for count in (count for count in gpu_speech.TOGETHER if count > FEW):
            if (passed := time.perf_counter() - start) > MOST / 2:
                reason = f"{passed:.0f} of the {MOST:g} s of a part had passed"
                yield {"kind": "skip", "what": f"{count} streams at once", "reason": reason}
            else:
                yield from (about | row for row in gpu_speech.streams(engine, (count,), room))


def room() -> int | None:
    """Bytes of the GPU that are free, without what engines keep for themselves; None where nothing can tell."""
    try:
        device = Device()
    except MissingDependency:
        return None
    with device.turn():
        free, _ = device.memory()
    return free


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
