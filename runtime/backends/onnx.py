"""ONNX Runtime, on CPU or CUDA. One session per graph, created when it is first used.

The key/value cache is updated in place: the same memory is bound as a session's past and present. On CUDA the
cache stays on the device. No GPU has run that path yet: to our knowledge the CUDA provider has no fp32
GroupQueryAttention, so ar_step may be refused there. A graph whose arithmetic would land on the CPU is refused,
never run there silently.
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
from ..spec import GRAPHS, Dims, GraphSpec, TensorSpec

if TYPE_CHECKING:
    from ..bundle import Bundle

THREADS_VARIABLE = "TORTOISE_RT_THREADS"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ONNX_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)", "int32": "tensor(int32)"}
_DEVICE = re.compile(r"(cpu|cuda)(?::([0-9]{1,3}))?")
#: what ONNX Runtime may keep on the CPU beside a GPU: arithmetic on shapes and indices
_SHAPE_OPS = frozenset(
    {"Cast", "Concat", "Gather", "Identity", "Range", "Shape", "Slice", "Squeeze", "Unsqueeze"}
)
_SHAPE_OPS |= {"Add", "Clip", "Div", "Mul", "Neg", "Sub"}


def open_bundle(bundle: Bundle, device: str = "auto") -> OnnxEngine:
    """An engine over a bundle's graphs; "auto" is the device it was exported for.

    An fp32 bundle made for the CPU can be opened on "cuda" or "cuda:N" as well, when that is named. Raises
    EngineError for a device that is unknown or that the installed ONNX Runtime does not offer, BundleMismatch
    when the bundle was made for another device, backend or a newer ONNX Runtime.
    """
    manifest, target = bundle.manifest, bundle.manifest["target"]
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
    portable = kinds == ("cpu", "cuda") and set(manifest["precision"].values()) <= {"fp32"}
    if kinds[0] != kinds[1] and not portable:
        raise BundleMismatch(
            f"{bundle.folder} was exported for {made_for}; the device asked for is {wanted}. "
            f"Export one for it: tortoise-rt export --target {kinds[1]}"
        )
    _check_version(bundle.folder, target.get("requires", {}).get("onnxruntime", "0"))
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
    return OnnxEngine(bundle.folder, info, bundle.graphs, wanted, bundle.check_unchanged)


def _parse_device(device: str) -> tuple[str, int]:
    """-> "cpu" or "cuda", and which one; raises EngineError for any other name."""
    match = _DEVICE.fullmatch(device)
    if not match or (match[1] == "cpu" and match[2]):
        raise EngineError(f"the onnx backend has no device {device!r}. Use cpu, cuda or cuda:N")
    return match[1], int(match[2] or 0)


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
    """Runs graphs from the files of one folder. Safe to call from several threads."""

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

    def release(self, graph: str) -> None:
        with self._locks[graph]:
            self._sessions.pop(graph, None)

    def _create_session(self, graph: str) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = (
            False  # shapes vary, and a block is kept for each: see session_options.jsonl
        )
        provider_options: dict[str, str] = {}
        if self._kind == "cuda":
            provider_options = {"device_id": str(self._number), "use_tf32": "0"}
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        path = self._folder / self._files[graph]
        self._check_files()
        try:
            session = self._runtime.InferenceSession(
                str(path), options, providers=[self._provider], provider_options=[provider_options]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            if self._kind != "cpu":
                raise EngineError(
                    f'graph "{graph}" cannot run on {self._kind}:{self._number}: {_first_line(error)}'
                ) from None
            raise BundleError(
                f"{path} cannot be loaded: {_first_line(error)}. Export the bundle again"
            ) from None
        self._check_files()
        _check_provider(graph, self._provider, session)
        _check_signature(path, GRAPHS[graph], session, self.dims)
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
        try:
            return self._runtime.OrtValue.ortvalue_from_numpy(array, self._kind, self._number)
        except Exception as error:
            raise EngineError(
                f"no cache of {array.nbytes} bytes on {self._kind}:{self._number}: {_first_line(error)}"
            ) from None

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

    @property
    def steps_some_rows(self) -> bool:  # type: ignore[override]
        """A tensor on a GPU is bound whole."""
        return self._kind == "cpu"

    def _put_rows(self, target: KVCache, places: Array, source: KVCache, rows: Array) -> None:
        filled = int(source.lengths[rows].max())
        if self._kind != "cpu":  # through the host, as _take_rows
            for i, value in enumerate(source.state):
                room = target.state[i].numpy()
                room[places, :, :filled] = value.numpy()[rows, :, :filled]
                target.state[i] = self._to_device(room)
            return
        for to, tensor in zip(target.state, source.state, strict=True):
            to[places, :, :filled] = tensor[rows, :, :filled]

    def _first_rows(self, cache: KVCache, count: int) -> Any:
        return cache.state[:, :count] if self._kind == "cpu" else cache.state

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
        session = self.session("ar_step")
        logits = np.empty((rows, self.dims["ar.mel_codes"]), np.float32)
        latents = np.empty((rows, codes, self.dims["ar.dim"]), np.float32)
        try:
            binding = session.io_binding()
            for name, array in inputs.items():
                binding.bind_cpu_input(name, array)
            binding.bind_cpu_input("cache_lengths", lengths.astype(np.int32))
            binding.bind_cpu_input("total_length", np.array(lengths.max() + new, np.int32))
            for name, array in (("logits", logits), ("latents", latents)):
                binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            for layer in range(self.dims["ar.layers"]):
                for part, kind in enumerate(("key", "value")):
                    self._bind_in_place(binding, f"{kind}_{layer}", state[2 * layer + part])
            session.run_with_iobinding(binding)
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


def _check_provider(graph: str, provider: str, session: Any) -> None:
    """Raise an EngineError if the session computes anything but shapes elsewhere than on ``provider``."""
    # The library falls back to the CPU with no more than a line on stderr, for sessions, nodes and single runs.
    session.disable_fallback()
    if (active := session.get_providers()[0]) != provider:
        raise EngineError(f'graph "{graph}" wants {provider}, but ONNX Runtime chose {active}')
    if provider == PROVIDERS["cpu"]:
        return
    if not hasattr(session, "get_provider_graph_assignment_info"):
        raise EngineError(
            f"this ONNX Runtime cannot tell what it runs on {provider}: pip install -U onnxruntime-gpu"
        )
    elsewhere = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if part.ep_name != provider and node.op_type not in _SHAPE_OPS
    }
    if elsewhere:
        raise EngineError(
            f'graph "{graph}": {provider} has no {", ".join(sorted(elsewhere))} for it, so that it would run on '
            "the CPU in part. Use --device cpu"
        )


def _check_signature(path: Path, spec: GraphSpec, session: Any, dims: Dims) -> None:
    """Raise a BundleError unless the model's inputs and outputs are those of the spec, with the sizes in ``dims``."""
    cache, new_cache = _cache_tensors(session, dims) if spec.stateful else ((), ())

    def check(role: str, wanted: tuple[TensorSpec, ...], found: Any) -> None:
        by_name = {value.name: value for value in found}
        if set(by_name) != {t.name for t in wanted}:
            raise BundleError(
                f'{path}: {role}s {sorted(by_name)} are not those of graph "{spec.name}", '
                f"{[t.name for t in wanted]}. Export the bundle again"
            )
        for tensor in wanted:
            value = by_name[tensor.name]
            # a free dimension must be free in the model too
            sizes = [d if isinstance(d, int) else dims.get(d) for d in tensor.dims]
            declared = [d if isinstance(d, int) else None for d in value.shape]
            if value.type != _ONNX_TYPES[tensor.dtype] or declared != sizes:
                raise BundleError(
                    f"{path}: {role} {tensor.name} is {value.type} {value.shape} where {tensor.dtype} {tensor.dims}, "
                    f"{sizes}, is needed. Export the bundle again"
                )

    check("input", spec.inputs + cache, session.get_inputs())
    check("output", spec.outputs + new_cache, session.get_outputs())


def _cache_tensors(session: Any, dims: Dims) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """What ar_step takes and gives beside its spec; the head size is the model's own, as heads may be padded."""
    sizes = [i.shape[3] for i in session.get_inputs() if i.name == "key_0" and len(i.shape) == 4]
    head = sizes[0] if sizes and isinstance(sizes[0], int) else 0
    names = [f"{kind}_{layer}" for layer in range(dims["ar.layers"]) for kind in ("key", "value")]
    shape = ("rows", dims["ar.heads"], "capacity", head)
    past = [TensorSpec(name, "float32", shape) for name in names]
    present = [TensorSpec(f"new_{name}", "float32", shape) for name in names]
    lengths = [TensorSpec("cache_lengths", "int32", ("rows",)), TensorSpec("total_length", "int32", ())]
    return (*lengths, *past), tuple(present)


def _failure(graph: str, inputs: Mapping[str, Array], error: Exception) -> EngineError:
    shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
    return EngineError(f'graph "{graph}" failed on {shapes}: {_first_line(error)}')


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
