"""Training of the diffusion decoder: latents of the autoregressive network and a voice clip to mels.

Latent j has read code j - 1, so the decoder speaks one code (46 ms) late, as the fast one does. Mels hardly vary once
latents and voice are known, so the condition also learns to give the mel by itself. The variance is not learned:
its channels say the lower bound, which is right where the mel is known.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tortoise_rt import conditioning
from tortoise_rt.diffusion import frame_index, make_schedule
from tortoise_rt.export.models.diffusion import DiffusionTts
from tortoise_rt.mel import normalize_mel
from tortoise_rt.resample import resample
from tortoise_rt.spec import CODE_RATE, HOP, MELS, SAMPLE_RATE, TRAINED_STEPS, codes_to_frames

from . import latents, loop
from .autoregressive import DIM
from .shards import CODE_SECONDS, cut
from .teacher import VOICES
from .univnet import CONTEXT, mels

STAGE = "diffusion"
CHANNELS, HEADS, LAYERS, FINAL_BLOCKS, INTEGRATOR_LAYERS = 136, 2, 4, 1, 2
STEADY = 3.0  #: strength of channels that hold still, beside noise of strength 1
SHORTEST, LONGEST = 12, 64  #: codes of a segment
FRAMES = 640  #: of a batch
DROPPED = 0.15  #: share of rows that are not conditioned
AVERAGE = 0.999  #: decay of the mean of the weights, which is what is kept
EARLY = 1.5  #: power that brings evenly drawn timesteps nearer to the clean end
HEAVIEST = 8.0  #: most weight of a timestep's error
CLIPS, CLIP_SECONDS = 24, (3.0, 8.0)  #: voice clips of every voice
DELAY = 1  #: codes between a latent and its sound
HELD_OUT = 50  #: every so many sentences one is never trained on
#: parameters that start at zero, so that a block passes its input on
STILL = (
    "proj_out.weight",
    "proj_out.bias",
    "out_layers.3.weight",
    "out_layers.3.bias",
    "relative_attention_bias.weight",
)


def build() -> DiffusionTts:
    """The network at its first step: it passes its input on, a good guess of the noise at most timesteps.

    The last GroupNorm would measure noise by its own strength, which differs from row to row, and the least error
    in the noise of a late timestep drowns the mel. So every group has channels without mel, and steady ones: they
    outweigh the noise in the group's statistics and show the mean that was taken off.
    """
    model = DiffusionTts(
        channels=CHANNELS, heads=HEADS, latent_dim=DIM, codes=1, layers=LAYERS, final_blocks=FINAL_BLOCKS,
        integrator_layers=INTEGRATOR_LAYERS, latent_blocks=1, code_blocks=0, voice_blocks=1,
    )  # fmt: skip
    norm, _, last = cast(tuple[nn.GroupNorm, nn.SiLU, nn.Conv1d], tuple(model.out))
    mel_channels, steady = _channels(norm.num_groups)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(STILL):
                parameter.zero_()
        model.unconditioned_embedding.zero_()
        model.code_norm.weight.fill_(0.1)
        first, mixed = model.inp_block, model.integrating_conv
        assert first.bias is not None and mixed.bias is not None and last.bias is not None
        first.weight.zero_()[mel_channels, torch.arange(MELS), 1] = 1
        first.bias.zero_()
        mixed.weight[:, :CHANNELS, 0] = torch.eye(CHANNELS)
        mixed.weight[:, CHANNELS:].mul_(0.1)[mel_channels, mel_channels, 0] -= 1
        model.mel_head.weight.mul_(0.1)[torch.arange(MELS), mel_channels, 1] += 1
        mixed.bias.copy_(STEADY * steady)
        norm.weight.fill_(0.5)
        norm.bias.fill_(5.0)  # where SiLU is nearly straight
        last.weight.zero_()
        groups = torch.arange(CHANNELS) // (CHANNELS // norm.num_groups)
        for mel, channel in enumerate(mel_channels.tolist()):
            beside = (groups == groups[channel]) & (steady != 0)
            spread = (beside * STEADY**2 * steady**2 + (groups == groups[channel]) * (steady == 0)).sum()
            gain = (spread * norm.num_groups / CHANNELS).sqrt() / 0.5 / 1.03
            last.weight[mel, channel, 1] = gain
            last.weight[mel, beside, 1] = -gain / beside.sum()
        last.bias.fill_(-1.0)  # of the variance: the lower bound
        last.bias[:MELS] = 0
    return model


def _channels(groups: int) -> tuple[Tensor, Tensor]:
    """(MELS,): the channel of each band, spread evenly over the groups; (CHANNELS,): signs of the rest, 0 for bands."""
    size = CHANNELS // groups
    taken = [MELS * (g + 1) // groups - MELS * g // groups for g in range(groups)]
    bands = torch.tensor([g * size + i for g, count in enumerate(taken) for i in range(count)])
    signs = torch.zeros(CHANNELS)
    for g, count in enumerate(taken):
        left = size - count
        sign = torch.tensor([1.0, -1.0]).repeat(left)[:left]
        signs[g * size + count : (g + 1) * size] = sign - sign.mean()
    return bands, signs


@dataclass
class Batch:
    """Rows of equally long segments."""

    latents: Tensor  #: (rows, codes, dim)
    mel: Tensor  #: (rows, MELS, frames) in [-1, 1]
    clips: Tensor  #: (voices, MELS, clip frames)
    voice: Tensor  #: (rows,) which of the clips
    timestep: Tensor  #: (rows,) int64
    noise: Tensor  #: like mel
    dropped: Tensor  #: (rows,) bool: not conditioned

    def to(self, device: str) -> Batch:
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


class Speech:
    """Pairs of latents and mels, and clips of the voices, for batches."""

    def __init__(self, stored: dict[str, Any], held_out: bool = False) -> None:
        self.latents: list[list[Tensor]] = []
        self.wavs: list[list[Tensor]] = []
        self.clips: list[Tensor] = []
        for voice in VOICES:
            pairs = zip(stored["latents"][voice], stored["tails"][voice], strict=True)
            latents = [torch.cat([spoken, tail]) for spoken, tail in pairs]
            chosen = [i for i in range(len(latents)) if (i % HELD_OUT == HELD_OUT - 1) == held_out]
            chosen = sorted((i for i in chosen if len(latents[i]) >= SHORTEST), key=lambda i: len(latents[i]))
            self.latents.append([latents[i] for i in chosen])
            self.wavs.append([stored["wavs"][voice][i] for i in chosen])
            self.clips.append(voice_clips(stored["wavs"][voice]))
        self.lengths = np.array([len(x) for x in self.latents[0]])

    def draw(self, rng: np.random.Generator) -> Batch:
        codes = int(rng.integers(SHORTEST, min(LONGEST, self.lengths[-1]) + 1))
        frames = codes_to_frames(codes)
        rows = max(len(VOICES), FRAMES // frames)
        possible = int(np.searchsorted(self.lengths, codes))
        latents, wavs = [], []
        voice = np.arange(rows) % len(VOICES)
        for which in voice:
            i = int(rng.integers(possible, len(self.lengths)))
            x = self.latents[which][i]
            first = int(rng.integers(0, len(x) - codes + 1))
            start = round((first - DELAY) * CODE_SECONDS * SAMPLE_RATE) - CONTEXT * HOP
            latents.append(x[first : first + codes].float())
            wavs.append(cut(self.wavs[which][i].numpy(), start, (frames + 2 * CONTEXT) * HOP))
        mel = torch.from_numpy(normalize_mel(mels(torch.stack(wavs)).numpy()))
        places = (np.arange(rows) + rng.random(rows)) / rows  # spread over the batch
        return Batch(
            latents=torch.stack(latents),
            mel=mel,
            clips=torch.stack([clips[int(rng.integers(len(clips)))] for clips in self.clips]),
            voice=torch.from_numpy(voice),
            timestep=torch.from_numpy((rng.permutation(places) ** EARLY * TRAINED_STEPS).astype(np.int64)),
            noise=torch.from_numpy(rng.standard_normal(mel.shape, np.float32)),
            dropped=torch.from_numpy(rng.random(rows) < DROPPED),
        )


def voice_clips(wavs: list[Tensor]) -> Tensor:
    """Sentences (samples,) int16 -> (CLIPS, MELS, frames) as the runtime hears clips of them."""
    rng, clips = np.random.default_rng(0), []
    for _ in range(CLIPS):
        wanted = int(rng.uniform(*CLIP_SECONDS) * SAMPLE_RATE)
        parts: list[np.ndarray] = []
        while sum(map(len, parts)) < wanted:
            parts.append(wavs[int(rng.integers(len(wavs)))].numpy().astype(np.float32) / 32767)
        clips.append(resample(np.concatenate(parts)[:wanted], SAMPLE_RATE, CODE_RATE))
    return torch.from_numpy(conditioning.diffusion_mels(clips))


class Noising:
    """The schedule that the decoder is trained on."""

    def __init__(self, device: str = "cpu") -> None:
        kept = make_schedule(TRAINED_STEPS).alphas_cumprod
        self.signal, self.noise = (torch.from_numpy(x**0.5).float().to(device) for x in (kept, 1 - kept))
        self.weight = torch.from_numpy(np.minimum(((1 - kept) / kept) ** 0.5, HEAVIEST)).float().to(device)

    def __call__(self, mel: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """The noisy mel at each row's timestep."""
        return self.signal[timestep][:, None, None] * mel + self.noise[timestep][:, None, None] * noise


