"""Latents of the trained autoregressive network over the spoken corpus: what the decoders learn to speak from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tortoise_rt.spec import CALM_TOKEN

from . import autoregressive, loop, shards
from .autoregressive import VoiceClips, codebook, collate, disturbed, hidden
from .examples import Example, prepare
from .teacher import VOICES

CLIPS = 16  #: voice latents kept of every voice
DISTURBED = 0.33  #: share of sentences read with some codes replaced, as sampled ones are
ROWS = 24  #: sentences at a time
TAIL = 8  #: codes of silence that the runtime puts behind a sentence for the diffusion decoder
RIDGE = 1e-4


@torch.no_grad()
def make(work: loop.Work, sentences: int = 6000) -> None:
    """-> latents.pt, made anew whenever the autoregressive network has moved on; in one piece, some minutes.

    ``network``: the ``digest`` of the autoregressive network;
    ``voices``: voice -> (16, dim) latents of its clips; ``latents``: voice -> per sentence (codes, dim) half;
    ``tails``: the same of the TAIL codes behind; ``wavs``: voice -> per sentence int16; ``codes``; ``places``:
    per sentence its shard and its row there.
    """
    path = work.folder / "latents.pt"
    mine = network(work)
    if path.exists() and torch.load(path, weights_only=True, mmap=True).get("network") == mine:
        return
    torch.set_num_threads(work.threads)
    model = autoregressive.load(work).to(work.device)
    _, near = codebook(work)
    clips, rng = VoiceClips(work), np.random.default_rng(work.seed)
    voices = {
        voice: model.conditioning_encoder(
            torch.stack([clips.draw(voice, rng) for _ in range(CLIPS)]).to(work.device)
        ).cpu()
        for voice in VOICES
    }
    wavs: dict[tuple[int, int], dict[str, np.ndarray]] = {}
    for number, shard in enumerate(shards.paths(work.data)):
        rows = shards.read(shard)
        if "wav" not in rows[0] or len(wavs) >= sentences:
            break
        wavs |= {(number, index): row["wav"] for index, row in enumerate(rows)}
    chosen = sorted((e for e in prepare(work) if (e.shard, e.row) in wavs), key=len)
    made: dict[str, Any] = dict(
        network=mine,
        voices=voices,
        latents={v: [] for v in VOICES},
        tails={v: [] for v in VOICES},
        wavs={v: [] for v in VOICES},
        codes=[],
        places=[(e.shard, e.row) for e in chosen],
    )
    for first in range(0, len(chosen), ROWS):
        part = chosen[first : first + ROWS]
        codes = [
            disturbed(e.codes, near[:, :4], rng, 0.1, 0.0) if rng.random() < DISTURBED else e.codes
            for e in part
        ]
        longer = [np.append(c, np.full(TAIL, CALM_TOKEN)) for c in codes]
        batch = collate([_with_tail(e) for e in part], longer).to(work.device)
        for voice in VOICES:
            found = _latents(model, batch, voices[voice][int(rng.integers(CLIPS))][None].to(work.device))
            made["latents"][voice] += [x[:-TAIL].clone() for x in found]
            made["tails"][voice] += [x[-TAIL:].clone() for x in found]
            made["wavs"][voice] += [torch.from_numpy(wavs[e.shard, e.row][voice]) for e in part]
        made["codes"] += [torch.from_numpy(c).short() for c in codes]
        if first // ROWS % 50 == 0:
            print(f"latents {first}/{len(chosen)}", flush=True)
    loop.save(made, path)


def network(work: loop.Work) -> str:
    """Tells what latents mean: the ``digest`` of the autoregressive network."""
    weights = work.weights(autoregressive.STAGE)
    return loop.digest(*(weights[key] for key in sorted(weights)))


def read(work: loop.Work) -> dict[str, Any]:
    """What ``make`` wrote; refused where it is of another autoregressive network than the folder has now."""
    path = work.folder / "latents.pt"
    stored: dict[str, Any] = torch.load(path, weights_only=True)
    mine = network(work)
    if stored.get("network", mine) != mine:  # not in files of earlier versions
        raise loop.Mismatch(
            f"{path} is of another autoregressive network than {work.folder} has now: run the stage latents"
        )
    return stored


def _latents(model: torch.nn.Module, batch: autoregressive.Batch, voice: Tensor) -> list[Tensor]:
    x, _ = hidden(model, batch, voice)  # type: ignore[arg-type]
    return [row[mask][:-1].half().cpu() for row, mask in zip(x, batch.is_code, strict=True)]


def _with_tail(example: Example) -> Example:
    """The sentence with TAIL more codes of silence."""
    return replace(
        example,
        codes=np.append(example.codes, np.full(TAIL, CALM_TOKEN)),
        reading=np.append(example.reading, np.repeat(example.reading[-1:], TAIL)),
        phonemes=np.concatenate([example.phonemes, np.repeat(example.phonemes[-1:], TAIL, 0)]),
    )


def linear_map(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, float]:
    """Least squares: (n, a), (n, b) -> matrix (a, b), offset (b,), and the share of the variance it misses."""
    ones = torch.cat([source.double(), torch.ones(len(source), 1, dtype=torch.double)], 1)
    gram = ones.T @ ones + RIDGE * len(source) * torch.eye(ones.shape[1], dtype=torch.double)
    solution = torch.linalg.solve(gram, ones.T @ target.double())
    missed = (ones @ solution - target).pow(2).mean() / target.double().var()
    return solution[:-1].float(), solution[-1].float(), float(missed)


def read_vectors(codes: Tensor, vectors: Tensor) -> Tensor:
    """(codes,) -> (codes, dim): the vector of the code that each latent has read last; silence for the first."""
    return vectors[torch.cat([torch.tensor([CALM_TOKEN]), codes[:-1].long()])]


def to_read_vectors(work: loop.Work, stored: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """A linear map, matrix and offset, from latents to what decoders of codes take: see ``read_vectors``."""
    vectors, _ = codebook(work)
    target = torch.cat([read_vectors(codes, vectors) for codes in stored["codes"][::10]])
    source = [torch.cat(stored["latents"][voice][::10]).float() for voice in VOICES]
    matrix, offset, missed = linear_map(torch.cat(source), target.repeat(len(source), 1))
    print(f"a linear map from latents misses {missed:.1%} of the code vectors' variance", flush=True)
    return matrix, offset


def fold_input(weights: dict[str, Tensor], layer: str, matrix: Tensor, offset: Tensor) -> None:
    """Put a linear map before a convolution into the convolution's weights."""
    kernel = weights[f"{layer}.weight"]
    weights[f"{layer}.bias"] = weights[f"{layer}.bias"] + torch.einsum("ock,c->o", kernel, offset)
    weights[f"{layer}.weight"] = torch.einsum("ock,dc->odk", kernel, matrix)
