"""Blocks that several networks share: group norm, attention, relative position bias. All token-major."""

from __future__ import annotations

import math

import numpy as np

from .builder import GraphBuilder

GROUP_EPSILON = 1e-5
BUCKETS = 32  #: rows of a relative position table, half of them for each direction
EXACT_BUCKETS = 8  #: distances below this have a bucket of their own
MAX_DISTANCE = 64  #: from this distance on all share the last bucket


def group_count(channels: int) -> int:
    """Groups of a group norm: 32, fewer for small or odd channel counts (the reference's ``normalization``)."""
    groups = 8 if channels <= 16 else 16 if channels <= 64 else 32
    while channels % groups:
        groups //= 2
    return groups


def group_norm(g: GraphBuilder, x: str, key: str, film: tuple[str, str] | None = None) -> str:
    """Group norm over time and the channels of a group.

    x: (rows, time, c); film: (1 + scale, shift) of (rows, 1, c) each, applied to the result.
    Variance is that of the centred values: the one-pass form loses digits where a mean is large.
    """
    gamma, beta = g.weights[f"{key}.weight"], g.weights[f"{key}.bias"]
    channels = len(gamma)
    groups = group_count(channels)
    shape = (groups, channels // groups)

    def per_group(channel_values: str) -> str:
        """(rows, c) -> mean of each group (rows, groups, 1)"""
        return g.mean(g.reshape(channel_values, 0, *shape), 2, keepdims=True)

    def per_channel(values: str) -> str:
        """(rows, groups, c / groups) -> (rows, 1, c)"""
        return g.reshape(values, 0, 1, channels)

    ones = g.tensor(f"ones_{shape[0]}_{shape[1]}", np.ones(shape, np.float32))
    mean = per_channel(g.mul(per_group(g.time_mean(x)), ones))
    centred = g.op("Sub", x, mean)
    variance = per_group(g.time_mean(g.mul(centred, centred)))
    deviation = g.op("Sqrt", g.add(variance, g.scalar(GROUP_EPSILON)))
    scale = per_channel(g.op("Div", g.tensor(f"{key}.weight", gamma.reshape(shape)), deviation))
    offset = g.tensor(f"{key}.bias", beta)
    if film is not None:
        scale, offset = g.mul(scale, film[0]), g.add(g.mul(offset, film[0]), film[1])
    return g.add(g.mul(centred, scale), offset)


def attention_block(g: GraphBuilder, x: str, key: str, heads: int) -> str:
    """Group norm, attention, projection, residual; with relative positions if the weights have a table.

    The weight's output channels are grouped (head, q|k|v, size); they are regrouped to (q|k|v, head, size).
    """
    normed = group_norm(g, x, f"{key}.norm")
    weight, bias = g.weights[f"{key}.qkv.weight"], g.weights[f"{key}.qkv.bias"]
    channels = len(weight) // 3
    size = channels // heads
    by_kind = weight.reshape(heads, 3, size, channels)
    projected = [
        g.matmul(normed, f"{key}.{name}.weight", by_kind[:, i].reshape(channels, channels).T)
        for i, name in enumerate("qkv")
    ]
    biases = bias.reshape(heads, 3, size).swapaxes(0, 1).reshape(-1)
    table = f"{key}.relative_pos_embeddings.relative_attention_bias.weight"
    position_bias = relative_bias(g, x, table, size) if table in g.weights else ""
    mixed = g.attention(projected, heads, channels, g.tensor(f"{key}.qkv.bias", biases), position_bias)
    return g.add(x, g.linear(mixed, f"{key}.proj_out"))


def relative_buckets() -> np.ndarray:
    """Row of the position table for each distance key - query, from -MAX_DISTANCE to MAX_DISTANCE.

    Distances to keys ahead use the upper half. Buckets grow logarithmically; float32, as in the reference.
    """
    offset = np.arange(-MAX_DISTANCE, MAX_DISTANCE + 1)
    distance = np.abs(offset)
    side = BUCKETS // 2
    steps = side - EXACT_BUCKETS
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(EXACT_BUCKETS)
    growth = np.log(ratio) / np.float32(math.log(MAX_DISTANCE / EXACT_BUCKETS)) * np.float32(steps)
    far = np.minimum(EXACT_BUCKETS + growth.astype(np.int64), side - 1)
    return np.where(offset > 0, side, 0) + np.where(distance < EXACT_BUCKETS, distance, far)


def relative_bias(g: GraphBuilder, x: str, key: str, head_size: int) -> str:
    """The bias of each (query, key) pair of ``x``'s positions: (1, heads, time, time)."""
    table = (g.weights[key][relative_buckets()] * np.float32(head_size**0.5)).T
    return g.spread(x, key, np.ascontiguousarray(table))
