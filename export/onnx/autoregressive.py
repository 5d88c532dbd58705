"""Graphs of the autoregressive network: the voice encoder and the cached GPT-2 step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tortoise_rt.spec import TensorSpec

from .blocks import attention_block
from .builder import CONTRIB, GraphBuilder

HEAD_MULTIPLE = 8  #: GroupQueryAttention takes head sizes that are multiples of this


def build_voice(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """ar_voice: mel (clips, 80, frames) -> latent (clips, dim), the first frame after attention to all."""
    x = g.linear(g.transpose("mel", 0, 2, 1), "conditioning_encoder.init")
    for block in range(g.count("conditioning_encoder.attn.{}.norm.weight")):
        x = attention_block(g, x, f"conditioning_encoder.attn.{block}", g.dims["ar.heads"])
    g.op("Gather", x, g.scalar(0, "int64"), axis=1, output="latent")


def build_step(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """ar_step: appends a voice, text and codes to a key/value cache; see ``cache_specs`` for its tensors."""
    for tensor in cache_specs(g.dims)[0]:
        g.extra_input(tensor)
    x = _embeddings(g)
    past = g.op("Sub", g.size(x, 1, "int32"), g.scalar(1, "int32"))
    last_position = g.add("cache_lengths", past)
    codes = g.op("Neg", g.size("codes", 1))
    layers = g.dims["ar.layers"]
    h, residual = g.layer_norm(x, "gpt.h.0.ln_1"), x
    for layer in range(layers):
        key = f"gpt.h.{layer}"
        mixed = _self_attention(g, h, layer, last_position)
        if layer == layers - 1:  # the cache is filled: from here on only the codes matter
            mixed, residual = g.slice(mixed, 1, codes), g.slice(residual, 1, codes)
        out = g.matmul(mixed, f"{key}.attn.c_proj.weight", _padded_rows(g, layer))
        h, residual = _add_norm(g, out, residual, f"{key}.attn.c_proj.bias", f"{key}.ln_2")
        inner = g.matmul(h, f"{key}.mlp.c_fc.weight", g.weights[f"{key}.mlp.c_fc.weight"])
        inner = g.op("FastGelu", inner, g.param(f"{key}.mlp.c_fc.bias"), domain=CONTRIB)
        out = g.matmul(inner, f"{key}.mlp.c_proj.weight", g.weights[f"{key}.mlp.c_proj.weight"])
        following = "gpt.ln_f" if layer == layers - 1 else f"gpt.h.{layer + 1}.ln_1"
        h, residual = _add_norm(g, out, residual, f"{key}.mlp.c_proj.bias", following)
    latents = g.layer_norm(h, "final_norm")
    g.op("Identity", latents, output="latents")
    last = g.op("Gather", latents, g.scalar(-1, "int64"), axis=1)
    with g.once_per_row():
        g.linear(last, "mel_head", output="logits")
    for tensor in cache_specs(g.dims)[1]:
        g.extra_output(tensor)


def cache_specs(dims: Mapping[str, int]) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs of ar_step beyond ``spec.GRAPHS``.

    cache_lengths: (rows,) int32, positions held before the step; total_length: scalar int32, the largest of
    them plus the new positions. Per layer i, key_i and value_i: (rows, heads, capacity, head size) float32 go
    in, new_key_i and new_value_i come out; bound to the same memory they are updated in place. A step of
    several positions on rows that hold any must have one row.
    """
    heads = dims["ar.heads"]
    shape = ("rows", heads, "capacity", padded_head_size(dims))
    inputs = [TensorSpec("cache_lengths", "int32", ("rows",)), TensorSpec("total_length", "int32", ())]
    outputs = []
    for layer in range(dims["ar.layers"]):
        for name in ("key", "value"):
            inputs.append(TensorSpec(f"{name}_{layer}", "float32", shape))
            outputs.append(TensorSpec(f"new_{name}_{layer}", "float32", shape))
    return inputs, outputs


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


def _self_attention(g: GraphBuilder, h: str, layer: int, last_position: str) -> str:
    """Causal attention over the cache and the new positions: (rows, positions, heads * padded head size)"""
    weight, bias = _padded_projection(g, layer)
    key = f"gpt.h.{layer}.attn.c_attn"
    qkv = g.add(g.matmul(h, f"{key}.weight", weight), g.tensor(f"{key}.bias", bias))
    mixed = f"attention_{layer}"
    g.pair_work += 2 * g.dims["ar.heads"] * padded_head_size(g.dims)
    g.node(
        "GroupQueryAttention",
        *(qkv, "", "", f"key_{layer}", f"value_{layer}", last_position, "total_length"),
        outputs=[mixed, f"new_key_{layer}", f"new_value_{layer}"],
        domain=CONTRIB,
        num_heads=g.dims["ar.heads"],
        kv_num_heads=g.dims["ar.heads"],
        scale=1 / math.sqrt(g.dims["ar.dim"] // g.dims["ar.heads"]),
    )
    return mixed


def _add_norm(g: GraphBuilder, x: str, residual: str, bias: str, norm: str) -> tuple[str, str]:
    """x + bias + residual, and its layer norm: (normed, sum)"""
    normed, total = f"{norm}/normed", f"{norm}/sum"
    g.node(
        "SkipLayerNormalization",
        *(x, residual, g.param(f"{norm}.weight"), g.param(f"{norm}.bias"), g.param(bias)),
        outputs=[normed, "", "", total],
        domain=CONTRIB,
        epsilon=1e-5,
    )
    return normed, total


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
