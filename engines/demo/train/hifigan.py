"""Training of the fast decoder: first from code vectors, then from latents, at last against a discriminator.

Latent j has read code j - 1, so the decoder speaks one code (46 ms) late; every sentence ends in silence, nothing is lost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tortoise_rt.export.models.hifigan import HifiganGenerator
from tortoise_rt.spec import CODE_RATE, HOP, SAMPLE_RATE, codes_to_frames

from . import gan, latents, loop, shards, vqvae
from .autoregressive import DIM, codebook
from .shards import CODE_SECONDS
from .teacher import VOICES

CODES_STAGE, STAGE = "hifigan_codes", "hifigan"
SEGMENT, ROWS = 12, 4  #: codes, and rows of a batch
CHANNELS = 128
UPSAMPLE_FACTORS, BLOCK_DILATIONS = [8, 8, 2, 2], [[1, 3, 5], [1, 3, 5]]
ADVERSARIAL = 0.5  #: share of the steps on latents that have a discriminator


def build(in_dim: int) -> HifiganGenerator:
    model = HifiganGenerator(
        in_dim=in_dim, voice_dim=DIM, channels=CHANNELS, upsample_kernels=[16, 16, 4, 4],
        upsample_factors=UPSAMPLE_FACTORS, block_kernels=[3, 7], block_dilations=BLOCK_DILATIONS,
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if name.startswith(("ups.", "resblocks.", "conv_post.")) and parameter.ndim == 3:
            nn.init.normal_(parameter, std=0.01 if name.startswith("ups.") else 0.02)
    return model


def upsampled(x: Tensor) -> Tensor:
    """(rows, codes, dim) -> (rows, dim, frames), as the runtime does it."""
    fine = F.interpolate(x.transpose(1, 2), scale_factor=4.0, mode="linear")
    return F.interpolate(fine, scale_factor=SAMPLE_RATE / CODE_RATE, mode="linear")


class _Speech:
    """Pairs of decoder input and audio, which comes ``delay`` codes later, for batches."""

    def __init__(
        self,
        inputs: dict[str, list[Tensor]],
        wavs: dict[str, list[Any]],
        voices: dict[str, Tensor],
        delay: int,
    ) -> None:
        self.inputs, self.wavs, self.voices, self.delay = inputs, wavs, voices, delay
        self.names = list(inputs)

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """-> inputs (rows, SEGMENT, dim), voice (rows, dim), audio (rows, samples)."""
        xs: list[Tensor] = []
        voices: list[Tensor] = []
        wavs: list[Tensor] = []
        while len(xs) < ROWS:
            name = self.names[len(xs) % len(self.names)]
            i = int(rng.integers(len(self.inputs[name])))
            x = self.inputs[name][i]
            if len(x) < SEGMENT:
                continue
            first = int(rng.integers(0, len(x) - SEGMENT + 1))
            xs.append(x[first : first + SEGMENT].float())
            start = round((first - self.delay) * CODE_SECONDS * SAMPLE_RATE)
            wavs.append(shards.cut(np.asarray(self.wavs[name][i]), start, codes_to_frames(SEGMENT) * HOP))
            voices.append(self.voices[name][int(rng.integers(len(self.voices[name])))])
        return torch.stack(xs), torch.stack(voices), torch.stack(wavs)


def train_on_codes(work: loop.Work, steps: int = 7000, shards_used: int = 4) -> None:
    """From the VQ-VAE's code vectors, which are there long before latents are."""
    source = vqvae.fingerprint(work)
    if work.finished(CODES_STAGE, source):
        return
    torch.set_num_threads(work.threads)
    torch.manual_seed(work.seed)
    vectors, _ = codebook(work)
    codes = vqvae.read_codes(work)
    wavs: dict[str, list[Any]] = {voice: [] for voice in VOICES}
    inputs: list[Tensor] = []
    for path in shards.paths(work.data)[:shards_used]:
        for row, found in zip(shards.read(path), codes[path.name], strict=True):
            inputs.append(vectors[found.long()])
            for voice in VOICES:
                wavs[voice].append(row["wav"][voice])
    speech = _Speech(dict.fromkeys(VOICES, inputs), wavs, stand_ins(), delay=0)
    model = build(vectors.shape[1]).to(work.device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.8, 0.99), weight_decay=0.0)

    def step(number: int, rng: np.random.Generator) -> dict[str, float]:
        x, voice, wav = (t.to(work.device) for t in speech.draw(rng))
        loss = gan.spectral_loss(model(upsampled(x), voice), wav)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return {"spectra": loss.item()}

    schedule = loop.cosine(50, 0.2)
    loop.run(work, CODES_STAGE, step, steps, {"model": model}, [optimizer], schedule, source=source)


