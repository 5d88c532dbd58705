"""Steps of a session of ONNX Runtime that repeat: bound once, and recorded by it as CUDA graphs. No GPU has run this yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine import Array
from ..profiles import SPAN_STEP
from .onnx_calls import CALLS

MOST_RECORDED = 64  #: of a session, which has no way to forget one of them
REPEATED_SPAN = (
    4 * SPAN_STEP
)  #: a step of one code attends to a multiple of this: few numbers, as each is recorded
_NOT_RECORDED = "-1"
_RECORDED_AT = 3  # the run that records; the first is all three where a library goes on by itself


def run_options(runtime: Any, number: int | None = None) -> Any:
    """Options of a run that is recorded under a number, from 1, and launched from then on; None: it runs as it is."""
    options = runtime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", _NOT_RECORDED if number is None else str(number))
    return options


@dataclass
class Step:
    """A run at fixed addresses, in fixed shapes."""

    session: Any
    binding: Any
    options: Any
    records: bool
    inputs: Mapping[str, Any]  #: OrtValues
    outputs: tuple[Any, ...]  #: OrtValues
    runs: int = 0

    @classmethod
    def bound(
        cls,
        session: Any,
        runtime: Any,
        device: tuple[str, int],
        inputs: Mapping[str, Array],
        outputs: Mapping[str, tuple[int, ...]],
        number: int | None,
    ) -> Step:
        """With memory for inputs, as they are, and float32 outputs of these shapes. runtime: the module; number: see
        ``run_options``.
        """
        binding, values = session.io_binding(), runtime.OrtValue
        given = {name: values.ortvalue_from_numpy(array, *device) for name, array in inputs.items()}
        for name, value in given.items():
            binding.bind_ortvalue_input(name, value)
        found = {
            name: values.ortvalue_from_shape_and_type(shape, np.float32, *device)
            for name, shape in outputs.items()
        }
        for name, value in found.items():
            binding.bind_ortvalue_output(name, value)
        options = run_options(runtime, number)
        return cls(session, binding, options, number is not None, given, tuple(found.values()))

    @property
    def recorded(self) -> bool:
        """Whether the run that records is over."""
        return self.records and self.runs >= _RECORDED_AT

    def __call__(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """Run on ``inputs``, those that differ from the step's first ones -> copies of its outputs."""
        with CALLS.beside_others():
            for name, array in inputs.items():
                self.inputs[name].update_inplace(array)
        with CALLS.alone() if self.records and not self.recorded else CALLS.beside_others():
            self.session.run_with_iobinding(self.binding, self.options)
        self.runs += 1
        with CALLS.beside_others():
            return tuple(np.array(value.numpy()) for value in self.outputs)


class Steps:
    """Steps by what they are made for: a block's number first. Not for several threads at a time."""

    def __init__(self) -> None:
        self._numbers = 0  # given with the session that is there
        self._known: dict[tuple[int, ...], Step] = {}

    def get(self, key: tuple[int, ...], make: Callable[[int], Step]) -> Step:
        """The step for ``key``, which ``make`` makes, given the number to record it under."""
        if key not in self._known:
            self._numbers += 1
            self._known[key] = make(self._numbers)
        return self._known[key]

    @property
    def full(self) -> bool:
        """Whether the session has been given as many as it may."""
        return self._numbers >= MOST_RECORDED

    @property
    def recorded(self) -> int:
        """How many are recorded, of those that are known."""
        return sum(step.recorded for step in self._known.values())

    def forget(self, number: int) -> None:
        """Forget what was made for a block; the session goes on holding what it recorded."""
        self._known = {key: step for key, step in self._known.items() if key[0] != number}

    def clear(self) -> None:
        """Forget all, before another session takes this one's place."""
        self._known.clear()
        self._numbers = 0

    def __contains__(self, key: tuple[int, ...]) -> bool:
        return key in self._known

    def __len__(self) -> int:
        return len(self._known)
