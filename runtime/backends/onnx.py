"""ONNX Runtime, on CPU or CUDA. One session per graph, created when it is first used.

The key/value cache is updated in place: the same memory is bound as a session's past and present. On CUDA the
cache stays on the device; that path needs graphs exported for CUDA and has not been run on a GPU yet.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine import Array, Engine, EngineInfo, KVCache
from ..errors import BundleError, BundleMismatch, EngineError, MissingDependency
from ..spec import GRAPHS, GraphSpec, TensorSpec

if TYPE_CHECKING:
    from ..bundle import Bundle

THREADS_VARIABLE = "TORTOISE_RT_THREADS"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ONNX_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)", "int32": "tensor(int32)"}


def open_bundle(bundle: Bundle, device: str = "auto") -> OnnxEngine:
    """An engine over a bundle's graphs; "auto" is the device it was exported for.

    Raises BundleMismatch when the bundle was made for another device, backend or a newer ONNX Runtime.
    """
    manifest, target = bundle.manifest, bundle.manifest["target"]
    if target.get("backend") != "onnx":
        raise BundleMismatch(
            f"{bundle.folder} was exported for {target.get('backend')}; this is the onnx backend. "
            "Export one for it: tortoise-rt export --target cpu"
        )
    made_for = str(target.get("device"))
    wanted = made_for if device == "auto" else device
    kind = wanted.partition(":")[0]
    if kind != made_for.partition(":")[0]:
        raise BundleMismatch(
            f"{bundle.folder} was exported for {made_for}; the device asked for is {wanted}. "
            f"Export one for it: tortoise-rt export --target {kind}"
        )
    _check_version(bundle.folder, str(target.get("requires", {}).get("onnxruntime", "0")))
    info = EngineInfo(
        backend="onnx",
        device=wanted,
        source=str(bundle.folder),
        dims=bundle.dims,
        graphs=frozenset(bundle.graphs),
        tokenizer=bundle.tokenizer,
        defaults=manifest["defaults"],
        notice=manifest["model"].get("notice", ""),
        fingerprint=manifest["model"].get("fingerprint", ""),
        precision=manifest["precision"],
    )
    return OnnxEngine(bundle.folder, info, bundle.graphs, wanted)


def _onnxruntime() -> Any:
    """The module, imported when an engine needs it; raises MissingDependency."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependency("ONNX Runtime is not installed: pip install 'tortoise-rt[cpu]'") from None
    return onnxruntime


def _check_version(folder: Path, required: str) -> None:
    installed = _onnxruntime().__version__
    if _version_tuple(installed) < _version_tuple(required):
        raise BundleMismatch(
            f"{folder} needs onnxruntime {required} or newer; {installed} is installed: pip install -U onnxruntime"
        )