def stand_ins() -> dict[str, Tensor]:
    """Fixed vectors for the voices while their latents are not known: (1, dim) each."""
    generator = torch.Generator().manual_seed(0)
    return {voice: torch.randn(1, DIM, generator=generator) for voice in VOICES}


def fold_voices(weights: dict[str, Tensor], old: dict[str, Tensor], new: dict[str, Tensor]) -> None:
    """Let the new voice latents do what the old ones did: the smallest such layer."""
    wanted = torch.stack([weights["cond_layer.weight"][..., 0] @ old[voice].mean(0) for voice in VOICES], 1)
    latents = torch.stack([new[voice].mean(0) for voice in VOICES], 1)
    centre = latents.mean(1, keepdim=True)  # only the difference tells voices apart
    layer = (wanted - wanted.mean(1, keepdim=True)) @ torch.linalg.pinv(latents - centre)
    weights["cond_layer.bias"] = weights["cond_layer.bias"] + wanted.mean(1) - layer @ centre[:, 0]
    weights["cond_layer.weight"] = layer[..., None]


def train(work: loop.Work, steps: int = 8000) -> None:
    """From latents. The start is the decoder of codes behind a linear map from latents to code vectors."""
    source = latents.network(work)
    if work.finished(STAGE, source):
        return
    torch.set_num_threads(work.threads)
    torch.manual_seed(work.seed)
    stored = latents.read(work)
    model, judge = build(DIM), gan.Discriminator()
    if not work.state(STAGE).exists():
        model.load_state_dict(_first_weights(work, stored))
    model, judge = model.to(work.device), judge.to(work.device)
    speech = _Speech(stored["latents"], stored["wavs"], stored["voices"], delay=1)
    slow = [p for n, p in model.named_parameters() if n.startswith(("conv_pre.", "cond_layer."))]
    chosen = {id(p) for p in slow}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups = [
        dict(params=rest, lr=5e-4),
        dict(params=slow, lr=1e-4),
    ]  # faster ones would undo the folded start
    optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.99), weight_decay=0.0)
    critic = torch.optim.AdamW(judge.parameters(), 4e-4, betas=(0.8, 0.99), weight_decay=0.0)

    def step(number: int, rng: np.random.Generator) -> dict[str, float]:
        x, voice, wav = (t.to(work.device) for t in speech.draw(rng))
        made = model(upsampled(x), voice)
        spectra = gan.spectral_loss(made, wav)
        total, losses = spectra, {"spectra": spectra.item()}
        if number >= (1 - ADVERSARIAL) * steps * work.scale:
            judged = gan.critic_step(judge, critic, made, wav)
            fooled = gan.adversarial_loss(judge, made, wav)
            total = total + 0.4 * fooled
            losses |= {"judge": judged, "fooled": fooled.item()}
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return losses

    modules = {"model": model, "judge": judge}
    loop.run(work, STAGE, step, steps, modules, [optimizer, critic], loop.cosine(50), source=source)


def _first_weights(work: loop.Work, stored: dict[str, Any]) -> dict[str, Tensor]:
    weights = work.weights(CODES_STAGE)
    latents.fold_input(weights, "conv_pre", *latents.to_read_vectors(work, stored))
    fold_voices(weights, stand_ins(), stored["voices"])
    return weights


def load(work: loop.Work) -> HifiganGenerator:
    model = build(DIM)
    model.load_state_dict(work.weights(STAGE))
    return model.eval()
