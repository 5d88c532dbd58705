"""What runs on a GPU without PyTorch: kernels that bundles carry, TensorRT's plans, ONNX Runtime's CUDA provider.

Parity first, then speed. What cannot run here is a row that says why; what breaks is one that is not ok.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt.backends import open_engine
from tortoise_rt.backends.cubins import WARP, argument_types, nearest
from tortoise_rt.backends.device import Device, Kernel
from tortoise_rt.backends.replays import Replays
from tortoise_rt.backends.tensorrt_ahead import Staged
from tortoise_rt.backends.tensorrt_library import RTX_CAPABILITIES
from tortoise_rt.config import ARSettings
from tortoise_rt.engine import Engine
from tortoise_rt.errors import MissingDependency
from tortoise_rt.export.bundle import export_bundle
from tortoise_rt.export.kernels import CAPABILITIES, can_compile, compile_kernels
from tortoise_rt.export.random_checkpoint import write_checkpoints
from tortoise_rt.kernels import ahead
from tortoise_rt.samplers import DenoisingStep, Update
from tortoise_rt.sampling import NOTHING, Drawing
from tortoise_rt.spec import MELS

from . import gpu_parity, gpu_speech

Row = dict[str, Any]
DIMS = {"ar.mel_codes": 8194, "ar.start_code": 8192, "ar.stop_code": 8193, "diffusion.dim": 1024}
SETTINGS = {
    "usual": ARSettings(),
    "every code": ARSettings(top_k=0, top_p=1.0, temperature=3.0),
    "nucleus": ARSettings(top_k=0, top_p=0.95, temperature=2.0),
    "typical": ARSettings(typical=True, typical_mass=0.4, top_k=0),
    "greedy": ARSettings(greedy=True),
}
CALLS = 3  #: as it is, recorded as well, replayed


def lean(size: str, speed: bool) -> Iterator[Row]:
    """All of it. ``size``: of the random weights that are timed; ``speed``: whether any are."""
    yield from guarded("cubins", cubins)
    targets = (("tensorrt-rtx", "tensorrt_rtx"), ("tensorrt", "tensorrt"), ("cuda", "onnxruntime"))
    for precision in ("fp32", "fp16"):
        for target, module in targets:
            yield from guarded(
                f"{target} in {precision}", lambda t=target, m=module, p=precision: parity(t, m, p)
            )
    for target, module in targets if speed else ():
        yield from guarded(f"{target}, {size}", lambda t=target, m=module: times(t, m, size))


def guarded(what: str, rows: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """The rows, and one of how long they took; instead of the rest, why there is no more."""
    start = time.perf_counter()
    try:
        yield from rows()
    except (MissingDependency, _Skip) as error:
        yield {"kind": "skip", "what": what, "reason": str(error)}
    except Exception as error:  # one that breaks must not take the others' time
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        yield {
            "kind": "broken",
            "what": what,
            "error": f"{type(error).__name__}: {error}",
            "at": place,
            "ok": False,
        }
    yield {"kind": "took", "what": what, "seconds": round(time.perf_counter() - start, 1)}


class _Skip(Exception):
    """There is nothing to check here."""


# --- kernels ---


def cubins() -> Iterator[Row]:
    """The kernels that bundles carry, through the driver alone, against their references."""
    device = Device()
    if not can_compile():
        raise _Skip("Triton is not installed")
    capability = nearest(device.compute_capability, CAPABILITIES)
    if capability is None:
        raise _Skip(f"no kernels for compute capability {device.compute_capability}")
    with tempfile.TemporaryDirectory() as folder:
        said = compile_kernels(DIMS, [capability], Path(folder))
        kernels = {}
        for name, kernel in ahead.carried(DIMS).items():
            made = said[name]["compiled"][capability]
            types = argument_types(kernel, made["spare"])
            image = Path(folder, made["file"]).read_bytes()
            kernels[name] = device.load(image, kernel.function, types, kernel.warps * WARP, made["shared"])
    about = {"kind": "cubin", "device": device.name, "compiled_for": capability}
    for name, settings in SETTINGS.items():
        for call, ok, seconds in draws(device, kernels, settings):
            yield {
                **about,
                "kernel": "draw_codes",
                "settings": name,
                "call": call,
                "ok": ok,
                "block_s": seconds,
            }
    for guided in (True, False):
        for call, error in updates(device, kernels, guided):
            row = {
                "kernel": "denoising_update",
                "guided": guided,
                "call": call,
                "error": error,
                "ok": error < 1e-5,
            }
            yield about | row


def draws(
    device: Device, kernels: dict[str, Kernel], settings: ARSettings
) -> Iterator[tuple[int, bool, float]]:
    """Eight codes of 16 rows from the same logits -> call, whether codes and steps are the host's, seconds."""
    rng, rows, vocabulary, most = np.random.default_rng(0), 16, DIMS["ar.mel_codes"], ahead.DRAWS_AHEAD
    logits = (3 * rng.standard_normal((rows, vocabulary))).astype(np.float32)
    uniforms, seen = rng.random((rows, most)), rng.random((rows, vocabulary)) < 0.01
    arrays: dict[str, Any] = {
        "steps": ((ahead.STEPS, 32), np.int64), "numbers": ((rows, ahead.SETTINGS + most), np.float64),
        "seen": ((rows, vocabulary), np.uint8), "logits": ((rows, vocabulary), np.float32),
        "drawn": ((rows, most), np.int64), "counts": ((rows,), np.int32),
        "scores": ((rows, ahead.FEW), np.float32), "ids": ((rows, ahead.FEW), np.int32),
    }  # fmt: skip
    staged, replays = Staged(device, "a check", arrays), Replays(device)
    ends = DIMS["ar.start_code"], DIMS["ar.stop_code"]
    given = [None if row == 3 else Drawing(seen[row].copy(), uniforms[row], settings) for row in range(rows)]
    counts = np.array([0 if drawing is None else most for drawing in given])
    first = np.zeros((ahead.STEPS, 32), np.int64)
    first[0], first[0, :rows], first[4, :rows] = -1, np.where(counts > 0, 9, -1), counts
    wanted, after = np.full((rows, most), NOTHING), first.copy()
    drawings = [d and Drawing(d.seen.copy(), d.uniforms, d.settings) for d in given]
    for _ in range(most):
        ahead.draw_codes_ref(logits, drawings, after[:, :rows], wanted, *ends)

    def work() -> None:
        at = staged.at
        state, few = (
            [at(n) for n in ("seen", "numbers", "steps")],
            [at(n) for n in ("counts", "scores", "ids")],
        )
        for _ in range(most):
            device.run(kernels["gather"], rows, [at("logits"), *state, *few, vocabulary])
            device.run(kernels["draw_among_few"], rows, [*state, at("drawn"), *few, 32])
            device.run(
                kernels["draw_among_all"], rows, [at("logits"), *state, at("drawn"), few[0], vocabulary, 32]
            )

    for call in range(CALLS + 1):
        ahead.write_drawings(given, staged.host("numbers"), staged.host("seen"))
        staged.host("steps")[:], staged.host("logits")[:], staged.host("drawn")[:] = first, logits, NOTHING
        staged.upload("steps", "drawn")
        device.synchronize()
        start = time.perf_counter()
        replays("draw", work)
        device.synchronize()
        seconds = time.perf_counter() - start
        staged.download("steps", "drawn")
        device.synchronize()
        same = np.array_equal(staged.host("drawn"), wanted) and np.array_equal(
            staged.host("steps")[0], after[0]
        )
        yield call, bool(same), seconds


