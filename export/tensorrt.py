"""Graphs of standard operators -> plans, by TensorRT or TensorRT for RTX, whose Python interfaces are alike.

Networks are strongly typed: the graph says what is computed in which type. TensorRT builds on the GPU that it builds
for; TensorRT for RTX needs none, and its plans are finished where they are loaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from tortoise_rt.backends.tensorrt_library import Messages
from tortoise_rt.errors import EngineError
from tortoise_rt.profiles import profiles, wanted_values
from tortoise_rt.spec import GRAPHS, Dims

WORKSPACE_MIB = 4096  #: most that one layer may take while the library looks for the fastest way

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

    Raises EngineError when the library cannot parse or build it, and when an input of the graph would have no effect.
    """
    _check_inputs_used(graph, model)
    library = build.library
    messages = Messages(library)
    builder = library.Builder(messages.logger)
    network = builder.create_network(_network_flags(library))
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
    plan.write_bytes(serialized)


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


def _network_flags(library: Any) -> int:
    """Strongly typed, where that has to be asked for."""
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse_errors(parser: Any) -> str:
    return "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)) or "it gives no reason"


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
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    yield
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_bytes(config.get_timing_cache().serialize())
    temporary.replace(path)
