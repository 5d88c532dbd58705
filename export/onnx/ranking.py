"""Graphs of the ranking networks CLVP and CVVP: x-transformers encoders over text, codes or mels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .blocks import attention_block
from .builder import ONNX_TYPES, GraphBuilder

HEAD_SIZE = 64  #: of every encoder, whatever its width
RMS_EPSILON = 1e-16  #: the reference clamps the root mean square at 1e-8


def build_clvp_text(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """clvp_text: text_ids (rows, text) -> latent (rows, latent_dim), not normalised; scale (1,)."""
    x = g.op("Gather", g.param("text_emb.weight"), "text_ids")
    x = _encoder(g, x, "text_transformer.transformer", g.dims["clvp.text_heads"])
    g.linear(g.time_mean(x), "to_text_latent", output="latent")
    _scale(g)


def build_clvp_speech(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """clvp_speech: codes (rows, codes) -> latent (rows, latent_dim), not normalised."""
    x = g.op("Gather", g.param("speech_emb.weight"), "codes")
    x = _encoder(g, x, "speech_transformer.transformer", g.dims["clvp.speech_heads"])
    g.linear(g.time_mean(x), "to_speech_latent", output="latent")


def build_cvvp_voice(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """cvvp_voice: mel (clips, 80, frames) -> latent (clips, latent_dim), not normalised; scale (1,)."""
    x = g.conv("mel", "cond_emb.0", padding=2, stride=2)
    x = g.conv(x, "cond_emb.1", padding=1, stride=2)
    x = _collapse(g, g.transpose(x, 0, 2, 1), "conditioning_transformer")
    g.linear(x, "to_conditioning_latent", output="latent")
    _scale(g)


def build_cvvp_speech(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """cvvp_speech: codes (rows, codes) -> latent (rows, latent_dim), not normalised."""
    x = g.op("Gather", g.param("speech_emb.emb.weight"), "codes")
    x = _collapse(g, x, "speech_transformer")
    g.linear(x, "to_speech_latent", output="latent")


def _scale(g: GraphBuilder) -> None:
    """The factor of the similarity, exp(temperature)."""
    temperature = g.weights["temperature"].astype(np.float32).reshape(1)
    g.op("Identity", g.tensor("temperature_exp", np.exp(temperature)), output="scale")


def _collapse(g: GraphBuilder, x: str, key: str) -> str:
    """CVVP's encoder and combiner, averaged over time: (rows, time, c) -> (rows, latent_dim).

    The last layer is linear, so it is applied to the mean.
    """
    heads = g.dims["cvvp.heads"]
    x = _encoder(g, x, f"{key}.transformer", heads)
    x = attention_block(g, g.linear(x, f"{key}.pre_combiner.0"), f"{key}.pre_combiner.1", heads)
    return g.linear(g.time_mean(x), f"{key}.pre_combiner.2")


def _encoder(g: GraphBuilder, x: str, key: str, heads: int) -> str:
    """Pre-norm encoder: attention with rotary positions and gated feed-forward layers in turn, then a layer norm."""
    rotation = _rotation(g, x, g.weights[f"{key}.attn_layers.rotary_pos_emb.inv_freq"])
    layers = g.count(key + ".attn_layers.layers.{}.0.0.g")
    h, residual = g.rms_norm(x, f"{key}.attn_layers.layers.0.0.0.g", RMS_EPSILON), x
    for index in range(layers):
        layer = f"{key}.attn_layers.layers.{index}"
        inner = _inner(g, layer)
        out = _attend(g, h, inner, heads, rotation) if index % 2 == 0 else _feed_forward(g, h, inner)
        if index + 1 < layers:
            h, residual = g.add_rms_norm(
                out, residual, f"{key}.attn_layers.layers.{index + 1}.0.0.g", RMS_EPSILON
            )
        else:
            residual = g.add(out, residual)
    return g.layer_norm(residual, f"{key}.norm")


def _inner(g: GraphBuilder, layer: str) -> str:
    """Key of the layer's module; CLVP's are wrapped once more than CVVP's."""
    wrapped = f"{layer}.1.wrap"
    return wrapped if any(k.startswith(f"{wrapped}.") for k in g.weights) else f"{layer}.1"


def _rotation(g: GraphBuilder, x: str, frequencies: np.ndarray) -> tuple[str, str]:
    """Cosines and sines of position * frequency: (time, len(frequencies)) each."""
    count = g.op("Squeeze", g.size(x, 1))
    positions = g.op("Range", g.scalar(0, "int64"), count, g.scalar(1, "int64"))
    positions = g.op("Cast", positions, to=ONNX_TYPES["float32"])
    inverse = g.tensor(f"inv_freq of {x}", frequencies.astype(np.float32))
    angles = g.mul(g.op("Unsqueeze", positions, g.ints(1)), inverse)
    return g.op("Cos", angles), g.op("Sin", angles)


def _attend(g: GraphBuilder, h: str, key: str, heads: int, rotation: tuple[str, str]) -> str:
    """Attention whose queries, keys and values are all rotated in the first dimensions of each head."""
    width = 2 * len(g.weights[f"{key.split('.layers.')[0]}.rotary_pos_emb.inv_freq"])
    projected = [g.linear(h, f"{key}.{name}") for name in ("to_q", "to_k", "to_v")]
    rotated = [g.rotate(x, rotation, width, heads) for x in projected]
    channels = len(g.weights[f"{key}.to_q.weight"])
    return g.linear(g.attention(rotated, heads, channels), f"{key}.to_out")


def _feed_forward(g: GraphBuilder, h: str, key: str) -> str:
    """value * gelu(gate), projected back. The first layer gives both halves; it is split into two products."""
    (value_weight, gate_weight), (value_bias, gate_bias) = (
        np.split(g.weights[f"{key}.net.0.proj.{name}"], 2) for name in ("weight", "bias")
    )
    value = g.matmul(h, f"{key}.value.weight", value_weight.T)
    value = g.add(value, g.tensor(f"{key}.value.bias", value_bias))
    gate = g.matmul(h, f"{key}.gate.weight", gate_weight.T)
    gate = g.gelu(gate, g.tensor(f"{key}.gate.bias", gate_bias))
    return g.linear(g.mul(value, gate), f"{key}.net.3")
