"""Whether a backend on a GPU computes what the modules do on the CPU: on the tiny checkpoint that the tests use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt.backends.torch import TorchEngine
from tortoise_rt.config import make_settings
from tortoise_rt.engine import Engine
from tortoise_rt.export.checkpoints import Checkpoints
from tortoise_rt.export.parity import BOUNDS, check_graphs, relative_error
from tortoise_rt.pipeline import Pipeline
from tortoise_rt.proxy_engine import ProxyEngine

from .gpu_speech import random_voice

TINY = Path(__file__).parents[2] / "tests" / "data" / "tiny-a"
IDS = [62, 84, 28]
Row = dict[str, Any]

DRAWN: dict[str, Row] = {
    "usual": {},
    "every code": dict(top_k=0, top_p=1.0, temperature=2.0),
    "nucleus of all": dict(top_k=0, top_p=0.9),
    "typical": dict(typical_sampling=True, typical_mass=0.6),
    "greedy": dict(greedy=True),
}

#: of a mel after 25 steps: rounding of one step is what the next begins with
LOOP_BOUNDS = {"fp32": 1e-3, "fp16": 0.05, "bf16": 0.1}


def graphs(engine: Engine) -> Iterator[Row]:
    """Every graph against the module on the CPU: as it is, recorded and replayed."""
    for attempt in ("first", "second", "third"):
        for p in check_graphs(engine, Checkpoints(TINY)):
            yield {
                "kind": "parity", "backend": engine.info.backend, "graph": p.graph, "precision": p.precision,
                "call": attempt, "error": p.error, "bound": p.bound, "judge": p.judge, "ok": p.ok,
            }  # fmt: skip


def whole_runs(engine: Engine) -> Iterator[Row]:
    """Codes and wav of one seed, and the same of the modules on the CPU, in fp32."""
    arguments = dict(num_autoregressive_samples=4, diffusion_iterations=5, max_mel_tokens=30)
    for decoder in ("diffusion", "hifigan"):
        settings = make_settings(decoder=decoder, **arguments)
        there, here = (
            Pipeline(made).synthesize(IDS, None, settings, seed=1)
            for made in (engine, TorchEngine(TINY, "cpu"))
        )
        same = bool((there.codes == here.codes).all())
        error = float(np.abs(there.wavs[0] - here.wavs[0]).max()) if same else None
        yield {
            "kind": "whole run", "backend": engine.info.backend, "decoder": decoder, "same_codes": same,
            "wav_error": error, "ok": same and error is not None and error < 5e-3,
        }  # fmt: skip


def moved_rows(engine: Engine) -> Iterator[Row]:
    """Two rows of a cache that change places, and copies of them: each reads a code as before, whatever lies beside it."""
    rng, dims = np.random.default_rng(0), engine.dims
    cache = engine.new_cache(2, 40)
    voice = rng.standard_normal((2, dims["ar.dim"])).astype(np.float32)
    text = rng.integers(0, dims["ar.text_ids"], (2, 9))
    engine.ar_step(cache, np.zeros((2, 1), np.int64), np.zeros((2, 1), np.int64), voice, text)
    one = np.ones((2, 1), np.int64)
    taken = engine.take_rows(cache, [1, 0])
    before = engine.ar_step(cache, one, one)
    cache.lengths -= 1
    engine.put_rows(cache, [0, 1], cache, [1, 0])
    bound = BOUNDS[engine.info.precision["ar_step"]]
    for how, made in (("taken", taken), ("put", cache)):
        found = engine.ar_step(made, one, one)
        error = max(relative_error(there, here[::-1]) for there, here in zip(found, before, strict=True))
        yield {
            "kind": "moved rows", "backend": engine.info.backend, "precision": engine.info.precision["ar_step"],
            "how": how, "error": error, "bound": bound, "ok": error <= bound,
        }  # fmt: skip


def loops(engine: Engine) -> Iterator[Row]:
    """Codes drawn and mels denoised on the device by itself, and with the host in every step: the same device, the same model."""
    precision, of_mels = (engine.info.precision[graph] for graph in ("ar_step", "diffusion_denoise"))
    by_hand = ProxyEngine(engine)  # whose loops are the host's
    for name, arguments in DRAWN.items():
        settings = make_settings(
            num_autoregressive_samples=5,
            diffusion_iterations=25,
            max_mel_tokens=60,
            cond_free_share=0.7,
            **arguments,
        )
        one, other = (
            Pipeline(made).synthesize(IDS, random_voice(engine), settings, seed=3)
            for made in (engine, by_hand)
        )
        same = bool((one.codes == other.codes).all())
        error = float(np.abs(one.mels[0] - other.mels[0]).max() / np.ptp(other.mels[0])) if same else None
        yield {
            "kind": "loops", "backend": engine.info.backend, "precision": precision, "settings": name,
            "draws_ahead": engine.draws_ahead, "denoises_ahead": engine.denoises_ahead, "same_codes": same,
            "mel_error": error, "ok": same and error is not None and error < LOOP_BOUNDS[of_mels],
        }  # fmt: skip
