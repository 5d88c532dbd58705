"""The tiny checkpoint's graphs of standard operators, for the tests that run or build them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt.backends.onnx_standard import StandardEngine
from tortoise_rt.engine import Array, Engine, EngineInfo, KVCache
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


def standard_engine(info: EngineInfo, records: bool = False) -> StandardEngine:
    """Runs them on the CPU, where nothing is recorded; with ``records`` all goes as if it were."""
    engine = StandardEngine(Path(info.source), info, {graph: f"{graph}.onnx" for graph in GRAPHS})
    engine.records = records
    return engine


def cache_tensors(engine: StandardEngine, cache: KVCache) -> Array:
    """What a cache holds, on the CPU: (tensors, rows that there is room for, heads, positions, head size), to be seen alone."""
    heads, size = engine._cache_heads()
    held = cache.state.block.value.numpy().view(engine._type)
    return held.reshape(*held.shape[:2], heads, -1, size)


def ragged(engine: Engine, lengths: tuple[int, ...], seed: int = 1) -> KVCache:
    """A cache whose rows hold a voice, text and so many codes each."""
    rng = np.random.default_rng(seed)
    cache = engine.new_cache(len(lengths), 64)
    for row, count in enumerate(lengths):
        one = engine.new_cache(1, 64)
        voice = rng.standard_normal((1, engine.dims["ar.dim"])).astype(np.float32)
        text, codes = rng.integers(3, engine.dims["ar.text_ids"], (1, 9)), rng.integers(0, 200, (1, count))
        engine.ar_step(one, codes, np.arange(count)[None], voice, text)
        engine.put_rows(cache, [row], one, [0])
    return cache


def step(engine: Engine, cache: KVCache, seed: int = 0) -> tuple[Array, Array]:
    """A code of each row."""
    codes = np.random.default_rng(seed).integers(0, 200, (cache.rows, 1))
    return engine.ar_step(cache, codes, np.maximum(cache.lengths[:, None] - 10, 0))


def steps(engine: Engine, cache: KVCache, count: int = 4) -> list[Array]:
    return [array for seed in range(count) for array in step(engine, cache, seed)]


def same(found: list[Array], wanted: list[Array]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


class Watched:
    """A session that tells of each run, by the number it is recorded under ("-1": not), before it runs."""

    def __init__(self, session: Any, told: Callable[[str], None]) -> None:
        self._session, self._told = session, told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self._told(options.get_run_config_entry("gpu_graph_id"))
        self._session.run_with_iobinding(binding, options)


def watch(engine: StandardEngine, told: Callable[[str], None]) -> None:
    """Every session of ar_step that the engine opens from now on tells of its runs."""
    open_session = engine._open

    def watched(model: str | bytes, graph: str) -> Any:
        session = open_session(model, graph)
        return Watched(session, told) if graph == "ar_step" else session

    engine._open = watched  # type: ignore[method-assign]


def refusing(engine: StandardEngine) -> None:
    """Have the sessions that the engine opens from now on refuse to record."""

    def told(number: str) -> None:
        if number != "-1":
            raise RuntimeError("operation not permitted when stream is capturing")

    watch(engine, told)
