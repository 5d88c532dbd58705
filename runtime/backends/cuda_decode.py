"""One decoding step of the autoregressive network on a CUDA device, as one graph of a few fused kernels per layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tortoise_rt.export.models.autoregressive import UnifiedVoice

from ..engine import Array, KVCache
from ..kernels.ahead import DRAWS_AHEAD, FEW, SETTINGS, STEPS, write_drawings
from ..kernels.decode_attention import STATE, cache_state, decode_attention
from ..kernels.draw_codes import draw_codes
from ..kernels.rows_linear import WIDEST_NORM, rows_linear
from ..sampling import NOTHING, Drawing
from .cuda_graphs import Recorder

MOST_GRAPHS = 32  #: kept, each for a number of rows, with drawing or without
MOST_FUSED = (
    16  #: rows that the fused kernels take; at 32 they were 7 % faster than the library, not tried beyond
)


class Decoder:
    """Steps of one code per row. The weights' order in memory is changed; the module goes on working.

    A graph is captured once for each number of rows and serves every cache: where its rows lie, and how long they are,
    is data. Not for several threads at a time. ``start`` and ``stop``: codes that drawing heeds.
    """

    def __init__(self, model: UnifiedVoice, stream: torch.cuda.Stream, start: int, stop: int) -> None:
        self._model, self._stream, self._ends = model, stream, (start, stop)
        self._steps: OrderedDict[tuple[int, bool], tuple[Any, torch.cuda.CUDAGraph]] = OrderedDict()
        self._recorder = Recorder(stream)
        lay_out(model)

    @staticmethod
    def suits(dim: int) -> bool:
        """Whether the kernels can do a network of so many channels."""
        return dim <= WIDEST_NORM

    def step(self, cache: KVCache, codes: Array, positions: Array) -> tuple[Array, Array]:
        """codes, positions: (rows, 1) int64 -> logits (rows, vocabulary), latents (rows, 1, dim) float32."""
        step, graph = self._captured(_padded(cache.rows), cache.state, draws=False)
        step.write(cache, codes, positions)
        graph.replay()
        (found,) = self._fetch(step.out[: cache.rows])
        # Logits are dropped soon; a latent may be kept, and would keep all of it pinned.
        return found[:, : step.vocabulary], found[:, None, step.vocabulary :].copy()

    def draw(
        self, cache: KVCache, codes: Array, positions: Array, drawings: Sequence[Drawing | None]
    ) -> tuple[Array, Array]:
        """As ``Engine.ar_draw``: steps follow each other without the host."""
        step, graph = self._captured(_padded(cache.rows), cache.state, draws=True)
        step.write(cache, codes, positions, drawings)
        count = min(DRAWS_AHEAD, max(len(drawing.uniforms) for drawing in drawings if drawing is not None))
        for _ in range(count):
            graph.replay()
        drawn, latents = self._fetch(step.drawn[: cache.rows, :count], step.latents[: cache.rows, :count])
        return drawn.copy(), latents.copy()

    def _fetch(self, *tensors: Tensor) -> list[Array]:
        """What the host waits for, in pinned memory, which is not for keeping."""
        held = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        for to, tensor in zip(held, tensors, strict=True):
            to.copy_(tensor.contiguous(), non_blocking=True)
        self._stream.synchronize()
        return [tensor.numpy() for tensor in held]

    def _captured(self, rows: int, like: Tensor, draws: bool) -> tuple[Any, torch.cuda.CUDAGraph]:
        key = rows, draws
        if key not in self._steps:
            if len(self._steps) == MOST_GRAPHS:
                self._steps.popitem(last=False)
            step = (
                DrawingStep(self._model, rows, like, *self._ends) if draws else Step(self._model, rows, like)
            )
            step.run()  # compiles the kernels; no row is live yet
            graph, _ = self._recorder.record(step.run)
            self._steps[key] = step, graph
        self._steps.move_to_end(key)
        return self._steps[key]


@torch.inference_mode(False)
def lay_out(model: UnifiedVoice) -> None:
    """Put the weights into the order in memory that the kernels read; the module does not notice."""
    blocks: Any = model.gpt.h
    for block in blocks:
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            layer.weight.data = layer.weight.t().contiguous().t()


def _padded(rows: int) -> int:
    """A power of two up to 16, from there on a multiple of 16."""
    return 1 << (rows - 1).bit_length() if rows <= 16 else -(-rows // 16) * 16


class Step:
    """A step of so many rows in buffers of its own; ``like``: a tensor of the caches' device and type."""

    def __init__(self, model: UnifiedVoice, rows: int, like: Tensor) -> None:
        self._model, self._rows = model, rows
        device, dtype = like.device, like.dtype
        self._anchor = torch.empty(1, device=device, dtype=dtype)
        dim = model.final_norm.weight.shape[0]
        self.vocabulary = model.mel_head.weight.shape[0]
        self._given = torch.zeros(STATE + STEPS * rows, dtype=torch.int64, pin_memory=like.is_cuda)
        self._given[STATE : STATE + rows] = -1
        self._taken = self._given.to(device)
        self._steps = self._taken[STATE:].reshape(STEPS, rows)
        self.out = torch.zeros((rows, self.vocabulary + dim), device=device)  #: logits, then latents
        self._norms = [
            (norm.weight.float(), norm.bias.float()) for norm in (model.gpt.ln_f, model.final_norm)
        ]

    def write(self, cache: KVCache, codes: Array, positions: Array, most: Array | None = None) -> None:
        """Send what the next run works on: the last one must be done. ``most``: codes that a row draws, 0: not live."""
        given = self._given.numpy()
        given[:STATE] = cache_state(cache.state, self._anchor)
        steps = given[STATE:].reshape(STEPS, self._rows)
        steps[:], steps[0] = 0, -1
        steps[0, : cache.rows] = cache.lengths if most is None else np.where(most > 0, cache.lengths, -1)
        steps[1, : cache.rows], steps[2, : cache.rows] = codes[:, 0], positions[:, 0]
        steps[4, : cache.rows] = 0 if most is None else most
        self._taken.copy_(self._given, non_blocking=True)

    def run(self) -> None:
        """The step, as it is captured."""
        model, rows = self._model, self._rows
        state, (lengths, codes, positions, _, _) = self._taken[:STATE], self._steps
        x = model.mel_embedding(codes) + model.mel_pos_embedding.emb(positions)
        linear = _library if rows > MOST_FUSED else _fused
        x = x if rows > MOST_FUSED else x.float()
        heads = torch.empty((rows, x.shape[1]), device=x.device, dtype=self._anchor.dtype)
        blocks: Any = model.gpt.h
        for number, block in enumerate(blocks):
            qkv = linear(x, block.attn.c_attn, norm=block.ln_1)
            decode_attention(qkv, state, lengths, number, self._anchor, model.heads, heads)
            x = linear(heads, block.attn.c_proj, add=x)
            inner = linear(x, block.mlp.c_fc, norm=block.ln_2, gelu=True)
            x = linear(inner, block.mlp.c_proj, add=x)
        latents = x.float()
        for weight, bias in self._norms:
            latents = F.layer_norm(latents, (x.shape[1],), weight, bias)
        self.out[:, self.vocabulary :] = latents
        rows_linear(latents, model.mel_head.weight, model.mel_head.bias, self.out[:, : self.vocabulary])