def losses(model: DiffusionTts, noising: Noising, batch: Batch) -> dict[str, Tensor]:
    """-> ``noise``: weighted squared error of the noise; ``mel``: distance of the mels that conditions give.

    Conditions learn the mel as it is in the noisy one, faded, which is what the noise is found by taking off.
    """
    codes, frames = batch.latents.shape[1], batch.mel.shape[2]
    index = torch.from_numpy(frame_index(codes, frames)).to(batch.mel.device)
    voice = model.encode_voice(batch.clips)[batch.voice]
    aligned, free = model.align(batch.latents, voice, index)
    aligned = torch.where(batch.dropped[:, None, None], free, aligned)
    condition = model.condition(aligned, batch.timestep)
    heard = ~batch.dropped
    faded = noising.signal[batch.timestep[heard]][:, None, None]
    given = model.mel_head(condition[heard].transpose(1, 2))
    missed = (given - faded * batch.mel[heard]).abs() / faded.clamp(min=1 / HEAVIEST)
    found = model.denoise(noising(batch.mel, batch.noise, batch.timestep), condition, batch.timestep)
    error = (found[:, :MELS] - batch.noise).pow(2).mean((1, 2))
    return dict(
        noise=(error * noising.weight[batch.timestep]).mean(),
        mel=missed.sum() / max(1, missed.numel()),
    )


