"""The family for ONNX Runtime on the CPU: its own operators for attention and fused norms, and products of fewer bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper

from tortoise_rt.export import quantize
from tortoise_rt.spec import TensorSpec

from .builder import GraphBuilder

CONTRIB = "com.microsoft"  #: domain of ONNX Runtime's own operators
TINY = 1e-30  #: a row of nothing but zeros is divided by this
BLOCK = 32  #: floats copied at once when the bias is spread over (query, key) pairs


class FusedBuilder(GraphBuilder):
    """Graphs of ONNX Runtime's own operators. precision: see ``export.quantize``."""

    opsets = {"": 20, CONTRIB: 1}
    ir_version = 10  #: what ONNX Runtime 1.20 reads

    # --- products ---

    def _product(self, x: str, name: str, matrix: np.ndarray, output: str | None) -> str:
        if self.precision == "fp32" or not quantize.quantizable(matrix):
            return self.op("MatMul", x, self.tensor(name, matrix), output=output)
        if self.precision == "int8row":
            return self._product_by_rows(x, name, matrix, output)
        bits = {"int8": 8, "int4": 4}[self.precision]
        packed, scales = quantize.quantize_blocks(matrix, bits)
        return self.op(
            "MatMulNBits",
            x,
            self.tensor(f"{name}/bytes", packed),
            self.tensor(f"{name}/scales", scales.reshape(-1)),
            output=output,
            domain=CONTRIB,
            K=len(matrix),
            N=matrix.shape[1],
            bits=bits,
            block_size=quantize.BLOCK,
            accuracy_level=quantize.INT8_ACCURACY,
        )

    def _product_by_rows(self, x: str, name: str, matrix: np.ndarray, output: str | None) -> str:
        """The product in eight bits, each row of ``x`` divided by its largest value before and multiplied after."""
        key = f"rows of {x}"
        if key not in self._memo:
            largest = self.op("ReduceMax", self.op("Abs", x), self.ints(-1), keepdims=1)
            self._memo[key] = self.op("Max", largest, self.scalar(TINY))
            step, zero = self.scalar(1 / quantize.LARGEST), self.scalar(128, "uint8")
            share = self.op("Div", x, self._memo[key])
            self._memo[f"{key}, rounded"] = self.op("QuantizeLinear", share, step, zero)
        numbers, scales = quantize.quantize_columns(matrix)
        product = self.op(
            "MatMulIntegerToFloat",
            self._memo[f"{key}, rounded"],
            self.tensor(f"{name}/numbers", numbers),
            self.scalar(1 / quantize.LARGEST),
            self.tensor(f"{name}/scales", scales),
            self.scalar(128, "uint8"),
            domain=CONTRIB,
        )
        return self.op("Mul", product, self._memo[key], output=output)

    def conv_taps(self, x: str, key: str, dilation: int = 1, mode: str = "constant") -> str:
        if self.precision == "int8row" and mode == "constant":
            taps = self._taps_after(x, key, self.weights[f"{key}.weight"], dilation)
            return self.add(taps, self.param(f"{key}.bias"))
        return super().conv_taps(x, key, dilation, mode)

    def _taps_after(self, x: str, key: str, weight: np.ndarray, dilation: int) -> str:
        """The same with the products first and the frames moved after: each keeps a scale of its own, and is rounded once."""
        outputs, inputs, count = weight.shape
        side_by_side = weight.transpose(1, 2, 0).reshape(inputs, count * outputs)
        product = self.matmul(x, f"{key}.weight", side_by_side)
        reach, moved = count // 2 * dilation, []
        for tap in range(count):
            part = self.slice(product, 2, tap * outputs, (tap + 1) * outputs)
            shift = reach - tap * dilation
            moved.append(self.pad(part, 1, shift, -shift) if shift else part)
        return self.op("Sum", *moved)

    # --- fused operators ---

    def time_mean(self, x: str, output: str | None = None) -> str:
        """(rows, time, c) -> (rows, c), the mean over time, as a product with a row of ones.

        ONNX Runtime's ReduceMean over this axis adds up in an order that depends on the number of rows and of
        threads; a row's product does not.
        """
        key = f"ones {x}"
        if key not in self._memo:
            one = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0])
            shape = self.concat(self.ints(1), self.size(x, 1), axis=0)
            self._memo[key] = self.op("ConstantOfShape", shape, value=one)
        total = self.op("Squeeze", self.op("MatMul", self._memo[key], x), self.ints(1))
        return self.op("Div", total, self.size(x, 1, "float32"), output=output)

    def silu(self, x: str) -> str:
        return self.op("QuickGelu", x, domain=CONTRIB, alpha=1.0)

    def gelu(self, x: str, bias: str, approximate: bool = False) -> str:
        return self.op("FastGelu" if approximate else "BiasGelu", x, bias, domain=CONTRIB)

    def add_norm(self, x: str, residual: str, bias: str, norm: str) -> tuple[str, str]:
        normed, total = f"{norm}/normed", f"{norm}/sum"
        self.node(
            "SkipLayerNormalization",
            *(x, residual, self.param(f"{norm}.weight"), self.param(f"{norm}.bias"), self.param(bias)),
            outputs=[normed, "", "", total],
            domain=CONTRIB,
            epsilon=1e-5,
        )
        return normed, total

    def add_rms_norm(self, x: str, residual: str, key: str, epsilon: float) -> tuple[str, str]:
        normed, total = f"{key}/normed", f"{key}/sum"
        self.node(
            "SkipSimplifiedLayerNormalization",
            *(x, residual, self.param(key)),
            outputs=[normed, "", "", total],
            domain=CONTRIB,
            epsilon=epsilon,
        )
        return normed, total

    def rotate(self, x: str, rotation: tuple[str, str], width: int, heads: int) -> str:
        return self.op(
            "RotaryEmbedding",
            *(x, self.ints(0), *rotation),
            domain=CONTRIB,
            num_heads=heads,
            rotary_embedding_dim=width,
        )

    def _attention(self, qkv: Sequence[str], heads: int, channels: int, bias: str, position_bias: str) -> str:
        return self.op("MultiHeadAttention", *qkv, bias, "", position_bias, domain=CONTRIB, num_heads=heads)

    def spread(self, x: str, name: str, table: np.ndarray) -> str:
        """As declared. Row i of a head is a window of one vector of 2 * time values, shifted by one per row.

        The windows are copied in blocks of BLOCK floats from a small table that holds every start: five times faster
        than a Gather of single values at 870 positions.
        """
        starts, blocks, square = self._windows(x, table.shape[1] // 2)
        windows = self.op("Gather", self.tensor(name, table), starts, axis=1)
        pairs = self.reshape(self.op("Gather", windows, blocks, axis=1), 0, 0, -1)
        return self.op("Unsqueeze", self.slice(pairs, 2, 0, square), self.ints(0))

    def _windows(self, x: str, limit: int) -> tuple[str, str, str]:
        """What the biases of all layers at one length share.

        -> starts: (2 * time + BLOCK, BLOCK) table columns of each window of distances;
        blocks: (time, ceil(time / BLOCK)) windows that make up a row; time: int64 (1,).
        """
        time = self.size(x, 1)
        names = [f"{part} of {time}" for part in ("starts", "blocks")]
        if names[0] not in self._memo:
            count = self.op("Squeeze", time)
            zero, one, block = (self.scalar(n, "int64") for n in (0, 1, BLOCK))
            within = self.tensor("within_block", np.arange(BLOCK))
            first = self.op("Range", zero, self.op("Mul", count, self.scalar(2, "int64")), one)
            distance = self.op(
                "Sub",
                self.add(self.op("Unsqueeze", first, self.ints(1)), within),
                self.op("Sub", count, one),
            )
            most = self.scalar(limit, "int64")
            starts = self.add(self.op("Clip", distance, self.scalar(-limit, "int64"), most), most)
            rows = self.op(
                "Range", self.op("Sub", count, one), self.scalar(-1, "int64"), self.scalar(-1, "int64")
            )
            columns = self.op("Range", zero, count, block)
            blocks = self.add(self.op("Unsqueeze", rows, self.ints(1)), columns)
            self._memo.update(zip(names, (starts, blocks), strict=True))
        return self._memo[names[0]], self._memo[names[1]], time

    # --- the key/value cache ---

    def begin_cache(self, positions: str, size: int) -> None:
        """As declared. A step of several positions on rows that hold any must have one row.

        cache_lengths: (rows,) int32, positions held before the step; total_length: scalar int32, the largest of
        them plus the new positions.
        """
        self.extra_input(TensorSpec("cache_lengths", "int32", ("rows",)))
        self.extra_input(TensorSpec("total_length", "int32", ()))
        self.extend_cache(("rows", self.dims["ar.heads"], "capacity", size))
        new = self.op("Sub", self.size(positions, 1, "int32"), self.scalar(1, "int32"))
        self._memo["last position"] = self.add("cache_lengths", new)

    def cached_attention(self, qkv: str, layer: int, size: int, scale: float) -> str:
        past = (f"key_{layer}", f"value_{layer}")
        mixed = f"attention_{layer}"
        self.node(
            "GroupQueryAttention",
            *(qkv, "", "", *past, self._memo["last position"], "total_length"),
            outputs=[mixed, *(f"new_{name}" for name in past)],
            domain=CONTRIB,
            num_heads=self.dims["ar.heads"],
            kv_num_heads=self.dims["ar.heads"],
            scale=scale,
        )
        return mixed
