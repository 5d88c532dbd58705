"""The TensorRT backend's loops without the host, on a GPU of NumPy whose kernels are their references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from fake_gpu import make_engine
from scheduling import scheduler

from tortoise_rt.backends.tensorrt import TensorRTEngine
from tortoise_rt.config import ARSettings, make_settings
from tortoise_rt.engine import Array, Engine, EngineInfo, KVCache
from tortoise_rt.export.parity import relative_error
from tortoise_rt.pipeline import Pipeline
from tortoise_rt.profiles import MOST_DECODED, few_rows, profiles
from tortoise_rt.sampling import NOTHING, Drawing

IDS = [5, 60, 7, 80, 9]


@pytest.fixture(scope="module")
def engine(standard_graphs: EngineInfo) -> TensorRTEngine:
    return make_engine(standard_graphs, ahead=True)


DRAWN: list[dict[str, Any]] = [
    dict(num_autoregressive_samples=3, max_mel_tokens=30),
    dict(num_autoregressive_samples=2, max_mel_tokens=12, top_k=0, top_p=0.9),
    dict(num_autoregressive_samples=2, max_mel_tokens=9, typical_sampling=True, typical_mass=0.6),
    dict(num_autoregressive_samples=1, max_mel_tokens=20, greedy=True, kv_positions="upstream"),
]


@pytest.mark.parametrize("arguments", DRAWN)
def test_codes_are_the_hosts(engine: TensorRTEngine, plain: Engine, arguments: dict[str, Any]) -> None:
    settings = make_settings(decoder="hifigan", **arguments)
    ours, theirs = (Pipeline(runs).synthesize(IDS, None, settings, seed=3) for runs in (engine, plain))
    np.testing.assert_array_equal(ours.codes, theirs.codes)
    assert relative_error(ours.wavs[0], theirs.wavs[0]) <= 1e-3


@pytest.mark.parametrize(
    "arguments",
    [
        dict(cond_free_share=0.7),
        dict(cond_free=False, sampler="ddim"),
        dict(sampler="dpm++2m"),
    ],
)
def test_mels_are_the_hosts(engine: TensorRTEngine, plain: Engine, arguments: dict[str, Any]) -> None:
    settings = make_settings(
        num_autoregressive_samples=1, diffusion_iterations=25, max_mel_tokens=8, **arguments
    )
    ours, theirs = (Pipeline(runs).synthesize(IDS, None, settings, seed=3) for runs in (engine, plain))
    assert relative_error(ours.mels[0], theirs.mels[0]) <= 1e-3


def test_rows_of_long_clips_take_turns(
    standard_graphs: EngineInfo, plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows of a clip of the usual length share a call; those of a longer one do not."""
    monkeypatch.setattr("tortoise_rt.profiles.USUAL_CODES", 5)
    engine = make_engine(standard_graphs, ahead=True)
    usual = profiles("diffusion_denoise", engine.dims)[0]["frames"][2]
    settings = make_settings(num_autoregressive_samples=1, diffusion_iterations=3, max_mel_tokens=8)
    ours, theirs = (Pipeline(runs).synthesize(IDS, None, settings, seed=3) for runs in (engine, plain))
    assert ours.mels[0].shape[2] > usual
    assert relative_error(ours.mels[0], theirs.mels[0]) <= 1e-3


def test_the_host_is_asked_once_per_block(standard_graphs: EngineInfo) -> None:
    """What is recorded is one code, whatever the number of codes; kernels run in between."""
    engine = make_engine(standard_graphs, ahead=True)
    gpu = engine._device.gpu  # type: ignore[attr-defined]
    cache = prompted(engine, 1)
    found = []
    for call, count in enumerate((8, 8, 3, 1, 6)):
        drawings = [Drawing(np.zeros(engine.dims["ar.mel_codes"], bool), np.full(count, 0.3), ARSettings())]
        before = gpu.launched, len(gpu.ran), gpu.waited
        cache.lengths[:] = 9
        found.append(engine.ar_draw(cache, np.array([[3]]), np.array([[1]]), drawings))
        now = gpu.launched, len(gpu.ran), gpu.waited
        launched, ran, waited = (new - old for new, old in zip(now, before, strict=True))
        # The first code as it is, the second recorded as well, all others replayed.
        assert (launched, ran) == ((count, 0) if call else (count - 2, 3 * 3))
        assert waited == 1 or call == 0  # but for memory that grows
    for drawn, latents in found[1:]:
        np.testing.assert_array_equal(drawn, found[0][0][:, : drawn.shape[1]])
        np.testing.assert_array_equal(latents, found[0][1][:, : drawn.shape[1]])
    assert found[2][0].shape == (1, 3) and len(set(found[0][0][0].tolist())) > 1


