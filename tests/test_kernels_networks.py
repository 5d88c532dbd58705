"""Networks that kernels of our own run, against the modules: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from on_device import DEVICE, here, normal, there, torch

from tortoise_rt.autoregressive import read_and_draw
from tortoise_rt.backends import cuda_decode, cuda_diffusion, cuda_univnet
from tortoise_rt.backends.torch import TorchEngine
from tortoise_rt.config import ARSettings
from tortoise_rt.export.parity import random_inputs, relative_error
from tortoise_rt.sampling import Drawing
from tortoise_rt.spec import GRAPHS

TINY = Path(__file__).parent / "data" / "tiny-a"


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="a minute in the interpreter; steps and draws are tested apart")
@torch.inference_mode()
def test_steps_that_draw_are_steps_and_draws() -> None:
    """Three codes of two live rows, of different limits, and of one that is left alone."""
    engine, rng = TorchEngine(TINY, DEVICE), np.random.default_rng(0)
    dims = engine.dims
    text, voice = np.repeat(rng.integers(0, 250, (1, 9)), 3, axis=0), normal(3, dims["ar.dim"])
    cache, zeros = engine.new_cache(3, 40), np.zeros((3, 1), np.int64)
    engine.ar_step(cache, zeros, zeros, voice, text)
    host = engine.take_rows(cache, range(3))
    uniforms = rng.random((3, 3))
    seen = np.zeros((3, dims["ar.mel_codes"]), bool)
    given = [
        Drawing(seen[0], uniforms[0], ARSettings()),
        None,
        Drawing(seen[2], uniforms[2, :2], ARSettings(top_k=3)),
    ]
    cuda_decode.lay_out(engine.module("autoregressive"))
    ends = dims["ar.start_code"], dims["ar.stop_code"]
    step = cuda_decode.DrawingStep(engine.module("autoregressive"), 4, cache.state, *ends)
    step.run()
    step.write(cache, zeros + 5, zeros + 1, given)
    for _ in range(3):
        step.run()
    engine.draws_ahead = 0
    codes, positions = zeros + 5, zeros + 1
    for i in range(3):
        left = [d and Drawing(d.seen, d.uniforms[i:], d.settings) for d in given]
        live = [d if d is not None and len(d.uniforms) else None for d in left]
        drawn, latents = read_and_draw(engine, host, codes, positions + i, live)
        np.testing.assert_array_equal(here(step.drawn[:3, i]), drawn[:, 0])
        for row, d in enumerate(live):
            if d is not None:
                assert relative_error(here(step.latents[row, i]), latents[row, 0]) < 1e-5
                seen[row, drawn[row, 0]] = True
        codes = np.maximum(drawn, 0)


@pytest.mark.parametrize("rows", [4, 17])
@torch.inference_mode()
def test_a_step_is_the_modules(rows: int) -> None:
    """By the fused kernels and, for many rows, by the library; rows of the pool that are not live are left alone."""
    engine, rng = TorchEngine(TINY, DEVICE), np.random.default_rng(0)
    text, voice = rng.integers(0, 250, (3, 9)), normal(3, engine.dims["ar.dim"])
    cache, start = engine.new_cache(3, 40), np.zeros((3, 1), np.int64)
    engine.ar_step(cache, start, start, voice, text)
    longer = engine.take_rows(cache, range(3))
    engine.ar_step(longer, np.ones((3, 4), np.int64), np.ones((3, 4), np.int64))
    engine.put_rows(cache, [1], longer, [1])
    model, codes, positions = (
        engine.module("autoregressive"),
        rng.integers(0, 200, (3, 1)),
        cache.lengths[:, None],
    )
    cuda_decode.lay_out(model)
    step, other = cuda_decode.Step(model, rows, cache.state), engine.take_rows(cache, range(3))
    step.run()
    step.write(other, codes, positions)
    step.run()
    past = there(cache.lengths)
    voices = torch.zeros((3, 0, engine.dims["ar.dim"]), device=DEVICE)
    logits, latents = model.step(
        cache.state, past, voices, there(text[:, :0]), there(codes), there(positions.copy())
    )
    wanted = here(torch.cat((logits, latents[:, 0]), dim=1))
    assert relative_error(here(step.out[:3]), wanted) < 1e-5
    assert relative_error(here(other.state), here(cache.state)) < 1e-5


#: graph -> how ``backends/cuda.py`` runs it, of the network's module; rows and frames
RUN: dict[str, tuple[Callable[[Any], Callable[..., Any]], int, int]] = {
    "diffusion_condition": (lambda module: cuda_diffusion.ChannelsLast(module).condition, 2, 11),
    "diffusion_denoise": (lambda module: cuda_diffusion.ChannelsLast(module).denoise, 2, 5),
    "univnet": (cuda_univnet.UnivNet, 2, 5),
}


@pytest.mark.parametrize("graph", RUN)
@torch.inference_mode()
def test_a_graph_is_the_modules(graph: str) -> None:
    """And the module, whose weights lie in another order then, goes on as before."""
    engine, spec = TorchEngine(TINY, "cpu"), GRAPHS[graph]
    module, (make, rows, frames) = engine.module(spec.network), RUN[graph]
    sizes = {"rows": rows, "frames": frames, "codes": 3}
    inputs = random_inputs(spec, engine.dims, sizes, np.random.default_rng(0))
    wanted = engine.run(graph, **inputs)[0]
    run = make(module.to(DEVICE))
    assert relative_error(here(run(*(there(array) for array in inputs.values()))), wanted) < 1e-5
    module.to("cpu")
    assert relative_error(engine.run(graph, **inputs)[0], wanted) < 1e-5
