"""Many positions of one row at a time on a CUDA device: a prompt, or the codes whose latents are wanted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tortoise_rt.export.models.autoregressive import UnifiedVoice

from ..engine import KVCache
from ..spec import Dims
from .cuda_graphs import Replays

NEW, TOTAL = 32, 128  #: numbers of positions, new and in all, are multiples: of few shapes, each is recorded


class Reader:
    """Positions are padded behind the row's last, which nothing sees. Works in a cache of its own. Not for several threads."""

    def __init__(self, model: UnifiedVoice, replays: Replays, dims: Dims) -> None:
        self._model, self._replays = model, replays
        longest = 1 + dims["ar.text_positions"] + dims["ar.mel_positions"]
        self._held = model.new_cache(1, _multiple(longest + NEW, TOTAL))

    def read(
        self, cache: KVCache, voice: Tensor, text_ids: Tensor, codes: Tensor, code_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As ``UnifiedVoice.step``, for a cache of one row."""
        model, held, past = self._model, self._held, int(cache.lengths[0])
        x = model.embed(voice, text_ids, codes, code_positions)
        end = past + x.shape[1]
        new = _multiple(x.shape[1], NEW)
        total = _multiple(past + new, TOTAL) if past else new
        held[..., :past, :] = cache.state[..., :past, :]
        held[..., end:total, :] = 0  # attention weighs it with 0, and 0 * NaN is NaN
        given = F.pad(x, (0, 0, 0, new - x.shape[1])), torch.tensor([past], device=x.device)
        (x,) = self._replays(
            f"read to {total}", lambda x, past: (model.read(held, past, x, total - new),), given
        )
        cache.state[..., past:end, :] = held[..., past:end, :]
        latents = model.final_norm(model.gpt.ln_f(x[:, end - past - codes.shape[1] : end - past]))
        return model.mel_head(latents[:, -1]), latents


def _multiple(count: int, of: int) -> int:
    return -(-count // of) * of
