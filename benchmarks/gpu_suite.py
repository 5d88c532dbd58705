"""Parity and speed on a GPU; JSON lines out. Needs PyTorch and this package.

    python benchmarks/gpu_suite.py [-o results.jsonl] [--size official|tiny] [--repeats 5] [--device cuda]
                                   [--precisions fp32,fp16,bf16] [--reference-source DIR]
    python benchmarks/gpu_suite.py --lean [--lean-speed] [-o results.jsonl]

With ``--lean``: what runs without PyTorch, which is here to make bundles and to compare with: the kernels that bundles carry
(with Triton and cuda-bindings), TensorRT's plans (with tensorrt-rtx or tensorrt) and ONNX Runtime's CUDA provider (with
onnxruntime-gpu), each as far as it is installed; ``--lean-speed`` times them as well. Else the PyTorch backend:

Verifies first: every graph on the device in each precision against the module on the CPU, three times, so that replayed
graphs are checked too, whole small runs, and what the device does by itself against the same with the host in between. Then times every stage of the model on random weights of the chosen size,
whole sentences and streams, beside the machine's own ceilings and the reference's classes, measured in the same run. What cannot run is reported as
a skip with its reason. Without a GPU it says so and exits with 0. ``--device cpu`` runs the same suite on the CPU.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judge import gpu_parity, gpu_reference
from judge.gpu_speech import sentences, streams

from tortoise_rt._version import __version__
from tortoise_rt.backends.device import gpu_names
from tortoise_rt.backends.torch import TorchEngine
from tortoise_rt.config import ARSettings
from tortoise_rt.engine import KVCache
from tortoise_rt.export.random_checkpoint import write_checkpoints
from tortoise_rt.machine import cpu_name
from tortoise_rt.sampling import Drawing
from tortoise_rt.vocoder import hifigan, noise_shape, univnet

Row = dict[str, Any]


def environment(device: torch.device) -> Row:
    """What the figures were taken on."""
    cuda = device.type == "cuda"
    return {
        "kind": "environment",
        "tortoise_rt": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(device) if cuda else cpu_name(),
        "capability": list(torch.cuda.get_device_capability(device)) if cuda else None,
        "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
        if cuda
        else None,
        "triton": importlib.util.find_spec("triton") is not None and __import__("triton").__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "tf32": False,
    }


def timed(work: Callable[[], object], device: torch.device, repeats: int) -> Row:
    """Median, spread and count of ``work``'s seconds after three warm-ups: one to begin, one to record, one to replay."""

    def once() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for _ in range(3):
        once()
    seconds = [once() for _ in range(repeats)]
    return {
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "repeats": repeats,
    }


