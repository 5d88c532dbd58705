"""wav2vec2 (Baevski et al. 2020, arXiv:2006.11477) with a CTC head, in the layout of Hugging Face's large models.

Those have layer norm in their convolutions and before their attention ("stable"); others are not built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tortoise_rt.spec import SYMBOLS

from .layers import count_layers

RAREST = 1e-10  #: probabilities below this are as good as none: their logarithm is taken of this


class _Convolution(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride=stride)
        self.layer_norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.layer_norm(self.conv(x).transpose(1, 2)).transpose(1, 2))


class _FeatureExtractor(nn.Module):
    def __init__(self, shapes: list[tuple[int, int, int]], strides: list[int]) -> None:
        super().__init__()
        layers = (
            _Convolution(inputs, outputs, kernel, stride)
            for (outputs, inputs, kernel), stride in zip(shapes, strides, strict=True)
        )
        self.conv_layers = nn.Sequential(*layers)


class _FeatureProjection(nn.Module):
    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(channels)
        self.projection = nn.Linear(channels, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.layer_norm(x))


class _Positions(nn.Module):
    """A wide convolution that tells frames where they are: (rows, time, dim) -> same."""

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(dim, inner)
        self.output_dense = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_dense(F.gelu(self.intermediate_dense(x)))


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention = _Attention(dim, heads)
        self.layer_norm = nn.LayerNorm(dim)
        self.feed_forward = _FeedForward(dim, inner)
        self.final_layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.layer_norm(x))
        return x + self.feed_forward(self.final_layer_norm(x))


class _Encoder(nn.Module):
    def __init__(self, dim: int, kernel: int, groups: int, layers: int, heads: int, inner: int) -> None:
        super().__init__()
        self.pos_conv_embed = _Positions(dim, kernel, groups)
        self.layer_norm = nn.LayerNorm(dim)
        self.layers = nn.Sequential(*(_Layer(dim, heads, inner) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_norm(self.layers(x + self.pos_conv_embed(x)))


class _Body(nn.Module):
    def __init__(
        self, convolutions: list[tuple[int, int, int]], strides: list[int], dim: int, **encoder: int
    ) -> None:
        super().__init__()
        self.feature_extractor = _FeatureExtractor(convolutions, strides)
        self.feature_projection = _FeatureProjection(convolutions[-1][0], dim)
        self.encoder = _Encoder(dim, **encoder)

    def forward(self, wav: Tensor) -> Tensor:
        found = self.feature_extractor.conv_layers(wav[:, None])
        return self.encoder(self.feature_projection(found.transpose(1, 2)))


class Wav2Vec2(nn.Module):
    """Graph ``wav2vec2``: wav (rows, samples), 16 kHz -> log probabilities (rows, outputs, SYMBOLS).

    ``folding`` (the model's own symbols, SYMBOLS) says which of them are one of SYMBOLS; their probabilities add up.
    """

    folding: Tensor

    def __init__(self, symbols: int, strides: list[int], dim: int, **body: Any) -> None:
        super().__init__()
        self.stride = 1
        for stride in strides:
            self.stride *= stride
        self.wav2vec2 = _Body(strides=strides, dim=dim, **body)
        self.lm_head = nn.Linear(dim, symbols)
        self.register_buffer("folding", torch.zeros(symbols, len(SYMBOLS)))

    @classmethod
    def from_weights(cls, weights: dict[str, Tensor], config: Mapping[str, Any]) -> Wav2Vec2:
        convolutions, layers = "wav2vec2.feature_extractor.conv_layers.", "wav2vec2.encoder.layers."
        symbols, dim = weights["lm_head.weight"].shape
        if dim % config["num_attention_heads"]:
            raise ValueError(f"{config['num_attention_heads']} heads cannot share {dim} channels")
        return cls(
            symbols,
            list(config["conv_stride"]),
            dim,
            convolutions=[
                tuple(weights[f"{convolutions}{i}.conv.weight"].shape)
                for i in range(len(config["conv_stride"]))
            ],
            kernel=weights["wav2vec2.encoder.pos_conv_embed.conv.weight"].shape[2],
            groups=config["num_conv_pos_embedding_groups"],
            layers=count_layers(weights, layers),
            heads=config["num_attention_heads"],
            inner=weights[f"{layers}0.feed_forward.intermediate_dense.weight"].shape[0],
        )

    def dims(self, config: Mapping[str, Any]) -> dict[str, int]:
        return {"wav2vec2.stride": self.stride}

    def logits(self, wav: Tensor) -> Tensor:
        """-> logits of the model's own symbols, (rows, outputs, symbols)."""
        return self.lm_head(self.wav2vec2(wav))

    def forward(self, wav: Tensor) -> Tensor:
        return (self.logits(wav).softmax(-1) @ self.folding).clamp(min=RAREST).log()
