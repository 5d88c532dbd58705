"""UnivNet: log mel and noise -> waveform, by location-variable convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tortoise_rt.spec import MELS, VOCODER_NOISE

from .layers import count_layers

SLOPE = 0.2  #: of the leaky ReLUs
TAPS = 3  #: of the predicted kernels


class _KernelPredictor(nn.Module):
    """mel: (rows, MELS, frames) -> a kernel and a bias for every layer and frame."""

    def __init__(self, channels: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.channels, self.layers = channels, layers
        self.input_conv = nn.Sequential(nn.Conv1d(MELS, hidden, 5, padding=2), nn.LeakyReLU(SLOPE))
        # Index 0 is a dropout in the official layout.
        self.residual_convs = nn.ModuleList(
            nn.Sequential(
                nn.Identity(),
                nn.Conv1d(hidden, hidden, 3, padding=1),
                nn.LeakyReLU(SLOPE),
                nn.Conv1d(hidden, hidden, 3, padding=1),
                nn.LeakyReLU(SLOPE),
            )
            for _ in range(3)
        )
        self.kernel_conv = nn.Conv1d(hidden, channels * 2 * channels * TAPS * layers, 3, padding=1)
        self.bias_conv = nn.Conv1d(hidden, 2 * channels * layers, 3, padding=1)

    def hidden(self, mel: Tensor) -> Tensor:
        """-> (rows, hidden, frames)."""
        x = self.input_conv(mel)
        for block in self.residual_convs:
            x = x + block(x)
        return x

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """-> kernels: (rows, layers, channels, 2 * channels, TAPS, frames); biases: (rows, layers, 2 * channels, frames)."""
        x = self.hidden(mel)
        kernels = self.kernel_conv(x).unflatten(1, (self.layers, self.channels, 2 * self.channels, TAPS))
        return kernels, self.bias_conv(x).unflatten(1, (self.layers, 2 * self.channels))


def location_variable_conv(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Every frame's samples are convolved with that frame's own kernel.

    x: (rows, channels, frames * hop); kernel: (rows, channels, out, TAPS, frames); bias: (rows, out, frames)
    -> (rows, out, frames * hop). One batched matrix product over (rows, frames).
    """
    rows, channels, samples = x.shape
    frames = kernel.shape[-1]
    padded = F.pad(x, (1, 1))
    taps = torch.stack(
        [padded[..., t : t + samples] for t in range(TAPS)], dim=2
    )  # (rows, channels, TAPS, samples)
    taps = taps.reshape(rows, channels * TAPS, frames, -1).transpose(
        1, 2
    )  # (rows, frames, channels * TAPS, hop)
    matrix = kernel.permute(0, 4, 2, 1, 3).flatten(3)  # (rows, frames, out, channels * TAPS)
    out = matrix @ taps + bias.transpose(1, 2)[..., None]
    return out.transpose(1, 2).flatten(2)


class _LVCBlock(nn.Module):
    """Upsamples by ``stride``, then gated location-variable convolutions of growing dilation."""

    def __init__(self, channels: int, hidden: int, stride: int, layers: int) -> None:
        super().__init__()
        self.kernel_predictor = _KernelPredictor(channels, hidden, layers)
        self.convt_pre = nn.Sequential(
            nn.LeakyReLU(SLOPE),
            nn.ConvTranspose1d(
                channels,
                channels,
                2 * stride,
                stride=stride,
                padding=stride // 2 + stride % 2,
                output_padding=stride % 2,
            ),
        )
        self.conv_blocks = nn.ModuleList(
            nn.Sequential(
                nn.LeakyReLU(SLOPE),
                nn.Conv1d(channels, channels, TAPS, padding=3**i, dilation=3**i),
                nn.LeakyReLU(SLOPE),
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor, mel: Tensor) -> Tensor:
        x = self.convt_pre(x)
        kernels, biases = self.kernel_predictor(mel)
        for i, conv in enumerate(self.conv_blocks):
            gate, value = location_variable_conv(conv(x), kernels[:, i], biases[:, i]).chunk(2, dim=1)
            x = x + torch.sigmoid(gate) * torch.tanh(value)
        return x


class UnivNetGenerator(nn.Module):
    """Graph ``univnet``: mel (rows, MELS, frames), noise (rows, VOCODER_NOISE, frames) -> (rows, frames * 256)."""

    def __init__(self, channels: int, hidden: int, strides: list[int], layers: int) -> None:
        super().__init__()
        self.channels = channels
        self.res_stack = nn.ModuleList(_LVCBlock(channels, hidden, stride, layers) for stride in strides)
        self.conv_pre = nn.Conv1d(VOCODER_NOISE, channels, 7, padding=3, padding_mode="reflect")
        self.conv_post = nn.Sequential(
            nn.LeakyReLU(SLOPE), nn.Conv1d(channels, 1, 7, padding=3, padding_mode="reflect"), nn.Tanh()
        )

    @classmethod
    def from_weights(cls, weights: dict[str, Tensor], config: Mapping[str, Any]) -> UnivNetGenerator:
        blocks = count_layers(weights, "res_stack.")
        return cls(
            channels=weights["conv_pre.weight"].shape[0],
            hidden=weights["res_stack.0.kernel_predictor.input_conv.0.weight"].shape[0],
            strides=[weights[f"res_stack.{i}.convt_pre.1.weight"].shape[2] // 2 for i in range(blocks)],
            layers=count_layers(weights, "res_stack.0.conv_blocks."),
        )

    def dims(self, config: Mapping[str, Any]) -> dict[str, int]:
        return {"vocoder.channels": self.channels}

    def forward(self, mel: Tensor, noise: Tensor) -> Tensor:
        x = self.conv_pre(noise)
        for block in self.res_stack:
            x = block(x, mel)
        return self.conv_post(x)[:, 0]
