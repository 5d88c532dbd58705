"""What a request's thread sees of the engine: every call waits for its turn in the loop."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from ..engine import Array, Engine, KVCache, Memo
from ..samplers import DenoisingStep
from ..spec import GRAPHS, GraphSpec
from .policy import Call

MOST_ROWS = 32  #: of calls that run as one
MOST_VALUES = 32 << 20  #: of their inputs
T = TypeVar("T")
_ROWS = ("rows", "clips")  #: names of the dimension along which calls are joined


@dataclass(eq=False, kw_only=True)
class Turn(Call):
    """A call that waits."""

    work: Callable[[], Any] = field(repr=False)  #: does it alone
    graph: str | None = None  #: what is run, for calls that can be joined
    inputs: dict[str, Array] = field(default_factory=dict, repr=False)
    result: Any = field(default=None, repr=False)


class TurnEngine(Engine):
    """Stands in for ``engine``; ``wait`` queues a turn and returns its result. With ``alone``, calls are never joined."""

    def __init__(
        self, engine: Engine, request: int, wait: Callable[[Turn], Any], alone: bool, memo: Memo
    ) -> None:
        self.info, self.memo = engine.info, memo
        self._engine, self._request, self._wait, self._alone = engine, request, wait, alone
        self.denoises_ahead = engine.denoises_ahead

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        spec = GRAPHS[graph]
        first = spec.inputs[0]
        work = lambda: self._engine._run(graph, inputs)  # noqa: E731
        if self._alone or first.dims[0] not in _ROWS:
            return self._own_turn(work)
        rows = len(inputs[first.name])
        values = sum(array.size for array in inputs.values())
        size = max(rows, -(-values * MOST_ROWS // MOST_VALUES))
        turn = Turn(self._request, _kind(spec, inputs), size, work=work, graph=graph, inputs=inputs)
        return self._wait(turn)

    def in_one_turn(self, work: Callable[[Engine], T]) -> T:
        """Do ``work`` with the engine itself, in one turn."""
        return self._own_turn(lambda: work(self._engine))

    def _own_turn(self, work: Callable[[], Any]) -> Any:
        turn = Turn(self._request, object(), MOST_ROWS, work=work)
        return self._wait(turn)

    def _new_cache(self, rows: int, capacity: int) -> Any:
        return self._own_turn(lambda: self._engine._new_cache(rows, capacity))

    def _take_rows(self, cache: KVCache, rows: Array, capacity: int) -> Any:
        return self._own_turn(lambda: self._engine._take_rows(cache, rows, capacity))

    def _put_rows(self, target: KVCache, places: Array, source: KVCache, rows: Array) -> None:
        self._own_turn(lambda: self._engine._put_rows(target, places, source, rows))

    def _first_rows(self, cache: KVCache, count: int) -> Any:
        return self._own_turn(lambda: self._engine._first_rows(cache, count))

    def _denoise(
        self,
        x: Array,
        last: Array,
        aligned: Array,
        free: Array,
        steps: Sequence[DenoisingStep],
        noise: Callable[[int], Array],
    ) -> tuple[Array, Array]:
        return self._own_turn(lambda: self._engine._denoise(x, last, aligned, free, steps, noise))

    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        return self._own_turn(lambda: self._engine._ar_step(cache, inputs))


def _kind(spec: GraphSpec, inputs: dict[str, Array]) -> Hashable:
    """Equal for calls that can be joined: the same graph, shapes and whatever has no rows."""
    parts = (
        inputs[t.name].shape[1:] if t.dims[0] in _ROWS else (inputs[t.name].shape, inputs[t.name].tobytes())
        for t in spec.inputs
    )
    return spec.name, *parts


def run_together(engine: Engine, turns: Sequence[Turn]) -> list[Any]:
    """The results of turns of one kind, from one run."""
    if len(turns) == 1:
        return [turns[0].work()]
    assert turns[0].graph is not None
    spec = GRAPHS[turns[0].graph]
    joined = {
        t.name: np.concatenate([turn.inputs[t.name] for turn in turns])
        if t.dims[0] in _ROWS
        else turns[0].inputs[t.name]
        for t in spec.inputs
    }
    outputs = engine._run(spec.name, joined)
    ends = np.cumsum([len(turn.inputs[spec.inputs[0].name]) for turn in turns])[:-1]
    parts = [
        np.split(output, ends) if t.dims[0] in _ROWS else [output] * len(turns)
        for t, output in zip(spec.outputs, outputs, strict=True)
    ]
    return list(zip(*parts, strict=True))
