"""UnifiedVoice: GPT-2 over a voice latent, text ids and mel codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tortoise_rt.spec import AR_MELS

from .layers import AttentionBlock, count_layers


class _Projection(nn.Module):
    """A linear layer whose weight is stored (in, out), as GPT-2's are."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_dim, out_dim))
        self.bias = nn.Parameter(torch.empty(out_dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).reshape(*x.shape[:-1], -1)


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = _Projection(dim, 3 * dim)
        self.c_proj = _Projection(dim, dim)


class _MLP(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.c_fc = _Projection(dim, inner)
        self.c_proj = _Projection(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class _Places(NamedTuple):
    """Where new positions lie in a cache, and what they see of it."""

    rows: Tensor  #: (rows, 1) int64
    positions: Tensor  #: (rows, new) int64
    visible: Tensor  #: (rows, 1, new, total) bool

    @classmethod
    def behind(cls, past: Tensor, longest: int, new: int) -> _Places:
        """``new`` positions behind past: (rows,) int64, of which ``longest`` is the largest."""
        positions = past[:, None] + torch.arange(new, device=past.device)
        visible = torch.arange(longest + new, device=past.device) <= positions[..., None]
        return cls(torch.arange(len(past), device=past.device)[:, None], positions, visible[:, None])


class _Block(nn.Module):
    def __init__(self, dim: int, inner: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.attn = _Attention(dim, heads)
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = _MLP(dim, inner)

    def forward(self, x: Tensor, cache: Tensor, places: _Places) -> Tensor:
        """x: (rows, new, dim); cache: (2, rows, heads, capacity, head_dim), written at ``places``."""
        rows, new, dim = x.shape
        qkv = self.attn.c_attn(self.ln_1(x)).reshape(rows, new, 3, self.attn.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        cache[0][places.rows, :, places.positions] = k.transpose(1, 2).to(cache.dtype)
        cache[1][places.rows, :, places.positions] = v.transpose(1, 2).to(cache.dtype)
        keys, values = cache[:, :, :, : places.visible.shape[-1]]
        h = F.scaled_dot_product_attention(q, keys, values, attn_mask=places.visible)
        x = x + self.attn.c_proj(h.transpose(1, 2).reshape(rows, new, dim))
        return x + self.mlp(self.ln_2(x))


class _GPT(nn.Module):
    def __init__(self, layers: int, dim: int, inner: int, heads: int) -> None:
        super().__init__()
        self.h = nn.ModuleList(_Block(dim, inner, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(dim)


class _Positions(nn.Module):
    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(length, dim)


class _VoiceEncoder(nn.Module):
    def __init__(self, dim: int, blocks: int, heads: int) -> None:
        super().__init__()
        self.init = nn.Conv1d(AR_MELS, dim, 1)
        self.attn = nn.Sequential(*(AttentionBlock(dim, heads) for _ in range(blocks)))

    def forward(self, mel: Tensor) -> Tensor:
        return self.attn(self.init(mel))[:, :, 0]


class UnifiedVoice(nn.Module):
    """The autoregressive network."""

    def __init__(
        self,
        *,
        dim: int,
        layers: int,
        heads: int,
        inner: int,
        voice_blocks: int,
        text_ids: int,
        text_positions: int,
        mel_codes: int,
        mel_positions: int,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.conditioning_encoder = _VoiceEncoder(dim, voice_blocks, heads)
        self.text_embedding = nn.Embedding(text_ids, dim)
        self.mel_embedding = nn.Embedding(mel_codes, dim)
        self.gpt = _GPT(layers, dim, inner, heads)
        self.mel_pos_embedding = _Positions(mel_positions, dim)
        self.text_pos_embedding = _Positions(text_positions, dim)
        self.final_norm = nn.LayerNorm(dim)
        self.text_head = nn.Linear(dim, text_ids)
        self.mel_head = nn.Linear(dim, mel_codes)

    @classmethod
    def from_weights(cls, weights: dict[str, Tensor], config: Mapping[str, Any]) -> UnifiedVoice:
        text_ids, dim = weights["text_embedding.weight"].shape[:2]
        heads = config.get("heads", dim // 64)
        if dim % heads:
            raise ValueError(f"{heads} heads cannot share {dim} channels")
        mel_codes = weights["mel_embedding.weight"].shape[0]
        for name, limit in (
            ("start_mel_token", mel_codes),
            ("stop_mel_token", mel_codes),
            ("start_text_token", text_ids),
        ):
            if config.get(name, 0) >= limit:
                raise ValueError(f"{name} is {config[name]}; the vocabulary has {limit} codes")
        return cls(
            dim=dim,
            layers=count_layers(weights, "gpt.h."),
            heads=heads,
            inner=weights["gpt.h.0.mlp.c_fc.weight"].shape[1],
            voice_blocks=count_layers(weights, "conditioning_encoder.attn."),
            text_ids=text_ids,
            text_positions=weights["text_pos_embedding.emb.weight"].shape[0],
            mel_codes=mel_codes,
            mel_positions=weights["mel_pos_embedding.emb.weight"].shape[0],
        )

    def dims(self, config: Mapping[str, Any]) -> dict[str, int]:
        codes, dim = self.mel_embedding.weight.shape
        text_ids = self.text_embedding.weight.shape[0]
        return {
            "ar.dim": dim,
            "ar.layers": len(self.gpt.h),
            "ar.heads": self.heads,
            "ar.mel_codes": codes,
            "ar.start_code": config.get("start_mel_token", codes - 2),
            "ar.stop_code": config.get("stop_mel_token", codes - 1),
            "ar.mel_positions": self.mel_pos_embedding.emb.weight.shape[0],
            "ar.text_positions": self.text_pos_embedding.emb.weight.shape[0],
            "ar.text_ids": text_ids,
            "ar.start_text": config.get("start_text_token", text_ids - 1),
        }

    def new_cache(self, rows: int, capacity: int) -> Tensor:
        """-> (layers, 2, rows, heads, capacity, head_dim) zeros."""
        dim = self.final_norm.weight.shape[0]
        return torch.zeros(
            (len(self.gpt.h), 2, rows, self.heads, capacity, dim // self.heads),
            device=self.final_norm.weight.device,
            dtype=self.final_norm.weight.dtype,
        )

    def embed(self, voice: Tensor, text_ids: Tensor, codes: Tensor, code_positions: Tensor) -> Tensor:
        """-> (rows, voices + text + codes, dim)."""
        text = self.text_embedding(text_ids) + self.text_pos_embedding.emb.weight[: text_ids.shape[1]]
        mel = self.mel_embedding(codes) + self.mel_pos_embedding.emb(code_positions)
        return torch.cat((voice, text, mel), dim=1)

    def step(
        self,
        cache: Tensor,
        past: Tensor,
        voice: Tensor,
        text_ids: Tensor,
        codes: Tensor,
        code_positions: Tensor,
        longest: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Graph ``ar_step``: extends ``cache`` in place, past: (rows,) int64 positions held.

        ``longest``: the largest of them, where it is known; to ask a device for it takes longer than a layer.
        """
        x = self.embed(voice, text_ids, codes, code_positions)
        x = self.read(cache, past, x, int(past.max()) if longest is None else longest)
        latents = self.final_norm(self.gpt.ln_f(x[:, -codes.shape[1] :]))
        return self.mel_head(latents[:, -1]), latents

    def read(self, cache: Tensor, past: Tensor, x: Tensor, longest: int) -> Tensor:
        """Extends ``cache`` by x (rows, new, dim), embedded; ``longest``: of past (rows,), or more -> (rows, new, dim)."""
        places = _Places.behind(past, longest, x.shape[1])
        for block, layer_cache in zip(self.gpt.h, cache, strict=True):
            x = block(x, layer_cache, places)
        return x

    def hidden(self, voice: Tensor, text_ids: Tensor, codes: Tensor) -> Tensor:
        """The whole sequence at once, as in training; the judge of ``step``.

        voice: (rows, dim); text_ids: (rows, text) with start and stop ids; codes: (rows, codes) with start
        and stop codes -> (rows, 1 + text + codes, dim), normed; the last ``codes`` of them are latents.
        """
        rows, new = codes.shape
        x = self.embed(
            voice[:, None], text_ids, codes, torch.arange(new, device=codes.device).expand(rows, -1)
        )
        cache = self.new_cache(rows, x.shape[1])
        past = torch.zeros(rows, dtype=torch.int64, device=codes.device)
        return self.final_norm(self.gpt.ln_f(self.read(cache, past, x, 0)))

    def forward(self, voice: Tensor, text_ids: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """As ``hidden`` -> logits of the text (rows, text, text ids) and of the codes (rows, codes, mel codes)."""
        x = self.hidden(voice, text_ids, codes)
        new = codes.shape[1]
        return self.text_head(x[:, 1:-new]), self.mel_head(x[:, -new:])