def _version_tuple(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def thread_count() -> int:
    """Threads a session computes with: TORTOISE_RT_THREADS, else the CPUs this process may run on."""
    text = os.environ.get(THREADS_VARIABLE)
    if text is None:
        affinity = getattr(os, "sched_getaffinity", None)
        return len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise EngineError(f"{THREADS_VARIABLE} is {text!r}; it must be an integer of at least 1")
    return count


class OnnxEngine(Engine):
    """Runs graphs from the files of one folder. Safe to call from several threads."""

    def __init__(self, folder: Path, info: EngineInfo, files: Mapping[str, str], device: str = "cpu") -> None:
        """files: graph -> model file in ``folder``; device: "cpu", "cuda" or "cuda:N".

        Raises MissingDependency without ONNX Runtime, EngineError for a device it does not offer.
        """
        self.info = info
        self._folder = folder
        self._files = files
        self._kind, _, number = device.partition(":")
        if self._kind not in PROVIDERS or not (number or "0").isdigit():
            raise EngineError(f"the onnx backend has no device {device!r}. Use cpu, cuda or cuda:N")
        self._number = int(number or 0)
        self._runtime = _onnxruntime()
        self._provider = PROVIDERS[self._kind]
        self._threads = thread_count()
        offered = self._runtime.get_available_providers()
        if self._provider not in offered:
            raise EngineError(
                f"device {device} needs ONNX Runtime's {self._provider}; the one installed offers {', '.join(offered)}"
                + (": pip install 'tortoise-rt[gpu]'" if self._kind == "cuda" else "")
            )
        self._sessions: dict[str, Any] = {}
        self._locks = {graph: threading.Lock() for graph in files}

    def session(self, graph: str) -> Any:
        """The graph's session, created and checked on first use."""
        with self._locks[graph]:
            if graph not in self._sessions:
                self._sessions[graph] = self._create_session(graph)
            return self._sessions[graph]

    def _create_session(self, graph: str) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        provider_options = {"device_id": str(self._number)} if self._kind == "cuda" else {}
        path = self._folder / self._files[graph]
        try:
            session = self._runtime.InferenceSession(
                str(path), options, providers=[self._provider], provider_options=[provider_options]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise BundleError(
                f"{path} cannot be loaded: {_first_line(error)}. Export the bundle again"
            ) from None
        active = session.get_providers()
        # The library falls back to the CPU with no more than a line on stderr.
        if active[0] != self._provider:
            raise EngineError(f'graph "{graph}" wants {self._provider}, but ONNX Runtime chose {active[0]}')
        _check_signature(path, GRAPHS[graph], session)
        return session

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        session = self.session(graph)
        names = [tensor.name for tensor in GRAPHS[graph].outputs]
        try:
            return tuple(session.run(names, inputs))
        except Exception as error:
            raise _failure(graph, inputs, error) from None

    # --- key/value cache ---

    def _new_cache(self, rows: int, capacity: int) -> Any:
        # Zeros, not uninitialised memory: a NaN times an attention weight of zero would be NaN.
        # The kernel hands out zeroed pages lazily, so room that is never used costs no memory.
        shape = self._cache_shape(rows, capacity)
        if self._kind == "cpu":
            return np.zeros(shape, np.float32)
        return [self._to_device(np.zeros(shape[1:], np.float32)) for _ in range(shape[0])]

    def _cache_shape(self, rows: int, capacity: int) -> tuple[int, ...]:
        """(tensors, rows, heads, capacity, head size); tensors are key 0, value 0, key 1, ..."""
        heads, size = self._cache_heads()
        return 2 * self.dims["ar.layers"], rows, heads, capacity, size

    def _cache_heads(self) -> tuple[int, int]:
        """Heads and head size as the graph declares them (an export may pad heads)."""
        shape = next(i.shape for i in self.session("ar_step").get_inputs() if i.name == "key_0")
        return shape[1], shape[3]

    def _to_device(self, array: Array) -> Any:
        return self._runtime.OrtValue.ortvalue_from_numpy(array, self._kind, self._number)

    def _take_rows(self, cache: KVCache, rows: Array, capacity: int) -> Any:
        filled = int(cache.lengths[rows].max())
        if self._kind == "cpu":
            taken = self._new_cache(len(rows), capacity)
            for target, source in zip(taken, cache.state, strict=True):
                target[:, :, :filled] = source[rows, :, :filled]
            return taken
        tensors = []
        for value in cache.state:
            room = np.zeros(self._cache_shape(len(rows), capacity)[1:], np.float32)
            room[:, :, :filled] = value.numpy()[rows, :, :filled]
            tensors.append(self._to_device(room))
        return tensors

    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        new = sum(inputs[name].shape[1] for name in ("voice", "text_ids", "codes"))
        if new == 1 or cache.rows == 1 or not cache.lengths.any():
            return self._bound_step(cache.state, cache.lengths, new, inputs)
        # The attention operator takes several new positions behind a past only for one row.
        if self._kind != "cpu":
            raise EngineError("on cuda, several codes can be appended only to empty caches or to one row")
        steps = [
            self._bound_step(
                cache.state[:, row : row + 1],
                cache.lengths[row : row + 1],
                new,
                {name: array[row : row + 1] for name, array in inputs.items()},
            )
            for row in range(cache.rows)
        ]
        logits, latents = zip(*steps, strict=True)
        return np.concatenate(logits), np.concatenate(latents)

    def _bound_step(
        self, state: Any, lengths: Array, new: int, inputs: dict[str, Array]
    ) -> tuple[Array, Array]:
        """One run of ar_step with the cache bound in place; state as from ``_new_cache``, or one row of it."""
        rows, codes = inputs["codes"].shape
        binding = self.session("ar_step").io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        binding.bind_cpu_input("cache_lengths", lengths.astype(np.int32))
        binding.bind_cpu_input("total_length", np.array(lengths.max() + new, np.int32))
        logits = np.empty((rows, self.dims["ar.mel_codes"]), np.float32)
        latents = np.empty((rows, codes, self.dims["ar.dim"]), np.float32)
        for name, array in (("logits", logits), ("latents", latents)):
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        for layer in range(self.dims["ar.layers"]):
            for part, kind in enumerate(("key", "value")):
                self._bind_in_place(binding, f"{kind}_{layer}", state[2 * layer + part])
        try:
            self.session("ar_step").run_with_iobinding(binding)
        except Exception as error:
            raise _failure("ar_step", inputs, error) from None
        return logits, latents

    def _bind_in_place(self, binding: Any, name: str, tensor: Any) -> None:
        if self._kind == "cpu":
            memory = ("cpu", 0, np.float32, tensor.shape, tensor.ctypes.data)
            binding.bind_input(name, *memory)
            binding.bind_output(f"new_{name}", *memory)
        else:
            binding.bind_ortvalue_input(name, tensor)
            binding.bind_ortvalue_output(f"new_{name}", tensor)


def _check_signature(path: Path, spec: GraphSpec, session: Any) -> None:
    """Raise a BundleError unless the model's inputs and outputs are those of the spec (a cache may come on top)."""

    def check(role: str, wanted: tuple[TensorSpec, ...], found: Any) -> None:
        by_name = {value.name: value for value in found}
        missing = [t.name for t in wanted if t.name not in by_name]
        extra = [] if spec.stateful else sorted(set(by_name) - {t.name for t in wanted})
        if missing or extra:
            raise BundleError(
                f'{path}: {role}s {sorted(by_name)} are not those of graph "{spec.name}", '
                f"{[t.name for t in wanted]}. Export the bundle again"
            )
        for tensor in wanted:
            value = by_name[tensor.name]
            if value.type != _ONNX_TYPES[tensor.dtype] or len(value.shape) != len(tensor.dims):
                raise BundleError(
                    f"{path}: {role} {tensor.name} is {value.type} {value.shape} where {tensor.dtype} {tensor.dims} "
                    "is needed. Export the bundle again"
                )

    check("input", spec.inputs, session.get_inputs())
    check("output", spec.outputs, session.get_outputs())


def _failure(graph: str, inputs: Mapping[str, Array], error: Exception) -> EngineError:
    shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
    return EngineError(f'graph "{graph}" failed on {shapes}: {_first_line(error)}')


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
