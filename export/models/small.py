"""The small networks: random voices and the detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import AttentionBlock, count_layers, group_norm

LEARNING_RATE_SCALE = 0.1  #: StyleGAN2's equalised learning rate, kept in the stored weights


class _EqualLinear(nn.Linear):
    """StyleGAN2's scaled linear layer with leaky ReLU (Karras et al. 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * (LEARNING_RATE_SCALE * self.in_features**-0.5)
        return F.leaky_relu(F.linear(x, weight, self.bias * LEARNING_RATE_SCALE), 0.2) * 2**0.5


class RandomLatentConverter(nn.Module):
    """Graph ``rlg_auto``: noise (rows, dim) -> latent (rows, dim)."""

    network = "rlg_auto"

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(*(_EqualLinear(dim, dim) for _ in range(layers - 1)), nn.Linear(dim, dim))

    @classmethod
    def from_weights(cls, weights: dict[str, Tensor], config: Mapping[str, Any]) -> RandomLatentConverter:
        return cls(weights["layers.0.weight"].shape[0], count_layers(weights, "layers."))

    def dims(self, config: Mapping[str, Any]) -> dict[str, int]:
        return {f"{self.network}.dim": self.dim}

    def forward(self, noise: Tensor) -> Tensor:
        return self.layers(noise)


class RandomDiffuserLatentConverter(RandomLatentConverter):
    """Graph ``rlg_diffuser``: as ``rlg_auto``, for the diffusion decoder's latent."""

    network = "rlg_diffuser"


class _ResBlock(nn.Module):
    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            group_norm(channels), nn.SiLU(), nn.Conv1d(channels, channels, kernel, padding=kernel // 2)
        )
        # Index 2 is a dropout in the official layout.
        self.out_layers = nn.Sequential(
            group_norm(channels),
            nn.SiLU(),
            nn.Identity(),
            nn.Conv1d(channels, channels, kernel, padding=kernel // 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out_layers(self.in_layers(x))


class _Downsample(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, factor: int) -> None:
        super().__init__()
        self.op = nn.Conv1d(in_channels, out_channels, 5, stride=factor, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class _Encoder(nn.Module):
    def __init__(
        self, channels: list[int], blocks: int, kernel: int, factor: int, dim: int, attention: int, heads: int
    ):
        super().__init__()
        self.init = nn.Sequential(nn.Conv1d(1, channels[0], 3, padding=1))
        stages: list[nn.Module] = []
        for narrow, wide in zip(channels[:-1], channels[1:], strict=True):
            stages += [_ResBlock(narrow, kernel) for _ in range(blocks)] + [_Downsample(narrow, wide, factor)]
        self.res = nn.Sequential(*stages)
        self.final = nn.Sequential(group_norm(channels[-1]), nn.SiLU(), nn.Conv1d(channels[-1], dim, 1))
        self.attn = nn.Sequential(*(AttentionBlock(dim, heads) for _ in range(attention)))

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(self.final(self.res(self.init(x))))[:, :, 0]


class Detector(nn.Module):
    """Graph ``detector``: wav (rows, 1, samples) -> logits (rows, 2): [from TorToiSe, real]."""

    def __init__(self, classes: int, dim: int, **encoder: Any) -> None:
        super().__init__()
        self.enc = _Encoder(dim=dim, **encoder)
        self.head = nn.Linear(dim, classes)

    @classmethod
    def from_weights(cls, weights: dict[str, Tensor], config: Mapping[str, Any]) -> Detector:
        stages = count_layers(weights, "enc.res.")
        downs = [i for i in range(stages) if f"enc.res.{i}.op.weight" in weights]
        classes, dim = weights["head.weight"].shape[:2]
        return cls(
            classes,
            dim,
            channels=[weights[f"enc.res.{i}.op.weight"].shape[1] for i in downs]
            + [weights["enc.final.0.weight"].shape[0]],
            blocks=downs[0],
            kernel=weights["enc.res.0.in_layers.2.weight"].shape[2],
            factor=config.get("downsample_factor", 4),
            attention=count_layers(weights, "enc.attn."),
            heads=config.get("num_attn_heads", 4),
        )

    def dims(self, config: Mapping[str, Any]) -> dict[str, int]:
        return {}

    def forward(self, wav: Tensor) -> Tensor:
        return self.head(self.enc(wav))
