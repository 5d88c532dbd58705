"""Weights that float16 holds exactly are stored so, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from tortoise_rt.backends.onnx import OnnxEngine  # noqa: E402
from tortoise_rt.engine import EngineInfo  # noqa: E402
from tortoise_rt.export.checkpoints import Checkpoints  # noqa: E402
from tortoise_rt.export.onnx import builder, write_graph  # noqa: E402
from tortoise_rt.export.onnx.weights import HALVED_SIZE, fits_half  # noqa: E402
from tortoise_rt.export.parity import TRIALS, random_inputs  # noqa: E402
from tortoise_rt.spec import GRAPHS  # noqa: E402

STATELESS = ("ar_voice", "clvp_text", "diffusion_denoise", "univnet", "hifigan", "detector")
HALF = np.linspace(-1, 1, HALVED_SIZE + 1, dtype=np.float16).astype(np.float32)


@pytest.mark.parametrize(
    ("array", "fits"),
    [
        (HALF, True),
        (HALF.reshape(-1, 5).T, True),
        (HALF[:-1], False),
        (HALF.astype(np.float64), False),
        (np.arange(HALVED_SIZE + 1), False),
        (np.append(HALF, np.float32(1e-9)), False),
        (np.append(HALF, np.float32(1e9)), False),
        (np.append(HALF, np.float32(2**-24)), True),
        (np.append(HALF, np.float32("nan")), False),
    ],
)
def test_what_is_stored_in_half_precision(array: np.ndarray, fits: bool) -> None:
    assert fits_half(array) is fits


def write(data: Path, folder: Path, graphs: tuple[str, ...], rounded: bool = True) -> OnnxEngine:
    """An engine of some graphs of the tiny model, its weights rounded to half precision."""
    checkpoints = Checkpoints(data)
    dims = checkpoints.dims()
    folder.mkdir()
    for graph in graphs:
        network = GRAPHS[graph].network
        weights = {k: v.numpy() for k, v in checkpoints.load(network).state_dict().items()}
        if rounded:
            weights = {k: v.astype(np.float16).astype(np.float32) for k, v in weights.items()}
        write_graph(graph, weights, dims, checkpoints.section(network), folder)
    files = {graph: f"{graph}.onnx" for graph in graphs}
    return OnnxEngine(folder, EngineInfo("onnx", "cpu", str(folder), dims, frozenset(graphs), None), files)


def stored_in_half(path: Path) -> int:
    model = onnx.load(path, load_external_data=False)
    return sum(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)


def casts_of_weights(path: Path) -> int:
    nodes = onnx.load(path, load_external_data=False).graph.node
    return sum(node.op_type == "Cast" and node.input[0].endswith("/half") for node in nodes)


def test_results_are_the_same_bits(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = (*STATELESS, "ar_step")
    half = write(data, tmp_path / "half", graphs)
    monkeypatch.setattr(builder, "fits_half", lambda array: False)
    full = write(data, tmp_path / "full", graphs)
    for graph in graphs:
        sizes = [(tmp_path / kind / f"{graph}.data").stat().st_size for kind in ("half", "full")]
        assert stored_in_half(tmp_path / "half" / f"{graph}.onnx") > 0
        assert sizes[0] < 0.8 * sizes[1], graph
    for graph in STATELESS:
        for sizes in TRIALS:
            inputs = random_inputs(GRAPHS[graph], half.dims, sizes, np.random.default_rng(0))
            for ours, theirs in zip(half.run(graph, **inputs), full.run(graph, **inputs), strict=True):
                assert ours.tobytes() == theirs.tobytes(), graph
    assert step(half) == step(full)


def step(engine: OnnxEngine) -> list[bytes]:
    """What ar_step gives for a prefill and three codes of two rows."""
    rng = np.random.default_rng(0)
    voice = rng.standard_normal((2, engine.dims["ar.dim"])).astype(np.float32)
    text, codes = rng.integers(0, 200, (2, 7)), rng.integers(0, 200, (2, 4))
    cache = engine.new_cache(2, 20)
    results = [engine.ar_step(cache, codes[:, :1], np.zeros((2, 1), np.int64), voice, text)]
    results += [engine.ar_step(cache, codes[:, i : i + 1], np.full((2, 1), i)) for i in (1, 2, 3)]
    return [array.tobytes() for pair in results for array in pair]


@pytest.mark.parametrize("graph", ["ar_voice", "ar_step", "univnet", "hifigan"])
def test_the_graph_in_memory_casts_nothing(data: Path, tmp_path: Path, graph: str) -> None:
    write(data, tmp_path / "half", (graph,))
    path = tmp_path / "half" / f"{graph}.onnx"
    assert casts_of_weights(path) == stored_in_half(path) > 0
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "half" / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert casts_of_weights(tmp_path / "half" / "optimised.onnx") == 0


def test_other_weights_are_stored_as_they_were(data: Path, tmp_path: Path) -> None:
    write(data, tmp_path / "full", ("ar_step", "hifigan"), rounded=False)
    for graph in ("ar_step", "hifigan"):
        assert stored_in_half(tmp_path / "full" / f"{graph}.onnx") == 0


def test_the_same_weights_give_the_same_bytes(data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(data, tmp_path / name, ("ar_voice", "hifigan"))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
