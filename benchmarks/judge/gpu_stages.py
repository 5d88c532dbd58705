"""Every stage of a model at usual sizes on a device, beside what the device reaches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from tortoise_rt.backends.torch import TorchEngine
from tortoise_rt.config import ARSettings
from tortoise_rt.engine import KVCache
from tortoise_rt.sampling import Drawing
from tortoise_rt.vocoder import hifigan, noise_shape, univnet

Row = dict[str, Any]


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
