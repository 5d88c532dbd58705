"""Plans built by TensorRT for RTX, which needs no GPU for that. Skipped, and said so, where it is not installed.

pip install 'tortoise-rt[tensorrt-rtx]' && python -m pytest tests/test_tensorrt_build.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("tensorrt_rtx", reason="no plan was built: pip install 'tortoise-rt[tensorrt-rtx]'")

import onnx
import tensorrt_rtx as rtx
from standard import DATA

from tortoise_rt.engine import EngineInfo
from tortoise_rt.errors import EngineError
from tortoise_rt.export.bundle import export_bundle
from tortoise_rt.export.tensorrt import Build, build_plan, capability_names, check_capabilities
from tortoise_rt.spec import GRAPHS

MOST_MIB = 8 << 10  #: that building may take
GRAPHS_APART = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import tensorrt_rtx
from standard import write_standard
from tortoise_rt.export.tensorrt import Build, build_plan
from tortoise_rt.machine import peak_mib
from tortoise_rt.spec import GRAPHS
folder, sizes = Path(sys.argv[1]), dict()
info = write_standard(folder, sys.argv[2])
for graph in GRAPHS:
    plan, steps = folder / (graph + ".plan"), []
    build_plan(graph, folder / (graph + ".onnx"), plan, info.dims, Build(tensorrt_rtx), lambda *step: steps.append(step))
    sizes[graph] = plan.stat().st_size * bool(steps)
print(json.dumps([sizes, peak_mib()]))
"""


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_graph_builds(tmp_path: Path, precision: str) -> None:
    """In a process of its own, whose memory is measured; each build says how far it is."""
    command = [sys.executable, "-c", GRAPHS_APART, str(tmp_path), precision]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    sizes, peak = json.loads(result.stdout.splitlines()[-1])
    print(f"{precision}: {peak} MiB at most, plans of {sum(sizes.values()) >> 20} MiB")
    assert set(sizes) == set(GRAPHS) and min(sizes.values()) > 1000
    assert 100 < peak < MOST_MIB


def test_compute_capabilities(standard_graphs: EngineInfo, tmp_path: Path) -> None:
    known = capability_names(rtx)
    assert {"8.6", "8.9"} <= set(known)
    with pytest.raises(EngineError, match=r"does not build for compute capability '8\.8'"):
        check_capabilities(rtx, ["8.8"])
    check_capabilities(rtx, ["8.6", "8.9"])
    build = Build(rtx, ["8.6", "8.9"])
    build_plan(
        "rlg_auto",
        Path(standard_graphs.source, "rlg_auto.onnx"),
        tmp_path / "a.plan",
        standard_graphs.dims,
        build,
        lambda *step: None,
    )
    assert (tmp_path / "a.plan").stat().st_size > 1000


def test_what_cannot_be_parsed(tmp_path: Path) -> None:
    (tmp_path / "rlg_auto.onnx").write_bytes(b"")
    with pytest.raises(EngineError, match='graph "rlg_auto"'):
        build_plan(
            "rlg_auto", tmp_path / "rlg_auto.onnx", tmp_path / "a.plan", {}, Build(rtx), lambda *step: None
        )


def test_an_input_that_nothing_reads(standard_graphs: EngineInfo, tmp_path: Path) -> None:
    path = tmp_path / "rlg_auto.onnx"
    model = onnx.load(Path(standard_graphs.source, path.name), load_external_data=False)
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match='graph "rlg_auto" does not use its inputs more'):
        build_plan(
            "rlg_auto", path, tmp_path / "a.plan", standard_graphs.dims, Build(rtx), lambda *step: None
        )


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
