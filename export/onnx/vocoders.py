"""Graphs of the vocoders: UnivNet (mel and noise) and HiFi-GAN (latents)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..models.hifigan import margins
from .builder import END, GraphBuilder, Weights, taps_matrix

# --- UnivNet: token-major, so that each frame's predicted kernel multiplies its samples as they lie ---

UNIVNET_SLOPE = 0.2
DILATIONS = (1, 3, 9, 27)  #: one location-variable convolution behind each
LVC_TAPS = 3
EDGE = 3  #: samples reflected at both ends by the first and last convolution


def build_univnet(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """univnet: mel (rows, 100, frames), noise (rows, 64, frames) -> wav (rows, samples). No padding, no clamp."""
    x = g.conv_taps(g.transpose("noise", 0, 2, 1), "conv_pre", mode="reflect")
    mel = g.transpose("mel", 0, 2, 1)
    hop = 1
    for block in range(g.count("res_stack.{}.convt_pre.1.weight")):
        stride = g.weights[f"res_stack.{block}.convt_pre.1.weight"].shape[-1] // 2
        hop *= stride
        x = _lvc_block(g, x, mel, f"res_stack.{block}", stride, hop)
    g.rate = hop
    g.op("Tanh", _to_samples(g, _leaky(g, x), "conv_post.1"), output="wav")


def _leaky(g: GraphBuilder, x: str) -> str:
    return g.op("LeakyRelu", x, alpha=UNIVNET_SLOPE)


def _lvc_block(g: GraphBuilder, x: str, mel: str, key: str, stride: int, hop: int) -> str:
    """Upsampling, then dilated convolutions, each followed by one whose kernel the mel gives frame by frame.

    x: (rows, samples, c) -> (rows, samples * stride, c); hop: samples per frame afterwards.
    """
    g.rate = hop // stride
    x = _upsample_taps(g, _leaky(g, x), f"{key}.convt_pre.1", stride)
    g.rate = 1
    hidden = _kernel_hidden(g, mel, f"{key}.kernel_predictor")
    for layer, dilation in enumerate(DILATIONS):
        g.rate = hop
        h = _leaky(g, g.conv_taps(_leaky(g, x), f"{key}.conv_blocks.{layer}.1", dilation))
        x = g.add(x, _variable_convolution(g, h, hidden, f"{key}.kernel_predictor", layer, hop))
    return x


def _upsample_taps(g: GraphBuilder, x: str, key: str, stride: int) -> str:
    """A transposed convolution of kernel 2 * stride as a 3-tap product that gives ``stride`` samples per sample."""
    weight = g.weights[f"{key}.weight"]  # (in, out, 2 * stride)
    channels = weight.shape[1]
    padding = stride // 2 + stride % 2
    matrix = np.zeros((LVC_TAPS, len(weight), stride, channels), np.float32)
    for sample in range(stride):
        for tap in range(LVC_TAPS):
            # The input at ``tap`` reaches this sample with the kernel's value so far behind its own position.
            behind = sample + padding + (1 - tap) * stride
            if 0 <= behind < 2 * stride:
                matrix[tap, :, sample] = weight[:, :, behind]
    product = g.matmul(g.taps(x), f"{key}.weight", matrix.reshape(LVC_TAPS * len(weight), -1))
    return g.add(g.reshape(product, 0, -1, channels), g.param(f"{key}.bias"))


def _kernel_hidden(g: GraphBuilder, mel: str, key: str) -> str:
    """What kernels and biases are computed from, beside each frame's neighbours and a one: (rows, frames, 3 * hidden + 1)"""
    c = _leaky(g, g.conv_taps(mel, f"{key}.input_conv.0"))
    for block in range(g.count(key + ".residual_convs.{}.1.weight")):
        h = _leaky(g, g.conv_taps(c, f"{key}.residual_convs.{block}.1"))
        c = g.add(c, _leaky(g, g.conv_taps(h, f"{key}.residual_convs.{block}.3")))
    return g.ones_beside(g.taps(c))


