"""Memory for caches that ``StandardEngine`` keeps and moves rows in, on ONNX Runtime's CPU provider."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

import onnx
from standard import cache_tensors, ragged, standard_engine, step, steps

from tortoise_rt.backends import onnx_memory
from tortoise_rt.backends.onnx_memory import MOST_FREE, clearing_model, copying_model
from tortoise_rt.backends.onnx_standard import StandardEngine
from tortoise_rt.engine import EngineInfo
from tortoise_rt.errors import EngineError


@pytest.fixture
def engine(standard_graphs: EngineInfo) -> StandardEngine:
    return standard_engine(standard_graphs, records=True)


def test_rows_are_moved_on_the_device(engine: StandardEngine) -> None:
    """Onto each other, from one cache into another, and several times: what numpy says of what they hold."""
    a, b = ragged(engine, (3, 9, 5)), ragged(engine, (2, 6), seed=4)
    held, other = cache_tensors(engine, a).copy(), cache_tensors(engine, b).copy()
    taken = engine.take_rows(a, [2, 0, 2])
    assert np.array_equal(cache_tensors(engine, taken)[:, :3], held[:, [2, 0, 2]])
    assert not cache_tensors(engine, taken)[:, 3:].any() and cache_tensors(engine, taken).shape[1] == 4
    engine.put_rows(a, [0, 1, 2], a, [1, 2, 0])
    assert np.array_equal(cache_tensors(engine, a)[:, :3], held[:, [1, 2, 0]])
    engine.put_rows(a, [2], a, [0])
    assert np.array_equal(cache_tensors(engine, a)[:, :3], held[:, [1, 2, 1]])
    engine.put_rows(a, [2, 0], b, [1, 1])
    assert np.array_equal(
        cache_tensors(engine, a)[:, :3], np.stack([other[:, 1], held[:, 2], other[:, 1]], 1)
    )
    assert np.array_equal(cache_tensors(engine, b), other)


def test_memory_is_used_again_and_cleared(engine: StandardEngine) -> None:
    """So that its steps need not be recorded again, whatever order caches go in."""
    for _ in range(3):
        prompt = ragged(engine, (4,))
        sample = engine.take_rows(prompt, [0])
        step(engine, sample)
        numbers = prompt.state.block.number, sample.state.block.number
        del prompt
        gc.collect()
        steps(engine, sample, 2)
        cache_tensors(engine, sample)[:] = np.nan
        del sample
        gc.collect()
    assert numbers[1] in {key[0] for key in engine._steps._known} and len(engine._steps) == 1
    fresh = engine.new_cache(1, 8)
    assert fresh.state.block.number in numbers and not cache_tensors(engine, fresh).any()


def test_little_is_kept_that_nobody_uses(engine: StandardEngine) -> None:
    """Over all numbers of rows together; what was free for longest goes."""
    caches = [engine.new_cache(4, 8) for _ in range(6)]
    for cache in caches:
        step(engine, cache)
    memory, numbers = engine._memory(), [cache.state.block.number for cache in caches]
    assert len(engine._steps) == 6
    del cache
    while caches:
        del caches[0]
    again = [engine.new_cache(4, 8).state.block.number for _ in range(2)]  # each given back at once
    assert again == [numbers[2]] * 2 and {key[0] for key in engine._steps._known} == {*numbers[2:]}
    memory._sort()
    assert sum(block.rows for block in memory._free) == MOST_FREE
    engine.release("ar_step")
    assert not len(engine._steps) and not memory._free


def test_samples_that_end_one_after_the_other_leave_little(engine: StandardEngine) -> None:
    """Memory for as many rows as the largest free block has, or a few, whatever was used."""
    cache, memory, most = engine.new_cache(64, 8), engine._memory(), 0
    for rows in range(63, 0, -1):
        cache = engine.take_rows(cache, range(rows))
        memory._sort()
        free = [block.rows for block in memory._free]
        assert sum(free) <= max(MOST_FREE, *free, 0) and set(free) <= {1, 2, 4, 8, 12, 16, 32, 48, 64}
        most = max(most, *free, 0)
    assert most == 64 and sum(free) <= MOST_FREE


def test_what_is_kept_goes_before_memory_is_out(
    engine: StandardEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    step(engine, ragged(engine, (3,)))
    gc.collect()
    memory, make = engine._memory(), engine._memory()._new_value
    tries: list[int] = []

    def scarce(rows: int) -> Any:
        tries.append(rows)
        if memory._free or rows > 8:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1\nand more")
        return make(rows)

    monkeypatch.setattr(memory, "_new_value", scarce)
    engine.new_cache(8, 8)
    assert tries == [8, 8] and not len(engine._steps)
    with pytest.raises(
        EngineError, match=r"^no cache of 12 rows, \d+ MiB, on cpu:0: Failed to alloc.*size 1$"
    ):
        engine.new_cache(10, 8)


def test_memory_is_cleared_in_parts(engine: StandardEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what operators can count."""
    monkeypatch.setattr(onnx_memory, "_CLEARED", 1000)
    cache = engine.new_cache(2, 8)
    cache_tensors(engine, cache)[:] = np.inf
    engine._memory()._clear(cache.state.block)
    assert not cache_tensors(engine, cache).any()


def test_a_copy_that_fails_says_so(engine: StandardEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ragged(engine, (1, 2))
    monkeypatch.setattr(engine._memory(), "_copying", None)
    with pytest.raises(EngineError, match=r"^2 rows of a cache could not be copied: 'NoneType'"):
        engine.take_rows(cache, [0, 1])


@pytest.mark.parametrize("model", [clearing_model(), copying_model(60)], ids=["clearing", "copying"])
def test_models_are_onnx(model: bytes) -> None:
    onnx.checker.check_model(model, full_check=True)
