"""Graphs of standard operators -> plans, by TensorRT or TensorRT for RTX, whose Python interfaces are alike.

Networks are strongly typed: the graph says what is computed in which type. TensorRT builds on the GPU that it builds
for; TensorRT for RTX needs none, and its plans are finished where they are loaded.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from tortoise_rt.backends.tensorrt_library import Messages
from tortoise_rt.errors import EngineError
from tortoise_rt.profiles import profiles, wanted_values
from tortoise_rt.spec import GRAPHS, Dims

from .onnx.standard import WEIGHTS_ONLY

WORKSPACE_MIB = 4096  #: most that one layer may take while the library looks for the fastest way
MOST_CODE = 64 << 20  #: bytes of a plan that are no weights

Steps = Callable[[str, int, int], None]  #: called with (phase, done, total)


@dataclass(frozen=True)
class Build:
    """How plans are built."""

    library: Any  #: the module
    capabilities: Sequence[str] = ()  #: compute capabilities to build for; empty: this GPU
    workspace_mib: int = WORKSPACE_MIB
    timing_cache: Path | None = (
        None  #: where what was timed is kept from build to build, if the library times
    )


def build_plan(graph: str, model: Path, plan: Path, dims: Dims, build: Build, steps: Steps) -> None:
    """Build ``model``, a standard graph, into ``plan``.

    Raises EngineError when the library cannot parse or build it, when an input of the graph would have no effect, and when
    weights of eight bits became wider. Nothing else falls back to another type: networks are strongly typed.
    """
    _check_inputs_used(graph, model)
    library = build.library
    messages = Messages(library)
    builder = library.Builder(messages.logger)
    network = builder.create_network(network_flags(library))
    parser = library.OnnxParser(network, messages.logger)
    if not parser.parse_from_file(str(model)):
        raise EngineError(f'{library.__name__} cannot parse graph "{graph}": {_parse_errors(parser)}')
    config = _config(builder, build)
    for sizes in profiles(graph, dims):
        config.add_optimization_profile(_profile(builder, network, graph, dims, sizes))
    monitor = _monitor(library, steps)
    if monitor is not None:
        config.progress_monitor = monitor
    with _timing_cache(config, build.timing_cache):
        serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineError(f'{library.__name__} cannot build graph "{graph}": {messages.last()}')
    if messages.unused:
        raise EngineError(
            f'{library.__name__} finds no use for inputs of graph "{graph}": {", ".join(messages.unused)}'
        )
    plan.write_bytes(serialized)
    check_weights_kept(graph, model, plan.stat().st_size, library)


def capability_names(library: Any) -> Mapping[str, Any]:
    """Compute capabilities that the library builds for ahead of time, "8.9" -> its name for it."""
    known = getattr(library, "ComputeCapability", None)
    members = getattr(known, "__members__", {})
    return {f"{n[2:-1]}.{n[-1]}": value for n, value in members.items() if n.startswith("SM")}


def _check_inputs_used(graph: str, model: Path) -> None:
    """A library drops an input that nothing reads without a word, and whoever sets it is not heard."""
    proto = onnx.load(model, load_external_data=False).graph
    read = {name for node in proto.node for name in node.input}
    if unused := [value.name for value in proto.input if value.name not in read]:
        raise EngineError(f'graph "{graph}" does not use its inputs {", ".join(unused)}')


def check_weights_kept(graph: str, model: Path, size: int, library: Any) -> None:
    """Raise an EngineError if a plan of ``size`` bytes holds the weights that the graph has in eight bits in more."""
    tensors = onnx.load(model, load_external_data=False).graph.initializer
    narrow = sum(math.prod(tensor.dims) for tensor in tensors if tensor.data_type in WEIGHTS_ONLY.values())
    whole = sum(file.stat().st_size for file in (model, model.with_suffix(".data")) if file.exists())
    if narrow and size - whole > max(narrow // 2, MOST_CODE):
        raise EngineError(
            f'{library.__name__} {library.__version__} keeps weights of graph "{graph}" in more than their eight bits here '
            f"({size >> 20} MiB, not {whole >> 20}): use --precision fp16"
        )


def network_flags(library: Any) -> int:
    """Strongly typed, where that has to be asked for."""
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse_errors(parser: Any) -> str:
    said = (" ".join(parser.get_error(i).desc().split()) for i in range(parser.num_errors))
    return "; ".join(said) or "it gives no reason"


def _config(builder: Any, build: Build) -> Any:
    library, config = build.library, builder.create_builder_config()
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, build.workspace_mib << 20)
    config.clear_flag(library.BuilderFlag.TF32)  # fp32 is fp32
    if own := getattr(library.BuilderFlag, "REQUIRE_USER_ALLOCATION", None):
        config.set_flag(own)  # else work cannot be recorded
    if build.capabilities:
        names = capability_names(library)
        config.num_compute_capabilities = len(build.capabilities)
        for index, capability in enumerate(build.capabilities):
            config.set_compute_capability(names[capability], index)
    return config


def _profile(builder: Any, network: Any, graph: str, dims: Dims, sizes: Mapping[str, Any]) -> Any:
    """One of a graph's profiles as the library takes it."""
    names = {tensor.name: tensor.dims for tensor in GRAPHS[graph].inputs}
    profile = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        if tensor.is_shape_tensor:
            profile.set_shape_input(tensor.name, *wanted_values(graph, dims))
            continue
        free = names.get(tensor.name) or {"reach": ("span",)}.get(tensor.name, ("rows",))
        shapes = [
            tuple(
                sizes[free[axis]][bound] if size < 0 else size  # type: ignore[index]
                for axis, size in enumerate(tensor.shape)
            )
            for bound in range(3)
        ]
        profile.set_shape(tensor.name, *shapes)
    return profile


def _monitor(library: Any, steps: Steps) -> Any:
    """What tells ``steps`` how far a build is; None where the library has no such thing."""
    if not hasattr(library, "IProgressMonitor"):
        return None

    class Monitor(library.IProgressMonitor):
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, total: int) -> None:
            self.totals[phase] = total

        def step_complete(self, phase: str, step: int) -> bool:
            steps(phase, step, self.totals[phase])
            return True  # go on

        def phase_finish(self, phase: str) -> None:
            del self.totals[phase]

    return Monitor()


@contextlib.contextmanager
def _timing_cache(config: Any, path: Path | None) -> Iterator[None]:
    """What was timed before is used, and kept with what is timed now."""
    if path is None or not hasattr(config, "create_timing_cache"):
        yield
        return
    for before in (
        path.read_bytes() if path.exists() else b"",
        b"",
    ):  # what is damaged, or of another GPU, is refused
        cache = config.create_timing_cache(before)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            break
    yield
    with contextlib.suppress(
        OSError
    ):  # one that cannot be written costs time at the next export, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        temporary.write_bytes(config.get_timing_cache().serialize())
        temporary.replace(path)
