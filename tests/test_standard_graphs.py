"""The family of standard operators computes what the family for the CPU does, on ONNX Runtime's CPU provider."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

import onnx
from standard import DATA, cache_tensors, ragged, standard_engine, write_standard

from tortoise_rt.backends import open_engine
from tortoise_rt.backends.onnx_standard import StandardEngine
from tortoise_rt.engine import Engine, EngineInfo
from tortoise_rt.errors import EngineError
from tortoise_rt.export.checkpoints import Checkpoints
from tortoise_rt.export.onnx import standard
from tortoise_rt.export.onnx.builder import ONNX_TYPES
from tortoise_rt.export.onnx.weights import TensorWriter, as_bfloat16
from tortoise_rt.export.parity import BOUNDS, TRIALS, check_graphs, random_inputs, relative_error
from tortoise_rt.profiles import profiles, wanted_values
from tortoise_rt.spec import GRAPHS, cache_capacity

BOUND = 1e-4  #: of an output's range
STATELESS = [name for name, spec in GRAPHS.items() if not spec.stateful]


@pytest.fixture(scope="module")
def engine(standard_graphs: EngineInfo) -> StandardEngine:
    return standard_engine(standard_graphs)


@pytest.fixture(scope="module")
def fused(random_bundle: Path) -> Engine:
    return open_engine(random_bundle, "onnx", "cpu")


@pytest.mark.parametrize("graph", list(GRAPHS))
def test_only_standard_operators(engine: StandardEngine, graph: str) -> None:
    model = onnx.load(Path(engine.info.source, f"{graph}.onnx"), load_external_data=False)
    assert [opset.domain for opset in model.opset_import] == [""]
    kinds = {node.op_type for node in model.graph.node}
    assert all(onnx.defs.has(kind) for kind in kinds)
    assert not kinds & {"Multinomial", "NonZero", "Loop", "If", "Scan"}
    assert ("TensorScatter" in kinds) == (graph == "ar_step")
    onnx.checker.check_model(Path(engine.info.source, f"{graph}.onnx"), full_check=True)


@pytest.mark.parametrize("graph", STATELESS)
def test_the_families_agree(engine: StandardEngine, fused: Engine, graph: str) -> None:
    for sizes in TRIALS:
        inputs = random_inputs(GRAPHS[graph], fused.dims, sizes, np.random.default_rng(0))
        found, wanted = engine.run(graph, **inputs), fused.run(graph, **inputs)
        errors = [relative_error(a, b) for a, b in zip(found, wanted, strict=True)]
        assert max(errors) <= BOUND, (sizes, errors)


@pytest.mark.parametrize("time", [1, 2, 63, 64, 65, 129, 300])
def test_positions_of_any_length(engine: StandardEngine, fused: Engine, time: int) -> None:
    """Position biases are laid out for every pair, within the table's reach and beyond."""
    inputs = random_inputs(
        GRAPHS["diffusion_condition"],
        fused.dims,
        {"rows": 2, "frames": time, "codes": 1},
        np.random.default_rng(0),
    )
    found = engine.run("diffusion_condition", **inputs)[0]
    assert relative_error(found, fused.run("diffusion_condition", **inputs)[0]) <= BOUND


def test_agrees_with_the_modules(engine: StandardEngine) -> None:
    report = list(check_graphs(engine, Checkpoints(DATA)))
    assert {parity.graph for parity in report} == set(GRAPHS)
    assert [(p.graph, p.error) for p in report if not p.ok] == []


def test_ragged_rows(engine: StandardEngine, fused: Engine) -> None:
    """Rows of unequal lengths, for one code and for several, in both families; rows are exchanged on the way."""
    lengths = (1, 7, 20)
    ours, theirs = ragged(engine, lengths), ragged(fused, lengths)
    rng = np.random.default_rng(2)
    for new in (1, 4, 1):
        codes = rng.integers(0, 200, (3, new))
        positions = np.array(lengths)[:, None] + np.arange(new)
        found, wanted = engine.ar_step(ours, codes, positions), fused.ar_step(theirs, codes, positions)
        assert max(relative_error(a, b) for a, b in zip(found, wanted, strict=True)) <= BOUND
        lengths = tuple(length + new for length in lengths)
        for cache, runs in ((ours, engine), (theirs, fused)):
            runs.put_rows(cache, [0, 2], cache, [2, 0])
        lengths = lengths[::-1]
    taken = [runs.take_rows(cache, [2, 0, 2]) for runs, cache in ((engine, ours), (fused, theirs))]
    codes, positions = np.array([[3], [4], [5]]), np.array(lengths)[[2, 0, 2], None]
    found, wanted = (
        runs.ar_step(c, codes, positions) for runs, c in zip((engine, fused), taken, strict=True)
    )
    assert max(relative_error(a, b) for a, b in zip(found, wanted, strict=True)) <= BOUND


def test_the_cache_is_written_in_place(engine: StandardEngine) -> None:
    cache = engine.new_cache(2, 40)
    cache.lengths[:] = 3, 5
    engine.ar_step(cache, np.array([[1], [2]]), np.array([[3], [5]]))
    key = cache_tensors(engine, cache)[0]
    assert key.shape[2] == cache_capacity(engine.dims)
    written = np.abs(key).sum((1, 3)) > 0
    assert [np.flatnonzero(row).tolist() for row in written] == [[3], [5]]


