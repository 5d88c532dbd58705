"""Attention of one new position per row over a cache whose rows are of different lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton
import triton.language as tl

from .launch import early_start, gdc_launch_dependents, gdc_wait

POSITIONS = 128  #: of the cache that are read at a time
WARPS = 4
STATE = 5  #: entries of a ``cache_state``


def decode_attention_ref(qkv: np.ndarray, cache: np.ndarray, lengths: np.ndarray, out: np.ndarray) -> None:
    """As :func:`decode_attention` on one layer's cache (2, rows, heads, capacity, width), in NumPy."""
    _, rows, heads, _, width = cache.shape
    for row, length in enumerate(lengths):
        if length < 0:
            continue
        q, k, v = qkv[row].reshape(3, heads, width)
        cache[:, row, :, length] = k, v
        keys, values = cache[:, row, :, : length + 1]
        scores = np.einsum("hd,hpd->hp", q, keys) / np.sqrt(width)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        found = np.einsum("hp,hpd->hd", weights / weights.sum(axis=1, keepdims=True), values)
        out[row] = found.reshape(-1)


def cache_state(cache: Any, anchor: Any) -> list[int]:
    """What the kernel is told of a cache (layers, 2, rows, heads, capacity, width): where it is, seen from ``anchor``.

    Both must lie where the device's allocator put them, so that the distance is a multiple of 16 elements.
    """
    return [(cache.data_ptr() - anchor.data_ptr()) // cache.element_size(), *cache.stride()[:4]]


def decode_attention(
    qkv: Any, state: Any, lengths: Any, layer: int, anchor: Any, heads: int, out: Any
) -> None:
    """Writes the new keys and values behind each row's ``lengths`` positions and attends to all up to there.

    qkv: (rows, 3 * heads * width); state: (STATE,) int64 of :func:`cache_state`, on the device as ``lengths``
    (rows,) int64 is, so that a captured graph serves every cache; rows of a negative length are left alone;
    anchor: a tensor of the cache's type that the state is told from; out: (rows, heads * width). Sums are float32. Nothing behind a row's length is
    read.
    """
    width = out.shape[1] // heads
    _kernel[(heads, len(qkv))](
        qkv, state, lengths, anchor, out, layer, width**-0.5,
        HEADS=heads, WIDTH=width, CHANNELS=triton.next_power_of_2(width), ALIGNED=min(16, width & -width), POSITIONS=POSITIONS, num_warps=WARPS, **early_start(qkv),
    )  # fmt: skip


@triton.jit(do_not_specialize=["layer"])
def _kernel(
    qkv, state, lengths, anchor, out, layer, scale,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, ALIGNED: tl.constexpr,
    POSITIONS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    head, row = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths + row)
    # That these are multiples, and loads may be wide, the compiler cannot know.
    start_at = (
        tl.load(state) + layer * tl.load(state + 1) + row * tl.load(state + 3) + head * tl.load(state + 4)
    )
    keys = anchor + tl.multiple_of(start_at, ALIGNED)
    values = keys + tl.multiple_of(tl.load(state + 2), ALIGNED)
    channel, place = tl.arange(0, CHANNELS), tl.arange(0, POSITIONS)
    held = channel < WIDTH
    at = place[:, None] * WIDTH + channel[None]
    # What earlier steps wrote may be read before the kernel before this one is done.
    k_old = tl.load(keys + at, mask=(place < length)[:, None] & held[None], other=0.0)
    v_old = tl.load(values + at, mask=(place < length)[:, None] & held[None], other=0.0)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    if length >= 0:
        mine = qkv + row * 3 * HEADS * WIDTH + head * WIDTH + channel
        q = tl.load(mine, mask=held, other=0.0).to(tl.float32) * scale
        k = tl.load(mine + HEADS * WIDTH, mask=held, other=0.0).to(keys.dtype.element_ty)
        v = tl.load(mine + 2 * HEADS * WIDTH, mask=held, other=0.0).to(keys.dtype.element_ty)
        tl.store(keys + length * WIDTH + channel, k, mask=held)
        tl.store(values + length * WIDTH + channel, v, mask=held)
        top = tl.sum(q * k.to(tl.float32))
        mass = top * 0 + 1.0
        total = v.to(tl.float32)
        for start in range(0, length, POSITIONS):
            scores = tl.where(
                start + place < length, tl.sum(k_old.to(tl.float32) * q[None], 1), float("-inf")
            )
            beyond = (start + POSITIONS + place < length)[:, None] & held[None]
            k_old = tl.load(keys + (start + POSITIONS) * WIDTH + at, mask=beyond, other=0.0)
            higher = tl.maximum(top, tl.max(scores))
            weights, fade = tl.exp(scores - higher), tl.exp(top - higher)
            mass = mass * fade + tl.sum(weights)
            total = total * fade + tl.sum(weights[:, None] * v_old.to(tl.float32), 0)
            v_old = tl.load(values + (start + POSITIONS) * WIDTH + at, mask=beyond, other=0.0)
            top = higher
        found = (total / mass).to(out.dtype.element_ty)
        tl.store(out + row * HEADS * WIDTH + head * WIDTH + channel, found, mask=held)
