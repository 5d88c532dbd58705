"""The fake engine has the properties that make it a stand-in for the real ones."""

from __future__ import annotations

import numpy as np
import pytest

from tortoise_rt.backends.fake import DIMS, FakeEngine
from tortoise_rt.errors import EngineError
from tortoise_rt.spec import GRAPHS

SIZES = {"clips": 3, "rows": 3, "frames": 7, "text": 4, "codes": 5, "samples": 512}
RNG = np.random.default_rng(0)


def inputs_of(graph: str) -> dict[str, np.ndarray]:
    made = {}
    for tensor in GRAPHS[graph].inputs:
        shape = [d if isinstance(d, int) else DIMS[d] if "." in d else SIZES[d] for d in tensor.dims]
        if tensor.name == "wanted":
            made[tensor.name] = np.array([2, 5])
        elif tensor.dtype == "int64":
            made[tensor.name] = RNG.integers(0, SIZES["codes"], shape)
        else:
            made[tensor.name] = RNG.standard_normal(shape).astype(np.float32)
    return made


STATELESS = [name for name, spec in GRAPHS.items() if not spec.stateful]


@pytest.mark.parametrize("graph", STATELESS)
def test_outputs_have_the_shapes_of_the_spec(graph: str) -> None:
    outputs = FakeEngine().run(graph, **inputs_of(graph))
    for tensor, output in zip(GRAPHS[graph].outputs, outputs, strict=True):
        assert output.dtype == tensor.dtype
        for dim, size in zip(tensor.dims, output.shape, strict=True):
            known = dim if isinstance(dim, int) else DIMS[dim] if "." in dim else SIZES.get(dim)
            assert size == known or dim in ("samples", "outputs")


@pytest.mark.parametrize("graph", STATELESS)
def test_rows_do_not_see_each_other(graph: str) -> None:
    inputs = inputs_of(graph)
    first = {name: a if name in ("frame_index", "wanted") else a[:1] for name, a in inputs.items()}
    for whole, alone in zip(FakeEngine().run(graph, **inputs), FakeEngine().run(graph, **first), strict=True):
        if len(whole) == SIZES["rows"]:
            np.testing.assert_array_equal(whole[:1], alone)


def test_steps_depend_on_the_history_and_not_on_how_it_was_divided() -> None:
    engine, rows = FakeEngine(), 2
    codes = RNG.integers(0, 200, (rows, 6))
    positions = np.tile(np.arange(6), (rows, 1))
    voice, text = RNG.standard_normal((rows, 16)).astype(np.float32), RNG.integers(0, 200, (rows, 4))
    whole = engine.new_cache(rows, 20)
    logits, latents = engine.ar_step(whole, codes, positions, voice, text)

    parts = engine.new_cache(rows, 20)
    engine.ar_step(parts, codes[:, :2], positions[:, :2], voice, text)
    parts = engine.take_rows(parts, [1, 0, 1])
    order = [1, 0, 1]
    stepped, last = engine.ar_step(parts, codes[order, 2:], positions[order, 2:])
    np.testing.assert_array_equal(stepped, logits[order])
    np.testing.assert_array_equal(last, latents[order, 2:])
    codes[0, 0] += 1
    other, _ = engine.ar_step(engine.new_cache(rows, 20), codes, positions, voice, text)
    assert not np.array_equal(other[0], logits[0])
    np.testing.assert_array_equal(other[1], logits[1])


def test_inputs_are_checked() -> None:
    with pytest.raises(EngineError, match="takes"):
        FakeEngine().run("ar_voice", mels=np.zeros((1, 80, 5), np.float32))