def updates(device: Device, kernels: dict[str, Kernel], guided: bool) -> Iterator[tuple[int, float]]:
    """A diffusion step's end -> call, largest difference from the host's."""
    rng, shape = np.random.default_rng(1), (1, MELS, 871)
    x, last, noise = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
    out = rng.standard_normal((1 + guided, 2 * MELS, 871)).astype(np.float32)
    step = DenoisingStep(7, 1.5 if guided else None, 1.1, 0.4, Update(0.3, 0.6, -0.1, -3.0, -2.0))
    wanted = x.copy(), last.copy()
    ahead.denoising_update_ref(*wanted, out, noise, step)
    given = {"x": x, "last": last, "out": out, "noise": noise, "numbers": ahead.step_row(step)}
    staged = Staged(device, "a check", {name: (array.shape, np.float32) for name, array in given.items()})
    replays, free = Replays(device), staged.at("out", int(guided))
    arguments = [
        staged.at("x"),
        staged.at("last"),
        staged.at("out"),
        free,
        staged.at("noise"),
        staged.at("numbers"),
        x.size,
    ]
    kernel = kernels["update_guided" if guided else "update_free"]
    for call in range(CALLS + 1):
        for name, array in given.items():
            staged.host(name)[:] = array
        staged.upload("x", "numbers")
        replays("update", lambda: device.run(kernel, -(-x.size // ahead.BLOCK), arguments))
        staged.download("x", "last")
        device.synchronize()
        found = staged.host("x"), staged.host("last")
        yield call, max(float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True))


# --- engines ---


@contextlib.contextmanager
def exported(checkpoints: Path, target: str, module: str, precision: str) -> Iterator[tuple[Engine, float]]:
    """-> the engine of a bundle that is made here, and the seconds that it took to make."""
    if importlib.util.find_spec(module) is None:
        raise _Skip(f"{module} is not installed")
    if module == "onnxruntime":
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise _Skip(f"onnxruntime {onnxruntime.__version__} offers no CUDA")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        arguments: Row = {}
        if target == "tensorrt-rtx":  # building for all kinds of GPU would take longer
            own = Device().compute_capability
            if own not in RTX_CAPABILITIES:
                raise _Skip(f"{module} is not for compute capability {own}")
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
