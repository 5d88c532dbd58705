"""Plans that are loaded, and calls of them: shapes, buffers, recorded work."""

from __future__ import annotations

import contextlib
import ctypes
import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..engine import Array
from ..errors import BundleError, EngineError
from ..spec import GRAPHS
from .device import Block, Device, Memory
from .replays import Replays
from .tensorrt_compiled import Compiled
from .tensorrt_library import Messages

LEAST_BUFFER = 256  #: bytes
ALIGNED = 256  #: bytes: where tensors of plans may begin

Placed = tuple[int, tuple[int, ...]]  #: address and shape of what lies on the device
Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class _Plan:
    """A graph that is loaded."""

    engine: Any
    way: Any  #: of setting it up
    profiles: list[
        dict[str, tuple[Any, Any, Any]]
    ]  #: of each, the least, usual and most shape of every input
    contexts: dict[int, Any] = field(default_factory=dict)  #: profile -> what runs it
    buffers: dict[str, tuple[Memory, Array]] = field(
        default_factory=dict
    )  #: name -> memory, and as much pinned


class Plans:
    """Runs the plans of one folder on one device. Not for several threads at a time.

    What goes in and comes out of a call passes through pinned memory. Work that repeats with the same shapes and addresses
    is recorded at the second call and replayed from the third.
    """

    def __init__(
        self,
        folder: Path,
        files: Mapping[str, str],
        library: Any,
        device: Device,
        check_files: Callable[[], None],
        kept: Path | None = None,
    ) -> None:
        """files: graph -> plan in ``folder``; library: the module; check_files: see ``OnnxEngine``; kept: see ``Compiled``."""
        self._folder, self._files, self._check_files = folder, files, check_files
        self._library, self._device = library, device
        self._messages = Messages(library)
        self._runtime = library.Runtime(self._messages.logger)
        self._compiled = Compiled(library, kept)
        self._plans: dict[str, _Plan] = {}
        self._scratch: Memory | None = None  # what all plans compute in
        self.replays = Replays(device)
        weakref.finalize(self, _finish, device).atexit = False

    def release(self, graph: str) -> None:
        """Give back what a graph holds, behind what is queued, and what all compute in."""
        self._device.synchronize()
        self._plans.pop(graph, None)
        self.replays.clear()  # some of it may be the graph's
        self._scratch = None

    def shape(self, graph: str, name: str) -> tuple[int, ...]:
        """A tensor's shape as it was built; -1 for a size that is free."""
        return tuple(self._plan(graph).engine.get_tensor_shape(name))

    def most_rows(self, graph: str, inputs: Shapes) -> int:
        """Rows that one call can have where each is as long as ``inputs`` of these shapes."""
        plan = self._plan(graph)
        first = GRAPHS[graph].inputs[0].name
        most = [
            ranges[first][2][0]
            for ranges in plan.profiles
            if all(_within(shape, ranges[n], after=1) for n, shape in inputs.items() if n in ranges)
        ]
        return max(most, default=inputs[first][0])  # what is too long is refused with all that was given

    def call(self, graph: str, inputs: Mapping[str, Array], cache: Mapping[str, Placed]) -> dict[str, Array]:
        """Run a graph on ``inputs`` and, bound in place as past and present, a ``cache``; -> its float32 outputs."""
        plan = self._plan(graph)
        self._profile(graph, {name: array.shape for name, array in inputs.items()})  # before memory is taken
        shaping = {name: a for name, a in inputs.items() if plan.engine.is_shape_inference_io(name)}
        places = {n: (self._upload(plan, n, a), a.shape) for n, a in inputs.items() if n not in shaping}
        values = tuple(array.tobytes() for array in shaping.values())
        key = graph, tuple(places.values()), values, tuple(address for address, _ in cache.values())
        # Values that say what is computed stay on the host.
        places |= {name: (array.ctypes.data, array.shape) for name, array in shaping.items()}
        present = {f"new_{name}": address for name, (address, _) in cache.items()}

        def work() -> Shapes:
            context = self._bound(graph, {**places, **cache})
            shapes = self._shapes(graph, context, places)
            buffers = {n: self._buffer(plan, n, bytes_of(shape))[0].address for n, shape in shapes.items()}
            self._execute(graph, context, buffers | present, places)
            return shapes

        return self._download(plan, self.replays(key, work))

    def queue(self, graph: str, inputs: Mapping[str, Placed], outputs: Mapping[str, int]) -> None:
        """Queue a run on what lies on the device, all inputs of a graph, to where there is room for its outputs."""
        self._execute(graph, self._bound(graph, inputs), outputs, inputs)

    def shaping(self, graph: str) -> set[str]:
        """The inputs whose values say what is computed: they stay on the host."""
        engine = self._plan(graph).engine
        return {t.name for t in GRAPHS[graph].inputs if engine.is_shape_inference_io(t.name)}

    def upload(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Placed]:
        """Copy some of a graph's inputs to the device; -> where they lie. They are read when this returns."""
        plan, shaping = self._plan(graph), self.shaping(graph) & inputs.keys()
        places = {n: a.ctypes.data if n in shaping else self._upload(plan, n, a) for n, a in inputs.items()}
        if len(shaping) < len(inputs):
            self._device.synchronize()
        return {name: (places[name], array.shape) for name, array in inputs.items()}

    def run(
        self, graph: str, inputs: Mapping[str, Placed], reader: int
    ) -> dict[str, tuple[Memory, tuple[int, ...]]]:
        """Queue a run on what lies on the device; -> its float32 outputs, each in memory of its own that ``reader`` reads.

        Inputs are bound where they lie, unless they begin where no plan's tensor may.
        """
        plan, places, shaping = self._plan(graph), dict(inputs), self.shaping(graph)
        for tensor in GRAPHS[graph].inputs:
            address, shape = inputs[tensor.name]
            if address % ALIGNED and tensor.name not in shaping:
                nbytes = bytes_of(shape, np.dtype(tensor.dtype).itemsize)
                places[tensor.name] = self._buffer(plan, tensor.name, nbytes)[0].address, shape
                to, origin = (Block(at, nbytes, 1) for at in (places[tensor.name][0], address))
                self._device.copy(to, origin, nbytes, 1, 1)
        context = self._bound(graph, places)
        shapes = self._shapes(graph, context, places)
        outputs = {
            n: self._device.allocate(bytes_of(s), f'the tensor "{n}"', reader) for n, s in shapes.items()
        }
        self._execute(graph, context, {n: memory.address for n, memory in outputs.items()}, places)
        return {name: (outputs[name], shape) for name, shape in shapes.items()}

    # --- plans ---

    def _plan(self, graph: str) -> _Plan:
        """The graph's plan, loaded on first use."""
        if graph not in self._plans:
            path = self._folder / self._files[graph]
            self._check_files()
            engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            self._check_files()
            if engine is None:
                raise BundleError(
                    f"{path} cannot be loaded: {self._messages.last()}. Export the bundle again"
                )
            names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
            free = [
                name
                for name in names
                if engine.get_tensor_mode(name) == self._library.TensorIOMode.INPUT
                and not engine.is_shape_inference_io(name)
            ]
            profiles = [
                {name: engine.get_tensor_profile_shape(name, number) for name in free}
                for number in range(engine.num_optimization_profiles)
            ]
            self._plans[graph] = _Plan(engine, self._compiled.way(engine), profiles)
        return self._plans[graph]

    def _profile(self, graph: str, inputs: Shapes) -> int:
        """The first profile that the shapes fit into."""
        profiles = self._plan(graph).profiles
        for number, ranges in enumerate(profiles):
            if all(_within(shape, ranges[name]) for name, shape in inputs.items() if name in ranges):
                return number
        own = [tensor.name for tensor in GRAPHS[graph].inputs if tensor.name in inputs]
        given = ", ".join(f"{name} {inputs[name]}" for name in own)
        limits = ", ".join(f"{name} {tuple(profiles[-1][name][2])}" for name in own if name in profiles[-1])
        raise EngineError(
            f'graph "{graph}" was built for at most {limits}; it was given {given}: use shorter texts and clips'
        )

    def _context(self, graph: str, profile: int) -> Any:
        """What runs a plan in one of its profiles, in memory that all share, since they take turns."""
        plan = self._plan(graph)
        needed = plan.engine.get_device_memory_size_for_profile_v2(profile)
        if self._scratch is None or needed > self._scratch.nbytes:
            self._grow()
            self._scratch = None  # before there is more, which there may be no room for beside it
            self._scratch = self._device.allocate(needed, f'graph "{graph}"')
        if profile not in plan.contexts:
            context = plan.engine.create_execution_context(plan.way)
            if context is None or not context.set_optimization_profile_async(profile, self._device.stream):
                raise EngineError(f'graph "{graph}" cannot be set up: {self._messages.last()}')
            plan.contexts[profile] = context
        plan.contexts[profile].set_device_memory(self._scratch.address, self._scratch.nbytes)
        return plan.contexts[profile]

    # --- tensors ---

    def _bind(
        self, graph: str, context: Any, name: str, address: int, shape: tuple[int, ...] | None = None
    ) -> None:
        """Tell a context where a tensor lies and, for an input, its shape."""
        shaped = shape is None or context.set_input_shape(name, shape)
        if not shaped or not context.set_tensor_address(name, address):
            raise EngineError(f'graph "{graph}" takes no {name} {shape or ""}: {self._messages.last()}')

    def _buffer(self, plan: _Plan, name: str, nbytes: int) -> tuple[Memory, Array]:
        """A tensor's memory on the device and as many pinned bytes. They grow, and else stay where they are."""
        if name not in plan.buffers or plan.buffers[name][0].nbytes < nbytes:
            room = 1 << (max(nbytes, LEAST_BUFFER) - 1).bit_length()
            self._grow()
            plan.buffers.pop(name, None)
            plan.buffers[name] = (
                self._device.allocate(room, f'the tensor "{name}"'),
                self._device.pinned(room),
            )
        return plan.buffers[name]

    def _grow(self) -> None:
        """Before memory is given back for more: what was recorded would use the old."""
        self._device.synchronize()
        self.replays.clear()

    def _upload(self, plan: _Plan, name: str, array: Array) -> int:
        """Queue an input's way to the device; -> where it will lie."""
        memory, pinned = self._buffer(plan, name, array.nbytes)
        if array.nbytes:
            pinned[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self._device.upload(memory.address, pinned[: array.nbytes])
        return memory.address

    def _download(self, plan: _Plan, shapes: Shapes) -> dict[str, Array]:
        """Outputs, once all that is queued is done."""
        pinned = {name: plan.buffers[name][1][: bytes_of(shape)] for name, shape in shapes.items()}
        for name, staged in pinned.items():
            self._device.download(staged, plan.buffers[name][0].address)
        self._device.synchronize()
        return {name: pinned[name].view(np.float32).reshape(shape).copy() for name, shape in shapes.items()}

    # --- running ---

    def _bound(self, graph: str, inputs: Mapping[str, Placed]) -> Any:
        """What runs a graph on ``inputs``."""
        context = self._context(
            graph, self._profile(graph, {name: shape for name, (_, shape) in inputs.items()})
        )
        for name, (address, shape) in inputs.items():
            self._bind(graph, context, name, address, shape)
        return context

    def _shapes(self, graph: str, context: Any, inputs: Mapping[str, Placed]) -> Shapes:
        """The shapes of a graph's outputs for the inputs that are bound."""
        shapes = {t.name: tuple(context.get_tensor_shape(t.name)) for t in GRAPHS[graph].outputs}
        if any(size < 0 for shape in shapes.values() for size in shape):
            raise self._failure(graph, inputs)
        return shapes

    def _execute(
        self, graph: str, context: Any, outputs: Mapping[str, int], inputs: Mapping[str, Placed]
    ) -> None:
        for name, address in outputs.items():
            self._bind(graph, context, name, address)
        if not context.execute_async_v3(self._device.stream):
            raise self._failure(graph, inputs)
        shaping = self.shaping(graph)
        self._compiled.ran((graph, *(_said(at) if n in shaping else at[1] for n, at in inputs.items())))

    def _failure(self, graph: str, inputs: Mapping[str, Placed]) -> EngineError:
        own = {tensor.name for tensor in GRAPHS[graph].inputs}
        shapes = ", ".join(f"{name} {shape}" for name, (_, shape) in inputs.items() if name in own)
        return EngineError(f'graph "{graph}" failed on {shapes}: {self._messages.last()}')


def _finish(device: Device) -> None:
    """Wait for what was queued, before the plans that run it are dropped."""
    with contextlib.suppress(EngineError), device.turn():
        device.synchronize()


def _said(place: Placed) -> tuple[int, ...]:
    """The int64 values of an input that stays on the host."""
    address, shape = place
    return tuple((ctypes.c_int64 * math.prod(shape)).from_address(address))


def bytes_of(shape: tuple[int, ...], item: int = 4) -> int:
    """Bytes of an array; its items are float32 unless said otherwise."""
    return math.prod(shape) * item


def _within(shape: tuple[int, ...], limits: tuple[Any, Any, Any], after: int = 0) -> bool:
    """Whether a shape lies within a profile's least and most, from axis ``after`` on."""
    least, _, most = limits
    return len(shape) == len(least) and all(
        low <= size <= high for low, size, high in list(zip(least, shape, most, strict=True))[after:]
    )
