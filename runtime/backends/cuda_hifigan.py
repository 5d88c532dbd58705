"""HiFi-GAN in few shapes: the library takes long to plan a new one, each is recorded, and pieces of streams vary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..vocoder import HIFIGAN_HALO as HALO
from ..vocoder import WINDOW

FRAMES = (32, 64, 96, 160, 272, WINDOW)  #: numbers of frames wanted; those of usual pieces lie close below
ROWS = (1, 4, 16, 32)  #: numbers of rows; beyond the last, any

#: latents (rows, dim, frames), voice (rows, dim), first and last frame wanted, which are not on the device -> (rows, samples)
Run = Callable[[Tensor, Tensor, Tensor], Tensor]


def in_few_shapes(run: Run, latents: Tensor, voice: Tensor, first: int, last: int) -> Tensor:
    """The sound of the frames from ``first`` to ``last``.

    Frames are added where the wanted ones do not see them; the clip's own ends stay its ends. A clip with both is cut.
    """
    frames, count = latents.shape[2], last - first
    padded = _next(FRAMES, count)
    if frames - last >= HALO:
        start = max(0, first - HALO)
        lead = first - start
        part = latents[..., start : start + lead + padded + HALO]
        part = F.pad(part, (0, lead + padded + HALO - part.shape[2]))
        wav = _run(run, part, voice, lead, lead + padded)
        return wav[:, : count * (wav.shape[1] // padded)]
    if first >= HALO:
        size = HALO + padded + frames - last
        part = latents[..., max(0, frames - size) :]
        part = F.pad(part, (size - part.shape[2], 0))
        wav = _run(run, part, voice, HALO, HALO + padded)
        return wav[:, (padded - count) * (wav.shape[1] // padded) :]
    middle = (first + last) // 2
    if HALO <= middle <= frames - HALO:
        parts = [in_few_shapes(run, latents, voice, *ends) for ends in ((first, middle), (middle, last))]
        return torch.cat(parts, dim=1)
    return _run(run, latents, voice, first, last)


def _run(run: Run, latents: Tensor, voice: Tensor, first: int, last: int) -> Tensor:
    """With rows of nothing for what is missing to a usual number. What it gives is the caller's."""
    rows = len(latents)
    more = _next(ROWS, rows) - rows
    latents, voice = F.pad(latents, (0, 0, 0, 0, 0, more)), F.pad(voice, (0, 0, 0, more))
    return run(latents, voice, torch.tensor([first, last]))[:rows].clone()


def _next(sizes: Sequence[int], count: int) -> int:
    """The first of ``sizes`` that ``count`` fits into; itself where none is."""
    return next((size for size in sizes if size >= count), count)
