"""Weights in eight bits: how far they are off, what they apply to, and that rows stay independent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import ok, run

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

from tortoise_rt import open_engine  # noqa: E402
from tortoise_rt.bundle import read_bundle  # noqa: E402
from tortoise_rt.errors import BundleMismatch  # noqa: E402
from tortoise_rt.export import parity, quantize  # noqa: E402
from tortoise_rt.export.bundle import export_bundle  # noqa: E402
from tortoise_rt.export.checkpoints import Checkpoints  # noqa: E402
from tortoise_rt.spec import GRAPHS  # noqa: E402

REDUCED = quantize.PRECISIONS[1:]
TEXT = np.arange(20)[None] % 11


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 130), st.integers(1, 40), st.integers(0, 2**31), st.sampled_from([8, 4]))
def test_weights_are_off_by_half_a_step_at_most(inputs: int, outputs: int, seed: int, bits: int) -> None:
    """Of four bits, at the end that the largest weight is not at, by a whole one."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=(1, outputs)) * 3)
    matrix = (rng.standard_normal((inputs, outputs)) * scale).astype(np.float32)
    matrix[:, rng.integers(outputs)] = 0
    packed, scales = quantize.quantize_blocks(matrix, bits)
    blocks = -(-inputs // quantize.BLOCK)
    assert packed.shape == (outputs, blocks, quantize.BLOCK * bits // 8) and scales.shape == (outputs, blocks)
    found = quantize.dequantize_blocks(packed, scales, inputs, bits)
    steps = scales.repeat(quantize.BLOCK, 1)[:, :inputs].T
    far = (matrix / np.where(steps == 0, 1, steps) > 7.5) & (bits == 4)
    assert np.all(np.abs(found - matrix) <= np.where(far, 1.0001, 0.5001) * np.abs(steps))
    again, same = quantize.quantize_blocks(found, bits)  # what is on the grid stays there
    np.testing.assert_array_equal(again, packed)
    np.testing.assert_allclose(same, scales, rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 130), st.integers(1, 40), st.integers(0, 2**31))
def test_weights_with_one_scale_for_each_output(inputs: int, outputs: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).standard_normal((inputs, outputs)).astype(np.float32)
    matrix[:, 0] = 0
    numbers, scales = quantize.quantize_columns(matrix)
    assert numbers.dtype == np.int8
    pairs = np.pad(numbers.astype(int), ((0, inputs % 2), (0, 0))).reshape(-1, 2, outputs)
    worst = 255 * np.maximum(np.maximum(pairs, 0).sum(1), np.maximum(-pairs, 0).sum(1))
    assert worst.max() <= 32767  # activations are 0 to 255
    assert np.all(np.abs(numbers * scales - matrix) <= 0.5001 * scales)


@pytest.fixture(scope="module")
def bundles(data: Path, random_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All networks in every precision, without their checks."""
    folder = tmp_path_factory.mktemp("precisions")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORTOISE_RT_CACHE", str(folder / "cache"))
        for precision in REDUCED:
            export_bundle(data, folder / precision, check=False, precision=precision)
    return {"fp32": random_bundle, **{precision: folder / precision for precision in REDUCED}}


@pytest.mark.parametrize("precision", REDUCED)
def test_only_large_matrices_of_some_graphs_are_in_fewer_bits(
    bundles: dict[str, Path], precision: str
) -> None:
    engine = open_engine(bundles[precision])
    assert {g for g, p in engine.info.precision.items() if p == precision} == set(quantize.QUANTIZED)
    for graph in engine.info.graphs:
        model = onnx.load(bundles[precision] / f"{graph}.onnx", load_external_data=False)
        kind = "MatMulIntegerToFloat" if precision == "int8row" else "MatMulNBits"
        nodes = [node for node in model.graph.node if node.op_type == kind]
        assert bool(nodes) == (graph in quantize.QUANTIZED), graph
        assert {p.key: p.value for p in model.metadata_props}["precision"] == engine.info.precision[graph]
        sizes = {a.name: a.i for node in nodes[:1] for a in node.attribute}
        assert "K" not in sizes or sizes["K"] * sizes["N"] >= quantize.LEAST_SIZE
    big, small = ((bundles[p] / "ar_step.data").stat().st_size for p in ("fp32", precision))
    assert small < 0.6 * big


def test_an_onnxruntime_that_lacks_eight_bits_is_refused(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = {p: read_bundle(folder).manifest["target"]["requires"] for p, folder in bundles.items()}
    versions = {p: target["onnxruntime"] for p, target in needed.items()}
    assert versions == {"fp32": "1.20", "int8": "1.22", "int4": "1.22", "int8row": "1.20"}
    monkeypatch.setattr(onnxruntime, "__version__", "1.21.1")
    open_engine(bundles["fp32"])
    with pytest.raises(BundleMismatch, match=r"needs onnxruntime 1\.22 or newer; 1\.21\.1 is installed: pip"):
        open_engine(bundles["int8"])


@pytest.mark.parametrize("precision", REDUCED)
def test_every_graph_is_near_its_module_and_not_equal_to_it(
    bundles: dict[str, Path], data: Path, precision: str
) -> None:
    report = {p.graph: p for p in parity.check_graphs(open_engine(bundles[precision]), Checkpoints(data))}
    parity.require_parity(list(report.values()))
    for graph, found in report.items():
        assert found.bound == (parity.BOUNDS[precision] if graph in quantize.QUANTIZED else 1e-4)
        assert graph not in quantize.QUANTIZED or found.error > 1e-5, graph


@pytest.mark.parametrize("precision", REDUCED)
def test_a_row_does_not_depend_on_the_others(bundles: dict[str, Path], precision: str) -> None:
    """One code for each of several rows, whose activations differ in size, against every row alone."""
    engine = open_engine(bundles[precision])
    rng = np.random.default_rng(0)
    voice = rng.standard_normal((4, engine.dims["ar.dim"])).astype(np.float32)
    voice *= np.array([0.01, 1, 30, 1])[:, None].astype(np.float32)
    codes, position = rng.integers(0, 50, (4, 1)), np.zeros((4, 1), np.int64)
    together, _ = engine.ar_step(engine.new_cache(4, 30), codes, position, voice, TEXT.repeat(4, 0))
    for row in range(4):
        one = slice(row, row + 1)
        alone, _ = engine.ar_step(engine.new_cache(1, 30), codes[one], position[one], voice[one], TEXT)
        assert parity.relative_error(together[one], alone) < 1e-5


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("graph", [g for g in quantize.QUANTIZED if g not in ("ar_step", "diffusion_align")])
def test_a_row_of_any_graph_does_not_depend_on_the_others(
    bundles: dict[str, Path], precision: str, graph: str
) -> None:
    """diffusion_align has one row index of frames for all rows, and its rows are computed alike."""
    engine = open_engine(bundles[precision])
    spec = GRAPHS[graph]
    sizes = {"rows": 3, "clips": 3, "frames": 37, "text": 9, "codes": 12}
    inputs = parity.random_inputs(spec, engine.dims, sizes, np.random.default_rng(1))
    for tensor in spec.inputs:  # rows of unlike size
        if tensor.dtype == "float32" and tensor.name != "timestep":
            scale = np.array([0.1, 1, 20], np.float32)
            inputs[tensor.name] *= scale.reshape(-1, *[1] * (inputs[tensor.name].ndim - 1))
    (together, *_) = engine.run(graph, **inputs)
    for row in range(3):
        alone = engine.run(graph, **{name: array[row : row + 1] for name, array in inputs.items()})[0]
        # Sums in another order differ in the last bit, and a value beside the middle of two steps goes to the other.
        assert parity.relative_error(together[row : row + 1], alone) < 1e-3


def test_columns_of_next_to_nothing() -> None:
    tiny = np.full((4, 3), 2e-43, np.float32)
    numbers, scales = quantize.quantize_columns(tiny)
    assert np.isfinite(scales).all() and np.abs(numbers.astype(int)).max() <= quantize.LARGEST_PAIR
    numbers, scales = quantize.quantize_outputs(tiny, "int8")
    assert not numbers.any() and np.all(scales <= 2**-24)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 130), st.integers(1, 40), st.integers(0, 2**31))
def test_weights_for_gpus(inputs: int, outputs: int, seed: int) -> None:
    """Off by half a step, or by a sixteenth of what they are, at most; none is cut off."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((inputs, outputs)) * np.exp(rng.normal(size=(1, outputs)) * 2)
    matrix = matrix.astype(np.float32)
    matrix[:, 0] = 0
    numbers, scales = quantize.quantize_outputs(matrix, "int8")
    assert numbers.dtype == np.int8 and scales.dtype == np.float16
    steps = scales.astype(np.float64)
    assert np.all(np.abs(numbers * steps - matrix) <= 0.5001 * steps)
    bits, scales = quantize.quantize_outputs(matrix, "fp8")
    steps = scales.astype(np.float64)
    found = torch.from_numpy(bits).view(torch.float8_e4m3fn).double().numpy() * steps
    assert np.all(np.abs(found - matrix) <= np.maximum(np.abs(matrix) / 15.9, 1.0001 * steps * 2**-10))


def test_float8_is_rounded_as_torch_rounds() -> None:
    rng = np.random.default_rng(0)
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    every = every[np.isfinite(every)]
    between = (np.sort(every)[1:] + np.sort(every)[:-1]) / 2  # where even numbers win
    array = np.concatenate([every, between, rng.uniform(-448, 448, 5000), rng.normal(size=5000) / 100])
    array = array.astype(np.float32)
    wanted = torch.from_numpy(array).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(quantize.as_float8(array), wanted)


def test_the_command_line_exports_it(data: Path, folder: Path) -> None:
    result = ok("export", "--checkpoints", str(data), "--precision", "int8", "-o", "bundle")
    assert "int8" in result.output and "fp32" in result.output
    failed = run("export", "--checkpoints", str(data), "--precision", "int5", "-o", "other")
    assert (
        failed.exit_code == 2
        and 'no precision is called "int5" for cpu. Did you mean "int8" or "int4"' in failed.output
    )
