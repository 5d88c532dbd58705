"""How plans are built, by a library that stands in for TensorRT, which builds on a GPU alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper

from tortoise_rt.engine import EngineInfo
from tortoise_rt.errors import EngineError
from tortoise_rt.export.tensorrt import MOST_CODE, Build, build_plan, check_weights_kept


class Config:
    """As IBuilderConfig; what was timed is a line for each layer. It refuses what another GPU timed."""

    def __init__(self) -> None:
        self.limits: dict[int, int] = {}
        self.cleared: list[int] = []
        self.profiles: list[Any] = []
        self.cache: SimpleNamespace | None = None

    def set_memory_pool_limit(self, pool: int, limit: int) -> None:
        self.limits[pool] = limit

    def clear_flag(self, flag: int) -> None:
        self.cleared.append(flag)

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile)

    def create_timing_cache(self, blob: bytes) -> SimpleNamespace | None:
        return None if blob == b"damaged" else SimpleNamespace(held=blob, serialize=lambda: self.cache.held)

    def set_timing_cache(self, cache: SimpleNamespace, ignore_mismatch: bool) -> bool:
        if cache.held == b"another GPU" and not ignore_mismatch:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> SimpleNamespace | None:
        return self.cache


class Library:
    """As the module ``tensorrt``, as far as plans are built."""

    __name__, __version__ = "tensorrt", "10.9"
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    MemoryPoolType = SimpleNamespace(WORKSPACE=7)
    BuilderFlag = SimpleNamespace(TF32=3)

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3)

    def __init__(self, builds: bool = True) -> None:
        self.builds, self.configs, self.flags = builds, list[Config](), list[int]()
        self.timed = 0  # layers that no cache knew
        self.says = ""

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        return SimpleNamespace(parse_from_file=lambda path: True)

    def Builder(self, logger: Any) -> Any:
        self.logger = logger
        return SimpleNamespace(
            create_network=self.create_network,
            create_builder_config=self.create_config,
            create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda name, *shapes: None),
            build_serialized_network=self.build,
        )

    def create_network(self, flags: int) -> Any:
        self.flags.append(flags)
        noise = SimpleNamespace(name="noise", shape=(-1, 8), is_shape_tensor=False)
        return SimpleNamespace(num_inputs=1, get_input=lambda number: noise)

    def create_config(self) -> Config:
        self.configs.append(Config())
        return self.configs[-1]

    def build(self, network: Any, config: Config) -> bytes | None:
        if config.cache is not None and b"MatMul\n" not in config.cache.held:
            config.cache.held += b"MatMul\n"
            self.timed += 1
        self.logger.log(2, self.says)
        if not self.builds:
            self.logger.log(1, "no way was found\nin 3 places")
        return b"plan" if self.builds else None


def build(info: EngineInfo, folder: Path, library: Library, timing: Path | None = None) -> Config:
    model, plan = Path(info.source, "rlg_auto.onnx"), folder / "a.plan"
    how = Build(library, workspace_mib=16, timing_cache=timing)
    build_plan("rlg_auto", model, plan, info.dims, how, lambda *step: None)
    assert plan.read_bytes() == b"plan"
    return library.configs[-1]


def test_what_is_asked_of_the_library(standard_graphs: EngineInfo, tmp_path: Path) -> None:
    library = Library()
    config = build(standard_graphs, tmp_path, library)
    assert library.flags == [1 << 1]  # strongly typed
    assert config.limits == {7: 16 << 20}
    assert config.cleared == [3] and len(config.profiles) == 1 and config.cache is None


@pytest.mark.parametrize("before", [None, b"damaged", b"another GPU"])
def test_what_was_timed_is_kept(standard_graphs: EngineInfo, tmp_path: Path, before: bytes | None) -> None:
    timing, library = tmp_path / "timing" / "a.cache", Library()
    if before is not None:
        timing.parent.mkdir()
        timing.write_bytes(before)
    for _ in range(3):
        build(standard_graphs, tmp_path, library, timing)
        assert library.timed == 1 and timing.read_bytes() == b"MatMul\n"
    assert [path.name for path in timing.parent.iterdir()] == ["a.cache"]


def test_a_timing_cache_that_cannot_be_written(standard_graphs: EngineInfo, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    build(standard_graphs, tmp_path, Library(), tmp_path / "file" / "a.cache")


def test_a_build_that_fails(standard_graphs: EngineInfo, tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        build(standard_graphs, tmp_path, Library(builds=False))
    assert str(caught.value) == 'tensorrt cannot build graph "rlg_auto": no way was found'
    assert not (tmp_path / "a.plan").exists()


def test_an_input_that_the_library_drops(standard_graphs: EngineInfo, tmp_path: Path) -> None:
    library = Library()
    library.says = "[RemoveDeadLayers] Input Tensor noise is unused or used only at compile-time, but is not being removed."
    with pytest.raises(EngineError, match='^tensorrt finds no use for inputs of graph "rlg_auto": noise$'):
        build(standard_graphs, tmp_path, library)
    assert not (tmp_path / "a.plan").exists()


def test_weights_that_became_wider(tmp_path: Path) -> None:
    """400 MB of eight bits beside 10 MB of others: a plan has them as they are, or in halves."""
    shape, model = (20_000, 20_000), tmp_path / "ar_step.onnx"
    for kind, refused in (
        (TensorProto.FLOAT8E4M3FN, True),
        (TensorProto.INT8, True),
        (TensorProto.FLOAT16, False),
    ):
        tensor = TensorProto(name="w", dims=shape, data_type=kind, data_location=TensorProto.EXTERNAL)
        model.write_bytes(helper.make_model(helper.make_graph([], "a", [], [], [tensor])).SerializeToString())
        with model.with_suffix(".data").open("wb") as data:
            data.truncate(410_000_000)
        check_weights_kept("ar_step", model, 410_000_000 + MOST_CODE, Library())
        if refused:
            with pytest.raises(
                EngineError, match=r"eight bits here \(772 MiB, not 391\): use --precision fp16"
            ):
                check_weights_kept("ar_step", model, 810_000_000, Library())
        else:
            check_weights_kept("ar_step", model, 810_000_000, Library())
