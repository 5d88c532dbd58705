"""What is asked of a session of ONNX Runtime before it is used: that it runs where it should, and is the graph it is called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import BundleError, BundleMismatch, EngineError
from ..spec import GRAPHS, Dims, TensorSpec, cache_names

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ONNX_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
}
#: property of a model: names of the nodes that give integers and booleans alone, shapes and indices, with blanks between.
#: ONNX Runtime may keep these on the CPU beside a GPU. It tells nodes by name, not what they give.
INTEGER_NODES = "integer_nodes"


def check_provider(graph: str, provider: str, session: Any) -> None:
    """Raise an EngineError if the session computes anything but shapes and indices elsewhere than on ``provider``.

    What ONNX Runtime itself puts in has names that the model does not know, and may not be elsewhere either. Raises
    BundleMismatch if the model does not say which nodes are of shapes and indices.
    """
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
    properties = session.get_modelmeta().custom_metadata_map
    if INTEGER_NODES not in properties:
        raise BundleMismatch(
            f'graph "{graph}" was exported by an earlier version, and does not say which of its nodes need not run on '
            f"{provider}. Export the bundle again: tortoise-rt export --target cuda"
        )
    integer_nodes = set(properties[INTEGER_NODES].split())
    elsewhere = {
        f"{node.op_type} ({node.name})"
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if part.ep_name != provider and node.name not in integer_nodes
    }
    if elsewhere:
        raise EngineError(
            f'graph "{graph}" would run on the CPU in part, as this ONNX Runtime does not run all of it on {provider}: '
            f"{', '.join(sorted(elsewhere)[:3])}{', ...' if len(elsewhere) > 3 else ''}. "
            "Use another version of onnxruntime-gpu, or export for the CPU: tortoise-rt export --target cpu"
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
