"""Parity and stage times of the PyTorch backend on a GPU; JSON lines out. Needs PyTorch with CUDA and this package.

    python benchmarks/gpu_suite.py [-o results.jsonl] [--size official|tiny] [--repeats 5] [--device cuda]

Verifies first (every graph on the device against the same module on the CPU), then times every stage of the
model on random weights of the chosen size beside the machine's own ceilings, measured in the same run. What
cannot run is reported as a skip with its reason. Without a GPU it says so and exits with 0. ``--device cpu``
runs the same suite on the CPU.
"""

from __future__ import annotations

import argparse
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

from tortoise_rt._version import __version__
from tortoise_rt.backends.torch import TorchEngine
from tortoise_rt.engine import KVCache
from tortoise_rt.export.checkpoints import Checkpoints
from tortoise_rt.export.parity import check_graphs
from tortoise_rt.export.random_checkpoint import write_checkpoints
from tortoise_rt.machine import cpu_name

TINY = Path(__file__).parent.parent / "tests" / "data" / "tiny-a"
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
        "threads": torch.get_num_threads(),
        "tf32": False,
    }


def parity(device: torch.device) -> Iterator[Row]:
    """Every graph of the tiny checkpoint, on the device against the CPU."""
    for p in check_graphs(TorchEngine(TINY, str(device)), Checkpoints(TINY)):
        yield {
            "kind": "parity",
            "graph": p.graph,
            "error": p.error,
            "bound": p.bound,
            "judge": p.judge,
            "ok": p.ok,
        }


def timed(work: Callable[[], object], device: torch.device, repeats: int) -> Row:
    """Median, spread and count of ``work``'s seconds after one warm-up."""

    def once() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    seconds = [once() for _ in range(repeats)]
    return {
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "repeats": repeats,
    }


def ceilings(device: torch.device, repeats: int) -> Iterator[Row]:
    """The machine's own: fp32 matrix product and memory copy."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device)
    row = timed(lambda: a @ a, device, repeats)
    yield {"kind": "ceiling", "what": "fp32 matmul", "tflops": 2 * size**3 / row["median_s"] / 1e12, **row}
    block = torch.empty((1 << 30 if device.type == "cuda" else 1 << 26) // 4, device=device)
    copy = torch.empty_like(block)
    row = timed(lambda: copy.copy_(block), device, repeats)
    yield {"kind": "ceiling", "what": "copy", "gb_per_s": 2 * block.nbytes / row["median_s"] / 1e9, **row}


class Stages:
    """Times of each stage at usual sizes: 60 text ids, 200 codes (10 s of speech), 870 mel frames."""

    context = 250  #: positions held by every row when one more code is decoded

    def __init__(self, engine: TorchEngine, repeats: int) -> None:
        self.engine, self.repeats = engine, repeats
        self.cuda = engine.device.type == "cuda"
        self.rng = np.random.default_rng(0)

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)

    def measure(self, stage: str, work: Callable[[], object], **facts: Any) -> Row:
        """A row of times and peak memory, or of why there is none."""
        row = {"kind": "stage", "stage": stage, **facts}
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
            cache = engine.new_cache(rows, self.context + 1)
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
            row |= {"gb_per_s": read / row["median_s"] / 1e9, "codes_per_s": rows / row["median_s"]}
        yield row

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
        yield self.graph(
            "univnet, 10 s", "univnet", mel=self.normal(1, 100, 940), noise=self.normal(1, 64, 940)
        )
        latents, voice = (
            self.normal(1, dims["hifigan.in_dim"], 940),
            self.normal(1, dims["hifigan.voice_dim"]),
        )
        whole = np.array([0, 940])
        yield self.graph("hifigan, 10 s", "hifigan", latents=latents, voice=voice, wanted=whole)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, help="also append the JSON lines to this file")
    parser.add_argument("--size", choices=("official", "tiny"), default="official")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
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
    for row in parity(device):
        emit(row)
    for row in ceilings(device, arguments.repeats):
        emit(row)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoints(Path(folder), arguments.size)
        for row in Stages(TorchEngine(folder, str(device)), arguments.repeats).all():
            emit({**row, "size": arguments.size})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
