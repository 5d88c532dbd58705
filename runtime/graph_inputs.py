"""What a graph is given: is it of the names, dtypes and dimensions of ``spec.GRAPHS``?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .errors import EngineError
from .spec import Dims, GraphSpec, TensorSpec

Array = np.ndarray


def check_inputs(spec: GraphSpec, dims: Dims, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Contiguous arrays of the right names, dtypes and dimensions, or an EngineError that says what is wrong."""
    arrays = {name: np.asarray(array) for name, array in inputs.items()}
    check_shapes(spec, dims, {name: array.shape for name, array in arrays.items()})
    return {tensor.name: converted(spec, tensor, arrays[tensor.name]) for tensor in spec.inputs}


def converted(spec: GraphSpec, tensor: TensorSpec, array: Array) -> Array:
    """A contiguous array of an input's dtype, or an EngineError if this one is of another kind."""
    if np.dtype(tensor.dtype).kind != array.dtype.kind:
        raise EngineError(f'graph "{spec.name}": {tensor.name} must be {tensor.dtype}, not {array.dtype}')
    return np.ascontiguousarray(array, tensor.dtype)


def check_shapes(spec: GraphSpec, dims: Dims, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise an EngineError unless a graph takes inputs of these names and shapes."""
    names = [t.name for t in spec.inputs]
    if set(shapes) != set(names):
        raise EngineError(f'graph "{spec.name}" takes {names}, not {sorted(shapes)}')
    free: dict[str, tuple[int, str]] = {}
    for tensor in spec.inputs:
        shape = shapes[tensor.name]
        if len(shape) != len(tensor.dims):
            raise EngineError(
                f'graph "{spec.name}": {tensor.name} must be {tensor.dims}, not of shape {shape}'
            )
        for dim, size in zip(tensor.dims, shape, strict=True):
            if isinstance(dim, str) and "." not in dim:
                want, where = free.setdefault(dim, (size, tensor.name))
            else:
                want, where = (dim, "the model") if isinstance(dim, int) else (dims[dim], "the model")
            if size != want:
                raise EngineError(
                    f'graph "{spec.name}": {tensor.name} has {size} {dim} where {where} has {want} (shape {shape})'
                )


def check_range(name: str, ids: Array, size: int) -> None:
    """Raise an EngineError unless all of ``ids`` lie in [0, size)."""
    if ids.size and (ids.min() < 0 or ids.max() >= size):
        raise EngineError(f"{name} holds {ids.min()} to {ids.max()}; the table has {size} rows")