def _variable_convolution(g: GraphBuilder, x: str, hidden: str, key: str, layer: int, hop: int) -> str:
    """A gated convolution with a kernel of its own for each frame of ``hop`` samples.

    x: (rows, samples, c); hidden: (rows, frames, ...) -> (rows, samples, c). All biases are rows of matrices that
    meet a channel of ones: adding them would be a pass each over what is largest here.
    """
    predictor, channels = _predictor(g.weights, key, layer)
    width = LVC_TAPS * channels + 1
    g.work += width * 2 * channels * hop
    g.rate = 1
    kernel = g.matmul(hidden, f"{key}.{layer}.kernel", predictor)
    matrices = g.reshape(kernel, 0, 0, width, 2 * channels)
    frames = g.reshape(g.ones_beside(g.taps(x)), 0, -1, hop, width)
    out = g.op("MatMul", frames, matrices)
    gated = g.mul(g.op("Sigmoid", g.slice(out, 3, 0, channels)), g.op("Tanh", g.slice(out, 3, channels)))
    return g.reshape(gated, 0, -1, channels)


def _predictor(weights: Weights, key: str, layer: int) -> tuple[np.ndarray, int]:
    """One layer's share of the kernel predictor -> matrix (taps * hidden + 1, (taps * c + 1) * 2c), and c.

    The channels that predict kernels are grouped (layer, in, out, tap); they are put in the order
    (tap, in, out), so that a frame's prediction is its matrix as it comes, its shift the last row. The last row of
    the matrix that predicts it is the bias.
    """
    layers = len(DILATIONS)
    shift_bias = weights[f"{key}.bias_conv.bias"].reshape(layers, -1)[layer]
    shift = weights[f"{key}.bias_conv.weight"]
    shift = shift.reshape(layers, -1, *shift.shape[1:])[layer]
    outputs = len(shift_bias)
    grouping = (layers, outputs // 2, outputs, LVC_TAPS)
    kernel = weights[f"{key}.kernel_conv.weight"]
    kernel = (
        kernel.reshape(*grouping, *kernel.shape[1:])[layer]
        .transpose(2, 0, 1, 3, 4)
        .reshape(-1, *kernel.shape[1:])
    )
    bias = weights[f"{key}.kernel_conv.bias"].reshape(grouping)[layer].transpose(2, 0, 1).reshape(-1)
    matrix = np.concatenate([taps_matrix(kernel), taps_matrix(shift)], axis=1)
    return np.concatenate([matrix, np.concatenate([bias, shift_bias])[None]]), outputs // 2


def _to_samples(g: GraphBuilder, x: str, key: str) -> str:
    """The last convolution, to one channel: (rows, samples, c) -> (rows, samples).

    Each sample's contribution to its neighbours first, (rows, taps, samples), then their sum.
    """
    weight = g.weights[f"{key}.weight"]  # (1, c, taps)
    parts = g.transpose(g.matmul(x, f"{key}.weight", np.ascontiguousarray(weight[0])), 0, 2, 1)
    padded = g.pad(parts, 2, EDGE, EDGE, mode="reflect")
    shifted = []
    for tap in range(weight.shape[-1]):
        part = g.op("Gather", padded, g.scalar(tap, "int64"), axis=1)
        shifted.append(g.slice(part, 1, tap, tap - 2 * EDGE or END))
    return g.add(g.op("Sum", *shifted), g.param(f"{key}.bias"))


# --- HiFi-GAN: planar (rows, c, 1, time), where ONNX Runtime has blocked convolutions, a fifth faster than plain ---

HIFIGAN_SLOPE = 0.1
HIFIGAN_LAST_SLOPE = 0.01  #: torch's default, which the reference uses before the last convolution


def build_hifigan(g: GraphBuilder, config: Mapping[str, Any]) -> None:
    """hifigan: latents (rows, in_dim, frames), already interpolated, voice (rows, voice_dim), wanted (2,) -> wav (rows, samples).

    Each stage computes what the wanted frames can see, and no more.
    config: upsample_factors (else half of each kernel), resblock_dilation_sizes (else 1, 3, 5, ...).
    """
    stages = g.count("ups.{}.weight")
    branches = g.count("resblocks.{}.convs1.0.weight") // stages
    with g.once_per_row():
        voice = g.op("Unsqueeze", g.linear("voice", "cond_layer"), g.ints(2, 3))
    x = g.op("Unsqueeze", "latents", g.ints(2))
    x = g.add(g.conv(x, "conv_pre", padding=3, planar=True), voice)
    taps = [g.weights[f"ups.{stage}.weight"].shape[-1] for stage in range(stages)]
    factors = config.get("upsample_factors", [count // 2 for count in taps])
    widths = [g.weights[f"resblocks.{branch}.convs1.0.weight"].shape[-1] for branch in range(branches)]
    dilations = config.get("resblock_dilation_sizes") or [
        [1 + 2 * i for i in range(g.count(f"resblocks.{branch}.convs1.{{}}.weight"))]
        for branch in range(branches)
    ]
    part = _Part(g)
    for stage, margin in enumerate(margins(taps, factors, widths, dilations)):
        x = g.op("LeakyRelu", part.crop(x, margin), alpha=HIFIGAN_SLOPE)
        x = _upsample(g, x, f"ups.{stage}", factors[stage])
        part.upsampled(factors[stage])
        g.rate *= factors[stage]
        outputs = [
            _residual(g, x, f"resblocks.{stage * branches + branch}", dilations[branch])
            for branch in range(branches)
        ]
        x = g.mul(g.op("Sum", *outputs), g.scalar(1 / branches))
    x = g.op("LeakyRelu", x, alpha=HIFIGAN_LAST_SLOPE)
    x = g.op("Tanh", g.conv(x, "conv_post", padding=3, planar=True))
    g.op("Squeeze", part.crop(x, 0), g.ints(1, 2), output="wav")


class _Part:
    """Which part of the clip a tensor (rows, c, 1, time) holds, in the graph: from where on, at what rate."""

    def __init__(self, g: GraphBuilder) -> None:
        self._g, self._rate, self._start = g, 1, g.ints(0)
        self._first, self._last = g.slice("wanted", 0, 0, 1), g.slice("wanted", 0, 1)
        self._frames = g.size("latents", 2)

    def crop(self, x: str, margin: int) -> str:
        """The wanted frames of ``x`` and ``margin`` samples to either side, as far as the clip goes."""
        g, beside = self._g, self._g.ints(margin)
        first, last, end = (self._samples(frames) for frames in (self._first, self._last, self._frames))
        begin = g.op("Max", g.op("Sub", first, beside), g.ints(0))
        end = g.op("Min", g.add(last, beside), end)
        x = g.slice(x, 3, g.op("Sub", begin, self._start), g.op("Sub", end, self._start))
        self._start = begin
        return x

    def upsampled(self, factor: int) -> None:
        self._rate *= factor
        self._start = self._g.mul(self._start, self._g.ints(factor))

    def _samples(self, frames: str) -> str:
        return self._g.mul(frames, self._g.ints(self._rate))


def _residual(g: GraphBuilder, x: str, key: str, dilations: Sequence[int]) -> str:
    reach = g.weights[f"{key}.convs1.0.weight"].shape[-1] // 2
    for i, dilation in enumerate(dilations):
        h = g.op("LeakyRelu", x, alpha=HIFIGAN_SLOPE)
        h = g.conv(h, f"{key}.convs1.{i}", padding=reach * dilation, dilation=dilation, planar=True)
        h = g.op("LeakyRelu", h, alpha=HIFIGAN_SLOPE)
        x = g.add(x, g.conv(h, f"{key}.convs2.{i}", padding=reach, planar=True))
    return x


def _upsample(g: GraphBuilder, x: str, key: str, factor: int) -> str:
    """A transposed convolution, planar."""
    weight = g.weights[f"{key}.weight"]
    padding = (weight.shape[-1] - factor) // 2
    g.work += weight.size * g.rate
    return g.convolution(
        "ConvTranspose",
        *(x, key, weight[:, :, None]),
        kernel_shape=[1, weight.shape[-1]],
        strides=[1, factor],
        pads=[0, padding, 0, padding],
    )