class DrawingStep(Step):
    """A step that draws the next code too, and is ready to read that one."""

    def __init__(self, model: UnifiedVoice, rows: int, like: Tensor, start: int, stop: int) -> None:
        super().__init__(model, rows, like)
        self._ends, device, pinned = (start, stop), like.device, like.is_cuda
        self._numbers = torch.zeros((rows, SETTINGS + DRAWS_AHEAD), dtype=torch.float64, pin_memory=pinned)
        self._seen = torch.zeros((rows, self.vocabulary), dtype=torch.uint8, pin_memory=pinned)
        self._numbers_there, self._seen_there = self._numbers.to(device), self._seen.to(device)
        dim = self.out.shape[1] - self.vocabulary
        few = torch.empty((rows, FEW), device=device)
        self._scratch = torch.empty(rows, device=device, dtype=torch.int32), few, few.int()
        self.drawn = torch.empty((rows, DRAWS_AHEAD), device=device, dtype=torch.int64)
        self.latents = torch.zeros((rows, DRAWS_AHEAD, dim), device=device)
        self._count = torch.zeros(1, device=device, dtype=torch.int64)  # of steps since the last write

    def write(  # type: ignore[override]
        self, cache: KVCache, codes: Array, positions: Array, drawings: Sequence[Drawing | None]
    ) -> None:
        most = write_drawings(drawings, self._numbers.numpy(), self._seen.numpy())
        super().write(cache, codes, positions, most)
        self._numbers_there.copy_(self._numbers, non_blocking=True)
        self._seen_there.copy_(self._seen, non_blocking=True)
        self.drawn.fill_(NOTHING)
        self._count.zero_()

    def run(self) -> None:
        super().run()
        self.latents.index_copy_(1, self._count, self.out[:, None, self.vocabulary :])
        self._count += 1
        draw_codes(
            self.out,
            self._seen_there,
            self._numbers_there,
            self._steps,
            self.drawn,
            self._scratch,
            *self._ends,
        )


def _fused(x: Tensor, layer: Any, norm: Any = None, gelu: bool = False, add: Tensor | None = None) -> Tensor:
    """(rows, in) -> (rows, out); what is added to is float32, and changed."""
    out = x.new_empty((len(x), len(layer.bias)), dtype=layer.bias.dtype) if add is None else add
    of_norm = None if norm is None else (norm.weight, norm.bias)
    rows_linear(x, layer.weight.t(), layer.bias, out, of_norm, gelu, add is not None)
    return out


def _library(
    x: Tensor, layer: Any, norm: Any = None, gelu: bool = False, add: Tensor | None = None
) -> Tensor:
    """As :func:`_fused` for many rows, which the library's products are made for; all in the weights' type."""
    x = layer(x if norm is None else norm(x))
    x = F.gelu(x, approximate="tanh") if gelu else x
    return x if add is None else add + x
