"""Graphs of the small networks: random voices and the detector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .blocks import GROUP_EPSILON, attention_block, group_count
from .builder import GraphBuilder

RLG_LR = 0.1  #: learning-rate multiplier that the hidden layers' stored weights and biases were divided by
RLG_SLOPE = 0.2  #: of the leaky ReLU between layers, whose result is scaled by sqrt(2)


def build_random_latents(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """rlg_auto, rlg_diffuser: noise (rows, n) -> latent (rows, n). The equalised scales go into the weights."""
    x = "noise"
    last = g.count("layers.{}.weight") - 1
    for layer in range(last):
        weight, bias = g.weights[f"layers.{layer}.weight"], g.weights[f"layers.{layer}.bias"]
        # A leaky ReLU commutes with a positive factor, so sqrt(2) goes into the weights as well.
        scale = math.sqrt(2) * RLG_LR
        matrix = (weight.T * (scale / math.sqrt(weight.shape[1]))).astype(np.float32)
        x = g.matmul(x, f"layers.{layer}.weight", matrix)
        x = g.add(x, g.tensor(f"layers.{layer}.bias", (bias * scale).astype(np.float32)))
        x = g.op("LeakyRelu", x, alpha=RLG_SLOPE)
    g.linear(x, f"layers.{last}", output="latent")


def build_detector(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """detector: wav (rows, 1, samples), 24 kHz -> logits (rows, 2).

    config: downsample_factor (else 4), num_attn_heads (else 4).
    """
    x = g.conv("wav", "enc.init.0", padding=1)
    index = 0
    while True:
        key = f"enc.res.{index}"
        if f"{key}.op.weight" in g.weights:
            x = g.conv(x, f"{key}.op", padding=2, stride=config.get("downsample_factor", 4))
        elif f"{key}.in_layers.0.weight" in g.weights:
            x = _residual(g, x, key)
        else:
            break
        index += 1
    x = g.silu(_group_norm(g, x, "enc.final.0"))
    x = g.linear(g.transpose(x, 0, 2, 1), "enc.final.2")
    for block in range(g.count("enc.attn.{}.norm.weight")):
        x = attention_block(g, x, f"enc.attn.{block}", config.get("num_attn_heads", 4))
    first = g.op("Gather", x, g.scalar(0, "int64"), axis=1)
    g.linear(first, "head", output="logits")


def _residual(g: GraphBuilder, x: str, key: str) -> str:
    padding = g.weights[f"{key}.in_layers.2.weight"].shape[-1] // 2
    h = g.silu(_group_norm(g, x, f"{key}.in_layers.0"))
    h = g.conv(h, f"{key}.in_layers.2", padding=padding)
    h = g.silu(_group_norm(g, h, f"{key}.out_layers.0"))
    return g.add(x, g.conv(h, f"{key}.out_layers.3", padding=padding))


def _group_norm(g: GraphBuilder, x: str, key: str) -> str:
    """Group norm, channel-major: (rows, c, time)"""
    gamma, beta = g.weights[f"{key}.weight"], g.weights[f"{key}.bias"]
    channels = len(gamma)
    groups = group_count(channels)
    unit = g.tensor(f"ones_{groups}", np.ones(groups, np.float32))
    zero = g.tensor(f"zeros_{groups}", np.zeros(groups, np.float32))
    grouped = g.reshape(x, 0, groups, -1)
    normed = g.op("InstanceNormalization", grouped, unit, zero, epsilon=GROUP_EPSILON)
    # The time axis is the only unknown once the channels are named.
    back = g.reshape(normed, 0, channels, -1)
    scaled = g.mul(back, g.tensor(f"{key}.weight", gamma.reshape(-1, 1)))
    return g.add(scaled, g.tensor(f"{key}.bias", beta.reshape(-1, 1)))
