"""A small builder of ONNX graphs: values are names, each method adds nodes and returns the name of its result.

Two layouts occur. *Token-major* is (rows, time, channels), where linear layers are matrix products;
*channel-major* is (rows, channels, time), where convolutions are Conv nodes.

Two families of graphs come from it: ``fused.FusedBuilder``, with ONNX Runtime's own operators for the CPU, and
``standard.StandardBuilder``, with ONNX's alone. They differ in the methods that are abstract here.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tortoise_rt._version import __version__
from tortoise_rt.spec import Dims, GraphSpec, TensorSpec, cache_names

from .weights import TensorWriter, fits_half

ONNX_TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "int64": onnx.TensorProto.INT64,
    "int32": onnx.TensorProto.INT32,
}
END = np.iinfo(np.int64).max  #: "to the end" in a Slice

Weights = Mapping[str, np.ndarray]


class GraphBuilder(abc.ABC):
    """Collects the nodes, weights, inputs and outputs of one graph.

    weights: the network's state dict, weight norm folded; read by key. precision: one that the family has.
    """

    opsets: Mapping[str, int]  #: domain -> version of its operators
    ir_version: int

    def __init__(
        self, spec: GraphSpec, weights: Weights, dims: Dims, writer: TensorWriter, precision: str = "fp32"
    ) -> None:
        self.spec = spec
        self.precision = precision
        self.weights = weights
        self.dims = dims
        self._writer = writer
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs = [self._value_info(t) for t in spec.inputs]
        self._outputs = [self._value_info(t) for t in spec.outputs]
        self._memo: dict[str, str] = {}
        self.rate: int | Fraction = 1  #: steps in time for each of the input's, where layers are added
        self.work: int | Fraction = 0  #: multiply-adds of weights for each step of the input
        self.row_work = 0  #: for each row, whatever its length
        self._per_row = False
        self.pair_work = 0  #: of attention, for each pair of steps

    def _value_info(self, tensor: TensorSpec) -> onnx.ValueInfoProto:
        sizes = [self.dims[d] if isinstance(d, str) and "." in d else d for d in tensor.dims]
        return helper.make_tensor_value_info(tensor.name, ONNX_TYPES[tensor.dtype], sizes)

    def extra_input(self, tensor: TensorSpec) -> str:
        """Declare an input beyond the spec's (the key/value cache)."""
        self._inputs.append(self._value_info(tensor))
        return tensor.name

    def extend_cache(self, shape: tuple[str | int, ...], dtype: str = "float32") -> None:
        """Declare a past and a present, "new_...", of each key and value; bound to the same memory they are one."""
        for name in cache_names(self.dims):
            self.extra_input(TensorSpec(name, dtype, shape))
            self._outputs.append(self._value_info(TensorSpec(f"new_{name}", dtype, shape)))

    def finish(self) -> onnx.ModelProto:
        """The model; its outputs must have been produced under the spec's names."""
        graph = helper.make_graph(
            self._nodes, self.spec.name, self._inputs, self._outputs, list(self._initializers.values())
        )
        model = helper.make_model(
            graph,
            ir_version=self.ir_version,
            opset_imports=[helper.make_opsetid(*opset) for opset in self.opsets.items()],
            producer_name="tortoise-rt",
            producer_version=__version__,
            doc_string=f'Graph "{self.spec.name}" of the {self.spec.network} network',
        )
        helper.set_model_props(
            model,
            {
                "graph": self.spec.name,
                "network": self.spec.network,
                "precision": self.precision,
                "multiply_adds": str(round(self.work)),
                "multiply_adds_of_rows": str(self.row_work),
                "multiply_adds_of_pairs": str(self.pair_work),
            },
        )
        return model

    # --- nodes ---

    def node(
        self, kind: str, *inputs: str, outputs: Sequence[str], domain: str = "", **attributes: Any
    ) -> None:
        """Add a node with named outputs; "" is an output or input left out."""
        name = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))

    def op(
        self, kind: str, *inputs: str, domain: str = "", output: str | None = None, **attributes: Any
    ) -> str:
        """Add a node with one output and return its name."""
        result = output or f"{kind}_{len(self._nodes)}_out"
        self.node(kind, *inputs, outputs=[result], domain=domain, **attributes)
        return result

    def tensor(self, name: str, array: np.ndarray) -> str:
        """A constant of the graph; a name is stored once, in half the space where that loses nothing."""
        if name not in self._initializers:
            if fits_half(array):  # ONNX Runtime casts it once, when it loads the graph
                stored = self._writer.tensor(f"{name}/half", array.astype(np.float16))
                self.node("Cast", stored.name, outputs=[name], to=onnx.TensorProto.FLOAT)
            else:
                stored = self._writer.tensor(name, array)
            self._initializers[name] = stored
        return name

    def param(self, key: str) -> str:
        """A weight as it stands in the state dict."""
        return self.tensor(key, self.weights[key])

    def ints(self, *values: int) -> str:
        """An int64 vector."""
        return self.tensor("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, value: float | int, dtype: str = "float32") -> str:
        """A scalar constant."""
        return self.tensor(f"{dtype}_{value}", np.array(value, dtype))

    def size(self, x: str, axis: int, dtype: str | None = None) -> str:
        """Size of an axis: int64 (1,), or a scalar of ``dtype``."""
        key = f"size {x} {axis}"
        if key not in self._memo:
            self._memo[key] = self.op("Shape", x, start=axis, end=axis + 1)
        if dtype is None:
            return self._memo[key]
        typed = f"{key} {dtype}"
        if typed not in self._memo:
            scalar = self.op("Squeeze", self._memo[key])
            self._memo[typed] = self.op("Cast", scalar, to=ONNX_TYPES[dtype])
        return self._memo[typed]

    def count(self, pattern: str, first: int = 0) -> int:
        """How many numbers from ``first`` on turn the pattern ("layers.{}.weight") into keys of the weights."""
        number = first
        while pattern.format(number) in self.weights:
            number += 1
        return number - first

    # --- shapes ---

    def reshape(self, x: str, *shape: int, output: str | None = None) -> str:
        """Reshape; 0 keeps an axis, -1 is inferred."""
        return self.op("Reshape", x, self.ints(*shape), output=output)

    def transpose(self, x: str, *axes: int, output: str | None = None) -> str:
        return self.op("Transpose", x, perm=axes, output=output)

    def slice(self, x: str, axis: int, start: int | str, end: int | str = END) -> str:
        """``x`` from ``start`` to ``end`` along ``axis``; names are int64 (1,) values."""
        first = start if isinstance(start, str) else self.ints(start)
        last = end if isinstance(end, str) else self.ints(end)
        return self.op("Slice", x, first, last, self.ints(axis))

    def concat(self, *values: str, axis: int) -> str:
        return self.op("Concat", *values, axis=axis)

    def pad(self, x: str, axis: int, before: int, after: int, mode: str = "constant") -> str:
        """``x``, of three axes, with values put before and after along one of them."""
        pads = [0] * 6  # all of them: ONNX Runtime's optimiser goes wrong where only some axes are named
        pads[axis], pads[axis + 3] = before, after
        return self.op("Pad", x, self.ints(*pads), mode=mode)

    def add(self, a: str, b: str, output: str | None = None) -> str:
        return self.op("Add", a, b, output=output)

    def mul(self, a: str, b: str) -> str:
        return self.op("Mul", a, b)

    def mean(self, x: str, axis: int, keepdims: bool = False) -> str:
        return self.op("ReduceMean", x, self.ints(axis), keepdims=int(keepdims))

    @abc.abstractmethod
    def time_mean(self, x: str, output: str | None = None) -> str:
        """(rows, time, c) -> (rows, c), the mean over time."""

    # --- layers ---

    @contextlib.contextmanager
    def once_per_row(self) -> Iterator[None]:
        """The products added meanwhile are of one vector for each row, not of each step in time."""
        before, self._per_row = self._per_row, True
        try:
            yield
        finally:
            self._per_row = before

    def matmul(self, x: str, name: str, matrix: np.ndarray, output: str | None = None) -> str:
        """x: (..., in) times a constant (in, out), in the graph's precision."""
        if self._per_row:
            self.row_work += matrix.size
        else:
            self.work += matrix.size * self.rate
        return self._product(x, name, matrix, output)

    @abc.abstractmethod
    def _product(self, x: str, name: str, matrix: np.ndarray, output: str | None) -> str:
        """x times a constant."""

    def linear(self, x: str, key: str, output: str | None = None) -> str:
        """A linear layer or 1-tap convolution, token-major; its weight is (out, in) or (out, in, 1)."""
        weight = self.weights[f"{key}.weight"]
        matrix = weight.reshape(len(weight), -1).T
        bias = f"{key}.bias"
        if bias not in self.weights:
            return self.matmul(x, f"{key}.weight", matrix, output)
        return self.add(self.matmul(x, f"{key}.weight", matrix), self.param(bias), output=output)

    def taps(self, x: str, count: int = 3, dilation: int = 1, mode: str = "constant") -> str:
        """Each frame beside its neighbours: (rows, time, c) -> (rows, time, count * c); count is odd.

        mode: what lies beyond the ends, "constant" (zeros) or "reflect".
        """
        reach = count // 2 * dilation
        shifts = (n * dilation for n in range(count))
        if mode == "constant":  # one Pad moves the frames: what it adds at one end it takes from the other
            moved = [x if n == reach else self.pad(x, 1, reach - n, n - reach) for n in shifts]
        else:
            padded = self.pad(x, 1, reach, reach, mode)
            moved = [x if n == reach else self.slice(padded, 1, n, n - 2 * reach or END) for n in shifts]
        return self.concat(*moved, axis=2)

    def conv_taps(self, x: str, key: str, dilation: int = 1, mode: str = "constant") -> str:
        """A convolution that keeps the length, token-major, as one matrix product."""
        weight = self.weights[f"{key}.weight"]
        taps = self.taps(x, weight.shape[-1], dilation, mode)
        return self.add(self.matmul(taps, f"{key}.weight", taps_matrix(weight)), self.param(f"{key}.bias"))

    def ones_beside(self, x: str) -> str:
        """(rows, time, c) -> (rows, time, c + 1): a last channel of ones, for which a matrix has the bias."""
        key = f"{x} and ones"
        if key not in self._memo:
            one = helper.make_tensor("value", onnx.TensorProto.FLOAT, [1], [1.0])
            shape = self.concat(self.size(x, 0), self.size(x, 1), self.ints(1), axis=0)
            self._memo[key] = self.concat(x, self.op("ConstantOfShape", shape, value=one), axis=2)
        return self._memo[key]

    def conv(
        self,
        x: str,
        key: str,
        *,
        padding: int = 0,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        planar: bool = False,
    ) -> str:
        """A convolution, channel-major; planar: x is (rows, channels, 1, time)."""
        weight = self.weights[f"{key}.weight"]
        self.work += weight.size * self.rate // stride
        before = [1] if planar else []
        grouped: dict[str, Any] = {"group": groups} if groups > 1 else {}
        return self.convolution(
            "Conv",
            x,
            key,
            weight[:, :, None] if planar else weight,
            kernel_shape=[*before, weight.shape[-1]],
            pads=[0, padding] * 2 if planar else [padding] * 2,
            strides=[*before, stride],
            dilations=[*before, dilation],
            **grouped,
        )

    def convolution(self, kind: str, x: str, key: str, weight: np.ndarray, **attributes: Any) -> str:
        """A Conv or ConvTranspose of ``weight``, which is ``key``'s in the shape that the node takes, and its bias."""
        return self.op(kind, x, self.tensor(f"{key}.weight", weight), self.param(f"{key}.bias"), **attributes)

    def layer_norm(self, x: str, key: str) -> str:
        """Layer norm over the last axis."""
        return self.op(
            "LayerNormalization",
            x,
            self.param(f"{key}.weight"),
            self.param(f"{key}.bias"),
            axis=-1,
            epsilon=1e-5,
        )

    def rms_norm(self, x: str, key: str, epsilon: float) -> str:
        """Division by the root mean square over the last axis, then a gain."""
        mean_square = self.mean(self.mul(x, x), -1, keepdims=True)
        root = self.op("Sqrt", self.add(mean_square, self.scalar(epsilon)))
        return self.mul(self.op("Div", x, root), self.param(key))

    # --- what ONNX Runtime has operators of its own for ---

    @abc.abstractmethod
    def silu(self, x: str) -> str:
        """x * sigmoid(x)"""

    @abc.abstractmethod
    def gelu(self, x: str, bias: str, approximate: bool = False) -> str:
        """Gelu of x + bias, exact or by tanh."""

    @abc.abstractmethod
    def add_norm(self, x: str, residual: str, bias: str, norm: str) -> tuple[str, str]:
        """x + bias + residual, and its layer norm: (normed, sum)"""

    @abc.abstractmethod
    def add_rms_norm(self, x: str, residual: str, key: str, epsilon: float) -> tuple[str, str]:
        """x + residual, and its RMS norm: (normed, sum)"""

    @abc.abstractmethod
    def rotate(self, x: str, rotation: tuple[str, str], width: int, heads: int) -> str:
        """Turns the first ``width`` values of each head, halves against each other.

        x: (rows, time, heads * size); rotation: cosines and sines, (time, width / 2) each.
        """

    def attention(
        self, qkv: Sequence[str], heads: int, channels: int, bias: str = "", position_bias: str = ""
    ) -> str:
        """Softmax attention of every position to all, scaled by 1 / sqrt(head size).

        qkv: queries, keys and values, (rows, time, channels) each; bias: (3 * channels,), theirs; position_bias:
        (1, heads, time, time), added to the scores -> (rows, time, channels = heads * size).
        """
        self.pair_work += 2 * channels
        return self._attention(qkv, heads, channels, bias, position_bias)

    @abc.abstractmethod
    def _attention(
        self, qkv: Sequence[str], heads: int, channels: int, bias: str, position_bias: str
    ) -> str: ...

    @abc.abstractmethod
    def spread(self, x: str, name: str, table: np.ndarray) -> str:
        """The bias of each (query, key) pair of ``x``'s positions: (1, heads, time, time).

        table: (heads, 2 * limit + 1), of distances key - query from -limit to limit; those beyond have the outermost.
        """

    @abc.abstractmethod
    def begin_cache(self, positions: str, size: int) -> None:
        """Declare the key/value cache and how much of it is filled.

        positions: (rows, new, ...), what is appended; size: of a head.
        """

    @abc.abstractmethod
    def cached_attention(self, qkv: str, layer: int, size: int, scale: float) -> str:
        """Append to a layer's cache and attend, causally, to all that it holds.

        qkv: (rows, new, 3 * heads * size) -> (rows, new, heads * size)
        """


def taps_matrix(weight: np.ndarray) -> np.ndarray:
    """(out, in, taps) convolution weight -> (taps * in, out), for inputs from :meth:`GraphBuilder.taps`."""
    return weight.transpose(2, 1, 0).reshape(-1, len(weight))
