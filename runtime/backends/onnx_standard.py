"""ONNX Runtime on graphs of standard operators: what CUDA runs, and the CPU to compare with.

The key/value cache stays on the device, its rows are moved there, and decoding steps that repeat are bound once and
recorded by the library. No GPU has run this yet.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..engine import Array, EngineInfo, KVCache
from ..errors import EngineError
from ..profiles import DECODED, SPAN_STEP, few_rows
from ..spec import TensorSpec, cache_capacity, cache_names
from .onnx import OnnxEngine, failure
from .onnx_calls import CALLS, Caller
from .onnx_checks import cache_specs, first_line
from .onnx_memory import Block, CacheMemory, Lent
from .onnx_steps import MOST_RECORDED, REPEATED_SPAN, Step, Steps, run_options

T = TypeVar("T")
CACHE_TYPES = {
    "fp32": "float32",
    "fp16": "float16",
    "int8": "float16",
    "fp8": "float16",
}  #: precision -> the type of keys and values
#: the one graph that is recorded: others have new shapes with each text, and work on them that CUDA leaves to the CPU
STEP = "ar_step"

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
        self.records = self._kind == "cuda"  #: whether steps are recorded; no longer once one could not be
        self._by_thread = Caller("onnxruntime")
        self._steps = Steps()
        self._memories: list[CacheMemory] = []  # one, from the first cache on
        held = (self._sessions, self._steps, self._memories)
        weakref.finalize(self, _end, self._by_thread, *held).atexit = False

    @property
    def recorded(self) -> int:
        """Steps that are recorded, of those that are kept."""
        return self._steps.recorded

    # --- sessions ---

    def _provider_options(self, options: Any, graph: str) -> dict[str, str]:
        if self._kind == "cpu":
            return {}
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        # The exhaustive search, the default, would be made again for every new length.
        told = {"device_id": str(self._number), "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        return told | {"enable_cuda_graph": "1"} if graph == STEP and self.records else told

    def _open(self, model: str | bytes, graph: str) -> Any:
        def opened() -> Any:
            with CALLS.beside_others():
                return super(StandardEngine, self)._open(model, graph)

        return self._or_unrecorded(opened) if graph == STEP else opened()

    def _or_unrecorded(self, work: Callable[[], T]) -> T:
        """``work``, which opens or runs the step that is recorded. Where it fails, once more on a session that records
        nothing, as all do from then on if that does not fail.
        """
        try:
            return work()
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            if not self.records:
                raise
            reason = first_line(error)
        # Behind the handler, as the error refers to the session: there would be two.
        self._forget_recorded()
        self.records = False
        try:
            done = work()
        except Exception:  # it was not for the recording
            self._forget_recorded()
            self.records = True
            raise
        log.warning("%s is not recorded, and takes longer: %s", STEP, reason)
        return done

    def _forget_recorded(self) -> None:
        """Let go of the session and of all that it has recorded: it can forget nothing less."""
        with CALLS.beside_others():
            self._steps.clear()
            self._sessions.pop(STEP, None)

    def release(self, graph: str) -> None:
        self._by_thread(self._release, graph)

    def _release(self, graph: str) -> None:
        if graph == STEP:
            self._forget_recorded()
        with CALLS.beside_others():
            if graph == STEP:
                for memory in self._memories:
                    memory.trim()
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
        return CACHE_TYPES[self.info.precision.get(STEP, "fp32")]

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
        """Memory for a cache, of few numbers of rows, so that it is used again."""
        room = -(-rows // DECODED) * DECODED
        memory = self._memory()
        with CALLS.beside_others():
            return memory.lend(few_rows(rows, room))

    def _memory(self) -> CacheMemory:
        if not self._memories:
            _, *shape = self._cache_shape(1, cache_capacity(self.dims))
            row_bytes = int(np.prod(shape)) * np.dtype(self._type).itemsize
            steps = self._steps
            memory = CacheMemory(
                self._runtime,
                (self._kind, self._number),
                lambda model: self._open(model, ""),
                len(cache_names(self.dims)),
                row_bytes,
                lambda block: steps.forget(block.number),
            )
            self._memories.append(memory)
        return self._memories[0]

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
        self.session(STEP)
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

        key = (block.number, rows, span)
        if key not in self._steps and self._steps.full:
            self._make_room()
        self.session(STEP)  # what is wrong with it is not for the recording
        try:
            logits, latents = self._or_unrecorded(lambda: self._kept(key, block)(given))
        except EngineError:
            raise
        except Exception as error:
            raise failure(STEP, given, error) from None
        return logits[:count], latents[:count]

    def _make_room(self) -> None:
        """For other steps."""
        if self.records:
            log.warning("%s is loaded again: a session records %d steps at most", STEP, MOST_RECORDED)
            self._forget_recorded()
        else:
            self._steps.clear()

    def _kept(self, key: tuple[int, int, int], block: Block) -> Step:
        """The step of the first rows of a block over some of its positions. key: the block's number, rows, positions."""
        _, rows, span = key
        session = self.session(STEP)

        def make(number: int) -> Step:
            with CALLS.beside_others():
                return self._make_step(session, block, rows, span, number if self.records else None)

        return self._steps.get(key, make)

    def _make_step(self, session: Any, block: Block, rows: int, span: int, number: int | None) -> Step:
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
        step = Step.bound(session, self._runtime, device, inputs, outputs, number)
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


def _end(caller: Caller, *held: Any) -> None:
    """Let go, by the thread of an engine that is gone, of what it held."""

    def let_go() -> None:
        for part in held:
            part.clear()

    caller.end(let_go)