def ceilings(device: torch.device, repeats: int) -> Iterator[Row]:
    """The machine's own: matrix products and memory copy."""
    size = 8192 if device.type == "cuda" else 1024
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        a = torch.randn(size, size, device=device).to(dtype)
        row = timed(lambda a=a: a @ a, device, repeats)
        tflops = 2 * size**3 / row["median_s"] / 1e12
        yield {"kind": "ceiling", "what": f"{name} matmul", "tflops": tflops, **row}
    block = torch.empty((1 << 30 if device.type == "cuda" else 1 << 26) // 4, device=device)
    copy = torch.empty_like(block)
    row = timed(lambda: copy.copy_(block), device, repeats)
    yield {"kind": "ceiling", "what": "copy", "gb_per_s": 2 * block.nbytes / row["median_s"] / 1e9, **row}


class Stages:
    """Times of each stage at usual sizes: 60 text ids, 200 codes (10 s of speech), 870 mel frames."""

    context = 250  #: positions held by every row when one more code is decoded

    def __init__(self, engine: TorchEngine, repeats: int) -> None:
        self.engine, self.repeats = engine, repeats
        self.precision = engine.info.precision["ar_step"]
        self.cuda = engine.device.type == "cuda"
        self.rng = np.random.default_rng(0)

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)

    def measure(self, stage: str, work: Callable[[], object], **facts: Any) -> Row:
        """A row of times and peak memory, or of why there is none."""
        row = {"kind": "stage", "stage": stage, "precision": self.precision, **facts}
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.engine.device)
        try:
            row |= timed(work, self.engine.device, self.repeats)
        except torch.OutOfMemoryError as error:
            return row | {"skipped": f"out of memory: {str(error).splitlines()[0]}"}
        if self.cuda:
            row["peak_gib"] = round(torch.cuda.max_memory_allocated(self.engine.device) / 2**30, 2)
        return row

    def graph(self, stage: str, graph: str, **inputs: np.ndarray) -> Row:
        return self.measure(stage, lambda: self.engine.run(graph, **inputs))

    def autoregressive(self, rows: int) -> Iterator[Row]:
        """A whole row at once, and one code behind ``context`` positions."""
        engine, dims = self.engine, self.engine.dims
        text = np.repeat(self.rng.integers(3, 250, (1, 63)), rows, axis=0)
        voice = np.repeat(self.normal(1, dims["ar.dim"]), rows, axis=0)
        count = self.context - 1 - text.shape[1]
        codes = self.rng.integers(0, dims["ar.start_code"], (rows, count))
        positions = np.broadcast_to(np.arange(count), codes.shape)

        def fill() -> KVCache:
            cache = engine.new_cache(rows, self.context + 8)
            engine.ar_step(cache, codes, positions, voice, text)
            return cache

        yield self.measure("latents of a whole row", fill, rows=rows, positions=self.context)
        cache = fill()

        def step() -> None:
            cache.lengths = np.full(rows, self.context)
            engine.ar_step(cache, codes[:, :1], np.full((rows, 1), count))

        row = self.measure("decode one code", step, rows=rows, context=self.context)
        if "median_s" in row:
            read = (
                sum(p.nbytes for p in engine.module("autoregressive").gpt.parameters()) + cache.state.nbytes
            )
            row |= {"read_mb": read / 1e6, "gb_per_s": read / row["median_s"] / 1e9}
            row["codes_per_s"] = rows / row["median_s"]
        yield row
        if ahead := engine.draws_ahead:
            seen, uniforms = np.zeros(dims["ar.mel_codes"], bool), self.rng.random((rows, ahead))
            drawings = [Drawing(seen, u, ARSettings()) for u in uniforms]

            def draw() -> None:
                cache.lengths = np.full(rows, self.context - ahead // 2)
                engine.ar_draw(cache, codes[:, :1], np.full((rows, 1), count), drawings)

            row = self.measure("decode and draw", draw, rows=rows, context=self.context, codes=ahead)
            yield row | ({"code_s": row["median_s"] / ahead} if "median_s" in row else {})

    def all(self) -> Iterator[Row]:
        dims = self.engine.dims
        yield self.graph("voice latent, 6 s", "ar_voice", mel=self.normal(1, 80, 517))
        for rows in (1, 4, 16, 64):
            yield from self.autoregressive(rows)
        codes = self.rng.integers(0, dims["clvp.codes"], (16, 500))
        yield self.graph("clvp, 16 rows of 500 codes", "clvp_speech", codes=codes)
        x, condition = self.normal(2, 100, 870), self.normal(2, 870, dims["diffusion.dim"])
        when = np.full(2, 1000, np.float32)
        yield self.graph(
            "timestep integrator, 2 rows of 870 frames",
            "diffusion_condition",
            aligned=condition,
            timestep=when,
        )
        yield self.graph(
            "denoise step, 2 rows of 870 frames", "diffusion_denoise", x=x, condition=condition, timestep=when
        )
        mel = self.normal(1, 100, 930)
        noise = self.normal(*noise_shape(mel))
        yield self.measure("univnet, 10 s", lambda: univnet(self.engine, mel, noise))
        latents, voice = self.normal(1, 215, dims["ar.dim"]), self.normal(1, dims["ar.dim"])
        yield self.measure("hifigan, 10 s", lambda: hifigan(self.engine, latents, voice))


def speed(engine: TorchEngine, repeats: int) -> Iterator[Row]:
    """Stages, then whole sentences and streams."""
    stages = Stages(engine, repeats)
    yield from stages.all()
    for row in (*sentences(engine), *streams(engine)):
        yield {**row, "precision": stages.precision}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, help="also append the JSON lines to this file")
    parser.add_argument("--size", choices=("official", "tiny"), default="official")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--precisions", default="fp32,fp16,bf16", help="to be checked, as fp32 always is, and timed"
    )
    parser.add_argument(
        "--reference-source",
        type=Path,
        metavar="DIR",
        help="the reference's unpacked sdist, to be timed beside it",
    )
    parser.add_argument("--lean", action="store_true", help="check what runs without PyTorch, and that alone")
    parser.add_argument("--lean-speed", action="store_true", help="with --lean: time it as well")
    arguments = parser.parse_args()
    if arguments.lean and not gpu_names():
        print("skipped: there is no NVIDIA driver here, or it finds no GPU. See tortoise-rt doctor")
        return 0
    if arguments.lean and not torch.cuda.is_available():
        arguments.device = "cpu"  # PyTorch only makes bundles
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"skipped: PyTorch {torch.__version__} finds no CUDA device here")
        return 0
    device = torch.device(arguments.device)
    failed = False

    def emit(row: Row) -> None:
        nonlocal failed
        failed |= row.get("ok") is False
        line = json.dumps(row)
        print(line, flush=True)
        if arguments.output:
            with arguments.output.open("a") as file:
                file.write(line + "\n")

    emit(environment(device))
    if arguments.lean:
        from judge.gpu_lean import lean

        for row in lean(arguments.size, arguments.lean_speed):
            emit(row)
        return 1 if failed else 0
    precisions = arguments.precisions.split(",")
    for precision in dict.fromkeys(("fp32", *precisions)):
        engine = TorchEngine(gpu_parity.TINY, str(device), precision)
        for row in (*gpu_parity.graphs(engine), *gpu_parity.loops(engine)):
            emit(row)
    exact = TorchEngine(gpu_parity.TINY, str(device))
    for row in (*gpu_parity.whole_runs(exact), *ceilings(device, arguments.repeats)):
        emit(row)
    if arguments.reference_source is not None:
        for row in gpu_reference.stages(
            arguments.reference_source, device, lambda work: timed(work, device, arguments.repeats)
        ):
            emit(row)
        gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoints(Path(folder), arguments.size, stop_bias=-1000.0)
        for precision in precisions:
            for row in speed(TorchEngine(folder, str(device), precision), arguments.repeats):
                emit({**row, "size": arguments.size})
            gc.collect()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
