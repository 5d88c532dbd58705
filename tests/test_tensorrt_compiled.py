"""What TensorRT for RTX compiles where plans run: it is waited for, and kept for the next start."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from fake_gpu import FakeContext, FakeDevice, FakeLibrary, FakePlan

from tortoise_rt.backends.tensorrt import TensorRTEngine
from tortoise_rt.backends.tensorrt_compiled import Compiled, _write
from tortoise_rt.engine import EngineInfo
from tortoise_rt.export.parity import TRIALS, random_inputs
from tortoise_rt.spec import GRAPHS


class RtxLibrary(FakeLibrary):
    """As TensorRT for RTX: of what it compiled, a line for each graph, its shapes and what is wanted is in a cache."""

    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY=0, EAGER=1)

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: RtxPlan(self, plan, logger))


class RtxCache:
    def __init__(self) -> None:
        self.held, self.began = b"", b""

    def deserialize(self, blob: bytes) -> bool:
        fits = blob.endswith(b"\n")
        self.held = self.began = blob if fits else b""
        return fits

    def serialize(self) -> bytes:
        return self.held


class RtxConfig:
    dynamic_shapes_kernel_specialization_strategy = 0
    create_runtime_cache = RtxCache
    cache: RtxCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: int) -> None:
        self.allocation = strategy

    def set_runtime_cache(self, cache: RtxCache) -> None:
        self.cache = cache


class RtxPlan(FakePlan):
    create_runtime_config = RtxConfig

    def create_execution_context(self, config: RtxConfig) -> FakeContext:  # type: ignore[override]
        assert config.dynamic_shapes_kernel_specialization_strategy == 1 and config.allocation == 2
        context = RtxContext(self)
        context.cache = config.cache
        return context


class RtxContext(FakeContext):
    cache: RtxCache | None

    def execute_async_v3(self, stream: int) -> bool:
        wanted = [array.tolist() for array in self._wanted().values()]
        line = f"{self.plan.graph} {self.shapes} {wanted}\n".encode()
        if self.cache is not None and line not in self.cache.held:
            self.cache.held += line
        return super().execute_async_v3(stream)


def make_rtx(info: EngineInfo, kept: Path | None) -> TensorRTEngine:
    made, files = FakeDevice(), {graph: f"{graph}.onnx" for graph in GRAPHS}
    library = RtxLibrary(Path(info.source), info.dims, made)
    return TensorRTEngine(Path(info.source), info, files, library, made, kept=kept)


def run_rows(engine: TensorRTEngine, rows: int, graph: str = "rlg_auto") -> None:
    engine.run(graph, noise=np.ones((rows, engine.dims[f"{graph}.dim"]), np.float32))


def held(kept: Path) -> set[bytes]:
    """What a file holds of the library's."""
    _, *lines = kept.read_bytes().splitlines()
    assert len(lines) == len({*lines})
    return {*lines}


def compiled(engine: TensorRTEngine) -> int:
    """How much an engine compiled that it had not from the file."""
    cache = engine._plans._compiled._cache
    return len(cache.held.splitlines()) - len(cache.began.splitlines())


