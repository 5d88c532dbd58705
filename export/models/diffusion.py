"""The diffusion decoder: latents of the autoregressive network -> mel spectrogram, step by step."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tortoise_rt.spec import MELS

from .layers import AttentionBlock, count_layers, group_norm

MAX_PERIOD = 10000.0


@functools.cache
def timestep_frequencies(half: int, device: torch.device | str = "cpu") -> Tensor:
    """(half,) float32, computed on the CPU as in the reference: a last bit turns an angle by 2e-4 at step 4000."""
    steps = torch.arange(half, dtype=torch.float32, device="cpu")
    return torch.exp(-math.log(MAX_PERIOD) * steps / half).to(device)


def timestep_embedding(timestep: Tensor, dim: int) -> Tensor:
    """Sinusoids of the timestep: (rows,) -> (rows, dim), cosines first."""
    angles = timestep.float()[:, None] * timestep_frequencies(dim // 2, timestep.device)
    return F.pad(torch.cat((angles.cos(), angles.sin()), dim=-1), (0, dim % 2))


class _ResBlock(nn.Module):
    """1-tap then 3-tap convolution; the time embedding scales and shifts the second norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv1d(channels, channels, 1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(channels, 2 * channels))
        # Index 2 is a dropout in the official layout.
        self.out_layers = nn.Sequential(
            group_norm(channels), nn.SiLU(), nn.Identity(), nn.Conv1d(channels, channels, 3, padding=1)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.emb_layers(time)[..., None].chunk(2, dim=1)
        h = self.out_layers[0](self.in_layers(x)) * (1 + scale) + shift
        return x + self.out_layers[1:](h)


class _Layer(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.resblk = _ResBlock(channels)
        self.attn = AttentionBlock(channels, heads, relative=True)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.attn(self.resblk(x, time))


class DiffusionTts(nn.Module):
    """The denoiser and what prepares its conditioning. Inner layout is (rows, channels, frames)."""

    def __init__(
        self,
        *,
        channels: int,
        heads: int,
        latent_dim: int,
        codes: int,
        layers: int,
        final_blocks: int,
        integrator_layers: int,
        latent_blocks: int,
        code_blocks: int,
        voice_blocks: int,
    ) -> None:
        super().__init__()
        self.channels, self.heads, self.latent_dim = channels, heads, latent_dim
        attention = [
            AttentionBlock(channels, heads, relative=True) for _ in range(latent_blocks + code_blocks)
        ]
        self.unconditioned_embedding = nn.Parameter(torch.empty(1, channels, 1))
        self.inp_block = nn.Conv1d(MELS, channels, 3, padding=1)
        self.time_embed = nn.Sequential(
            nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, channels)
        )
        self.code_embedding = nn.Embedding(codes, channels)
        self.code_converter = nn.Sequential(*attention[:code_blocks])
        self.code_norm = group_norm(channels)
        self.latent_conditioner = nn.Sequential(
            nn.Conv1d(latent_dim, channels, 3, padding=1), *attention[code_blocks:]
        )
        self.contextual_embedder = nn.Sequential(
            nn.Conv1d(MELS, channels, 3, padding=1, stride=2),
            nn.Conv1d(channels, 2 * channels, 3, padding=1, stride=2),
            *(AttentionBlock(2 * channels, heads, relative=True) for _ in range(voice_blocks)),
        )
        self.conditioning_timestep_integrator = nn.ModuleList(
            _Layer(channels, heads) for _ in range(integrator_layers)
        )
        self.integrating_conv = nn.Conv1d(2 * channels, channels, 1)
        self.mel_head = nn.Conv1d(channels, MELS, 3, padding=1)
        self.layers = nn.ModuleList(
            [_Layer(channels, heads) for _ in range(layers)]
            + [_ResBlock(channels) for _ in range(final_blocks)]
        )
        self.out = nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv1d(channels, 2 * MELS, 3, padding=1))

    @classmethod
    def from_weights(cls, weights: dict[str, Tensor], config: Mapping[str, Any]) -> DiffusionTts:
        total = count_layers(weights, "layers.")
        layers = sum(f"layers.{i}.resblk.in_layers.0.weight" in weights for i in range(total))
        bias = weights["latent_conditioner.1.relative_pos_embeddings.relative_attention_bias.weight"]
        return cls(
            channels=weights["inp_block.weight"].shape[0],
            heads=bias.shape[1],
            latent_dim=weights["latent_conditioner.0.weight"].shape[1],
            codes=weights["code_embedding.weight"].shape[0],
            layers=layers,
            final_blocks=total - layers,
            integrator_layers=count_layers(weights, "conditioning_timestep_integrator."),
            latent_blocks=count_layers(weights, "latent_conditioner.") - 1,
            code_blocks=count_layers(weights, "code_converter."),
            voice_blocks=count_layers(weights, "contextual_embedder.") - 2,
        )

    def dims(self, config: Mapping[str, Any]) -> dict[str, int]:
        return {
            "diffusion.dim": self.channels,
            "diffusion.latent_dim": self.latent_dim,
            "diffusion.voice_dim": 2 * self.channels,
            "diffusion.layers": len(self.layers),
            "diffusion.heads": self.heads,
        }

    def encode_voice(self, mel: Tensor) -> Tensor:
        """Graph ``diffusion_voice``: (clips, MELS, frames) -> (clips, 2 * channels)."""
        return self.contextual_embedder(mel).mean(dim=-1)

    def align(self, latents: Tensor, voice: Tensor, frame_index: Tensor) -> tuple[Tensor, Tensor]:
        """Graph ``diffusion_align``."""
        return self._align(self.latent_conditioner(latents.transpose(1, 2)), voice, frame_index)

    def align_codes(self, codes: Tensor, voice: Tensor, frame_index: Tensor) -> tuple[Tensor, Tensor]:
        """As ``align``, from codes (rows, codes) instead of latents; a path the reference trains but never runs."""
        embedded = self.code_embedding(codes).transpose(1, 2)
        return self._align(self.code_converter(embedded), voice, frame_index)

    def _align(self, x: Tensor, voice: Tensor, frame_index: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = voice[..., None].chunk(2, dim=1)
        aligned = self.code_norm(x) * (1 + scale) + shift
        return aligned[:, :, frame_index].transpose(1, 2), self.unconditioned_embedding[0, :, 0]

    def embed_time(self, timestep: Tensor) -> Tensor:
        """(rows,) -> (rows, channels)."""
        sinusoids = timestep_embedding(timestep, self.channels)
        return self.time_embed(sinusoids.to(self.unconditioned_embedding.dtype))

    def condition(self, aligned: Tensor, timestep: Tensor) -> Tensor:
        """Graph ``diffusion_condition``."""
        x, time = aligned.transpose(1, 2), self.embed_time(timestep)
        for layer in self.conditioning_timestep_integrator:
            x = layer(x, time)
        return x.transpose(1, 2)

    def denoise(self, x: Tensor, condition: Tensor, timestep: Tensor) -> Tensor:
        """Graph ``diffusion_denoise``."""
        time = self.embed_time(timestep)
        h = self.integrating_conv(torch.cat((self.inp_block(x), condition.transpose(1, 2)), dim=1))
        for layer in self.layers:
            h = layer(h, time)
        return self.out(h)