def test_a_cache_beyond_what_was_exported(engine: StandardEngine) -> None:
    most = cache_capacity(engine.dims)
    with pytest.raises(
        EngineError, match=f"a cache of {most + 1} positions; this engine was exported for {most}"
    ):
        engine.new_cache(1, most + 1)


def cache_types(engine: StandardEngine) -> set[str]:
    """Of keys and values, as the graph takes them."""
    inputs = engine.session("ar_step").get_inputs()
    return {value.type for value in inputs if value.name.startswith(("key_", "value_"))}


def test_half_precision(fused: Engine, tmp_path: Path) -> None:
    """Factors of products are halves, and so is the cache; what comes out is float32 and near."""
    engine = standard_engine(write_standard(tmp_path, "fp16"))
    assert engine.info.precision["univnet"] == "fp32" and engine.info.precision["ar_step"] == "fp16"
    assert engine.position_bytes() == fused.position_bytes() // 2
    for graph in STATELESS:
        inputs = random_inputs(GRAPHS[graph], fused.dims, TRIALS[1], np.random.default_rng(0))
        for found, wanted in zip(engine.run(graph, **inputs), fused.run(graph, **inputs), strict=True):
            assert found.dtype == np.float32
            assert relative_error(found, wanted) <= BOUNDS["fp16"], graph
    ours, theirs = ragged(engine, (2, 9)), ragged(fused, (2, 9))
    assert cache_types(engine) == {"tensor(float16)"}
    codes, positions = np.array([[3], [4]]), np.array([[2], [9]])
    found, wanted = engine.ar_step(ours, codes, positions), fused.ar_step(theirs, codes, positions)
    assert max(relative_error(a, b) for a, b in zip(found, wanted, strict=True)) <= BOUNDS["fp16"]


@pytest.mark.parametrize("precision", list(standard.WEIGHTS_ONLY))
def test_weights_in_eight_bits(precision: str, tmp_path: Path) -> None:
    """Of the step that is decoded by, and nothing else: it is near its module, and not equal to it."""
    engine = standard_engine(write_standard(tmp_path, precision))
    halves = {graph: standard.graph_precision(graph, "fp16") for graph in GRAPHS}
    assert engine.info.precision == {**halves, "ar_step": precision}
    model = onnx.load(tmp_path / "ar_step.onnx", load_external_data=False)
    narrow = {t.name for t in model.graph.initializer if t.data_type == standard.WEIGHTS_ONLY[precision]}
    nodes = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert {node.input[0] for node in nodes} == narrow
    layers, products = engine.dims["ar.layers"], [n for n in model.graph.node if n.op_type == "MatMul"]
    assert len(nodes) == 4 * layers + 1 == len(products) - 2 * layers  # all but attention's own two
    onnx.checker.check_model(tmp_path / "ar_step.onnx", full_check=True)
    assert cache_types(engine) == {"tensor(float16)"}
    only = StandardEngine(
        tmp_path, replace(engine.info, graphs=frozenset(["ar_step"])), {"ar_step": "ar_step.onnx"}
    )
    (parity,) = check_graphs(only, Checkpoints(DATA))
    assert parity.ok and parity.bound == BOUNDS[precision] and parity.error > 2e-3, parity


def test_bfloat16(tmp_path: Path) -> None:
    """Rounded as torch rounds, and stored as what it is."""
    import torch

    rng = np.random.default_rng(0)
    array = np.concatenate([rng.standard_normal(1000), [0, 1 + 2**-8, 1 + 3 * 2**-8, -1e-30, 3e38]]).astype(
        np.float32
    )
    bits = torch.from_numpy(array).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(as_bfloat16(array), bits)
    with TensorWriter(tmp_path / "data") as writer:
        proto = writer.tensor("x", as_bfloat16(array[-5:]), ONNX_TYPES["bfloat16"])
    assert onnx.numpy_helper.to_array(proto).astype(np.float32)[1] == 1
    write_standard(tmp_path, "bf16")
    for graph in GRAPHS:
        wanted = ONNX_TYPES["bfloat16"] if standard.graph_precision(graph, "bf16") == "bf16" else None
        model = onnx.load(tmp_path / f"{graph}.onnx", load_external_data=False)
        halves = {tensor.data_type for tensor in model.graph.initializer} & {ONNX_TYPES["bfloat16"]}
        assert halves == ({wanted} if wanted else set()), graph


@pytest.mark.parametrize("graph", list(GRAPHS))
def test_profiles_name_every_free_dimension(fused: Engine, graph: str) -> None:
    free = {d for tensor in GRAPHS[graph].inputs for d in tensor.dims if isinstance(d, str) and "." not in d}
    if graph == "ar_step":
        free.add("span")
    for profile in profiles(graph, fused.dims):
        assert set(profile) == free
        assert all(0 <= least <= usual <= most for least, usual, most in profile.values())


def test_the_wanted_frames_fit_the_windows(fused: Engine) -> None:
    (least, usual, most), frames = (
        wanted_values("hifigan", fused.dims),
        profiles("hifigan", fused.dims)[0]["frames"],
    )
    assert least[0] <= usual[0] < most[0] and least[1] <= usual[1] <= most[1] == frames[2]