def test_what_was_compiled_is_kept(
    standard_graphs: EngineInfo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In one file for all graphs; the next engine begins with it."""
    caplog.set_level("INFO", "tortoise_rt")
    kept = tmp_path / "compiled" / "key"
    engine, found = make_rtx(standard_graphs, kept), []
    for graph, rows in (("rlg_auto", 1), ("rlg_auto", 2), ("rlg_diffuser", 1), ("rlg_diffuser", 3)):
        for _ in range(4):  # as it is, recorded, and launched
            run_rows(engine, rows, graph)
        found.append(len(held(kept)))
    assert found == [1, 2, 3, 4] and [*kept.parent.iterdir()] == [kept]
    run_rows(make_rtx(standard_graphs, kept), 4)
    assert len(held(kept)) == 5
    for unfit in (b"of another GPU", b"[]\nof another GPU"):
        kept.write_bytes(unfit)
        run_rows(make_rtx(standard_graphs, kept), 1)
        assert len(held(kept)) == 1
    assert caplog.text.count("key is not for this machine: kernels are compiled anew") == 2
    kept.write_bytes(b"no JSON\nof this GPU\n")
    run_rows(make_rtx(standard_graphs, kept), 1)
    assert len(held(kept)) == 2


def test_the_next_start_compiles_nothing(standard_graphs: EngineInfo, tmp_path: Path) -> None:
    """Of seven shapes, which lie between two powers of two; each engine is dropped as a program that is killed drops it."""
    kept, found = tmp_path / "key", []
    for _ in range(3):
        engine = make_rtx(standard_graphs, kept)
        for graph, rows in [("rlg_auto", n) for n in range(1, 5)] + [
            ("rlg_diffuser", n) for n in range(1, 4)
        ]:
            run_rows(engine, rows, graph)
        found.append(compiled(engine))
    assert found == [7, 0, 0]


def test_what_is_wanted_is_a_work_of_its_own(standard_graphs: EngineInfo, tmp_path: Path) -> None:
    """Of equal shapes: HiFi-GAN crops each stage to what the wanted frames see, so kernels differ; for arrays on the GPU, too."""
    kept, found = tmp_path / "key", []
    inputs = random_inputs(GRAPHS["hifigan"], standard_graphs.dims, TRIALS[1], np.random.default_rng(0))
    for runs in (TensorRTEngine.run, TensorRTEngine.run, TensorRTEngine.run_on_device):
        engine = make_rtx(standard_graphs, kept)
        for wanted in ((0, 30), (5, 35), (0, 30)):
            runs(engine, "hifigan", **inputs | {"wanted": np.array(wanted)})
        found.append(compiled(engine))
    assert found == [2, 0, 0] and len(held(kept)) == 2


def test_many_shapes_share_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand shapes few cost a write, and what is left unwritten comes to an end within a few starts."""
    writes: list[int] = []
    monkeypatch.setattr(
        "tortoise_rt.backends.tensorrt_compiled._write",
        lambda cache, works, path: (writes.append(len(works)), _write(cache, works, path)),
    )
    left, rounds = [], 0
    while not left or left[-1]:
        made = Compiled(RtxLibrary(tmp_path, {}, FakeDevice()), tmp_path / "key")
        made.way(SimpleNamespace(create_runtime_config=RtxConfig))
        made._cache.held += b"kernels\n"
        for number in range(1000):
            made.ran(("graph", (number, 2)))
        left.append(1000 - writes[-1])
        rounds += 1
    assert 0 < left[0] < 32 and rounds < 6
    assert 32 < len(writes) < 180


def test_a_cache_that_cannot_be_written(
    standard_graphs: EngineInfo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tortoise_rt")
    (tmp_path / "compiled").write_text("in the way")
    for kept in (tmp_path / "compiled" / "key", None):
        run_rows(make_rtx(standard_graphs, kept), 1)
    assert caplog.text.count("what was compiled for this GPU is not kept in") == 1


def test_few_files_are_kept(
    standard_graphs: EngineInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tortoise_rt.backends.tensorrt_compiled.MOST_KEPT", 3)
    for number in range(6):
        (tmp_path / str(number)).write_bytes(b"")
        os.utime(tmp_path / str(number), (number, number))
    run_rows(make_rtx(standard_graphs, tmp_path / "key"), 1)
    assert {path.name for path in tmp_path.iterdir()} == {"4", "5", "key"}
    os.utime(tmp_path / "key", (1, 1))
    for number in (1, 2):  # used, but it has nothing new to be written
        run_rows(make_rtx(standard_graphs, tmp_path / "key"), 1)
        run_rows(make_rtx(standard_graphs, tmp_path / f"other {number}"), 1)
    assert {path.name for path in tmp_path.iterdir()} == {"key", "other 1", "other 2"}
