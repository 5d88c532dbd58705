"""Training of the vocoder: mels of both voices, clean and as a diffusion decoder leaves them, to audio."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tortoise_rt.export.models.univnet import UnivNetGenerator
from tortoise_rt.spec import HOP, MEL_MAX, MEL_MIN, VOCODER_NOISE

from . import gan, loop, shards
from .features import vocoder_mel
from .shards import cut
from .teacher import VOICES

STAGE = "univnet"
CHANNELS, HIDDEN, STRIDES, LAYERS = 12, 16, [8, 8, 4], 4
FRAMES, ROWS = 48, 4  #: of a batch
CONTEXT = 2  #: frames whose windows reach into the next
HELD_OUT = 24  #: last sentences, never trained on
MEAN, SCALE = -6.0, 2.4  #: of log mels
ADVERSARIAL = 0.4  #: share of the steps that have a discriminator
JUDGE_CHANNELS = 16
DISTURBED = 0.5  #: share of rows whose mel is not clean
NOISE, SMOOTH = (
    0.3,
    0.25,
)  #: most noise (log magnitude) and most weight of either neighbour of a disturbed mel


def build() -> UnivNetGenerator:
    """The network at its first step; ``folded`` brings it to the official layout."""
    model = UnivNetGenerator(CHANNELS, HIDDEN, STRIDES, LAYERS)
    for name, parameter in model.named_parameters():
        if name.endswith("kernel_conv.weight"):
            nn.init.normal_(parameter, std=0.5 * (3 * HIDDEN * 3 * CHANNELS) ** -0.5)
        elif name.endswith("kernel_conv.bias"):
            nn.init.normal_(parameter, std=(3 * CHANNELS) ** -0.5)
    return model


def folded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that hear log mels with zero mean and unit deviation -> weights that hear them as they are."""
    out = dict(weights)
    for key, weight in weights.items():
        if key.endswith("input_conv.0.weight"):
            bias = key.removesuffix("weight") + "bias"
            out[key] = weight / SCALE
            out[bias] = weights[bias] - MEAN / SCALE * weight.sum((1, 2))
    return out


def speak(model: UnivNetGenerator, mel: Tensor, noise: Tensor) -> Tensor:
    """mel (rows, 100, frames), noise (rows, 64, frames) -> (rows, samples), by a network that is being trained."""
    return functional_call(model, folded(dict(model.named_parameters())), (mel, noise))


def disturbed(mel: Tensor, rng: np.random.Generator) -> Tensor:
    """(rows, 100, frames) -> some rows as a diffusion decoder might draw them: noisy, smoothed over time."""
    rows = len(mel)
    chosen = rng.random(rows) < DISTURBED
    noise, smooth = (
        torch.tensor(most * rng.random(rows) * chosen, dtype=mel.dtype)[:, None, None]
        for most in (NOISE, SMOOTH)
    )
    around = F.pad(mel, (1, 1), mode="replicate")
    mel = (1 - 2 * smooth) * mel + smooth * (around[..., :-2] + around[..., 2:])
    mel = mel + noise * torch.from_numpy(rng.standard_normal(mel.shape, np.float32))
    return mel.clamp(MEL_MIN, MEL_MAX)


def mels(wav: Tensor) -> Tensor:
    """(rows, samples with CONTEXT frames at both ends) -> (rows, 100, frames) of what is between."""
    return vocoder_mel(wav)[..., CONTEXT : -CONTEXT - 1]


def drawn_noise(rng: np.random.Generator, rows: int, frames: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal((rows, VOCODER_NOISE, frames), np.float32))


def read_wavs(work: loop.Work, shards_used: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """-> (for training, held out), both voices in turn."""
    wavs = [row["wav"][voice] for row in shards.rows(work.data, shards_used, audio=True) for voice in VOICES]
    held_out = len(VOICES) * HELD_OUT
    return wavs[:-held_out], wavs[-held_out:]


def train(work: loop.Work, steps: int = 4000, shards_used: int = 4) -> None:
    if work.finished(STAGE):
        return
    torch.set_num_threads(work.threads)
    torch.manual_seed(work.seed)
    wavs, held_out = read_wavs(work, shards_used)
    model, judge = build().to(work.device), gan.Discriminator(JUDGE_CHANNELS).to(work.device)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.8, 0.99), weight_decay=0.0)
    critic = torch.optim.AdamW(judge.parameters(), 4e-4, betas=(0.8, 0.99), weight_decay=0.0)
    samples = (FRAMES + 2 * CONTEXT) * HOP

    def step(number: int, rng: np.random.Generator) -> dict[str, float]:
        rows = []
        for i in rng.integers(len(wavs), size=ROWS):
            rows.append(
                cut(
                    wavs[i],
                    int(rng.integers(-samples // 4, max(1, len(wavs[i]) - samples * 3 // 4))),
                    samples,
                )
            )
        wav = torch.stack(rows)
        mel, noise = disturbed(mels(wav), rng), drawn_noise(rng, ROWS, FRAMES)
        real = wav[:, CONTEXT * HOP : -CONTEXT * HOP].to(work.device)
        made = speak(model, mel.to(work.device), noise.to(work.device))
        spectra = gan.spectral_loss(made, real)
        total, losses = spectra, {"spectra": spectra.item()}
        if number >= (1 - ADVERSARIAL) * steps * work.scale:
            with loop.mixed(work.device):
                judged = gan.critic_step(judge, critic, made, real)
            with loop.mixed(work.device):  # anew: the judge's weights have changed
                fooled = gan.adversarial_loss(judge, made, real)
            total = total + 0.4 * fooled
            losses |= {"judge": judged, "fooled": fooled.item()}
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return losses

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        """Over whole sentences with clean mels."""
        rng, total = np.random.default_rng(0), 0.0
        for wav in held_out:
            frames = len(wav) // HOP
            whole = cut(wav, -CONTEXT * HOP, (frames + 2 * CONTEXT) * HOP)[None]
            made = speak(model, mels(whole).to(work.device), drawn_noise(rng, 1, frames).to(work.device))
            total += gan.spectral_loss(made.cpu(), whole[:, CONTEXT * HOP : -CONTEXT * HOP]).item()
        return {"spectra": total / len(held_out)}

    modules = {"model": model, "judge": judge}
    loop.run(work, STAGE, step, steps, modules, [optimizer, critic], loop.cosine(50), evaluate)


def load(work: loop.Work) -> UnivNetGenerator:
    model = build()
    model.load_state_dict(folded(work.weights(STAGE)))
    return model.eval()
