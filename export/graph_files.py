"""The files of a bundle that run: graphs, in the precision that is wanted or fastest, or plans built from them."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt.backends.device import Device
from tortoise_rt.backends.onnx import OnnxEngine
from tortoise_rt.backends.onnx_standard import StandardEngine
from tortoise_rt.bundle import cache_folder
from tortoise_rt.engine import EngineInfo
from tortoise_rt.errors import EngineError
from tortoise_rt.spec import CHECKPOINT_FILES, GRAPHS, Dims
from tortoise_rt.text import Tokenizer

from .checkpoints import Checkpoints
from .onnx import write_graph
from .quantize import PRECISIONS, QUANTIZED
from .targets import AUTO, Target
from .tensorrt import WORKSPACE_MIB, Build, build_plan
from .tune import TEXT_IDS, TEXTS, as_rows, choose_precisions

Progress = Callable[[str, int, int], None]  #: called with (what is being done, done, total)


@dataclass
class Steps:
    """Tells ``progress`` what is being done, one step after the other."""

    progress: Progress
    total: int = 0
    done: int = 0

    def __call__(self, what: str) -> None:
        self.progress(what, self.done, self.total)
        self.done += 1


@dataclass(frozen=True)
class Job:
    """What is exported for."""

    target: Target
    precision: str
    library: Any = None  #: that builds plans
    gpu: Device | None = None
    capabilities: tuple[str, ...] = ()
    workspace_mib: int = WORKSPACE_MIB


@dataclass
class Written:
    """The graphs of a folder."""

    folder: Path
    dims: dict[str, int]
    precisions: dict[str, str]
    tuning: list[dict[str, Any]] = field(default_factory=list)  #: what was measured to choose them

    @property
    def names(self) -> dict[str, str]:
        """Graph -> its model file."""
        return {graph: f"{graph}.onnx" for graph in self.precisions}

    def engine(self, family: str) -> OnnxEngine:
        """Runs them on the CPU; without those in bf16, which ONNX Runtime does not compute there."""
        runs = {graph: name for graph, name in self.names.items() if self.precisions[graph] != "bf16"}
        info = EngineInfo(
            "onnx", "cpu", str(self.folder), self.dims, frozenset(runs), None, precision=self.precisions
        )
        kind = OnnxEngine if family == "fused" else StandardEngine
        return kind(self.folder, info, runs)


def forms(graph: str, job: Job) -> tuple[str, ...]:
    """The precisions a graph is written in, fp32 first where there are several to choose from."""
    if job.precision == AUTO:
        return PRECISIONS if graph in QUANTIZED else ("fp32",)
    return (job.target.graph_precision(graph, job.precision),)


def write_graphs(source: Checkpoints, graphs: Iterable[str], folder: Path, job: Job, steps: Steps) -> Written:
    """Write the graphs into ``folder``, each in the best of its forms."""
    dims: dict[str, int] = {}
    for network in source.networks:
        steps(f"reading {CHECKPOINT_FILES[network]}")
        module = source.load(network)
        config = source.section(network)
        dims.update(module.dims(config))  # type: ignore[operator]
        weights = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
        for graph in (g for g in graphs if GRAPHS[g].network == network):
            for form in forms(graph, job):
                place = folder if form == forms(graph, job)[0] else folder / form
                place.mkdir(exist_ok=True)
                steps(f"writing {graph} in {form}")
                write_graph(graph, weights, dims, config, place, form, job.target.family)
        del module, weights
        gc.collect()
    if job.precision == AUTO:
        return Written(folder, dims, *_tune(folder, dims, frozenset(graphs), steps.progress))
    return Written(folder, dims, {graph: forms(graph, job)[0] for graph in graphs})


def build_plans(written: Written, folder: Path, job: Job, steps: Steps) -> dict[str, str]:
    """Build each graph's plan into ``folder``; -> graph -> file. The graphs themselves are no part of a bundle then."""
    times = job.target.library == "tensorrt"  # the other one only looks for a GPU then
    gpu = "".join(c if c.isalnum() else "-" for c in job.gpu.name) if job.gpu else ""
    timing = cache_folder() / "timing" / f"{job.target.library}-{job.library.__version__}-{gpu}.cache"
    capabilities = () if times else job.capabilities
    build = Build(job.library, capabilities, job.workspace_mib, timing if times else None)
    plans = {}
    for graph, name in written.names.items():
        what = f"building {graph} in {written.precisions[graph]}"
        steps(what)

        def tell(phase: str, done: int, total: int, what: str = what) -> None:
            steps.progress(f"{what}: {phase} {done}/{total}", steps.done, steps.total)

        plans[graph] = f"{graph}.plan"
        build_plan(graph, written.folder / name, folder / plans[graph], written.dims, build, tell)
        for suffix in (".onnx", ".data"):
            (written.folder / name).with_suffix(suffix).unlink(missing_ok=True)
    return plans


def _tune(
    folder: Path, dims: Dims, graphs: frozenset[str], progress: Progress
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Leave the best form of each graph in ``folder``, of those there (fp32) and in its sub-folders.

    -> precision of each graph, and what was measured.
    """
    if "ar_step" not in graphs:
        raise EngineError("precision auto needs autoregressive.pth, whose speech it listens to")
    path = folder / "tokenizer.json"
    info = EngineInfo("onnx", "cpu", str(folder), dims, graphs, path if path.exists() else None)
    folders = {form: folder if form == "fp32" else folder / form for form in PRECISIONS}
    names = {graph: f"{graph}.onnx" for graph in graphs}
    engines = {form: OnnxEngine(place, info, names) for form, place in folders.items()}
    rng = np.random.default_rng(0)
    if path.exists():
        tokenizer = Tokenizer(path)
        texts = [tokenizer.encode(text) for text in TEXTS]
    else:
        texts = [rng.integers(3, dims["ar.start_text"], TEXT_IDS).tolist() for _ in TEXTS]
    texts = [ids[: dims["ar.text_positions"] - 3] for ids in texts]
    precisions, trials = choose_precisions(engines, texts, progress)
    del engines
    gc.collect()
    for graph, form in precisions.items():
        if form != "fp32":
            for path in (folder / f"{graph}.onnx", folder / f"{graph}.data"):
                path.unlink(missing_ok=True)
                if (better := folders[form] / path.name).exists():
                    better.rename(path)
    for form in PRECISIONS[1:]:
        shutil.rmtree(folders[form], ignore_errors=True)
    return precisions, as_rows(trials)
