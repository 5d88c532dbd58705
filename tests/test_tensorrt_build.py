"""Plans built by TensorRT for RTX, which needs no GPU for that. Skipped, and said so, where it is not installed.

pip install 'tortoise-rt[tensorrt-rtx]' && python -m pytest tests/test_tensorrt_build.py
"""

from __future__ import annotations

import ast
import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("tensorrt_rtx", reason="no plan was built: pip install 'tortoise-rt[tensorrt-rtx]'")

import numpy as np
import onnx
import tensorrt_rtx as rtx
from standard import DATA

from tortoise_rt.backends import tensorrt_compiled, tensorrt_library, tensorrt_plans
from tortoise_rt.backends.tensorrt_library import RTX_CAPABILITIES, Messages
from tortoise_rt.engine import EngineInfo
from tortoise_rt.errors import EngineError
from tortoise_rt.export.bundle import export_bundle
from tortoise_rt.export.models.autoregressive import UnifiedVoice
from tortoise_rt.export.onnx import standard, write_graph
from tortoise_rt.export.tensorrt import Build, build_plan, capability_names, network_flags
from tortoise_rt.spec import GRAPHS

BYTES = {"fp32": 4, "int8": 1, "fp8": 1}  #: of a weight; of others 2
#: part of those that a plan may have again; in fp32 the library turns the projection of queries, keys and values
MOST_TWICE = {"fp32": 0.26}
MOST_MIB = 8 << 10  #: that building may take
GRAPHS_APART = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import tensorrt_rtx
from standard import write_standard
from tortoise_rt.export.tensorrt import Build, build_plan
from tortoise_rt.machine import peak_mib
folder, precision, sizes = Path(sys.argv[1]), sys.argv[2], dict()
info = write_standard(folder, precision)
for graph in (graph for graph, own in info.precision.items() if own == precision):
    plan, steps, build = folder / (graph + ".plan"), [], Build(tensorrt_rtx, ["8.9"])
    build_plan(graph, folder / (graph + ".onnx"), plan, info.dims, build, lambda *step: steps.append(step))
    sizes[graph] = plan.stat().st_size * bool(steps)
