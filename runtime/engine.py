"""The engine: runs graphs, keeps key/value caches. Backends implement the underscored methods.

Inputs are checked once, here, at the public methods; what lies behind them trusts its arguments.
"""

from __future__ import annotations

import abc
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import EngineError
from .graph_inputs import check_inputs, check_range
from .sampling import NOTHING, Drawing
from .spec import CHECKPOINT_FILES, GRAPHS, Dims, GraphSpec

if TYPE_CHECKING:
    from .backends.exchange import DeviceArray
    from .samplers import DenoisingStep

Array = np.ndarray


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is made of."""

    backend: str  #: "onnx", "torch" or "fake"
    device: str  #: where it runs, e.g. "cpu" or "cuda:0"
    source: str  #: the bundle or checkpoint folder it was opened from
    dims: Dims  #: dimensions of the model (see spec.DIM_KEYS)
    graphs: frozenset[str]  #: names of the graphs it can run
    tokenizer: Path | None  #: its tokenizer.json
    defaults: Mapping[str, Any] = field(
        default_factory=dict
    )  #: defaults the bundle brings, e.g. {"decoder": "hifigan"}
    notice: str = ""  #: what a user must be told, e.g. that the weights are random
    fingerprint: str = ""  #: identifies the checkpoints; voice latents are tagged with it
    precision: Mapping[str, str] = field(
        default_factory=dict
    )  #: graph -> precision, e.g. {"ar_step": "fp32"}


@dataclass
class KVCache:
    """Keys and values of some autoregressive rows; opaque to everything but the backend that made it."""

    state: Any  #: the backend's own storage
    lengths: Array  #: (rows,) int64, positions held per row
    capacity: int  #: positions there is room for

    @property
    def rows(self) -> int:
        return len(self.lengths)


class Memo:
    """Results worth keeping, as many as fit into ``most_bytes``; the one that was not used for longest goes first."""

    def __init__(self, most_bytes: int = 256 << 20) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._kept: OrderedDict[Hashable, Array] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Array]) -> Array:
        """What is kept under ``key``, else what ``make`` gives. Not to be written to."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()  # two threads may both make it: the same
        made = made if made.base is None else made.copy()  # a view would keep all of its array
        with self._lock:
            if key not in self._kept and made.nbytes <= self.most_bytes:
                self._kept[key] = made
                self.bytes += made.nbytes
                while self.bytes > self.most_bytes:
                    self.bytes -= self._kept.popitem(last=False)[1].nbytes
        return made

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()
            self.bytes = 0


