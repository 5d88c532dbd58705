"""The aligner: a small convolutional network that hears which character is spoken when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tortoise_rt.spec import ALIGNER_STRIDE, AR_MELS, SYMBOLS

from .layers import count_layers


class _Bands(nn.Module):
    """A gain and an offset for every mel band."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(AR_MELS, 1))
        self.offset = nn.Parameter(torch.zeros(AR_MELS, 1))

    def forward(self, mel: Tensor) -> Tensor:
        return mel * self.gain + self.offset


class _Block(nn.Module):
    """Looks around in every channel by itself, then mixes the channels: (rows, dim, time) -> same."""

    def __init__(self, dim: int, inner: int, kernel: int) -> None:
        super().__init__()
        self.around = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.wide = nn.Linear(dim, inner)
        self.narrow = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.around(x).transpose(1, 2))
        return x + self.narrow(F.gelu(self.wide(h))).transpose(1, 2)


class Aligner(nn.Module):
    """Graph ``aligner``: mel (rows, AR_MELS, frames) as the voice encoder hears it -> logits (rows, outputs, SYMBOLS).

    There are (frames + 1) // 2 outputs; output i is about the time of frame 2 i.
    """

    def __init__(self, dim: int, blocks: int, inner: int, kernel: int) -> None:
        super().__init__()
        self.bands = _Bands()
        self.init = nn.Conv1d(AR_MELS, dim, 5, stride=ALIGNER_STRIDE, padding=2)
        self.blocks = nn.Sequential(*(_Block(dim, inner, kernel) for _ in range(blocks)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, len(SYMBOLS))

    @classmethod
    def from_weights(cls, weights: dict[str, Tensor], config: Mapping[str, Any]) -> Aligner:
        inner, dim = weights["blocks.0.wide.weight"].shape
        return cls(
            dim=dim,
            blocks=count_layers(weights, "blocks."),
            inner=inner,
            kernel=weights["blocks.0.around.weight"].shape[2],
        )

    def dims(self, config: Mapping[str, Any]) -> dict[str, int]:
        return {}

    def forward(self, mel: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.init(self.bands(mel))).transpose(1, 2)))
