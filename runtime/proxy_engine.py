"""An engine on top of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .engine import Array, Engine, KVCache
from .sampling import Drawing
from .spec import GraphSpec

if TYPE_CHECKING:
    from .backends.exchange import DeviceArray
    from .samplers import DenoisingStep


class ProxyEngine(Engine):
    """Passes everything on to ``engine``; for subclasses that watch or change some of it.

    Loops that ``engine`` does by itself are done step by step, unless a subclass says that it draws or denoises ahead.
    """

    def __init__(self, engine: Engine) -> None:
        self.info, self.engine = engine.info, engine

    @property
    def steps_some_rows(self) -> bool:  # type: ignore[override]
        return self.engine.steps_some_rows

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        return self.engine._run(graph, inputs)

    def _run_on_device(
        self, spec: GraphSpec, stream: int, inputs: Mapping[str, Any]
    ) -> tuple[DeviceArray, ...]:
        return self.engine._run_on_device(spec, stream, inputs)

    def _new_cache(self, rows: int, capacity: int) -> Any:
        return self.engine._new_cache(rows, capacity)

    def _take_rows(self, cache: KVCache, rows: Array, capacity: int) -> Any:
        return self.engine._take_rows(cache, rows, capacity)

    def _put_rows(self, target: KVCache, places: Array, source: KVCache, rows: Array) -> None:
        self.engine._put_rows(target, places, source, rows)

    def _first_rows(self, cache: KVCache, count: int) -> Any:
        return self.engine._first_rows(cache, count)

    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        return self.engine._ar_step(cache, inputs)

    def position_bytes(self) -> int:
        """Bytes of one position of a row of a cache."""
        return self.engine.position_bytes()

    def _ar_draw(
        self, cache: KVCache, inputs: dict[str, Array], drawings: Sequence[Drawing | None]
    ) -> tuple[Array, Array]:
        return self.engine._ar_draw(cache, inputs, drawings)

    def _denoise(
        self,
        x: Array,
        last: Array,
        aligned: Array,
        free: Array,
        steps: Sequence[DenoisingStep],
        noise: Callable[[int], Array],
    ) -> tuple[Array, Array]:
        return self.engine._denoise(x, last, aligned, free, steps, noise)
