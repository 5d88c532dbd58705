"""ONNX Runtime on graphs of standard operators: what CUDA runs, and the CPU to compare with.

The key/value cache stays on the device, its rows are moved there, and decoding steps that repeat are bound once and
recorded by the library. No GPU has run this yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..engine import Array, EngineInfo, KVCache
from ..errors import EngineError
from ..profiles import DECODED, SPAN_STEP, few_rows
from ..spec import TensorSpec, cache_capacity, cache_names
from .onnx import OnnxEngine, failure
from .onnx_calls import CALLS
from .onnx_checks import cache_specs, first_line
from .onnx_memory import Block, CacheMemory, Lent
from .onnx_steps import REPEATED_SPAN, Step, Steps, run_options

T = TypeVar("T")
CACHE_TYPES = {
    "fp32": "float32",
    "fp16": "float16",
    "int8": "float16",
    "fp8": "float16",
}  #: precision -> the type of keys and values
RECORDED = (
    "ar_step"  #: the others have new shapes with each text, and work on them that CUDA leaves to the CPU
)

log = logging.getLogger("tortoise_rt")


class StandardEngine(OnnxEngine):
    """Runs graphs of standard operators from the files of one folder. Safe to call from several threads.

    All is called by a thread of the engine's own: what the library records, and the workspaces that it then keeps, are a
    thread's.
    """

    def __init__(
        self,
        folder: Path,
        info: EngineInfo,
        files: Mapping[str, str],
        device: str = "cpu",
        check_files: Callable[[], None] = lambda: None,
    ) -> None:
        """As declared."""
        super().__init__(folder, info, files, device, check_files)
        self.refused = 0  #: recordings that could not be made; then none is
        self._thread = ThreadPoolExecutor(1, "onnxruntime")
        self._steps = Steps()
        self._cache_memory: CacheMemory | None = None  # made with the first cache

    @property
    def recorded(self) -> int:
        """Steps that are recorded."""
        return 0 if self.refused else len(self._steps)

    def _by_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Have the engine's thread do ``work``."""
        return self._thread.submit(work, *arguments).result()

    # --- sessions ---

    def _provider_options(self, options: Any, graph: str) -> dict[str, str]:
        if self._kind == "cpu":
            return {}
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        # The exhaustive search, the default, would be made again for every new length.
        told = {"device_id": str(self._number), "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        return told | {"enable_cuda_graph": "1"} if graph == RECORDED and not self.refused else told

    def _create_session(self, graph: str) -> Any:
        def create() -> Any:
            with CALLS.beside_others():
                return super(StandardEngine, self)._create_session(graph)

        try:
            return create()
        except EngineError as error:
            if graph != RECORDED or self.refused:
                raise
            return self._unrecorded(create, error)

    def _unrecorded(self, work: Callable[[], T], error: Exception) -> T:
        """``work``, which failed with ``error``, on a session that records nothing, as all do from then on if it does not fail."""
        self._forget_recorded()
        self.refused += 1
        try:
            done = work()
        except Exception:  # it was not for the recording
            self._forget_recorded()
            self.refused -= 1
            raise
        log.warning("%s is not recorded, and takes longer: %s", RECORDED, first_line(error))
        return done

    def _forget_recorded(self) -> None:
        """Let go of the session and of all that it has recorded: it can forget nothing less."""
        self._steps.clear()
        self._sessions.pop(RECORDED, None)

    def release(self, graph: str) -> None:
        self._by_thread(self._release, graph)

    def _release(self, graph: str) -> None:
        if graph == RECORDED:
            self._forget_recorded()
            if self._cache_memory:
                self._cache_memory.trim()
        super().release(graph)

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        # Arrays come from the host and go there, so that binding them would save no copy.
        return self._by_thread(self._run_one, graph, inputs)

    def _run_one(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        self.session(graph)
        with CALLS.beside_others():
            return super()._run(graph, inputs)

    # --- key/value cache ---

    @property
    def _type(self) -> str:
        return CACHE_TYPES[self.info.precision.get(RECORDED, "fp32")]

    def position_bytes(self) -> int:
        """Bytes of one position of a row of a cache."""
        return super().position_bytes() * np.dtype(self._type).itemsize // 4

    def _cache_tensors(self, session: Any) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec("cache_lengths", "int64", ("rows",)),
            TensorSpec("reach", "int64", ("span",)),
            *cache_specs(session, self.dims, self._type, cache_capacity(self.dims)),
        )

    def _new_cache(self, rows: int, capacity: int) -> Lent:
        most = cache_capacity(self.dims)
        if capacity > most:
            raise EngineError(f"a cache of {capacity} positions; this engine was exported for {most}")
        return self._by_thread(self._lend, rows)

    def _lend(self, rows: int) -> Lent:
        """Memory for a cache, of few numbers of rows up to DECODED, so that it is used again."""
        memory = self._memory()
        with CALLS.beside_others():
            return memory.lend(rows if rows > DECODED else few_rows(rows, DECODED))

    def _memory(self) -> CacheMemory:
        if self._cache_memory is None:
            _, *shape = self._cache_shape(1, cache_capacity(self.dims))
            row_bytes = int(np.prod(shape)) * np.dtype(self._type).itemsize
            steps = self._steps
            with CALLS.beside_others():
                self._cache_memory = CacheMemory(
                    self._runtime,
                    (self._kind, self._number),
                    lambda model: self._open(model, ""),
                    len(cache_names(self.dims)),
                    row_bytes,
                    lambda block: steps.forget(block.number),
                )
        return self._cache_memory

    def _take_rows(self, cache: KVCache, rows: Array, capacity: int) -> Lent:
        return self._by_thread(self._taken, cache.state, rows)

    def _taken(self, source: Lent, rows: Array) -> Lent:
        taken = self._lend(len(rows))
        self._copy(taken.block, np.arange(len(rows)), source.block, rows)
        return taken

    def _put_rows(self, target: KVCache, places: Array, source: KVCache, rows: Array) -> None:
        self._by_thread(self._put, target.state, places, source.state, rows)

    def _put(self, target: Lent, places: Array, source: Lent, rows: Array) -> None:
        if target is source and {*places.tolist()} & {
            *rows.tolist()
        }:  # one copy could spoil another's source
            source, rows = self._taken(source, rows), np.arange(len(rows))
        self._copy(target.block, places, source.block, rows)

    def _copy(self, target: Block, places: Array, source: Block, rows: Array) -> None:
        memory = self._memory()
        try:
            with CALLS.beside_others():
                for place, row in zip(places.tolist(), rows.tolist(), strict=True):
                    memory.copy(target, place, source, row)
        except Exception as error:
            raise EngineError(
                f"{len(rows)} rows of a cache could not be copied: {first_line(error)}"
            ) from None

    def _first_rows(self, cache: KVCache, count: int) -> Lent:
        return cache.state

    # --- steps ---

    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        new = sum(inputs[name].shape[1] for name in ("voice", "text_ids", "codes"))
        longest = int(cache.lengths.max()) + new
        return self._by_thread(self._repeated if new == 1 else self._single, cache, inputs, longest)

    def _span(self, longest: int, unit: int) -> int:
        return min(-(-longest // unit) * unit, cache_capacity(self.dims))

    def _single(self, cache: KVCache, inputs: dict[str, Array], longest: int) -> tuple[Array, Array]:
        """A prompt, or several codes: in too many shapes to be recorded."""
        reach = np.arange(self._span(longest, SPAN_STEP))
        given = {**inputs, "cache_lengths": np.asarray(cache.lengths, np.int64), "reach": reach}
        self.session(RECORDED)
        with CALLS.beside_others():
            return self._step(
                given, self._bound(cache.state.block, cache.rows), self._bind, run_options(self._runtime)
            )

    def _repeated(self, cache: KVCache, inputs: dict[str, Array], longest: int) -> tuple[Array, Array]:
        """A code of each row. Rows are added that are left alone, to few numbers of them."""
        block, count = cache.state.block, cache.rows
        rows, span = few_rows(count, block.rows), self._span(longest, REPEATED_SPAN)
        given: dict[str, Array] = {}
        for name in ("codes", "code_positions"):
            given[name] = np.zeros((rows, 1), np.int64)
            given[name][:count] = inputs[name]
        given["cache_lengths"] = np.full(rows, -1)
        given["cache_lengths"][:count] = cache.lengths

        def step() -> tuple[Array, ...]:
            try:
                return self._kept(block, rows, span)(given)
            except EngineError:
                raise
            except Exception as error:  # ONNX Runtime's exceptions share no base class
                raise failure(RECORDED, given, error) from None

        try:
            logits, latents = step()
        except EngineError as error:
            if self.refused:
                raise
            logits, latents = self._unrecorded(step, error)
        return logits[:count], latents[:count]

    def _kept(self, block: Block, rows: int, span: int) -> Step:
        """The step of the first rows of a block over some of its positions."""
        key = (block.number, rows, span)
        if key not in self._steps and self._steps.full:
            self._steps.clear() if self.refused else self._forget_recorded()
        session = self.session(RECORDED)

        def make(number: int) -> Step:
            with CALLS.beside_others():
                return self._make_step(
                    session, block, rows, span, run_options(self._runtime, None if self.refused else number)
                )

        return self._steps.get(key, make)

    def _make_step(self, session: Any, block: Block, rows: int, span: int, options: Any) -> Step:
        width = self.dims["ar.dim"]
        inputs: dict[str, Array] = {
            "voice": np.zeros((rows, 0, width), np.float32),
            "text_ids": np.zeros((rows, 0), np.int64),
            "codes": np.zeros((rows, 1), np.int64),
            "code_positions": np.zeros((rows, 1), np.int64),
            "cache_lengths": np.zeros(rows, np.int64),
            "reach": np.arange(span),
        }
        outputs = {"logits": (rows, self.dims["ar.mel_codes"]), "latents": (rows, 1, width)}
        device = (self._kind, self._number)
        step = Step.bound(session, self._runtime.OrtValue, device, inputs, outputs, options)
        for name, place in self._bound(block, rows).items():
            self._bind(step.binding, name, place)
        return step

    def _bound(self, block: Block, rows: int) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Address and shape of the first rows of each tensor of a cache."""
        memory, (_, *shape) = self._memory(), self._cache_shape(rows, cache_capacity(self.dims))
        return {
            name: (memory.address(block, tensor), tuple(shape))
            for tensor, name in enumerate(cache_names(self.dims))
        }

    def _bind(self, binding: Any, name: str, place: tuple[int, tuple[int, ...]]) -> None:
        """Bind a tensor of a cache, as what was and as what is."""
        address, shape = place
        memory = (self._kind, self._number, np.dtype(self._type).type, shape, address)
        binding.bind_input(name, *memory)
        binding.bind_output(f"new_{name}", *memory)
