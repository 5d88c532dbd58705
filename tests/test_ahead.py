"""Engines that draw several codes, or take several diffusion steps, in one call: the same clips, in fewer calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scheduling import BOUND, ONE, TEXTS, WAIT, scheduler, settings, submit, voice

from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.engine import Array, KVCache
from tortoise_rt.errors import EngineError
from tortoise_rt.pipeline import Pipeline, Result
from tortoise_rt.samplers import DenoisingStep, update_mel
from tortoise_rt.sampling import NOTHING, Drawing, draw
from tortoise_rt.spec import MELS
from tortoise_rt.streaming import Chunks

IDS = [62, 84, 28, 9]


class Ahead(FakeEngine):
    """Stands in for a device. Rows that are left alone, or have ended, hold their state."""

    draws_ahead, denoises_ahead = 8, 3

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[int] = []  #: codes of each call
        self.broken: Callable[[Array], Array] = lambda logits: logits  #: what becomes of logits

    def _ar_draw(
        self, cache: KVCache, inputs: dict[str, Array], drawings: Sequence[Drawing | None]
    ) -> tuple[Array, Array]:
        count = min(self.draws_ahead, max(len(d.uniforms) for d in drawings if d is not None))
        drawn = np.full((cache.rows, count), NOTHING)
        latents = np.full((cache.rows, count, self.dims["ar.dim"]), np.nan, np.float32)
        live = np.array([d is not None for d in drawings])
        seen = [None if d is None else d.seen.copy() for d in drawings]
        given = dict(inputs)
        for i in range(count):
            held = cache.state.copy()
            logits, at = self._ar_step(cache, given)
            cache.state[~live] = held[~live]
            logits = self.broken(logits)
            for row in np.flatnonzero(live):
                d, latents[row, i] = drawings[row], at[row, 0]
                if not np.isfinite(logits[row]).all():
                    live[row] = False
                    continue
                code = draw(logits[row], seen[row], d.uniforms[i], self.dims["ar.start_code"], d.settings)
                drawn[row, i], seen[row][code] = code, True
                live[row] = code != self.dims["ar.stop_code"] and i + 1 < len(d.uniforms)
            codes = np.where(live, drawn[:, i], 0)[:, None]
            given |= {"codes": codes, "code_positions": given["code_positions"] + 1}
        self.draws.append(count)
        return drawn, latents

    def _denoise(
        self, x: Array, last: Array, aligned: Array, free: Array, steps: Sequence[DenoisingStep], noise: Callable[[int], Array]
    ) -> tuple[Array, Array]:  # fmt: skip
        guided = steps[0].guidance is not None
        rows = [aligned[0], np.broadcast_to(free, aligned[0].shape)] if guided else [aligned[0]]
        for i, step in enumerate(steps):
            when = np.full(len(rows), step.timestep, np.float32)
            (condition,) = self._run("diffusion_condition", {"aligned": np.stack(rows), "timestep": when})
            given = {"x": np.repeat(x, len(rows), axis=0), "condition": condition, "timestep": when}
            (out,) = self._run("diffusion_denoise", given)
            k = np.float32(step.guidance or 0)
            found = (1 + k) * out[:1, :MELS] - k * out[-1:, :MELS]
            start = np.clip(np.float32(step.recip) * x - np.float32(step.recipm1) * found, -1, 1)
            x, last = update_mel(step.update, x, start, last, out[:1, MELS:], noise(i)), start
        return x, last


def say(engine: FakeEngine, **arguments: Any) -> Result:
    return Pipeline(engine).synthesize(IDS, voice(engine), settings(**arguments), seed=5)


CASES: list[dict[str, Any]] = [
    {},
    dict(max_mel_tokens=1),
    dict(max_mel_tokens=2),
    dict(max_mel_tokens=60, num_autoregressive_samples=7, batch_rows=4),
    dict(max_mel_tokens=60, kv_positions="upstream"),
    dict(max_mel_tokens=60, greedy=True, num_autoregressive_samples=1),
    dict(decoder="diffusion", diffusion_iterations=10, cond_free_share=0.5, sampler="dpm++2m"),
    dict(decoder="diffusion", diffusion_iterations=4, cond_free=False),
    dict(decoder="diffusion", diffusion_iterations=7, sampler="dpm++2m_sde"),
]


@pytest.mark.parametrize("arguments", CASES)
def test_clips_are_those_of_single_steps(arguments: dict[str, Any]) -> None:
    engine = Ahead()
    one, other = say(engine, **arguments), say(FakeEngine(), **arguments)
    assert_equal(one, other)
    assert max(engine.draws, default=0) == min(8, arguments.get("max_mel_tokens", 24) - 1)
    with scheduler(engine, rows=3) as made, scheduler(FakeEngine(), rows=3) as plain:
        both = [
            [m.submit(IDS, voice(m.engine), settings(**arguments), seed) for seed in (5, 6, 7)]
            for m in (made, plain)
        ]
        for mine, wanted in zip(*both, strict=True):
            assert_equal(mine.result(WAIT), wanted.result(WAIT))
    with scheduler(Ahead(), rows=4, strict=True) as made:
        assert_equal(made.submit(IDS, voice(engine), settings(**arguments), 5).result(WAIT), other)


def assert_equal(one: Result, other: Result) -> None:
    np.testing.assert_array_equal(one.codes, other.codes)
    for mine, wanted in zip(one.wavs, other.wavs, strict=True):
        assert np.abs(mine - wanted).max(initial=0) <= BOUND


@pytest.mark.parametrize("chunks", [Chunks(), Chunks(1, 1), Chunks(7, 7), Chunks(500)])
def test_streams_are_the_clip(chunks: Chunks) -> None:
    engine = Ahead()
    wanted = say(FakeEngine(), **ONE).wavs[0]
    alone = np.concatenate(list(Pipeline(engine).stream(IDS, voice(engine), settings(**ONE), 5, chunks)))
    assert alone.shape == wanted.shape and np.abs(alone - wanted).max() <= BOUND
    with scheduler(engine, rows=2) as made:
        handles = [made.stream(IDS, voice(engine), settings(**ONE), 5, chunks=chunks) for _ in range(3)]
        for handle in handles:
            shared = np.concatenate(list(handle))
            assert shared.shape == wanted.shape and np.abs(shared - wanted).max() <= BOUND


def test_a_first_sound_waits_for_no_more_codes_than_it_needs() -> None:
    engine = Ahead()
    with scheduler(engine) as made:
        for _ in made.stream(TEXTS[0], voice(engine), settings(**ONE), 1, chunks=Chunks(4, 20)):
            pass
    assert engine.draws[0] == 3  # the first of four comes with the prompt
    assert set(engine.draws[1:-1]) == {8}


def test_a_row_that_breaks_ends_its_request_alone() -> None:
    engine = Ahead()

    def break_first(logits: Array) -> Array:
        if len(engine.draws) == 1 and len(logits) > 1:
            logits[0] = np.nan
        return logits

    engine.broken = break_first
    with scheduler(engine, rows=2) as made:
        broken, fine = (submit(made, seed=seed, num_autoregressive_samples=1) for seed in (1, 2))
        with pytest.raises(EngineError, match="no finite numbers"):
            broken.result(WAIT)
        assert np.isfinite(fine.result(WAIT).wavs[0]).all()
    engine.broken = lambda logits: logits * np.nan
    with pytest.raises(EngineError, match="no finite numbers"):
        say(engine)


def test_what_cannot_be_drawn_is_refused() -> None:
    engine = Ahead()
    cache, one = engine.new_cache(2, 5), np.zeros((2, 1), np.int64)
    drawing = Drawing(np.zeros(engine.dims["ar.mel_codes"], bool), np.zeros(9), settings().ar)
    with pytest.raises(EngineError, match="2 drawings, for a cache of 2 rows"):
        engine.ar_draw(cache, one, one, [None, None])
    with pytest.raises(EngineError, match="8 positions exceed the cache's 5"):
        engine.ar_draw(cache, one, one, [drawing, None])
    with pytest.raises(EngineError, match="code_positions holds"):
        engine.ar_draw(cache, one, one + 605, [drawing, None])
    with pytest.raises(EngineError, match="0 steps, of at most 3"):
        mel = np.zeros((1, MELS, 4), np.float32)
        engine.denoise(mel, mel, np.zeros((1, 4, 8), np.float32), np.zeros(8, np.float32), [], lambda i: mel)
