"""ONNX Runtime. One session per graph, created when it is first used.

``OnnxEngine`` runs the family of graphs for the CPU; for that of standard operators, on CUDA, see
``onnx_standard``. The key/value cache is updated in place: the same memory is bound as a session's past and present.
A graph whose arithmetic would land on another device is refused, never run there silently.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine import Array, Engine, EngineInfo, KVCache
from ..errors import BundleError, BundleMismatch, EngineError, MissingDependency
from ..spec import GRAPHS, TensorSpec, cache_names
from .device import no_such_gpu
from .driver import gpu_names
from .onnx_checks import PROVIDERS, cache_specs, check_provider, check_signature, first_line
from .onnx_cuda import load_libraries

if TYPE_CHECKING:
    from ..bundle import Bundle

THREADS_VARIABLE = "TORTOISE_RT_THREADS"
TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"
_DEVICE = re.compile(r"(cpu|cuda)(?::([0-9]{1,3}))?")


def open_bundle(bundle: Bundle, device: str = "auto") -> OnnxEngine:
    """An engine over a bundle's graphs; "auto" is the device it was exported for.

    Raises EngineError for a device that is unknown or that the installed ONNX Runtime does not offer, BundleMismatch
    when the bundle was made for another device, backend or a newer ONNX Runtime.
    """
    target = bundle.manifest["target"]
    if device != "auto":
        _parse_device(device)
    if target["backend"] != "onnx":
        raise BundleMismatch(
            f"{bundle.folder} was exported for {target['backend']}; this is the onnx backend. "
            "Export one for it: tortoise-rt export --target cpu"
        )
    made_for = target["device"]
    if not _DEVICE.fullmatch(made_for):
        raise BundleMismatch(f"{bundle.folder} was exported for {made_for}, which this version cannot run")
    wanted = made_for if device == "auto" else device
    kinds = _parse_device(made_for)[0], _parse_device(wanted)[0]
    if kinds[0] != kinds[1]:
        raise BundleMismatch(
            f"{bundle.folder} was exported for {made_for}; the device asked for is {wanted}. "
            f"Export one for it: tortoise-rt export --target {kinds[1]}"
        )
    package = "onnxruntime-gpu" if kinds[0] == "cuda" else "onnxruntime"
    _check_version(bundle.folder, target.get("requires", {}).get("onnxruntime", "0"), package)
    info = bundle.engine_info("onnx", wanted)
    kind: type[OnnxEngine] = OnnxEngine
    if kinds[0] == "cuda":
        from .onnx_standard import StandardEngine

        kind = StandardEngine
    return kind(bundle.folder, info, bundle.graphs, wanted, bundle.check_unchanged)


def _parse_device(device: str) -> tuple[str, int]:
    """-> "cpu" or "cuda", and which one; raises EngineError for any other name."""
    match = _DEVICE.fullmatch(device)
    if not match or (match[1] == "cpu" and match[2]):
        raise EngineError(f"the onnx backend has no device {device!r}. Use cpu, cuda or cuda:N")
    return match[1], int(match[2] or 0)


def import_onnxruntime() -> Any:
    """The module, imported when an engine needs it; raises MissingDependency.

    Without the telemetry of newer versions, unless the environment says otherwise: that looks for a host of its maker's,
    writes into the user's cache, and has a thread for which a forked child waits for ever at its end.
    """
    os.environ.setdefault(TELEMETRY_VARIABLE, "1")
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependency("ONNX Runtime is not installed: pip install 'tortoise-rt[cpu]'") from None
    return onnxruntime


def _check_version(folder: Path, required: str, package: str) -> None:
    installed = import_onnxruntime().__version__
    if _version_tuple(installed) < _version_tuple(required):
        raise BundleMismatch(
            f"{folder} needs {package} {required} or newer; {installed} is installed: pip install -U {package}"
        )


def _version_tuple(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall("[0-9]+", text)[:2])


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
    """Runs graphs for the CPU from the files of one folder. Safe to call from several threads."""

    def __init__(
        self,
        folder: Path,
        info: EngineInfo,
        files: Mapping[str, str],
        device: str = "cpu",
        check_files: Callable[[], None] = lambda: None,
    ) -> None:
        """files: graph -> model file in ``folder``; device: "cpu", "cuda" or "cuda:N".

        ``check_files`` is called before and after files are read and raises when they are no longer what they
        were. Raises MissingDependency without ONNX Runtime, EngineError for a device it does not offer.
        """
        self.info = info
        self._folder = folder
        self._files = files
        self._check_files = check_files
        self._kind, self._number = _parse_device(device)
        self._runtime = import_onnxruntime()
        self._provider = PROVIDERS[self._kind]
        self._threads = thread_count()
        offered = self._runtime.get_available_providers()
        if self._provider not in offered:
            raise EngineError(
                f"device {device} needs ONNX Runtime's {self._provider}; the one installed offers {', '.join(offered)}"
                + (
                    ": pip uninstall onnxruntime, then pip install 'tortoise-rt[gpu]'"
                    if self._kind == "cuda"
                    else ""
                )
            )
        if self._kind == "cuda":
            if self._number >= len(there := gpu_names()):
                raise no_such_gpu(self._number, there)
            load_libraries(self._runtime)
        self._sessions: dict[str, Any] = {}
        self._locks = {graph: threading.Lock() for graph in files}

    def session(self, graph: str) -> Any:
        """The graph's session, created and checked on first use."""
        with self._locks[graph]:
            if graph not in self._sessions:
                self._sessions[graph] = self._create_session(graph)
            return self._sessions[graph]

    def release(self, graph: str) -> None:
        with self._locks[graph]:
            self._sessions.pop(graph, None)

    def _create_session(self, graph: str) -> Any:
        path = self._folder / self._files[graph]
        self._check_files()
        try:
            session = self._open(str(path), graph)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            if self._kind != "cpu":
                raise EngineError(
                    f'graph "{graph}" cannot run on {self._kind}:{self._number}: {first_line(error)}. '
                    "tortoise-rt doctor says what is missing"
                ) from None
            raise BundleError(
                f"{path} cannot be loaded: {first_line(error)}. Export the bundle again"
            ) from None
        self._check_files()
        check_provider(graph, self._provider, session)
        past = self._cache_tensors(session) if GRAPHS[graph].stateful else ()
        check_signature(path, graph, session, self.dims, past)
        return session

    def _open(self, model: str | bytes, graph: str) -> Any:
        """A session of a model, a file's path or what is in it."""
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = (
            False  # shapes vary, and a block is kept for each: see session_options.jsonl
        )
        provider_options = self._provider_options(options, graph)
        return self._runtime.InferenceSession(
            model, options, providers=[self._provider], provider_options=[provider_options]
        )

    def _provider_options(self, options: Any, graph: str) -> dict[str, str]:
        """What the provider is told; ``options``, the session's, may be changed."""
        return {}

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        session = self.session(graph)
        names = [tensor.name for tensor in GRAPHS[graph].outputs]
        try:
            return tuple(session.run(names, inputs))
        except Exception as error:
            raise failure(graph, inputs, error) from None

    # --- key/value cache ---

    def _new_cache(self, rows: int, capacity: int) -> Any:
        # Zeros, not uninitialised memory: a NaN times an attention weight of zero would be NaN.
        # The kernel hands out zeroed pages lazily, so room that is never used costs no memory.
        return np.zeros(self._cache_shape(rows, capacity), np.float32)

    def _cache_shape(self, rows: int, capacity: int) -> tuple[int, ...]:
        """(tensors, rows, heads, capacity, head size); tensors are key 0, value 0, key 1, ..."""
        heads, size = self._cache_heads()
        return 2 * self.dims["ar.layers"], rows, heads, capacity, size

    def _cache_heads(self) -> tuple[int, int]:
        """Heads and head size as the graph declares them (an export may pad heads)."""
        shape = next(i.shape for i in self.session("ar_step").get_inputs() if i.name == "key_0")
        return shape[1], shape[3]

    def _cache_tensors(self, session: Any) -> tuple[TensorSpec, ...]:
        """What ar_step takes beside its spec; the head size is the model's own, as heads may be padded."""
        return (
            TensorSpec("cache_lengths", "int32", ("rows",)),
            TensorSpec("total_length", "int32", ()),
            *cache_specs(session, self.dims, "float32", "capacity"),
        )

    def _take_rows(self, cache: KVCache, rows: Array, capacity: int) -> Any:
        filled = int(cache.lengths[rows].max())
        taken = self._new_cache(len(rows), capacity)
        for target, source in zip(taken, cache.state, strict=True):
            target[:, :, :filled] = source[rows, :, :filled]
        return taken

    def _put_rows(self, target: KVCache, places: Array, source: KVCache, rows: Array) -> None:
        filled = int(source.lengths[rows].max())
        for to, tensor in zip(target.state, source.state, strict=True):
            to[places, :, :filled] = tensor[rows, :, :filled]

    def _first_rows(self, cache: KVCache, count: int) -> Any:
        return cache.state[:, :count]

    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        new = sum(inputs[name].shape[1] for name in ("voice", "text_ids", "codes"))
        if new == 1 or cache.rows == 1 or not cache.lengths.any():
            return self._bound_step(cache.state, cache.lengths, new, inputs)
        # The attention operator takes several new positions behind a past only for one row.
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
        given = {
            **inputs,
            "cache_lengths": lengths.astype(np.int32),
            "total_length": np.array(lengths.max() + new, np.int32),
        }

        def bind(binding: Any, name: str, tensor: Array) -> None:
            memory = ("cpu", 0, np.float32, tensor.shape, tensor.ctypes.data)
            binding.bind_input(name, *memory)
            binding.bind_output(f"new_{name}", *memory)

        return self._step(given, dict(zip(cache_names(self.dims), state, strict=True)), bind)

    def _step(
        self,
        inputs: dict[str, Array],
        cache: Mapping[str, Any],
        bind: Callable[[Any, str, Any], None],
        options: Any = None,
    ) -> tuple[Array, Array]:
        """Run ar_step on ``inputs`` and a ``cache``, each tensor of which ``bind`` makes past and present."""
        rows, codes = inputs["codes"].shape
        logits = np.empty((rows, self.dims["ar.mel_codes"]), np.float32)
        latents = np.empty((rows, codes, self.dims["ar.dim"]), np.float32)
        session = self.session("ar_step")
        try:
            binding = session.io_binding()
            for name, array in inputs.items():
                binding.bind_cpu_input(name, array)
            for name, array in (("logits", logits), ("latents", latents)):
                binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            for name, tensor in cache.items():
                bind(binding, name, tensor)
            session.run_with_iobinding(binding, options)
        except Exception as error:
            raise failure("ar_step", inputs, error) from None
        return logits, latents


def failure(graph: str, inputs: Mapping[str, Array], error: Exception) -> EngineError:
    """The error for a run that failed."""
    shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
    return EngineError(f'graph "{graph}" failed on {shapes}: {first_line(error)}')
