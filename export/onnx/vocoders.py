"""Graphs of the vocoders: UnivNet (mel and noise) and HiFi-GAN (latents). Channel-major."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .builder import GraphBuilder, taps_matrix

# --- UnivNet ---

UNIVNET_SLOPE = 0.2
DILATIONS = (1, 3, 9, 27)  #: one location-variable convolution behind each
LVC_TAPS = 3


def build_univnet(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """univnet: mel (rows, 100, frames), noise (rows, 64, frames) -> wav (rows, samples). No padding, no clamp."""
    x = g.conv(g.pad("noise", 2, 3, 3, mode="reflect"), "conv_pre")
    mel = g.transpose("mel", 0, 2, 1)
    hop = 1
    for block in range(g.count("res_stack.{}.convt_pre.1.weight")):
        key = f"res_stack.{block}"
        stride = g.weights[f"{key}.convt_pre.1.weight"].shape[-1] // 2
        hop *= stride
        x = _lvc_block(g, x, mel, key, stride, hop)
    x = g.op("LeakyRelu", x, alpha=UNIVNET_SLOPE)
    x = g.op("Tanh", g.conv(g.pad(x, 2, 3, 3, mode="reflect"), "conv_post.1"))
    g.op("Squeeze", x, g.ints(1), output="wav")


def _lvc_block(g: GraphBuilder, x: str, mel: str, key: str, stride: int, hop: int) -> str:
    """Upsampling, then dilated convolutions, each followed by one whose kernel the mel gives frame by frame.

    x: (rows, c, samples) -> (rows, c, samples * stride); hop: samples per frame afterwards.
    """
    channels = g.weights[f"{key}.convt_pre.1.weight"].shape[1]
    x = g.op("LeakyRelu", x, alpha=UNIVNET_SLOPE)
    x = g.conv_transpose(
        x, f"{key}.convt_pre.1", stride=stride, padding=stride // 2 + stride % 2, extra=stride % 2
    )
    hidden = _kernel_hidden(g, mel, f"{key}.kernel_predictor")
    for layer, dilation in enumerate(DILATIONS):
        h = g.op("LeakyRelu", x, alpha=UNIVNET_SLOPE)
        h = g.conv(h, f"{key}.conv_blocks.{layer}.1", padding=dilation, dilation=dilation)
        h = g.op("LeakyRelu", h, alpha=UNIVNET_SLOPE)
        frames = _neighbours_by_frame(g, h, channels, hop)
        gate, value = (
            _variable_convolution(g, frames, hidden, f"{key}.kernel_predictor", layer, channels, half)
            for half in (0, 1)
        )
        gated = g.mul(g.op("Sigmoid", gate), g.op("Tanh", value))
        x = g.add(x, g.reshape(g.transpose(gated, 0, 2, 1, 3), 0, channels, -1))
    return x


def _kernel_hidden(g: GraphBuilder, mel: str, key: str) -> str:
    """What the kernels and biases are computed from, with each frame's neighbours: (rows, frames, 3 * hidden)"""
    weight = g.weights[f"{key}.input_conv.0.weight"]
    padded = g.pad(mel, 1, 2, 2)
    taps = g.concat(*(g.slice(padded, 1, i, i - 4 or 2**62) for i in range(5)), axis=2)
    c = g.add(
        g.matmul(taps, f"{key}.input_conv.0.weight", taps_matrix(weight)), g.param(f"{key}.input_conv.0.bias")
    )
    c = g.op("LeakyRelu", c, alpha=UNIVNET_SLOPE)
    for block in range(g.count(key + ".residual_convs.{}.1.weight")):
        h = g.op("LeakyRelu", g.conv3(c, f"{key}.residual_convs.{block}.1"), alpha=UNIVNET_SLOPE)
        h = g.op("LeakyRelu", g.conv3(h, f"{key}.residual_convs.{block}.3"), alpha=UNIVNET_SLOPE)
        c = g.add(c, h)
    return g.taps(c)


def _neighbours_by_frame(g: GraphBuilder, x: str, channels: int, hop: int) -> str:
    """Each sample beside its two neighbours, grouped by frame: (rows, c, frames * hop) -> (rows, frames, 3c, hop)"""
    padded = g.pad(x, 2, 1, 1)
    taps = g.concat(g.slice(padded, 2, 0, -2), x, g.slice(padded, 2, 2), axis=1)
    return g.transpose(g.reshape(taps, 0, LVC_TAPS * channels, -1, hop), 0, 2, 1, 3)


