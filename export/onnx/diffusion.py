"""Graphs of the diffusion decoder. Token-major throughout: a 1-tap convolution is one matrix product and a
3-tap convolution one product of three neighbouring frames, which also is the form that quantises well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..models.diffusion import timestep_frequencies
from .blocks import attention_block, group_norm
from .builder import GraphBuilder, taps_matrix


def build_voice(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """diffusion_voice: mel (clips, 100, frames) -> latent (clips, voice_dim), averaged over time."""
    x = g.conv("mel", "contextual_embedder.0", padding=1, stride=2)
    x = g.conv(x, "contextual_embedder.1", padding=1, stride=2)
    x = _attention_blocks(g, g.transpose(x, 0, 2, 1), "contextual_embedder", first=2)
    g.time_mean(x, output="latent")


def build_align(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """diffusion_align: latents (rows, codes, ar.dim), voice, frame_index -> aligned (rows, frames, dim), free (dim,)."""
    x = g.conv_taps("latents", "latent_conditioner.0")
    x = _attention_blocks(g, x, "latent_conditioner", first=1)
    dim = g.dims["diffusion.dim"]
    voice = g.op("Unsqueeze", "voice", g.ints(1))
    scale = g.add(g.slice(voice, 2, 0, dim), g.scalar(1.0))
    x = group_norm(g, x, "code_norm", film=(scale, g.slice(voice, 2, dim)))
    g.op("Gather", x, "frame_index", axis=1, output="aligned")
    free = g.weights["unconditioned_embedding"].reshape(dim)
    g.op("Identity", g.tensor("unconditioned_embedding", free), output="free")


def build_condition(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """diffusion_condition: aligned (rows, frames, dim), timestep (rows,) -> condition (rows, frames, dim)."""
    time = _time_embedding(g)
    x = "aligned"
    for index in range(g.count("conditioning_timestep_integrator.{}.attn.norm.weight")):
        x = _layer(g, x, f"conditioning_timestep_integrator.{index}", time)
    g.op("Identity", x, output="condition")


def build_denoise(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """diffusion_denoise: x (rows, 100, frames), condition, timestep -> out (rows, 200, frames)."""
    time = _time_embedding(g)
    x = _integrate(g)
    layers = g.count("layers.{}.attn.norm.weight")
    for index in range(layers):
        x = _layer(g, x, f"layers.{index}", time)
    for index in range(layers, layers + g.count("layers.{}.out_layers.0.weight", layers)):
        x = _residual(g, x, f"layers.{index}", time)
    x = g.conv_taps(g.silu(group_norm(g, x, "out.0")), "out.2")
    g.transpose(x, 0, 2, 1, output="out")


def _integrate(g: GraphBuilder) -> str:
    """Input convolution, joined with the condition: (rows, frames, dim).

    Two linear layers follow each other without anything between, so their product is stored.
    """
    dim = g.dims["diffusion.dim"]
    weight = g.weights["integrating_conv.weight"].reshape(dim, 2 * dim).T
    for_x, for_condition = weight[:dim], weight[dim:]
    first = taps_matrix(g.weights["inp_block.weight"]).astype(np.float64) @ for_x
    bias = g.weights["inp_block.bias"].astype(np.float64) @ for_x + g.weights["integrating_conv.bias"]
    x = g.matmul(g.taps(g.transpose("x", 0, 2, 1)), "inp_block.integrated.weight", first.astype(np.float32))
    condition = g.matmul("condition", "integrating_conv.condition.weight", for_condition)
    return g.add(g.add(x, g.tensor("inp_block.integrated.bias", bias.astype(np.float32))), condition)


def _time_embedding(g: GraphBuilder) -> str:
    """SiLU of the embedded timestep, as every residual block takes it: (rows, dim)"""
    frequencies = g.tensor("timestep_frequencies", timestep_frequencies(g.dims["diffusion.dim"] // 2).numpy())
    angles = g.mul(g.op("Unsqueeze", "timestep", g.ints(1)), frequencies)
    x = g.concat(g.op("Cos", angles), g.op("Sin", angles), axis=1)
    with g.once_per_row():
        x = g.linear(g.silu(g.linear(x, "time_embed.0")), "time_embed.2")
    return g.silu(x)


def _layer(g: GraphBuilder, x: str, key: str, time: str) -> str:
    return attention_block(
        g, _residual(g, x, f"{key}.resblk", time), f"{key}.attn", g.dims["diffusion.heads"]
    )


def _residual(g: GraphBuilder, x: str, key: str, time: str) -> str:
    """Two convolutions; the timestep scales and shifts the norm between them."""
    h = g.linear(g.silu(group_norm(g, x, f"{key}.in_layers.0")), f"{key}.in_layers.2")
    h = g.silu(group_norm(g, h, f"{key}.out_layers.0", film=_film(g, f"{key}.emb_layers.1", time)))
    return g.add(x, g.conv_taps(h, f"{key}.out_layers.3"))


def _film(g: GraphBuilder, key: str, time: str) -> tuple[str, str]:
    """1 + scale and shift for each row: (rows, 1, dim) each. The 1 is part of the stored bias."""
    scale, shift = np.split(g.weights[f"{key}.bias"], 2)
    with g.once_per_row():
        both = g.matmul(time, f"{key}.weight", g.weights[f"{key}.weight"].T)
    both = g.add(both, g.tensor(f"{key}.bias", np.concatenate([scale + np.float32(1), shift])))
    both = g.op("Unsqueeze", both, g.ints(1))
    return g.slice(both, 2, 0, len(scale)), g.slice(both, 2, len(scale))


def _attention_blocks(g: GraphBuilder, x: str, key: str, first: int) -> str:
    for index in range(first, first + g.count(key + ".{}.norm.weight", first)):
        x = attention_block(g, x, f"{key}.{index}", g.dims["diffusion.heads"])
    return x
