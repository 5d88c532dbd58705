"""Graphs of the aligners: the small one of mels, and wav2vec2."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from tortoise_rt.export.models.wav2vec2 import RAREST
from tortoise_rt.spec import ALIGNER_STRIDE

from .builder import GraphBuilder


def build_aligner(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """aligner: mel (rows, 80, frames) -> logits (rows, (frames + 1) // 2, symbols)."""
    x = g.add(g.mul("mel", g.param("bands.gain")), g.param("bands.offset"))
    x = g.conv(x, "init", padding=g.weights["init.weight"].shape[-1] // 2, stride=ALIGNER_STRIDE)
    g.rate = Fraction(1, ALIGNER_STRIDE)
    for block in range(g.count("blocks.{}.norm.weight")):
        key = f"blocks.{block}"
        dim, _, kernel = g.weights[f"{key}.around.weight"].shape
        around = g.conv(x, f"{key}.around", padding=kernel // 2, groups=dim)
        h = g.layer_norm(g.transpose(around, 0, 2, 1), f"{key}.norm")
        h = g.linear(g.op("Gelu", g.linear(h, f"{key}.wide")), f"{key}.narrow")
        x = g.add(x, g.transpose(h, 0, 2, 1))
    g.linear(g.layer_norm(g.transpose(x, 0, 2, 1), "norm"), "head", output="logits")


def build_wav2vec2(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """wav2vec2: wav (rows, samples) -> logits (rows, outputs, symbols), log probabilities.

    config: conv_stride, num_attention_heads, num_conv_pos_embedding_groups.
    """
    x = g.op("Unsqueeze", "wav", g.ints(1))
    for layer, stride in enumerate(config["conv_stride"]):  # (rows, channels, time) between them
        key = f"wav2vec2.feature_extractor.conv_layers.{layer}"
        h = g.layer_norm(g.transpose(g.conv(x, f"{key}.conv", stride=stride), 0, 2, 1), f"{key}.layer_norm")
        x = g.transpose(g.op("Gelu", h), 0, 2, 1)
        g.rate = Fraction(g.rate, stride)
    x = g.layer_norm(g.transpose(x, 0, 2, 1), "wav2vec2.feature_projection.layer_norm")
    x = g.linear(x, "wav2vec2.feature_projection.projection")
    x = g.add(x, _positions(g, x, config["num_conv_pos_embedding_groups"]))
    for layer in range(g.count("wav2vec2.encoder.layers.{}.layer_norm.weight")):
        x = _layer(g, x, f"wav2vec2.encoder.layers.{layer}", config["num_attention_heads"])
    heard = g.linear(g.layer_norm(x, "wav2vec2.encoder.layer_norm"), "lm_head")
    summed = g.matmul(g.op("Softmax", heard), "folding", g.weights["folding"])
    g.op("Log", g.op("Max", summed, g.scalar(RAREST)), output="logits")


def _positions(g: GraphBuilder, x: str, groups: int) -> str:
    """What the wide convolution says of where a frame is: (rows, time, c) -> same."""
    key = "wav2vec2.encoder.pos_conv_embed.conv"
    kernel = g.weights[f"{key}.weight"].shape[-1]
    h = g.conv(g.transpose(x, 0, 2, 1), key, padding=kernel // 2, groups=groups)
    if kernel % 2 == 0:  # one more than there were
        h = g.slice(h, 2, 0, -1)
    return g.transpose(g.op("Gelu", h), 0, 2, 1)


def _layer(g: GraphBuilder, x: str, key: str, heads: int) -> str:
    """Pre-norm attention and feed-forward, each with a residual."""
    normed, own = g.layer_norm(x, f"{key}.layer_norm"), f"{key}.attention"
    projected = [
        g.matmul(normed, f"{own}.{name}_proj.weight", g.weights[f"{own}.{name}_proj.weight"].T)
        for name in "qkv"
    ]
    biases = np.concatenate([g.weights[f"{own}.{name}_proj.bias"] for name in "qkv"])
    mixed = g.attention(projected, heads, len(biases) // 3, g.tensor(f"{own}.biases", biases))
    x = g.add(x, g.linear(mixed, f"{own}.out_proj"))
    h = g.linear(g.layer_norm(x, f"{key}.final_layer_norm"), f"{key}.feed_forward.intermediate_dense")
    return g.add(x, g.linear(g.op("Gelu", h), f"{key}.feed_forward.output_dense"))
