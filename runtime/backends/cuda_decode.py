"""One decoding step of the autoregressive network on a CUDA device, as one graph of a few fused kernels per layer."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tortoise_rt.export.models.autoregressive import UnifiedVoice

from ..engine import Array, KVCache
from ..kernels.decode_attention import STATE, cache_state, decode_attention
from ..kernels.rows_linear import WIDEST_NORM, rows_linear

MOST_GRAPHS = 16  #: kept, each for a number of rows
MOST_FUSED = (
    16  #: rows that the fused kernels take; at 32 they were 7 % faster than the library, not tried beyond
)


class Decoder:
    """Steps of one code per row. The weights' order in memory is changed; the module goes on working.

    A graph is captured once for each number of rows and serves every cache: where its rows lie, and how long they are,
    is data. Not for several threads at a time.
    """

    def __init__(self, model: UnifiedVoice, stream: torch.cuda.Stream) -> None:
        self._model, self._stream = model, stream
        self._steps: OrderedDict[int, tuple[Step, torch.cuda.CUDAGraph]] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()
        lay_out(model)

    @staticmethod
    def suits(model: UnifiedVoice) -> bool:
        """Whether the kernels can do the network's dimensions."""
        return model.final_norm.weight.shape[0] <= WIDEST_NORM

    def step(self, cache: KVCache, codes: Array, positions: Array) -> tuple[Array, Array]:
        """codes, positions: (rows, 1) int64 -> logits (rows, vocabulary), latents (rows, 1, dim) float32."""
        step, graph = self._captured(_padded(cache.rows), cache.state)
        step.write(cache, codes, positions)
        graph.replay()
        out = torch.empty((cache.rows, step.out.shape[1]), pin_memory=True)
        out.copy_(step.out[: cache.rows], non_blocking=True)
        self._stream.synchronize()
        vocabulary = self._model.mel_head.weight.shape[0]
        found = out.numpy()
        # Logits are dropped soon; a latent may be kept, and would keep all of it.
        return found[:, :vocabulary], found[:, None, vocabulary:].copy()

    def _captured(self, rows: int, like: torch.Tensor) -> tuple[Step, torch.cuda.CUDAGraph]:
        if rows not in self._steps:
            if len(self._steps) == MOST_GRAPHS:
                self._steps.popitem(last=False)
            step, graph = Step(self._model, rows, like), torch.cuda.CUDAGraph()
            step.run()  # compiles the kernels; no row is live yet
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                step.run()
            self._steps[rows] = step, graph
        self._steps.move_to_end(rows)
        return self._steps[rows]


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

    def __init__(self, model: UnifiedVoice, rows: int, like: torch.Tensor) -> None:
        self._model, self._rows = model, rows
        device, dtype = like.device, like.dtype
        self._anchor = torch.empty(1, device=device, dtype=dtype)
        dim = model.final_norm.weight.shape[0]
        vocabulary = model.mel_head.weight.shape[0]
        self._given = torch.zeros(STATE + 3 * rows, dtype=torch.int64, pin_memory=like.is_cuda)
        self._given[STATE : STATE + rows] = -1
        self._taken = self._given.to(device)
        self.out = torch.zeros((rows, vocabulary + dim), device=device)  #: logits, then latents
        self._norms = [
            (norm.weight.float(), norm.bias.float()) for norm in (model.gpt.ln_f, model.final_norm)
        ]

    def write(self, cache: KVCache, codes: Array, positions: Array) -> None:
        """Send what the next run works on: the last one must be done."""
        given, rows = self._given.numpy(), self._rows
        given[:STATE] = cache_state(cache.state, self._anchor)
        for part, values in enumerate((cache.lengths, codes[:, 0], positions[:, 0])):
            place = STATE + part * rows
            given[place : place + len(values)] = values
            given[place + len(values) : place + rows] = -1 if part == 0 else 0
        self._taken.copy_(self._given, non_blocking=True)

    def run(self) -> None:
        """The step, as it is captured."""
        model, rows = self._model, self._rows
        state = self._taken[:STATE]
        lengths, codes, positions = self._taken[STATE:].reshape(3, rows)
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
        vocabulary = model.mel_head.weight.shape[0]
        self.out[:, vocabulary:] = latents
        rows_linear(latents, model.mel_head.weight, model.mel_head.bias, self.out[:, :vocabulary])


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