def test_any_number_of_rows_takes_few_recordings(standard_graphs: EngineInfo) -> None:
    """The first rows of a pool, with some behind them that are left alone, and not more than there are."""
    assert [few_rows(rows, 16) for rows in range(1, 17)] == [1, 2, 4, 4, *[8] * 4, *[12] * 4, *[16] * 4]
    assert [few_rows(rows, 64) for rows in (17, 32, 33, 64)] == [32, 32, 48, 64]
    assert [few_rows(rows, 7) for rows in (3, 5, 7)] == [4, 7, 7]
    engine = make_engine(standard_graphs, ahead=True)
    vocabulary, uniforms = engine.dims["ar.mel_codes"], np.random.default_rng(3).random((7, 3))
    pool, shapes, found = prompted(engine, 7), [], []
    for rows in range(7, 0, -1):
        pool.lengths[:] = 9
        drawings = [Drawing(np.zeros(vocabulary, bool), uniforms[row], ARSettings()) for row in range(rows)]
        ones = np.ones((rows, 1), np.int64)
        drawn, latents = engine.ar_draw(engine.first_rows(pool, rows), ones, ones, drawings)
        shapes.append((drawn.shape, latents.shape[:2], tuple(pool.lengths[rows:])))
        found.append(drawn)
        np.testing.assert_array_equal(drawn, found[0][:rows])
    assert shapes == [((rows, 3), (rows, 3), (9,) * (7 - rows)) for rows in range(7, 0, -1)]
    assert {key[1] for key in engine._plans.replays._known if key[0] == "draw"} == {7, 4, 2, 1}  # type: ignore[index]


def test_a_released_graph_gives_back_what_its_loop_held(standard_graphs: EngineInfo) -> None:
    engine = make_engine(standard_graphs, ahead=True)
    settings = make_settings(num_autoregressive_samples=1, diffusion_iterations=2, max_mel_tokens=4)
    Pipeline(engine).synthesize(IDS, None, settings, seed=3)
    gpu = engine._device.gpu  # type: ignore[attr-defined]
    pinned, room = len(gpu.pinned), engine._device.room  # type: ignore[attr-defined]
    for graph, loop in (("ar_step", engine._draws), ("diffusion_denoise", engine._denoising)):
        plan = engine._plans._plans[graph]
        own = sum(memory.nbytes for memory, _ in plan.buffers.values())
        del plan
        engine.release(graph)
        left = engine._device.room  # type: ignore[attr-defined]
        assert left - room > own and len(gpu.pinned) < pinned, loop
        pinned, room = len(gpu.pinned), left
    again = Pipeline(engine).synthesize(IDS, None, settings, seed=3)
    np.testing.assert_array_equal(again.codes, Pipeline(engine).synthesize(IDS, None, settings, seed=3).codes)


def test_a_loop_goes_on_with_a_plan_that_was_loaded_again(standard_graphs: EngineInfo) -> None:
    """In memory at the same addresses, it may be: what was recorded is of the plan that is no more."""
    engine = make_engine(standard_graphs, ahead=True)
    engine._device.gpu.reuses = True  # type: ignore[attr-defined]
    cache, one = prompted(engine, 1), np.ones((1, 1), np.int64)
    found, places = [], []
    for _ in range(2):
        cache.lengths[:] = 9
        drawing = Drawing(np.zeros(engine.dims["ar.mel_codes"], bool), np.full(4, 0.3), ARSettings())
        found.append(engine.ar_draw(cache, one, one, [drawing])[0])
        places.append(engine._draws._staged[1].address)
        engine.release("ar_step")
    np.testing.assert_array_equal(*found)
    assert places[0] == places[1]


def prompted(engine: Engine, rows: int) -> KVCache:
    """A cache whose rows hold nine positions."""
    cache = engine.new_cache(rows, 60)
    text = np.random.default_rng(0).integers(3, 250, (rows, 7))
    voice = np.random.default_rng(1).standard_normal((rows, engine.dims["ar.dim"])).astype(np.float32)
    engine.ar_step(cache, np.full((rows, 1), 2), np.zeros((rows, 1), np.int64), voice, text)
    return cache


