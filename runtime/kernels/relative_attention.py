"""Self-attention whose logits carry a learned bias of the distance between query and key.

The bias is looked up as the logits are made, only near the diagonal: beyond some distance it is one number. A table
for all pairs would be the largest thing that a denoising step reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton
import triton.language as tl

from .launch import roomy

KEYS = 64  #: that are read at a time
#: of a head: of wider ones in float32, 64 queries and keys would take 152 kB that the threads of a block share
USUAL_CHANNELS = 64
LOG2E = 1.4426950408889634  #: powers of two are what a GPU computes


def relative_attention_ref(qkv: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
    """As :func:`relative_attention`, in NumPy."""
    rows, time, _ = qkv.shape
    heads, entries = bias.shape
    q, k, v = qkv.reshape(rows, time, heads, 3, -1).transpose(3, 0, 2, 1, 4)
    distance = np.clip(np.arange(time) - np.arange(time)[:, None], -(entries // 2), entries // 2)
    logits = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[3]) + bias[:, distance + entries // 2]
    weights = np.exp(logits - logits.max(axis=3, keepdims=True))
    found = weights / weights.sum(axis=3, keepdims=True) @ v
    out[:] = found.transpose(0, 2, 1, 3).reshape(out.shape)


def relative_attention(qkv: Any, bias: Any, out: Any) -> None:
    """Writes the attention of ``qkv`` (rows, time, heads * 3 * width), contiguous, to ``out`` (rows, time, heads * width).

    bias: (heads, 2 * most + 1) float32, of each distance (key's place - query's) from -most to most; those further
    apart have that of the nearest entry. Softmax and sums are float32.
    """
    rows, time, _ = qkv.shape
    heads, entries = bias.shape
    width = out.shape[2] // heads
    channels = max(16, triton.next_power_of_2(width))
    wide = qkv.element_size() < 4 and roomy(qkv)
    small = qkv.element_size() == 4 and channels > USUAL_CHANNELS
    queries, keys = (32, KEYS // 2) if small else (128 if wide else 64, KEYS)
    _kernel[(triton.cdiv(time, queries), heads, rows)](
        qkv, bias, out, time, width**-0.5 * LOG2E,
        HEADS=heads, WIDTH=width, CHANNELS=channels, QUERIES=queries, KEYS=keys, MOST=entries // 2, LOG2E=LOG2E,
        num_warps=4, num_stages=3 if wide else 2,
    )  # fmt: skip


@triton.jit
def _kernel(
    qkv, bias, out, time, scale,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    MOST: tl.constexpr, LOG2E: tl.constexpr,
):  # fmt: skip
    first, head, row = tl.program_id(0) * QUERIES, tl.program_id(1), tl.program_id(2)
    stride: tl.constexpr = 3 * HEADS * WIDTH
    channel = tl.arange(0, CHANNELS)
    held = (channel < WIDTH)[None]
    query = first + tl.arange(0, QUERIES)
    mine = qkv + row.to(tl.int64) * time * stride + head * 3 * WIDTH
    table = bias + head * (2 * MOST + 1)
    q = tl.load(
        mine + query[:, None] * stride + channel[None], mask=(query < time)[:, None] & held, other=0.0
    )
    before, behind = tl.load(table) * LOG2E, tl.load(table + 2 * MOST) * LOG2E
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    mass = tl.zeros((QUERIES,), tl.float32)
    total = tl.zeros((QUERIES, CHANNELS), tl.float32)
    for start in range(0, time, KEYS):
        key = start + tl.arange(0, KEYS)
        at = key[:, None] * stride + channel[None]
        k = tl.load(mine + WIDTH + at, mask=(key < time)[:, None] & held, other=0.0)
        v = tl.load(mine + 2 * WIDTH + at, mask=(key < time)[:, None] & held, other=0.0)
        logits = tl.dot(q, tl.trans(k), input_precision="tf32x3") * scale
        if start + KEYS <= first - MOST:
            logits += before
        elif start >= first + QUERIES + MOST:
            logits += behind
        else:
            distance = tl.minimum(tl.maximum(key[None] - query[:, None], -MOST), MOST)
            logits += tl.load(table + MOST + distance) * LOG2E
        logits = tl.where((key < time)[None], logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        weights, fade = tl.exp2(logits - higher[:, None]), tl.exp2(top - higher)
        mass = mass * fade + tl.sum(weights, 1)
        total = tl.dot(weights.to(v.dtype), v, total * fade[:, None], input_precision="tf32x3")
        top = higher
    place = out + (row.to(tl.int64) * time + query)[:, None] * HEADS * WIDTH + head * WIDTH + channel[None]
    tl.store(place, (total / mass[:, None]).to(out.dtype.element_ty), mask=(query < time)[:, None] & held)
