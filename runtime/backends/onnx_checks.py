"""What is asked of a session of ONNX Runtime before it is used: that it runs where it should, and is the graph it is called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import BundleError, EngineError
from ..spec import GRAPHS, Dims, TensorSpec, cache_names

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ONNX_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
}
#: what ONNX Runtime may keep on the CPU beside a GPU: arithmetic on shapes and indices
_SHAPE_OPS = frozenset(
    {"Cast", "Concat", "Gather", "Identity", "Range", "Shape", "Slice", "Squeeze", "Unsqueeze"}
)
_SHAPE_OPS |= {"Add", "Clip", "Div", "Less", "Max", "Min", "Mul", "Neg", "Sub", "Where"}


def check_provider(graph: str, provider: str, session: Any) -> None:
    """Raise an EngineError if the session computes anything but shapes elsewhere than on ``provider``."""
    # The library falls back to the CPU with no more than a line on stderr, for sessions, nodes and single runs.
    session.disable_fallback()
    if (active := session.get_providers()[0]) != provider:
        raise EngineError(
            f'graph "{graph}" wants {provider}, but ONNX Runtime chose {active}: '
            "tortoise-rt doctor says what is missing"
        )
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


def check_signature(path: Path, graph: str, session: Any, dims: Dims, past: tuple[TensorSpec, ...]) -> None:
    """Raise a BundleError unless the model's inputs and outputs are those of the spec, with the sizes in ``dims``.

    ``past``: what it takes beside them; of each key and value it gives a new one.
    """
    spec = GRAPHS[graph]

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

    present = tuple(replace(t, name=f"new_{t.name}") for t in past if t.name.startswith(("key_", "value_")))
    check("input", spec.inputs + past, session.get_inputs())
    check("output", spec.outputs + present, session.get_outputs())


def cache_specs(session: Any, dims: Dims, dtype: str, capacity: str | int) -> tuple[TensorSpec, ...]:
    """The keys and values that ar_step takes; the head size is the model's own, as heads may be padded."""
    sizes = [i.shape[3] for i in session.get_inputs() if i.name == "key_0" and len(i.shape) == 4]
    head = sizes[0] if sizes and isinstance(sizes[0], int) else 0
    shape = ("rows", dims["ar.heads"], capacity, head)
    return tuple(TensorSpec(name, dtype, shape) for name in cache_names(dims))


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