def test_rows_that_are_left_alone(engine: TensorRTEngine, plain: Engine) -> None:
    """Rows without a drawing, rows that end sooner and more rows than a call takes; all go on as on the host."""
    rows, rng = MOST_DECODED + 3, np.random.default_rng(5)
    ours, theirs = prompted(engine, rows), prompted(plain, rows)
    vocabulary = engine.dims["ar.mel_codes"]
    codes, seen = rng.integers(0, 200, (rows, 1)), np.zeros((rows, vocabulary), bool)
    lengths = [None if row % 5 == 1 else 2 if row % 5 == 2 else 6 for row in range(rows)]
    drawings = [n and Drawing(seen[row].copy(), rng.random(n), ARSettings()) for row, n in enumerate(lengths)]
    one = np.ones((rows, 1), np.int64)
    drawn, latents = engine.ar_draw(ours, codes, one, drawings)
    given, wanted = codes.copy(), np.full((rows, 6), NOTHING)
    held = theirs
    for step in range(6):
        logits, at = plain.ar_step(held, given, one + step)
        for row, n in enumerate(lengths):
            if (
                n
                and step < n
                and (step == 0 or wanted[row, step - 1] not in (NOTHING, engine.dims["ar.stop_code"]))
            ):
                assert relative_error(latents[row, step], at[row, 0]) <= 1e-5
                wanted[row, step] = one_code(logits[row], drawings[row], step, engine)
                given[row] = wanted[row, step]
    np.testing.assert_array_equal(drawn, wanted)
    np.testing.assert_array_equal(ours.lengths, 9 + (wanted != NOTHING).sum(axis=1))
    again, fresh = prompted(engine, rows), np.flatnonzero([n is None for n in lengths]).tolist()
    kept = engine.take_rows(ours, fresh), engine.take_rows(again, fresh)
    for found, other in zip(*(step_of(engine, cache) for cache in kept), strict=True):
        np.testing.assert_array_equal(found, other)  # as if nothing had been


def one_code(logits: Array, drawing: Any, step: int, engine: Engine) -> int:
    from tortoise_rt.sampling import draw

    code = draw(logits, drawing.seen, drawing.uniforms[step], engine.dims["ar.start_code"], drawing.settings)
    drawing.seen[code] = True
    return code


def step_of(engine: Engine, cache: KVCache) -> tuple[Array, Array]:
    ones = np.ones((cache.rows, 1), np.int64)
    return engine.ar_step(cache, 3 * ones, ones)


def test_a_scheduler_draws_ahead(engine: TensorRTEngine, plain: Engine) -> None:
    """Requests of several kinds, side by side, and a stream: each as alone on the host."""
    settings = make_settings(num_autoregressive_samples=2, max_mel_tokens=24, decoder="hifigan")
    one = make_settings(num_autoregressive_samples=1, max_mel_tokens=24, decoder="hifigan")
    with scheduler(engine, rows=3) as made:
        handles = [made.submit(IDS, None, settings, seed) for seed in (1, 2)]
        stream = np.concatenate(list(made.stream(IDS, None, one, 7)))
        for seed, handle in zip((1, 2), handles, strict=True):
            wanted = Pipeline(plain).synthesize(IDS, None, settings, seed)
            np.testing.assert_array_equal(handle.result(60).codes, wanted.codes)
    wanted = Pipeline(plain).synthesize(IDS, None, one, 7)
    assert relative_error(stream, wanted.wavs[0]) <= 1e-3


def test_numbers_that_are_not_finite_end_their_row_alone(standard_graphs: EngineInfo, tmp_path: Path) -> None:
    """And leave nothing behind: the row serves another sample."""
    engine = make_engine(standard_graphs, ahead=True)
    cache, prompt = prompted(engine, 2), prompted(engine, 1)
    state: Any = cache.state
    from fake_memory import view

    view(state.memory.address, (engine._row_bytes() // 4,), np.float32)[:] = np.nan  # the first key of row 0
    vocabulary = engine.dims["ar.mel_codes"]
    drawings = [Drawing(np.zeros(vocabulary, bool), np.full(4, 0.4), ARSettings()) for _ in range(2)]
    three, one = np.full((2, 1), 3), np.ones((2, 1), np.int64)
    drawn, _ = engine.ar_draw(cache, three, one, drawings)
    assert (drawn[0] == NOTHING).all() and (drawn[1] != NOTHING).all()
    engine.put_rows(cache, [0], prompt, [0])
    healed = engine.ar_draw(cache, three, one, [drawings[1], None])[0][0]
    alone = engine.ar_draw(prompt, three[:1], one[:1], [drawings[1]])[0][0]
    np.testing.assert_array_equal(healed, alone)
