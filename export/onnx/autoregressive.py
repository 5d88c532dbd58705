"""Graphs of the autoregressive network: the voice encoder and the cached GPT-2 step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .blocks import attention_block
from .builder import GraphBuilder

HEAD_MULTIPLE = 8  #: GroupQueryAttention takes head sizes that are multiples of this


def build_voice(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """ar_voice: mel (clips, 80, frames) -> latent (clips, dim), the first frame after attention to all."""
    x = g.linear(g.transpose("mel", 0, 2, 1), "conditioning_encoder.init")
    for block in range(g.count("conditioning_encoder.attn.{}.norm.weight")):
        x = attention_block(g, x, f"conditioning_encoder.attn.{block}", g.dims["ar.heads"])
    g.op("Gather", x, g.scalar(0, "int64"), axis=1, output="latent")


def build_step(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """ar_step: appends a voice, text and codes to a key/value cache (see each family's ``begin_cache``)."""
    x = _embeddings(g)
    g.begin_cache(x, padded_head_size(g.dims))
    codes = g.op("Neg", g.size("codes", 1))
    layers = g.dims["ar.layers"]
    h, residual = g.layer_norm(x, "gpt.h.0.ln_1"), x
    for layer in range(layers):
        key = f"gpt.h.{layer}"
        mixed = _self_attention(g, h, layer)
        if layer == layers - 1:  # the cache is filled: from here on only the codes matter
            mixed, residual = g.slice(mixed, 1, codes), g.slice(residual, 1, codes)
        out = g.matmul(mixed, f"{key}.attn.c_proj.weight", _padded_rows(g, layer))
        h, residual = g.add_norm(out, residual, f"{key}.attn.c_proj.bias", f"{key}.ln_2")
        inner = g.matmul(h, f"{key}.mlp.c_fc.weight", g.weights[f"{key}.mlp.c_fc.weight"])
        inner = g.gelu(inner, g.param(f"{key}.mlp.c_fc.bias"), approximate=True)
        out = g.matmul(inner, f"{key}.mlp.c_proj.weight", g.weights[f"{key}.mlp.c_proj.weight"])
        following = "gpt.ln_f" if layer == layers - 1 else f"gpt.h.{layer + 1}.ln_1"
        h, residual = g.add_norm(out, residual, f"{key}.mlp.c_proj.bias", following)
    latents = g.layer_norm(h, "final_norm")
    g.op("Identity", latents, output="latents")
    last = g.op("Gather", latents, g.scalar(-1, "int64"), axis=1)
    with g.once_per_row():
        g.linear(last, "mel_head", output="logits")


def padded_head_size(dims: Mapping[str, int]) -> int:
    """Head size in the cache: that of the model, rounded up to what the attention operator takes."""
    return -(-dims["ar.dim"] // dims["ar.heads"] // HEAD_MULTIPLE) * HEAD_MULTIPLE


def _embeddings(g: GraphBuilder) -> str:
    """voice, text and codes one after the other: (rows, positions, dim)"""
    text = g.op("Gather", g.param("text_embedding.weight"), "text_ids")
    text_positions = g.slice(g.param("text_pos_embedding.emb.weight"), 0, 0, g.size("text_ids", 1))
    codes = g.op("Gather", g.param("mel_embedding.weight"), "codes")
    code_positions = g.op("Gather", g.param("mel_pos_embedding.emb.weight"), "code_positions")
    return g.concat("voice", g.add(text, text_positions), g.add(codes, code_positions), axis=1)


def _self_attention(g: GraphBuilder, h: str, layer: int) -> str:
    """Causal attention over the cache and the new positions: (rows, positions, heads * padded head size)"""
    weight, bias = _padded_projection(g, layer)
    key = f"gpt.h.{layer}.attn.c_attn"
    qkv = g.add(g.matmul(h, f"{key}.weight", weight), g.tensor(f"{key}.bias", bias))
    size = padded_head_size(g.dims)
    g.pair_work += 2 * g.dims["ar.heads"] * size
    return g.cached_attention(qkv, layer, size, 1 / math.sqrt(g.dims["ar.dim"] // g.dims["ar.heads"]))


def _padded_projection(g: GraphBuilder, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """q, k and v weight (dim, 3 * heads * padded size) and bias, each head padded with zeros."""
    weight, bias = (
        g.weights[f"gpt.h.{layer}.attn.c_attn.weight"],
        g.weights[f"gpt.h.{layer}.attn.c_attn.bias"],
    )
    dim, heads = g.dims["ar.dim"], g.dims["ar.heads"]
    size = dim // heads
    extra = padded_head_size(g.dims) - size
    if extra == 0:
        return weight, bias
    pads = ((0, 0), (0, 0), (0, 0), (0, extra))
    wide = np.pad(weight.reshape(dim, 3, heads, size), pads)
    return wide.reshape(dim, -1), np.pad(bias.reshape(3, heads, size), pads[1:]).reshape(-1)


def _padded_rows(g: GraphBuilder, layer: int) -> np.ndarray:
    """Output projection (heads * padded size, dim) that ignores what pads each head."""
    weight = g.weights[f"gpt.h.{layer}.attn.c_proj.weight"]
    dim, heads = g.dims["ar.dim"], g.dims["ar.heads"]
    extra = padded_head_size(g.dims) - dim // heads
    return np.pad(weight.reshape(heads, -1, dim), ((0, 0), (0, extra), (0, 0))).reshape(-1, dim)
