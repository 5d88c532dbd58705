"""CLVP (text against codes) and CVVP (voice against codes)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tortoise_rt.spec import AR_MELS

from .layers import AttentionBlock, RotaryEncoder, encoder_shape


class _Encoder(nn.Module):
    """Adds the ``transformer.`` level of CLVP's keys."""

    def __init__(self, **shape: int) -> None:
        super().__init__()
        self.transformer = RotaryEncoder(**shape, wrapped=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer(x)


class CLVP(nn.Module):
    """Contrastive language-voice model. Scores are scale * cosine of the two latents."""

    def __init__(
        self, text_ids: int, codes: int, latent_dim: int, text: Mapping[str, int], speech: Mapping[str, int]
    ) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.text_emb = nn.Embedding(text_ids, text["dim"])
        self.to_text_latent = nn.Linear(text["dim"], latent_dim, bias=False)
        self.speech_emb = nn.Embedding(codes, speech["dim"])
        self.to_speech_latent = nn.Linear(speech["dim"], latent_dim, bias=False)
        self.text_transformer = _Encoder(**text)
        self.speech_transformer = _Encoder(**speech)
        self.heads = (text["heads"], speech["heads"])

    @classmethod
    def from_weights(cls, weights: dict[str, Tensor], config: Mapping[str, Any]) -> CLVP:
        return cls(
            text_ids=weights["text_emb.weight"].shape[0],
            codes=weights["speech_emb.weight"].shape[0],
            latent_dim=weights["to_text_latent.weight"].shape[0],
            text=encoder_shape(weights, "text_transformer.transformer.", "wrap."),
            speech=encoder_shape(weights, "speech_transformer.transformer.", "wrap."),
        )

    def dims(self, config: Mapping[str, Any]) -> dict[str, int]:
        return {
            "clvp.latent_dim": self.to_text_latent.weight.shape[0],
            "clvp.text_ids": self.text_emb.weight.shape[0],
            "clvp.codes": self.speech_emb.weight.shape[0],
            "clvp.text_heads": self.heads[0],
            "clvp.speech_heads": self.heads[1],
        }

    def encode_text(self, text_ids: Tensor) -> Tensor:
        """Graph ``clvp_text``, first output: (rows, text) -> (rows, latent_dim), not normalised."""
        return self.to_text_latent(self.text_transformer(self.text_emb(text_ids)).mean(dim=1))

    def encode_speech(self, codes: Tensor) -> Tensor:
        """Graph ``clvp_speech``: (rows, codes) -> (rows, latent_dim), not normalised."""
        return self.to_speech_latent(self.speech_transformer(self.speech_emb(codes)).mean(dim=1))


class _CollapsingEncoder(nn.Module):
    """Encodes a sequence and averages it over time: (rows, time, dim) -> (rows, out_dim)."""

    def __init__(self, dim: int, out_dim: int, depth: int, heads: int, inner: int) -> None:
        super().__init__()
        self.transformer = RotaryEncoder(dim, depth, heads, inner)
        self.pre_combiner = nn.Sequential(
            nn.Conv1d(dim, out_dim, 1), AttentionBlock(out_dim, heads), nn.Conv1d(out_dim, out_dim, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.pre_combiner(self.transformer(x).transpose(1, 2)).mean(dim=2)


class _CodeEmbedding(nn.Module):
    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(codes, dim)


class CVVP(nn.Module):
    """Contrastive voice-voice model. Scores are scale * cosine of the two latents."""

    def __init__(
        self, codes: int, latent_dim: int, voice: Mapping[str, int], speech: Mapping[str, int]
    ) -> None:
        super().__init__()
        dim = voice["dim"]
        self.heads = voice["heads"]
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.cond_emb = nn.Sequential(
            nn.Conv1d(AR_MELS, dim // 2, 5, stride=2, padding=2),
            nn.Conv1d(dim // 2, dim, 3, stride=2, padding=1),
        )
        self.conditioning_transformer = _CollapsingEncoder(out_dim=dim, **voice)
        self.to_conditioning_latent = nn.Linear(dim, latent_dim, bias=False)
        self.speech_emb = _CodeEmbedding(codes, dim)
        self.speech_transformer = _CollapsingEncoder(out_dim=latent_dim, **speech)
        self.to_speech_latent = nn.Linear(latent_dim, latent_dim, bias=False)

    @classmethod
    def from_weights(cls, weights: dict[str, Tensor], config: Mapping[str, Any]) -> CVVP:
        return cls(
            codes=weights["speech_emb.emb.weight"].shape[0],
            latent_dim=weights["to_speech_latent.weight"].shape[0],
            voice=encoder_shape(weights, "conditioning_transformer.transformer."),
            speech=encoder_shape(weights, "speech_transformer.transformer."),
        )

    def dims(self, config: Mapping[str, Any]) -> dict[str, int]:
        return {
            "cvvp.latent_dim": self.to_speech_latent.weight.shape[0],
            "cvvp.codes": self.speech_emb.emb.weight.shape[0],
            "cvvp.heads": self.heads,
        }

    def encode_voice(self, mel: Tensor) -> Tensor:
        """Graph ``cvvp_voice``, first output: (clips, AR_MELS, frames) -> (clips, latent_dim), not normalised."""
        return self.to_conditioning_latent(self.conditioning_transformer(self.cond_emb(mel).transpose(1, 2)))

    def encode_speech(self, codes: Tensor) -> Tensor:
        """Graph ``cvvp_speech``: (rows, codes) -> (rows, latent_dim), not normalised."""
        return self.to_speech_latent(self.speech_transformer(self.speech_emb.emb(codes)))
