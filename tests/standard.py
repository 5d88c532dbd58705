"""The tiny checkpoint's graphs of standard operators, for the tests that run or build them."""

from __future__ import annotations

from pathlib import Path

from tortoise_rt.backends.onnx_standard import StandardEngine
from tortoise_rt.engine import EngineInfo
from tortoise_rt.export.checkpoints import Checkpoints
from tortoise_rt.export.onnx import standard, write_graph
from tortoise_rt.spec import GRAPHS

DATA = Path(__file__).parent / "data" / "tiny-a"


def write_standard(folder: Path, precision: str = "fp32") -> EngineInfo:
    """Write every graph of the tiny checkpoint into ``folder``; -> what an engine of them is made of."""
    checkpoints = Checkpoints(DATA)
    dims, precisions = checkpoints.dims(), {}
    for network in dict.fromkeys(spec.network for spec in GRAPHS.values()):
        weights = {k: v.numpy() for k, v in checkpoints.load(network).state_dict().items()}
        for graph in (name for name, spec in GRAPHS.items() if spec.network == network):
            precisions[graph] = standard.graph_precision(graph, precision)
            config = checkpoints.section(network)
            write_graph(graph, weights, dims, config, folder, precisions[graph], "standard")
    return EngineInfo("onnx", "cpu", str(folder), dims, frozenset(GRAPHS), None, precision=precisions)


def standard_engine(info: EngineInfo) -> StandardEngine:
    """Runs them on the CPU."""
    return StandardEngine(Path(info.source), info, {graph: f"{graph}.onnx" for graph in GRAPHS})