print(json.dumps([sizes, peak_mib()]))
"""


@pytest.mark.parametrize("precision", standard.PRECISIONS)
def test_every_graph_builds(tmp_path: Path, precision: str) -> None:
    """All that are in it, in a process of its own, whose memory is measured; each build says how far it is."""
    command = [sys.executable, "-c", GRAPHS_APART, str(tmp_path), precision]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    sizes, peak = json.loads(result.stdout.splitlines()[-1])
    print(f"{precision}: {peak} MiB at most, plans of {sum(sizes.values()) >> 20} MiB")
    assert set(sizes) == {
        graph for graph in GRAPHS if standard.graph_precision(graph, precision) == precision
    }
    assert min(sizes.values()) > 1000
    assert 100 < peak < MOST_MIB


def silent(phase: str, done: int, total: int) -> None: ...


def write_products(folder: Path, precision: str, size: int = 1024) -> Path:
    """rlg_auto of random weights, large ones, whose products are in ``precision``."""
    rng = np.random.default_rng(0)
    weights = {f"layers.{n}.weight": rng.standard_normal((size, size)).astype(np.float32) for n in range(2)}
    weights |= {f"layers.{n}.bias": np.zeros(size, np.float32) for n in range(2)}
    dims = {"rlg_auto.dim": size}
    return write_graph("rlg_auto", weights, dims, {}, folder, precision, "standard")[0]


def build_products(folder: Path, precision: str, *capabilities: str) -> int:
    """-> bytes of the plan."""
    model, plan = write_products(folder, precision), folder / "a.plan"
    build_plan("rlg_auto", model, plan, {"rlg_auto.dim": 1024}, Build(rtx, capabilities), silent)
    return plan.stat().st_size


@pytest.mark.parametrize("precision", standard.WEIGHTS_ONLY)
def test_weights_stay_in_eight_bits(tmp_path: Path, precision: str) -> None:
    half = build_products(tmp_path, "fp16", "8.9")
    assert half > 2 * 2 * 1024**2
    for capability in ("8.9", "12.0"):
        assert build_products(tmp_path, precision, capability) < 0.6 * half


@pytest.mark.parametrize("precision", standard.PRECISIONS)
def test_profiles_share_weights(tmp_path: Path, precision: str) -> None:
    """What a plan for one row, for many and for prompts has beyond its graph, programs, does not grow with the weights."""
    beyond, products = [], []
    for dim in (512, 1024):
        weights, dims = small_decoder(dim)
        model = write_graph("ar_step", weights, dims, {}, tmp_path, precision, "standard")[0]
        plan = tmp_path / "a.plan"
        build_plan("ar_step", model, plan, dims, Build(rtx, ["8.9"]), silent)
        stored = model.stat().st_size + model.with_suffix(".data").stat().st_size
        beyond.append(plan.stat().st_size - stored)
        matrices = (w for key, w in weights.items() if key.startswith("gpt.h.") and w.ndim == 2)
        products.append(sum(w.size for w in matrices) * BYTES.get(precision, 2))
    twice = (beyond[1] - beyond[0]) / (products[1] - products[0])
    assert abs(twice) < MOST_TWICE.get(precision, 0.02)


def small_decoder(dim: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """An autoregressive network of one layer and few codes, of random weights; -> it, and its dims."""
    network = UnifiedVoice(
        dim=dim,
        layers=1,
        heads=dim // 64,
        inner=4 * dim,
        voice_blocks=1,
        text_ids=16,
        text_positions=16,
        mel_codes=66,
        mel_positions=64,
    )
    rng = np.random.default_rng(0)  # what is equal a plan has once
    weights = {k: rng.standard_normal(w.shape).astype(np.float32) for k, w in network.state_dict().items()}
    return weights, network.dims({})


#: what the runner's sources call the library's things by
CALLED = {
    "library": rtx,
    "_library": rtx,
    "_runtime": rtx.Runtime,
    "engine": rtx.ICudaEngine,
    "context": rtx.IExecutionContext,
    "contexts": rtx.IExecutionContext,
    "config": rtx.IRuntimeConfig,
    "_strategies": rtx.DynamicShapesKernelSpecializationStrategy,
    "severity": rtx.ILogger.Severity,
}


def asked(module: ModuleType, **more: Any) -> Iterator[tuple[Any, str]]:
    """All that a source asks of the library: of what, and for which attribute; ``more``: names of its own."""
    called = CALLED | more

    def meant(node: ast.AST) -> Any:
        if isinstance(node, ast.Subscript):
            return meant(node.value)
        name = getattr(node, "id", getattr(node, "attr", None))
        if name in called:
            return called[name]
        owner = meant(node.value) if isinstance(node, ast.Attribute) else None
        return owner and getattr(owner, name or "", None)

    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Attribute) and node.attr not in called and (owner := meant(node.value)):
            yield owner, node.attr


def test_what_the_library_is_for() -> None:
    """What we say of it, and all that the runner asks of it, which cannot run here."""
    assert {*capability_names(rtx)} - {"7.5"} == {*RTX_CAPABILITIES}
    compiled = {"cache": rtx.IRuntimeCache, "_cache": rtx.IRuntimeCache}
    found = {
        *asked(tensorrt_plans),
        *asked(tensorrt_compiled, **compiled),
        *asked(tensorrt_library),
    }
    assert [(owner, name) for owner, name in found if not hasattr(owner, name)] == []
    wanted = {
        rtx.Runtime: {"deserialize_cuda_engine"},
        rtx.ICudaEngine: {"create_execution_context", "get_device_memory_size_for_profile_v2", "get_tensor_profile_shape"},
        rtx.IExecutionContext: {"set_device_memory", "set_optimization_profile_async", "execute_async_v3", "get_tensor_shape"},
        rtx.IRuntimeConfig: {"create_runtime_cache", "dynamic_shapes_kernel_specialization_strategy"},
        rtx.IRuntimeCache: {"serialize", "deserialize"},
        rtx.ExecutionContextAllocationStrategy: {"USER_MANAGED"},
        rtx.DynamicShapesKernelSpecializationStrategy: {"EAGER"},
        rtx.ILogger.Severity: {"INTERNAL_ERROR"},
        rtx.TensorIOMode: {"INPUT"},
    }  # fmt: skip
    assert {(owner, name) for owner, names in wanted.items() for name in names} <= found


@pytest.mark.parametrize(
    ("precision", "capability", "reason"),
    [("fp32", "7.5", "FP32 GEMM is not supported"), ("fp8", "8.6", "sm86, .* fp8_e4m3")],
)
def test_what_it_is_not_for(tmp_path: Path, precision: str, capability: str, reason: str) -> None:
    """Why exports refuse these before they begin."""
    with pytest.raises(EngineError, match=f'cannot build graph "rlg_auto": .*{reason}') as caught:
        build_products(tmp_path, precision, capability)
    assert len(str(caught.value).splitlines()) == 1


def test_networks_are_strongly_typed() -> None:
    network = rtx.Builder(Messages(rtx).logger).create_network(network_flags(rtx))
    assert network.get_flag(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_what_cannot_be_parsed(tmp_path: Path) -> None:
    (tmp_path / "rlg_auto.onnx").write_bytes(b"")
    with pytest.raises(EngineError, match='graph "rlg_auto"'):
        build_plan("rlg_auto", tmp_path / "rlg_auto.onnx", tmp_path / "a.plan", {}, Build(rtx), silent)


def test_an_input_that_nothing_reads(standard_graphs: EngineInfo, tmp_path: Path) -> None:
    path = tmp_path / "rlg_auto.onnx"
    model = onnx.load(Path(standard_graphs.source, path.name), load_external_data=False)
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match='graph "rlg_auto" does not use its inputs more'):
        build_plan("rlg_auto", path, tmp_path / "a.plan", standard_graphs.dims, Build(rtx), silent)


def test_an_input_that_has_no_effect(standard_graphs: EngineInfo, tmp_path: Path) -> None:
    """A node reads it, and nothing reads that: so does the library say it, where the graph looks well."""
    path = tmp_path / "rlg_auto.onnx"
    model = onnx.load(Path(standard_graphs.source, path.name))
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))
    model.graph.node.append(onnx.helper.make_node("Neg", ["more"], ["less"]))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match='no use for inputs of graph "rlg_auto": more'):
        build_plan("rlg_auto", path, tmp_path / "a.plan", standard_graphs.dims, Build(rtx), silent)


def test_export_for_rtx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From checkpoints to a bundle, by the command's function; without a GPU the graphs are compared."""
    monkeypatch.setenv("TORTOISE_RT_CACHE", str(tmp_path / "cache"))
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for name in ("config.json", "classifier.pth", "rlg_auto.pth"):
        shutil.copy(DATA / name, checkpoints)
    said: list[str] = []
    bundle, report = export_bundle(
        checkpoints,
        tmp_path / "bundle",
        target="tensorrt-rtx",
        compute_capabilities=["8.9"],
        progress=lambda what, done, total: said.append(what),
    )
    assert {parity.graph for parity in report} == {"detector", "rlg_auto"}
    target = bundle.manifest["target"]
    assert (target["backend"], target["library"], target["device"]) == ("tensorrt", "tensorrt_rtx", "cuda")
    assert target["compute_capability"] == ["8.9"]
    assert target["libraries"]["tensorrt_rtx"] == rtx.__version__
    assert sorted(path.name for path in bundle.folder.iterdir()) == [
        "detector.plan",
        "manifest.json",
        "rlg_auto.plan",
    ]
    assert any(what.startswith("building detector in fp32") for what in said)