def _variable_convolution(
    g: GraphBuilder, frames: str, hidden: str, key: str, layer: int, channels: int, half: int
) -> str:
    """One half of a location-variable convolution's output channels: (rows, frames, c, hop).

    The predicted channels are grouped (layer, in, out, tap); those of this layer and half are taken out at
    export and put in the order (out, tap, in), so that each frame's kernel is a matrix as it comes.
    """
    layers = len(DILATIONS)
    weight, bias = g.weights[f"{key}.kernel_conv.weight"], g.weights[f"{key}.kernel_conv.bias"]
    own = slice(half * channels, (half + 1) * channels)
    picked = weight.reshape(layers, channels, 2 * channels, LVC_TAPS, *weight.shape[1:])[layer, :, own]
    picked = picked.transpose(1, 2, 0, 3, 4).reshape(-1, *weight.shape[1:])
    offsets = (
        bias.reshape(layers, channels, 2 * channels, LVC_TAPS)[layer, :, own].transpose(1, 2, 0).reshape(-1)
    )
    name = f"{key}.{layer}.{half}"
    kernel = g.add(
        g.matmul(hidden, f"{name}.kernel", taps_matrix(picked)), g.tensor(f"{name}.kernel.bias", offsets)
    )
    matrices = g.reshape(kernel, 0, 0, channels, LVC_TAPS * channels)
    weight = g.weights[f"{key}.bias_conv.weight"].reshape(layers, 2 * channels, *weight.shape[1:])[layer, own]
    offsets = g.weights[f"{key}.bias_conv.bias"].reshape(layers, 2 * channels)[layer, own]
    shift = g.add(
        g.matmul(hidden, f"{name}.bias", taps_matrix(weight)), g.tensor(f"{name}.bias.bias", offsets)
    )
    return g.add(g.op("MatMul", matrices, frames), g.op("Unsqueeze", shift, g.ints(3)))


# --- HiFi-GAN ---

HIFIGAN_SLOPE = 0.1
HIFIGAN_LAST_SLOPE = 0.01  #: torch's default, which the reference uses before the last convolution


def build_hifigan(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """hifigan: latents (rows, in_dim, frames), already interpolated, voice (rows, voice_dim) -> wav (rows, samples).

    config: upsample_factors (else half of each kernel), resblock_dilation_sizes (else 1, 3, 5, ...).
    """
    stages = g.count("ups.{}.weight")
    branches = g.count("resblocks.{}.convs1.0.weight") // stages
    voice = g.op("Unsqueeze", g.linear("voice", "cond_layer"), g.ints(2))
    x = g.add(g.conv("latents", "conv_pre", padding=3), voice)
    for stage in range(stages):
        kernel = g.weights[f"ups.{stage}.weight"].shape[-1]
        factor = config["upsample_factors"][stage] if "upsample_factors" in config else kernel // 2
        x = g.op("LeakyRelu", x, alpha=HIFIGAN_SLOPE)
        x = g.conv_transpose(x, f"ups.{stage}", stride=factor, padding=(kernel - factor) // 2)
        outputs = []
        for branch in range(branches):
            key = f"resblocks.{stage * branches + branch}"
            layers = g.count(key + ".convs1.{}.weight")
            dilations = [1 + 2 * i for i in range(layers)]
            if "resblock_dilation_sizes" in config:
                dilations = config["resblock_dilation_sizes"][branch]
            outputs.append(_residual(g, x, key, dilations))
        x = g.mul(g.op("Sum", *outputs), g.scalar(1 / branches))
    x = g.op("LeakyRelu", x, alpha=HIFIGAN_LAST_SLOPE)
    x = g.op("Tanh", g.conv(x, "conv_post", padding=3))
    g.op("Squeeze", x, g.ints(1), output="wav")


def _residual(g: GraphBuilder, x: str, key: str, dilations: Sequence[int]) -> str:
    reach = g.weights[f"{key}.convs1.0.weight"].shape[-1] // 2
    for i, dilation in enumerate(dilations):
        h = g.op("LeakyRelu", x, alpha=HIFIGAN_SLOPE)
        h = g.conv(h, f"{key}.convs1.{i}", padding=reach * dilation, dilation=dilation)
        h = g.op("LeakyRelu", h, alpha=HIFIGAN_SLOPE)
        x = g.add(x, g.conv(h, f"{key}.convs2.{i}", padding=reach))
    return x
