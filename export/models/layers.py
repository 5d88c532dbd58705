"""Blocks that several networks share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BUCKETS = 32  #: of the relative position bias
MAX_DISTANCE = 64  #: beyond which all distances share a bucket
HEAD_DIM = 64  #: of the rotary transformers, whatever their width
ROTARY_DIM = 32  #: leading channels of each head that are rotated


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with the reference's number of groups: 32, fewer for narrow layers, always a divisor."""
    groups = 8 if channels <= 16 else 16 if channels <= 64 else 32
    while channels % groups:
        groups //= 2
    return nn.GroupNorm(groups, channels)


def relative_buckets(length: int) -> Tensor:
    """T5's bidirectional buckets: (length, length) int64, entry [query, key]."""
    half = BUCKETS // 2
    exact = half // 2
    offset = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    distance = offset.abs()
    log_bucket = (
        exact
        + (torch.log(distance.float() / exact) / math.log(MAX_DISTANCE / exact) * (half - exact))
        .clamp(min=-exact)
        .long()
    )
    bucket = torch.where(distance < exact, distance, log_bucket.clamp(max=half - 1))
    return bucket + (offset > 0) * half


class RelativePositionBias(nn.Module):
    """Learned bias per head and bucket of the distance between query and key."""

    def __init__(self, heads: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.relative_attention_bias = nn.Embedding(BUCKETS, heads)

    def forward(self, length: int) -> Tensor:
        """-> (heads, length, length), to be added to the attention logits."""
        buckets = relative_buckets(length).to(self.relative_attention_bias.weight.device)
        return self.relative_attention_bias(buckets).permute(2, 0, 1) * self.scale


class AttentionBlock(nn.Module):
    """Pre-norm self-attention over time with a residual: (rows, channels, time) -> same."""

    def __init__(self, channels: int, heads: int, relative: bool = False) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} heads cannot share {channels} channels")
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        self.relative_pos_embeddings = (
            RelativePositionBias(heads, (channels // heads) ** 0.5) if relative else None
        )

    def forward(self, x: Tensor) -> Tensor:
        rows, channels, time = x.shape
        # Channels of qkv are ordered (head, [q k v], channel of the head).
        qkv = self.qkv(self.norm(x)).reshape(rows, self.heads, 3, channels // self.heads, time)
        # CUDA's fused attention refuses channels that lie apart.
        q, k, v = (part.contiguous() for part in qkv.transpose(-1, -2).unbind(2))
        bias = None if self.relative_pos_embeddings is None else self.relative_pos_embeddings(time)[None]
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return x + self.proj_out(h.transpose(-1, -2).reshape(rows, channels, time))


class RMSNorm(nn.Module):
    """x / rms(x) * g over the last dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        rms = x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        return x / rms.clamp(min=1e-8) * self.g


class RotaryAttention(nn.Module):
    """Multi-head self-attention whose q, k and v are rotated (v too: a habit of the reference)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, heads * HEAD_DIM, bias=False)
        self.to_k = nn.Linear(dim, heads * HEAD_DIM, bias=False)
        self.to_v = nn.Linear(dim, heads * HEAD_DIM, bias=False)
        self.to_out = nn.Linear(heads * HEAD_DIM, dim)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """x: (rows, time, dim); angles: (time, ROTARY_DIM)."""
        q, k, v = (
            rotate(proj(x).unflatten(-1, (self.heads, HEAD_DIM)).transpose(1, 2), angles)
            for proj in (self.to_q, self.to_k, self.to_v)
        )
        h = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(h.transpose(1, 2).flatten(2))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding of the leading channels of x: (..., time, channels) by angles: (time, rotated)."""
    head, rest = x[..., : angles.shape[-1]], x[..., angles.shape[-1] :]
    a, b = head.chunk(2, dim=-1)
    turned = head * angles.cos() + torch.cat((-b, a), dim=-1) * angles.sin()
    return torch.cat((turned.to(x.dtype), rest), dim=-1)


class _Gate(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class _FeedForward(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        # Indices 1 and 2 are an identity and a dropout in the official layout.
        self.net = nn.Sequential(_Gate(dim, inner), nn.Identity(), nn.Identity(), nn.Linear(inner, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _Wrapped(nn.Module):
    """Adds the ``wrap.`` that the reference's checkpointing leaves in CLVP's keys."""

    def __init__(self, wrap: nn.Module) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, *args: Tensor) -> Tensor:
        return self.wrap(*args)


class _RotaryEmbedding(nn.Module):
    inv_freq: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / 10000 ** (torch.arange(0, ROTARY_DIM, 2).float() / ROTARY_DIM))


class _AttentionLayers(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, inner: int, wrapped: bool) -> None:
        super().__init__()
        wrap = _Wrapped if wrapped else (lambda block: block)
        self.rotary_pos_emb = _RotaryEmbedding()
        self.layers = nn.ModuleList()
        for _ in range(depth):
            for block in (RotaryAttention(dim, heads), _FeedForward(dim, inner)):
                self.layers.append(nn.ModuleList([nn.ModuleList([RMSNorm(dim)]), wrap(block)]))


class RotaryEncoder(nn.Module):
    """Pre-norm transformer encoder with rotary positions and gated feed-forward: (rows, time, dim) -> same."""

    def __init__(self, dim: int, depth: int, heads: int, inner: int, wrapped: bool = False) -> None:
        super().__init__()
        self.attn_layers = _AttentionLayers(dim, depth, heads, inner, wrapped)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        inv_freq = self.attn_layers.rotary_pos_emb.inv_freq
        time = torch.arange(x.shape[1], device=x.device, dtype=inv_freq.dtype)
        angles = torch.outer(time, inv_freq).repeat(1, 2)
        for i, layer in enumerate(self.attn_layers.layers):
            norms, block = layer.children()
            h = next(norms.children())(x)
            x = x + (block(h, angles) if i % 2 == 0 else block(h))
        return self.norm(x)


def encoder_shape(weights: dict[str, Tensor], prefix: str, wrap: str = "") -> dict[str, int]:
    """Arguments of a RotaryEncoder read from its tensors."""
    layers = f"{prefix}attn_layers.layers."
    query = weights[f"{layers}0.1.{wrap}to_q.weight"]
    return {
        "dim": query.shape[1],
        "heads": query.shape[0] // HEAD_DIM,
        "depth": count_layers(weights, layers) // 2,
        "inner": weights[f"{layers}1.1.{wrap}net.3.weight"].shape[1],
    }


def count_layers(weights: dict[str, Tensor], prefix: str) -> int:
    """One more than the largest i for which some key starts with ``prefix + i + '.'``.

    A layer may be missing as a whole, so that the error names its keys; an index beyond the number of keys is none.
    """
    indices = {key[len(prefix) :].split(".", 1)[0] for key in weights if key.startswith(prefix)}
    return 1 + max((int(i) for i in indices if i.isdecimal() and int(i) < len(weights)), default=-1)