class Engine(abc.ABC):
    """Runs the graphs of one model on one device."""

    info: EngineInfo
    steps_some_rows = True  #: whether ``first_rows`` can be fewer than all
    denoises_ahead = 0  #: steps that ``denoise`` takes at a time; 0: the engine leaves the loop to its caller
    draws_ahead = 0  #: codes that ``ar_draw`` draws at a time; 0: the engine leaves drawing to its caller

    @property
    def members(self) -> tuple[Engine, ...]:
        """The engines, of one model, that a scheduler gives requests to: itself, unless it stands for several."""
        return (self,)

    @functools.cached_property
    def memo(self) -> Memo:
        """Results that depend on the model alone and are worth keeping."""
        return Memo()

    @property
    def dims(self) -> Dims:
        return self.info.dims

    def has(self, *graphs: str) -> bool:
        """Whether all of ``graphs`` can be run."""
        return self.info.graphs.issuperset(graphs)

    def require(self, *graphs: str, instead: str = "") -> None:
        """Raise an EngineError that names the networks missing for ``graphs`` and what to use ``instead``, if any."""
        missing = dict.fromkeys(GRAPHS[graph].network for graph in graphs if not self.has(graph))
        if missing:
            files = ", ".join(CHECKPOINT_FILES[network] for network in missing)
            raise EngineError(
                f"{self.info.source} has no {' and no '.join(missing)} network ({files}): use "
                f"{instead and f'{instead}, or '}an engine exported from checkpoints that have it, as the official ones "
                "do (tortoise-rt export --checkpoints DIR)"
            )

    def release(self, graph: str) -> None:  # noqa: B027  # there may be nothing to give back
        """Give back what a graph holds, where an engine can; it is loaded again when it is run. Not while it runs."""

    def run(self, graph: str, **inputs: Array) -> tuple[Array, ...]:
        """Run a stateless graph. Inputs and outputs are NumPy arrays as in ``spec.GRAPHS``, outputs in its order."""
        spec = self._stateless(graph)
        return self._run(graph, check_inputs(spec, self.dims, inputs))

    def run_on_device(self, graph: str, stream: int = 1, **inputs: Any) -> tuple[DeviceArray, ...]:
        """As ``run``, where the engine has a GPU of its own: inputs may lie there, and outputs do; see ``backends.exchange``.

        stream: a handle of the caller's (1: the default stream). What it was given before is done first, and what it is
        given behind sees the outputs; the host waits for nothing but arrays of its own. Rows do not take turns: what a plan
        was not built for is refused.
        """
        return self._run_on_device(self._stateless(graph), stream, inputs)

    def _stateless(self, graph: str) -> GraphSpec:
        spec = self._spec(graph)
        if spec.stateful:
            raise EngineError(f'"{graph}" extends a cache: call ar_step()')
        return spec

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache for ``rows`` rows of up to ``capacity`` positions each."""
        self._spec("ar_step")
        return KVCache(self._new_cache(rows, capacity), np.zeros(rows, np.int64), capacity)

    def take_rows(self, cache: KVCache, rows: Sequence[int], capacity: int | None = None) -> KVCache:
        """A new cache that copies ``rows`` of ``cache`` (repeats allowed), with room for ``capacity`` positions."""
        index = np.asarray(rows, np.int64)
        if len(index) == 0 or index.min() < 0 or index.max() >= cache.rows:
            raise EngineError(f"rows {list(rows)} are not rows of a cache that has {cache.rows}")
        lengths = cache.lengths[index]
        capacity = cache.capacity if capacity is None else capacity
        if capacity < lengths.max():
            raise EngineError(f"a cache of {capacity} positions cannot hold rows of {lengths.max()}")
        return KVCache(self._take_rows(cache, index, capacity), lengths, capacity)

    def position_bytes(self) -> int:
        """Bytes of one position of a row of a cache; in float32, unless the backend keeps another type."""
        return 2 * 4 * self.dims["ar.layers"] * self.dims["ar.dim"]

    def put_rows(self, target: KVCache, places: Sequence[int], source: KVCache, rows: Sequence[int]) -> None:
        """Copy ``rows`` of ``source`` (repeats allowed) over the rows ``places`` of ``target``, another cache or the same."""
        to, index = np.asarray(places, np.int64), np.asarray(rows, np.int64)
        if len(to) != len(index) or len(set(places)) != len(to):
            raise EngineError(f"{list(places)} are no places for rows {list(rows)}")
        for name, cache, chosen in (("target", target, to), ("source", source, index)):
            if len(chosen) == 0 or chosen.min() < 0 or chosen.max() >= cache.rows:
                raise EngineError(f"rows {chosen.tolist()} are not rows of a {name} that has {cache.rows}")
        lengths = source.lengths[index]
        if target.capacity < lengths.max():
            raise EngineError(f"a cache of {target.capacity} positions cannot hold rows of {lengths.max()}")
        self._put_rows(target, to, source, index)
        target.lengths[to] = lengths

    def first_rows(self, cache: KVCache, count: int) -> KVCache:
        """The first ``count`` rows of ``cache`` as a cache that shares its memory and its lengths."""
        if not 1 <= count <= cache.rows:
            raise EngineError(f"{count} are not the first rows of a cache that has {cache.rows}")
        return KVCache(self._first_rows(cache, count), cache.lengths[:count], cache.capacity)

    def ar_step(
        self,
        cache: KVCache,
        codes: Array,
        code_positions: Array,
        voice: Array | None = None,
        text_ids: Array | None = None,
    ) -> tuple[Array, Array]:
        """Append to ``cache``, in place: a voice and text (when given) and codes.

        codes, code_positions: (rows, codes) int64; voice: (rows, dim); text_ids: (rows, text) int64
        -> logits: (rows, vocabulary) after the last code; latents: (rows, codes, dim) at each code.
        """
        checked = self._check_step(cache, codes, code_positions, voice, text_ids)
        new = sum(checked[n].shape[1] for n in ("voice", "text_ids", "codes"))
        if cache.lengths.max() + new > cache.capacity:
            raise EngineError(f"{cache.lengths.max()} + {new} positions exceed the cache's {cache.capacity}")
        result = self._ar_step(cache, checked)
        cache.lengths += new
        return result

    def ar_draw(
        self, cache: KVCache, codes: Array, code_positions: Array, drawings: Sequence[Drawing | None]
    ) -> tuple[Array, Array]:
        """Append one code of each row to ``cache``, in place, draw the next, and go on with that one.

        codes, code_positions: (rows, 1) int64. A row goes on for ``draws_ahead`` codes, or to the stop code, or for as
        many as its drawing has uniform numbers; None stands for a row that is left alone. What a row draws is what
        ``sampling.draw`` draws from the same logits -> codes: (rows, count) int64, NOTHING behind a row's last, or from
        where its logits are not finite; latents: (rows, count, dim) at each code that was read.
        """
        checked = self._check_step(cache, codes, code_positions)
        counts = np.array([0 if d is None else min(self.draws_ahead, len(d.uniforms)) for d in drawings])
        if len(counts) != cache.rows or checked["codes"].shape[1] != 1 or not counts.any():
            raise EngineError(
                f"{len(counts)} drawings, for a cache of {cache.rows} rows that read one code each"
            )
        last = checked["code_positions"][:, 0] + np.maximum(counts - 1, 0)
        check_range("code_positions", last, self.dims["ar.mel_positions"])
        if (longest := (cache.lengths + counts)[counts > 0].max()) > cache.capacity:
            raise EngineError(f"{longest} positions exceed the cache's {cache.capacity}")
        drawn, latents = self._ar_draw(cache, checked, drawings)
        cache.lengths += (drawn != NOTHING).sum(axis=1)
        return drawn, latents

    def denoise(
        self,
        x: Array,
        last: Array,
        aligned: Array,
        free: Array,
        steps: Sequence[DenoisingStep],
        noise: Callable[[int], Array],
    ) -> tuple[Array, Array]:
        """Some steps of the diffusion loop, as ``diffusion.denoise`` takes them: all guided, or none.

        x: (1, MELS, frames) mel; last: the clean one that the step before predicted; aligned: (1, frames, dim); free:
        (dim,); ``noise``: that of each step, like x -> x and last behind the steps.
        """
        self.require("diffusion_condition", "diffusion_denoise")
        if not 1 <= len(steps) <= self.denoises_ahead or len({step.guidance is None for step in steps}) > 1:
            raise EngineError(f"{len(steps)} steps, of at most {self.denoises_ahead}, all guided or none")
        timestep = np.zeros(len(x), np.float32)
        given = {"x": x, "condition": aligned, "timestep": timestep}
        checked = check_inputs(GRAPHS["diffusion_denoise"], self.dims, given)
        return self._denoise(checked["x"], last, checked["condition"], free, steps, noise)

    def _check_step(
        self,
        cache: KVCache,
        codes: Array,
        code_positions: Array,
        voice: Array | None = None,
        text_ids: Array | None = None,
    ) -> dict[str, Array]:
        """The inputs of ``ar_step``, checked."""
        rows = cache.rows
        inputs = {
            "voice": np.zeros((rows, 0, self.dims["ar.dim"]), np.float32)
            if voice is None
            else np.asarray(voice)[:, None],
            "text_ids": np.zeros((rows, 0), np.int64) if text_ids is None else text_ids,
            "codes": codes,
            "code_positions": code_positions,
        }
        checked = check_inputs(self._spec("ar_step"), self.dims, inputs)
        if len(checked["codes"]) != rows:
            raise EngineError(f"{len(checked['codes'])} rows of codes for a cache of {rows} rows")
        check_range("codes", checked["codes"], self.dims["ar.mel_codes"])
        check_range("code_positions", checked["code_positions"], self.dims["ar.mel_positions"])
        check_range("text_ids", checked["text_ids"], self.dims["ar.text_ids"])
        if checked["text_ids"].shape[1] > self.dims["ar.text_positions"]:
            raise EngineError(
                f"{checked['text_ids'].shape[1]} text ids; the model has {self.dims['ar.text_positions']} text positions"
            )
        return checked

    def _spec(self, graph: str) -> GraphSpec:
        if graph not in GRAPHS:
            raise EngineError(f'no graph is called "{graph}". Graphs: {", ".join(GRAPHS)}')
        self.require(graph)
        return GRAPHS[graph]

    @abc.abstractmethod
    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]: ...

    @abc.abstractmethod
    def _new_cache(self, rows: int, capacity: int) -> Any: ...

    @abc.abstractmethod
    def _take_rows(self, cache: KVCache, rows: Array, capacity: int) -> Any: ...

    @abc.abstractmethod
    def _put_rows(self, target: KVCache, places: Array, source: KVCache, rows: Array) -> None: ...

    @abc.abstractmethod
    def _first_rows(self, cache: KVCache, count: int) -> Any: ...

    @abc.abstractmethod
    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]: ...

    def _run_on_device(
        self, spec: GraphSpec, stream: int, inputs: Mapping[str, Any]
    ) -> tuple[DeviceArray, ...]:
        raise EngineError(
            f"the {self.info.backend} backend keeps arrays on the host: call run(), or open a bundle that was exported with "
            "--target tensorrt or tensorrt-rtx"
        )

    def _denoise(
        self,
        x: Array,
        last: Array,
        aligned: Array,
        free: Array,
        steps: Sequence[DenoisingStep],
        noise: Callable[[int], Array],
    ) -> tuple[Array, Array]:
        """Only called of engines that denoise ahead."""
        raise NotImplementedError

    def _ar_draw(
        self, cache: KVCache, inputs: dict[str, Array], drawings: Sequence[Drawing | None]
    ) -> tuple[Array, Array]:
        """Only called of engines that draw ahead."""
        raise NotImplementedError
