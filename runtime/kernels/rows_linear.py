"""A linear layer for the few rows of a decoding step, with the norm before it and what follows it in one kernel.

So few rows leave a GPU with nothing to do but to read the weights, once, and to start kernels: the fewer the better.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import triton
import triton.language as tl

from .launch import early_start, gdc_launch_dependents, gdc_wait, roomy

EPSILON = 1e-5  #: of layer norms
WIDEST_NORM = 1024  #: inputs of a norm
ROWS = 16  #: that a program computes, unless there is but one


class Plan(NamedTuple):
    """How the work is shared out."""

    columns: int  #: of the output that a program computes
    split: int  #: parts that a sum is cut into, so that each warp adds up its own
    warps: int
    block: int  #: inputs that are read at a time
    stages: int = 3  #: blocks that are on their way at a time


#: (several rows, what is done) -> the fastest on an H200 of those tried, at 1024 and 4096 inputs
PLANS = {
    (False, "norm"): Plan(8, 4, 4, 1024, 3),
    (False, "short"): Plan(8, 4, 4, 1024, 3),
    (False, "long"): Plan(4, 8, 8, 4096, 3),
    (True, "norm"): Plan(16, 8, 4, 1024, 3),
    (True, "short"): Plan(16, 8, 4, 1024, 3),
    (True, "long"): Plan(8, 8, 8, 1024, 3),
}
#: for several rows and float32 weights where a block's threads share little memory (``roomy``), so that two blocks share a
#: multiprocessor of 8.6, 8.9 or 12.0: 42 kB, by Triton 3.6. No GPU has timed it.
SMALL = Plan(8, 8, 8, 256, 2)


def rows_linear_ref(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    out: np.ndarray,
    norm: tuple[np.ndarray, np.ndarray] | None = None,
    gelu: bool = False,
    add: bool = False,
) -> None:
    """As :func:`rows_linear`, in NumPy."""
    if norm is not None:
        centred = x - x.mean(axis=1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=1, keepdims=True) + EPSILON)
        x = centred / spread * norm[0] + norm[1]
    y = x @ weight.T + bias
    if gelu:
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    out[:] = out + y if add else y


def rows_linear(
    x: Any,
    weight: Any,
    bias: Any,
    out: Any,
    norm: tuple[Any, Any] | None = None,
    gelu: bool = False,
    add: bool = False,
) -> None:
    """Writes ``x @ weight.T + bias`` to ``out``, with gelu over it or added to what is there.

    x: (rows, in), where ``norm`` is given normalised over its last axis first, with that gain and shift (in,), and
    then of at most WIDEST_NORM inputs; weight: (columns, in), whose type is multiplied in; bias: (columns,);
    out: (rows, columns). Rows of x and out may lie apart. Sums, norm and gelu are float32. How many
    rows there are leaves a row's bits as they are, from two rows on.
    """
    rows, size = x.shape
    kind = "norm" if norm is not None else "short" if size <= WIDEST_NORM else "long"
    if norm is not None and size > WIDEST_NORM:
        raise ValueError(f"a norm over {size} inputs; the most is {WIDEST_NORM}")
    ample = roomy(x)
    small = rows > 1 and weight.element_size() == 4 and not ample
    plan = SMALL if small else PLANS[rows > 1, kind]
    block = min(plan.block, triton.next_power_of_2(size))
    block_rows = 1 if rows == 1 else ROWS
    stages = plan.stages if ample else min(plan.stages, 2)
    gain, shift = norm or (bias, bias)
    _kernel[(triton.cdiv(rows, block_rows), triton.cdiv(len(weight), plan.columns))](
        x, gain, shift, weight, bias, out, rows, len(weight), x.stride(0), out.stride(0),
        SIZE=size, BLOCK=block, SPLIT=min(plan.split, max(1, block // 16)), ROWS=block_rows, COLUMNS=plan.columns,
        EPSILON=EPSILON, NORM=norm is not None, GELU=gelu, ADD=add, num_warps=plan.warps, num_stages=stages,
        **early_start(x),
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _kernel(
    x, gain, shift, weight, bias, out, rows, columns, x_stride, out_stride,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    EPSILON: tl.constexpr, NORM: tl.constexpr, GELU: tl.constexpr, ADD: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_row, is_column = (row < rows)[None, :, None], (column < columns)[None, :, None]
    x_rows, w_rows = x + (row * x_stride)[None, :, None], weight + (column * SIZE)[None, :, None]
    part = tl.arange(0, SPLIT)[:, None, None] * (BLOCK // SPLIT) + tl.arange(0, BLOCK // SPLIT)[None, None]
    if BLOCK >= SIZE:
        inside = part < SIZE
        w = tl.load(w_rows + part, mask=is_column & inside, other=0.0)
        if NORM:
            g = tl.load(gain + part, mask=inside, other=0.0).to(tl.float32)
            s = tl.load(shift + part, mask=inside, other=0.0).to(tl.float32)
        if EARLY:  # the weights are on their way before what comes first is done
            gdc_launch_dependents()
            gdc_wait()
        a = tl.load(x_rows + part, mask=is_row & inside, other=0.0)
        if NORM:
            a = a.to(tl.float32)
            a -= (tl.sum(tl.sum(a, 2), 0) / SIZE)[None, :, None]
            a = tl.where(inside, a, 0.0)
            a *= (1.0 / tl.sqrt(tl.sum(tl.sum(a * a, 2), 0) / SIZE + EPSILON))[None, :, None]
            a = a * g + s
        parts = _product(a.to(w.dtype), w, tl.zeros((SPLIT, ROWS, COLUMNS), tl.float32))
    else:
        if EARLY:
            gdc_launch_dependents()
            gdc_wait()
        if NORM:
            mean, scale = _moments(x + (row * x_stride)[:, None], (row < rows)[:, None], SIZE, BLOCK, EPSILON)
        parts = tl.zeros((SPLIT, ROWS, COLUMNS), tl.float32)
        for start in range(0, SIZE, BLOCK):
            inside = start + part < SIZE
            w = tl.load(w_rows + start + part, mask=is_column & inside, other=0.0)
            a = tl.load(x_rows + start + part, mask=is_row & inside, other=0.0)
            if NORM:
                g = tl.load(gain + start + part, mask=inside, other=0.0).to(tl.float32)
                s = tl.load(shift + start + part, mask=inside, other=0.0).to(tl.float32)
                a = (a.to(tl.float32) - mean[None, :, None]) * scale[None, :, None] * g + s
            parts = _product(a.to(w.dtype), w, parts)
    y = tl.sum(parts, 0) + tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None]
    if GELU:
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    places = out + row[:, None] * out_stride + column[None]
    written = (row < rows)[:, None] & (column < columns)[None]
    if ADD:
        y += tl.load(places, mask=written, other=0.0).to(tl.float32)
    tl.store(places, y.to(out.dtype.element_ty), mask=written)


@triton.jit
def _moments(x_rows, is_row, SIZE: tl.constexpr, BLOCK: tl.constexpr, EPSILON: tl.constexpr):
    """-> the mean of each row and one over its spread, (rows,) float32; x_rows: (rows, 1) pointers, is_row: (rows, 1)."""
    each = tl.arange(0, BLOCK)[None]
    total = tl.zeros((x_rows.shape[0],), tl.float32)
    for start in range(0, SIZE, BLOCK):
        a = tl.load(x_rows + start + each, mask=is_row & (start + each < SIZE), other=0.0)
        total += tl.sum(a.to(tl.float32), 1)
    mean = total / SIZE
    total = tl.zeros((x_rows.shape[0],), tl.float32)
    for start in range(0, SIZE, BLOCK):
        inside = start + each < SIZE
        a = tl.load(x_rows + start + each, mask=is_row & inside, other=0.0)
        a = tl.where(inside, a.to(tl.float32) - mean[:, None], 0.0)
        total += tl.sum(a * a, 1)
    return mean, 1.0 / tl.sqrt(total / SIZE + EPSILON)


@triton.jit
def _product(a, w, parts):
    """a: (split, rows, part), w: (split, columns, part) -> parts + their products, (split, rows, columns)."""
    if a.shape[1] == 1:
        return parts + tl.sum(a.to(tl.float32) * w.to(tl.float32), 2)[:, None]
    return tl.dot(a, tl.permute(w, (0, 2, 1)), parts, input_precision="tf32x3")
