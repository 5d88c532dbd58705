"""HiFi-GAN (Kong et al. 2020) fed with autoregressive latents: the fast decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tortoise_rt.vocoder import HIFIGAN_HALO

from .layers import count_layers

SLOPE = 0.1  #: of the leaky ReLUs, except
LAST_SLOPE = 0.01  #: of the one before the last convolution


POST_KERNEL = 7  #: taps of the last convolution


def margins(
    upsample_kernels: Sequence[int],
    upsample_factors: Sequence[int],
    block_kernels: Sequence[int],
    block_dilations: Sequence[Sequence[int]],
) -> list[int]:
    """What each upsampling must be given on either side of the part that is wanted, in samples of its input's rate."""
    reach = max(k // 2 * sum(d + 1 for d in ds) for k, ds in zip(block_kernels, block_dilations, strict=True))
    margin, found = POST_KERNEL // 2, []
    for kernel, factor in zip(reversed(upsample_kernels), reversed(upsample_factors), strict=True):
        # An input reaches the outputs from factor * its place - padding on, a kernel's length of them.
        padding = (kernel - factor) // 2
        margin = (margin + reach + kernel - 1 - padding) // factor
        found.append(margin)
    return found[::-1]


class _ResBlock(nn.Module):
    def __init__(self, channels: int, kernel: int, dilations: list[int]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=(kernel - 1) * d // 2)
            for d in dilations
        )
        self.convs2 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.convs1, self.convs2, strict=True):
            x = x + second(F.leaky_relu(first(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class HifiganGenerator(nn.Module):
    """Graph ``hifigan``: latents (rows, in_dim, frames), voice (rows, voice_dim), frames first to last -> (rows, samples).

    Each stage computes what the wanted frames can see, and no more.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        voice_dim: int,
        channels: int,
        upsample_kernels: list[int],
        upsample_factors: list[int],
        block_kernels: list[int],
        block_dilations: list[list[int]],
    ) -> None:
        super().__init__()
        self.in_dim, self.voice_dim = in_dim, voice_dim
        self.conv_pre = nn.Conv1d(in_dim, channels, 7, padding=3)
        self.cond_layer = nn.Conv1d(voice_dim, channels, 1)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for kernel, factor in zip(upsample_kernels, upsample_factors, strict=True):
            self.ups.append(
                nn.ConvTranspose1d(
                    channels, channels // 2, kernel, stride=factor, padding=(kernel - factor) // 2
                )
            )
            channels //= 2
            for k, d in zip(block_kernels, block_dilations, strict=True):
                self.resblocks.append(_ResBlock(channels, k, d))
        self.conv_post = nn.Conv1d(channels, 1, POST_KERNEL, padding=POST_KERNEL // 2)
        self.factors = upsample_factors
        self.margins = margins(upsample_kernels, upsample_factors, block_kernels, block_dilations)
        if (halo := self.margins[0] + self.conv_pre.kernel_size[0] // 2) > HIFIGAN_HALO:
            raise ValueError(
                f"a sample depends on {halo} frames to a side; at most {HIFIGAN_HALO} are decoded beside a piece"
            )

    @classmethod
    def from_weights(cls, weights: dict[str, Tensor], config: Mapping[str, Any]) -> HifiganGenerator:
        ups = count_layers(weights, "ups.")
        blocks = count_layers(weights, "resblocks.") // ups
        kernels = [weights[f"ups.{i}.weight"].shape[2] for i in range(ups)]
        layers = [count_layers(weights, f"resblocks.{i}.convs1.") for i in range(blocks)]
        return cls(
            in_dim=weights["conv_pre.weight"].shape[1],
            voice_dim=weights["cond_layer.weight"].shape[1],
            channels=weights["conv_pre.weight"].shape[0],
            upsample_kernels=kernels,
            upsample_factors=config.get("upsample_factors", [k // 2 for k in kernels]),
            block_kernels=[weights[f"resblocks.{i}.convs1.0.weight"].shape[2] for i in range(blocks)],
            block_dilations=config.get(
                "resblock_dilation_sizes", [[1 + 2 * j for j in range(n)] for n in layers]
            ),
        )

    def dims(self, config: Mapping[str, Any]) -> dict[str, int]:
        return {"hifigan.in_dim": self.in_dim, "hifigan.voice_dim": self.voice_dim}

    def forward(self, latents: Tensor, voice: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        x = self.conv_pre(latents) + self.cond_layer(voice[..., None])
        per_stage = len(self.resblocks) // len(self.ups)
        frames = latents.shape[2]
        last = frames if last is None else last
        start, rate = 0, 1  # of x, in samples of its rate
        for i, (up, factor, margin) in enumerate(zip(self.ups, self.factors, self.margins, strict=True)):
            begin, end = max(0, first * rate - margin), min(frames * rate, last * rate + margin)
            x = up(F.leaky_relu(x[..., begin - start : end - start], SLOPE))
            start, rate = begin * factor, rate * factor
            blocks = self.resblocks[i * per_stage : (i + 1) * per_stage]
            x = torch.stack([block(x) for block in blocks]).mean(dim=0)
        wav = torch.tanh(self.conv_post(F.leaky_relu(x, LAST_SLOPE)))[:, 0]
        return wav[:, first * rate - start : last * rate - start]