def train(work: loop.Work, steps: int = 17000) -> None:
    if work.finished(STAGE):
        return
    torch.set_num_threads(work.threads)
    torch.manual_seed(work.seed)
    stored = latents.read(work)
    learner = build().to(work.device)
    speech, unheard = Speech(stored), Speech(stored, held_out=True)
    del stored
    model = copy.deepcopy(learner).requires_grad_(False)
    noising = Noising(work.device)
    optimizer = torch.optim.AdamW(learner.parameters(), 1e-3, betas=(0.9, 0.98), weight_decay=0.0)

    def step(number: int, rng: np.random.Generator) -> dict[str, float]:
        found = losses(learner, noising, speech.draw(rng).to(work.device))
        optimizer.zero_grad()
        (found["noise"] + found["mel"]).backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        share = 1 - min(AVERAGE, (1 + number) / (10 + number))
        torch._foreach_lerp_(list(model.parameters()), list(learner.parameters()), share)
        return {name: value.item() for name, value in found.items()}

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        rng, count = np.random.default_rng(0), 24
        sums: dict[str, float] = {}
        for _ in range(count):
            for name, value in losses(model, noising, unheard.draw(rng).to(work.device)).items():
                sums[name] = sums.get(name, 0.0) + value.item() / count
        return sums

    modules = {"model": model, "learner": learner}
    loop.run(work, STAGE, step, steps, modules, [optimizer], loop.cosine(200), evaluate, evaluate_every=500)


def load(work: loop.Work) -> DiffusionTts:
    model = build()
    model.load_state_dict(work.weights(STAGE))
    return model.eval()
