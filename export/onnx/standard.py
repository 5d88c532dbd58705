"""The family for GPUs: ONNX's own operators alone, as TensorRT and ONNX Runtime's CUDA provider take them.

In half precisions the factors of products are halves, and so is the key/value cache; sums, norms, softmax and all that
lies between layers stay float32. In eight bits (``int8``, ``fp8``) weights are stored so, and become halves as they are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, shape_inference

from tortoise_rt.backends.onnx_checks import INTEGER_NODES
from tortoise_rt.export import quantize
from tortoise_rt.spec import GRAPHS, GraphSpec, TensorSpec, cache_capacity

from .builder import ONNX_TYPES, GraphBuilder, Weights
from .weights import TensorWriter, as_bfloat16

#: precision -> the type of products' factors
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "float16", "fp8": "float16"}
#: of weights alone, and for decoding alone: that waits for them to be read. The other graphs are in fp16
WEIGHTS_ONLY = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
_INTEGERS = {TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}
_NETWORKS = ("autoregressive", "clvp", "cvvp", "diffusion")
#: precision -> networks that it is for. The others stay fp32: they are small, and a vocoder's error is heard as noise
_REDUCED = {"fp32": (), "fp16": (*_NETWORKS, "hifigan"), "bf16": _NETWORKS}
#: added to scores that do not count. Finite in float16 as well: a row that sees nothing must not become NaN
MASKED = -30000.0


def graph_precision(graph: str, precision: str) -> str:
    """What ``precision`` means for a graph."""
    if precision in WEIGHTS_ONLY:
        return precision if graph == "ar_step" else graph_precision(graph, "fp16")
    return precision if GRAPHS[graph].network in _REDUCED[precision] else "fp32"


class StandardBuilder(GraphBuilder):
    """Graphs of standard operators. precision: one of PRECISIONS.

    The cache is one linear buffer for each key and value, written in place by TensorScatter, which came with operator
    set 24. All of it has room for ``spec.cache_capacity`` positions: TensorRT wants to know when it builds.
    """

    ir_version = 11

    def __init__(
        self,
        spec: GraphSpec,
        weights: Weights,
        dims: Mapping[str, int],
        writer: TensorWriter,
        precision: str = "fp32",
    ) -> None:
        super().__init__(spec, weights, dims, writer, precision)
        self.opsets = {"": 24 if spec.stateful else 20}
        self._type = PRECISIONS[precision]
        self._halves: set[str] = set()  # values of that type
        self._turned: dict[str, tuple[str, tuple[int, ...]]] = {}  # transposed value -> of what, and its axes

    def finish(self) -> ModelProto:
        """As declared, and which nodes give integers: those that ONNX Runtime may keep on the CPU."""
        model = super().finish()
        model.metadata_props.add(key=INTEGER_NODES, value=" ".join(integer_nodes(model)))
        return model

    # --- shapes ---

    def transpose(self, x: str, *axes: int, output: str | None = None) -> str:
        result = super().transpose(x, *axes, output=output)
        self._turned[result] = x, axes
        return result

    def size(self, x: str, axis: int, dtype: str | None = None) -> str:
        """As declared. ONNX Runtime would put a node of its own behind the shape of what is transposed."""
        while x in self._turned:
            x, axes = self._turned[x]
            axis = axes[axis]
        return super().size(x, axis, dtype)

    # --- precision ---

    def tensor(self, name: str, array: np.ndarray) -> str:
        """A constant of the graph, as it is: TensorRT wants weights that no node stands before."""
        if name not in self._initializers:
            self._initializers[name] = self._writer.tensor(name, array)
        return name

    def _factor(self, name: str, array: np.ndarray) -> str:
        """A constant in the type of products' factors."""
        if self.precision == "fp32":
            return self.tensor(name, array)
        if name not in self._initializers:
            half = as_bfloat16(array) if self.precision == "bf16" else array.astype(np.float16)
            self._initializers[name] = self._writer.tensor(name, half, ONNX_TYPES[self._type])
        return name

    def _half(self, x: str) -> str:
        """``x`` in the type of products' factors."""
        if self.precision == "fp32" or x in self._halves:
            return x
        key = f"{x} in half"
        if key not in self._memo:
            self._memo[key] = self.op("Cast", x, to=ONNX_TYPES[self._type])
            self._halves.add(self._memo[key])
        return self._memo[key]

    def _whole(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """A product of factors in that type, in float32 behind it."""
        if self.precision == "fp32":
            return self.op(kind, *inputs, output=output, **attributes)
        return self.op("Cast", self.op(kind, *inputs, **attributes), output=output, to=ONNX_TYPES["float32"])

    def _product(self, x: str, name: str, matrix: np.ndarray, output: str | None) -> str:
        if self.precision in WEIGHTS_ONLY and quantize.quantizable(matrix):
            factor = self._narrow(name, matrix)
        elif self.spec.stateful:
            # As (out, in), which TensorRT for RTX turns it to for one row: what it builds for more rows takes it in the
            # order that it has, and shares it. As (in, out) the plan would hold both.
            factor = self.transpose(self._factor(name, matrix.T), 1, 0)
        else:
            factor = self._factor(name, matrix)
        return self._whole("MatMul", self._half(x), factor, output=output)

    def _narrow(self, name: str, matrix: np.ndarray) -> str:
        """A constant matrix in eight bits, of the type of products' factors behind its scales."""
        numbers, scales = quantize.quantize_outputs(matrix, self.precision)
        stored = self._writer.tensor(f"{name}/numbers", numbers, WEIGHTS_ONLY[self.precision])
        self._initializers[stored.name] = stored
        return self.op("DequantizeLinear", stored.name, self.tensor(f"{name}/scales", scales), axis=1)

    def taps(self, x: str, count: int = 3, dilation: int = 1, mode: str = "constant") -> str:
        beside = super().taps(self._half(x), count, dilation, mode)
        self._halves |= {beside} if self.precision != "fp32" else set()
        return beside

    def convolution(self, kind: str, x: str, key: str, weight: np.ndarray, **attributes: Any) -> str:
        factors = (
            self._factor(f"{key}.weight", weight),
            self._factor(f"{key}.bias", self.weights[f"{key}.bias"]),
        )
        return self._whole(kind, self._half(x), *factors, **attributes)

    # --- operators ---

    def time_mean(self, x: str, output: str | None = None) -> str:
        return self.op("ReduceMean", x, self.ints(1), keepdims=0, output=output)

    def silu(self, x: str) -> str:
        return self.mul(x, self.op("Sigmoid", x))

    def gelu(self, x: str, bias: str, approximate: bool = False) -> str:
        return self.op("Gelu", self.add(x, bias), approximate="tanh" if approximate else "none")

    def add_norm(self, x: str, residual: str, bias: str, norm: str) -> tuple[str, str]:
        total = self.add(self.add(x, self.param(bias)), residual)
        return self.layer_norm(total, norm), total

    def add_rms_norm(self, x: str, residual: str, key: str, epsilon: float) -> tuple[str, str]:
        total = self.add(x, residual)
        return self.rms_norm(total, key, epsilon), total

    def rotate(self, x: str, rotation: tuple[str, str], width: int, heads: int) -> str:
        by_head = self.reshape(x, 0, 0, heads, -1)
        cosines, sines = (self.op("Unsqueeze", part, self.ints(1)) for part in rotation)
        first, second = self.slice(by_head, 3, 0, width // 2), self.slice(by_head, 3, width // 2, width)
        turned = self.op("Sub", self.mul(first, cosines), self.mul(second, sines))
        other = self.add(self.mul(second, cosines), self.mul(first, sines))
        return self.reshape(self.concat(turned, other, self.slice(by_head, 3, width), axis=3), 0, 0, -1)

    # --- attention ---

    def _attention(self, qkv: Sequence[str], heads: int, channels: int, bias: str, position_bias: str) -> str:
        if bias:
            biases = (self.slice(bias, 0, i * channels, (i + 1) * channels) for i in range(3))
            qkv = [self.add(x, part) for x, part in zip(qkv, biases, strict=True)]
        q, k, v = (self._by_head(x, heads, channels // heads) for x in qkv)
        scale = (channels // heads) ** -0.5
        return self._attend(q, self._half(k), self._half(v), scale, channels, position_bias)

    def _by_head(self, x: str, heads: int, size: int) -> str:
        """(rows, time, heads * size) -> (rows, heads, time, size)"""
        return self.transpose(self.reshape(x, 0, 0, heads, size), 0, 2, 1, 3)

    def _attend(self, q: str, k: str, v: str, scale: float, channels: int, added: str) -> str:
        """Softmax attention: q, k and v by head, the last two as factors; ``added`` to the scores, where given."""
        keys = self.transpose(k, 0, 1, 3, 2)
        scores = self._whole("MatMul", self._half(self.mul(q, self.scalar(scale))), keys)
        if added:
            scores = self.add(scores, added)
        shares = self._half(self.op("Softmax", scores, axis=-1))
        mixed = self._whole("MatMul", shares, v)
        return self.reshape(self.transpose(mixed, 0, 2, 1, 3), 0, 0, channels)

    def spread(self, x: str, name: str, table: np.ndarray) -> str:
        """As declared, without an index for each pair.

        A vector of 2 * time distances, 0, 1, ..., -2, -1, is laid down time times in a row. Cut into rows that are one
        shorter, each begins one distance before the row above.
        """
        time, double, columns = self._distances(x, table.shape[1] // 2)
        heads = self.ints(len(table))
        vector = self.op("Gather", self.tensor(name, table), columns, axis=1)
        repeated = self.op(
            "Expand", self.op("Unsqueeze", vector, self.ints(1)), self.concat(heads, time, double, axis=0)
        )
        shorter = self.op("Sub", double, self.ints(1))
        flat = self.slice(self.reshape(repeated, 0, -1), 1, 0, self.mul(time, shorter))
        shifted = self.op("Reshape", flat, self.concat(heads, time, shorter, axis=0))
        return self.op("Unsqueeze", self.slice(shifted, 2, 0, time), self.ints(0))

    def _distances(self, x: str, limit: int) -> tuple[str, str, str]:
        """-> time, 2 * time: int64 (1,); the column of the table for each distance: (2 * time,). All layers share them."""
        time = self.size(x, 1)
        double = self.mul(time, self.ints(2))
        key = f"distances of {time}"
        if key not in self._memo:
            zero, one = self.scalar(0, "int64"), self.scalar(1, "int64")
            ahead = self.op("Range", zero, self.op("Squeeze", double), one)
            distance = self.op("Where", self.op("Less", ahead, time), ahead, self.op("Sub", ahead, double))
            inside = self.op("Min", self.op("Max", distance, self.ints(-limit)), self.ints(limit))
            self._memo[key] = self.add(inside, self.ints(limit))
        return time, double, self._memo[key]

    # --- the key/value cache ---

    def begin_cache(self, positions: str, size: int) -> None:
        """As declared.

        cache_lengths: (rows,) int64, positions held before the step; reach: (span,) int64, the positions 0, 1, ... that
        are attended to: as many as the longest row holds after the step, or more. All memory must hold finite numbers.
        A row of a negative length is left alone, but for the last position there is room for, which it would write itself
        before it reads that.
        """
        self.extra_input(TensorSpec("cache_lengths", "int64", ("rows",)))
        self.extra_input(TensorSpec("reach", "int64", ("span",)))
        self.extend_cache(("rows", self.dims["ar.heads"], cache_capacity(self.dims), size), self._type)
        new = self.op("Squeeze", self.size(positions, 1))
        steps = self.op("Range", self.scalar(0, "int64"), new, self.scalar(1, "int64"))
        last = self.add(self.op("Unsqueeze", "cache_lengths", self.ints(1)), steps)
        seen = self.op("LessOrEqual", "reach", self.op("Unsqueeze", last, self.ints(1, 3)))
        alone = self.op("Less", "cache_lengths", self.ints(0))
        self._memo["place"] = self.op(
            "Where", alone, self.ints(cache_capacity(self.dims) - 1), "cache_lengths"
        )
        self._memo["mask"] = self.op("Where", seen, self.scalar(0.0), self.scalar(MASKED))

    def cached_attention(self, qkv: str, layer: int, size: int, scale: float) -> str:
        heads, span = self.dims["ar.heads"], self.size("reach", 0)
        width = heads * size
        q, *new = (
            self._by_head(self.slice(qkv, 2, i * width, (i + 1) * width), heads, size) for i in range(3)
        )
        seen = []
        for kind, values in zip(("key", "value"), new, strict=True):
            past = f"{kind}_{layer}"
            written = self.op(
                "TensorScatter", past, self._half(values), self._memo["place"], output=f"new_{past}", axis=2
            )
            seen.append(self.slice(written, 2, 0, span))
        return self._attend(q, seen[0], seen[1], scale, width, self._memo["mask"])


def integer_nodes(model: ModelProto) -> list[str]:
    """Names of the nodes that give integers and booleans alone."""
    known = shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*known.value_info, *known.output)}
    return [node.name for node in model.graph.node if {types.get(name) for name in node.output} <= _INTEGERS]
