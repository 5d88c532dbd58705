"""Decoding: fix-ups of codes, and what must hold of any batch, any chunking and any seed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tortoise_rt.autoregressive import (
    DEFAULT_MAX_MEL_TOKENS,
    code_latents,
    code_limit,
    fix_codes,
    sample_codes,
    spoken_length,
    text_row,
)
from tortoise_rt.config import ARSettings
from tortoise_rt.engine import Array
from tortoise_rt.errors import SettingsError, TextError
from tortoise_rt.rng import Philox
from tortoise_rt.spec import CALM_RUN, CALM_TOKEN, MAX_TEXT_IDS, TAIL_TOKENS

torch = pytest.importorskip("torch")

from tortoise_rt.backends.torch import TorchEngine  # noqa: E402

STOP = 90
BOUND = 1e-4
DIMS = {"ar.text_positions": 404, "ar.start_text": 255, "ar.mel_positions": 608}
SHORT = ARSettings(samples=7, max_mel_tokens=12, batch_rows=16)

# Few different codes, so that silence and stops are common.
code_rows = arrays(
    np.int64,
    st.tuples(st.integers(1, 4), st.integers(1, 40)),
    elements=st.sampled_from([5, CALM_TOKEN, CALM_TOKEN, CALM_TOKEN, STOP]),
)


@pytest.fixture(scope="module")
def engine(data: Path) -> TorchEngine:
    return TorchEngine(data, "cpu")


@pytest.fixture(scope="module")
def voice(data: Path) -> Array:
    with np.load(data / "ar.npz") as file:
        return file["cond_latent"]


@pytest.fixture(scope="module")
def text(data: Path, engine: TorchEngine) -> Array:
    return text_row(json.loads((data / "e2e.json").read_text("utf-8"))["ids"], engine.dims)


# --- rows of text and codes ---


@given(st.lists(st.integers(0, 254), min_size=1, max_size=MAX_TEXT_IDS))
def test_a_text_row_is_start_ids_stop_stop(ids: list[int]) -> None:
    assert text_row(ids, DIMS).tolist() == [[255, *ids, 0, 0]]


@pytest.mark.parametrize(("count", "positions"), [(0, 404), (399, 404), (18, 20)])
def test_a_text_of_no_or_too_many_ids_is_refused(count: int, positions: int) -> None:
    with pytest.raises(
        TextError, match="nothing to say" if count == 0 else f"text is {count} tokens; the limit is"
    ):
        text_row([7] * count, {**DIMS, "ar.text_positions": positions})


def test_the_code_limit_is_bounded_by_the_position_table() -> None:
    assert code_limit(ARSettings(), DIMS) == DEFAULT_MAX_MEL_TOKENS
    small = {**DIMS, "ar.mel_positions": 33}
    assert code_limit(ARSettings(), small) == 33
    assert code_limit(ARSettings(kv_positions="upstream"), small) == 32
    assert code_limit(ARSettings(max_mel_tokens=33), small) == 33
    with pytest.raises(SettingsError, match="max_mel_tokens is 34; .* 33"):
        code_limit(ARSettings(max_mel_tokens=34), small)


@given(code_rows)
def test_a_fixed_row_has_no_stop_and_the_trained_end(codes: Array) -> None:
    before = codes.copy()
    fixed = fix_codes(codes, STOP)
    assert (codes == before).all()
    assert (fixed != STOP).all()
    for row, was in zip(fixed, before, strict=True):
        stops = np.flatnonzero(was == STOP)
        if len(stops) == 0:
            assert (row == was).all()
            continue
        tail = min(len(row), len(TAIL_TOKENS))
        assert tuple(row[-tail:]) == TAIL_TOKENS[-tail:]
        spoken = min(stops[0], len(row) - tail)
        assert (row[:spoken] == was[:spoken]).all()
        assert (row[stops[0] : len(row) - tail] == CALM_TOKEN).all()
    assert (fix_codes(fixed, STOP) == fixed).all()


@given(code_rows)
def test_the_spoken_part_ends_in_at_most_the_allowed_silence(codes: Array) -> None:
    for row in codes:
        length = spoken_length(row)
        runs = "".join("#" if code == CALM_TOKEN else "." for code in row)
        assert "#" * (CALM_RUN + 1) not in runs[:length]
        assert length == len(row) or runs[: length + 1].endswith("#" * (CALM_RUN + 1))


# --- the network, step by step ---


def extend(
    engine: TorchEngine, voice: Array, text: Array, codes: Array, chunks: list[int]
) -> tuple[Array, Array]:
    """The last logits (rows, vocabulary) and all latents (rows, codes, dim) of codes read in ``chunks``."""
    rows, count = codes.shape
    cache = engine.new_cache(rows, 1 + text.shape[1] + count)
    prefix: dict[str, Any] = {
        "voice": np.repeat(voice, rows, axis=0),
        "text_ids": np.repeat(text, rows, axis=0),
    }
    positions = np.tile(np.arange(count), (rows, 1))
    latents, first = [], 0
    for size in chunks:
        part = slice(first, first + size)
        logits, latent = engine.ar_step(cache, codes[:, part], positions[:, part], **prefix)
        latents.append(latent)
        prefix, first = {}, first + size
    return logits, np.concatenate(latents, axis=1)


def assert_close(found: Array, wanted: Array) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= BOUND * np.ptp(wanted)


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6), rows=st.integers(1, 3), seed=st.integers(0, 99)
)
def test_cached_in_any_chunks_equals_one_pass(
    engine: TorchEngine, voice: Array, text: Array, sizes: list[int], rows: int, seed: int
) -> None:
    codes = np.random.default_rng(seed).integers(0, 512, (rows, sum(sizes)))
    whole_logits, whole_latents = extend(engine, voice, text, codes, [sum(sizes)])
    logits, latents = extend(engine, voice, text, codes, sizes)
    assert_close(logits, whole_logits)
    assert_close(latents, whole_latents)
    repeated = [torch.from_numpy(np.repeat(array, rows, axis=0)) for array in (voice, text)]
    with torch.inference_mode():
        _, full = engine.module("autoregressive")(*repeated, torch.from_numpy(codes))
    assert_close(logits, full[:, -1].numpy())


def test_a_copied_row_goes_on_as_the_original(engine: TorchEngine, voice: Array, text: Array) -> None:
    codes = np.random.default_rng(0).integers(0, 512, (3, 6))
    cache = engine.new_cache(3, 1 + text.shape[1] + 6)
    positions = np.tile(np.arange(6), (3, 1))
    voices, texts = np.repeat(voice, 3, axis=0), np.repeat(text, 3, axis=0)
    engine.ar_step(cache, codes[:, :5], positions[:, :5], voices, texts)
    copied = engine.take_rows(cache, [2, 0, 2], cache.capacity + 4)
    wanted, _ = engine.ar_step(cache, codes[:, 5:], positions[:, 5:])
    found, _ = engine.ar_step(copied, codes[[2, 0, 2], 5:], positions[:, 5:])
    assert_close(found, wanted[[2, 0, 2]])


def test_latents_do_not_depend_on_longer_rows_beside_them(
    engine: TorchEngine, voice: Array, text: Array
) -> None:
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, 512, length) for length in (3, 14, 1, 9)]
    for row, found in zip(rows, code_latents(engine, voice, text, rows), strict=True):
        (alone,) = code_latents(engine, voice, text, [row])
        assert_close(found, alone)


# --- samples ---


class Later(Philox):
    """The randomness of a seed, for the samples from ``first`` on."""

    def __init__(self, seed: int, first: int) -> None:
        super().__init__(seed)
        self.first = first

    def uniforms(self, sample: int, count: int) -> Array:
        return super().uniforms(self.first + sample, count)


@pytest.fixture(scope="module")
def drawn(engine: TorchEngine, voice: Array, text: Array) -> Array:
    return sample_codes(engine, voice, text, SHORT, Philox(5))


def test_samples_are_as_many_as_asked_and_differ(drawn: Array) -> None:
    assert drawn.shape == (SHORT.samples, SHORT.max_mel_tokens)
    assert len({row.tobytes() for row in drawn}) > 1


@pytest.mark.parametrize("batch_rows", [1, 3, 16])
def test_samples_do_not_depend_on_the_batch(
    engine: TorchEngine, voice: Array, text: Array, drawn: Array, batch_rows: int
) -> None:
    again = sample_codes(engine, voice, text, replace(SHORT, batch_rows=batch_rows), Philox(5))
    assert (again == drawn).all()


@pytest.mark.parametrize("samples", [1, 4])
def test_fewer_samples_are_the_first_ones(
    engine: TorchEngine, voice: Array, text: Array, drawn: Array, samples: int
) -> None:
    fewer = sample_codes(engine, voice, text, replace(SHORT, samples=samples), Philox(5))
    assert (fewer == drawn[:samples]).all()


def test_a_later_sample_does_not_depend_on_earlier_ones(
    engine: TorchEngine, voice: Array, text: Array, drawn: Array
) -> None:
    alone = sample_codes(engine, voice, text, replace(SHORT, samples=1), Later(5, 6))
    assert (alone[0] == drawn[6]).all()


def test_another_seed_gives_other_samples(
    engine: TorchEngine, voice: Array, text: Array, drawn: Array
) -> None:
    other = sample_codes(engine, voice, text, SHORT, Philox(6))
    assert not (other == drawn).all(axis=1).any()


def test_greedy_needs_no_seed(engine: TorchEngine, voice: Array, text: Array) -> None:
    greedy = replace(SHORT, samples=2, greedy=True)
    one, other = (sample_codes(engine, voice, text, greedy, Philox(seed)) for seed in (1, 2))
    assert (one == other).all()
    assert (one[0] == one[1]).all()


def test_after_a_stop_there_are_only_stops(engine: TorchEngine, voice: Array, text: Array) -> None:
    stop = engine.dims["ar.stop_code"]
    hot = ARSettings(samples=24, max_mel_tokens=60, temperature=1.5, top_k=0, top_p=1.0)
    codes = sample_codes(engine, voice, text, hot, Philox(0))
    ended = (codes == stop).any(axis=1)
    assert ended.any()
    for row in codes[ended]:
        assert (row[(row == stop).argmax() :] == stop).all()
    assert (codes != engine.dims["ar.start_code"]).all()


def test_upstream_positions_are_others(engine: TorchEngine, voice: Array, text: Array, drawn: Array) -> None:
    upstream = sample_codes(engine, voice, text, replace(SHORT, kv_positions="upstream"), Philox(5))
    assert (upstream[:, 0] == drawn[:, 0]).all()  # drawn before any code has a position
    assert (upstream != drawn).any()


def test_progress_ends_at_the_number_of_samples(engine: TorchEngine, voice: Array, text: Array) -> None:
    seen: list[tuple[int, int]] = []
    sample_codes(
        engine, voice, text, replace(SHORT, batch_rows=3), Philox(5), lambda *counts: seen.append(counts)
    )
    assert seen[-1] == (SHORT.samples, SHORT.samples)
    assert seen == sorted(seen)
