"""One decoding step of the autoregressive network on a CUDA device, as one graph of a few fused kernels per layer."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F

from tortoise_rt.export.models.autoregressive import UnifiedVoice

from ..engine import Array, KVCache
from ..kernels.decode_attention import STATE, cache_state, decode_attention
from ..kernels.rows_linear import rows_linear

MOST_GRAPHS = 16  #: kept, each for a number of rows
WIDEST = 1024  #: dimensions that a kernel normalises


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
        return model.final_norm.weight.shape[0] <= WIDEST

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
    for block in model.gpt.h:
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            layer.weight.data = layer.weight.t().contiguous().t()


def _padded(rows: int) -> int:
    """A power of two up to 16, from there on a multiple of 16."""
    return 1 << (rows - 1).bit_length() if rows <= 16 else -(-rows // 16) * 16


class Step:
    """A step of so many rows in buffers of its own; ``like``: a tensor of the caches' device and type."""

    def __init__(self, model: UnifiedVoice, rows: int, like: torch.Tensor) -> None:
        self._model, self._rows, self._like = model, rows, like[:0]
        device, dtype = like.device, like.dtype
        dim = model.final_norm.weight.shape[0]
        inner = model.gpt.h[0].mlp.c_fc.bias.shape[0]  # type: ignore[union-attr]
        vocabulary = model.mel_head.weight.shape[0]
        self._given = torch.zeros(STATE + 3 * rows, dtype=torch.int64, pin_memory=like.is_cuda)
        self._given[STATE : STATE + rows] = -1
        self._taken = self._given.to(device)
        self._x = torch.zeros((rows, dim), device=device)
        self._qkv = torch.zeros((rows, 3 * dim), device=device, dtype=dtype)
        self._heads = torch.zeros((rows, dim), device=device, dtype=dtype)
        self._inner = torch.zeros((rows, inner), device=device, dtype=dtype)
        self.out = torch.zeros((rows, vocabulary + dim), device=device)  #: logits, then latents
        self._norms = [
            (norm.weight.float(), norm.bias.float()) for norm in (model.gpt.ln_f, model.final_norm)
        ]

    def write(self, cache: KVCache, codes: Array, positions: Array) -> None:
        """Send what the next run works on: the last one must be done."""
        given, rows = self._given.numpy(), self._rows
        given[:STATE] = cache_state(cache.state)
        for part, values in enumerate((cache.lengths, codes[:, 0], positions[:, 0])):
            place = STATE + part * rows
            given[place : place + len(values)] = values
            given[place + len(values) : place + rows] = -1 if part == 0 else 0
        self._taken.copy_(self._given, non_blocking=True)

    def run(self) -> None:
        """The step, as it is captured."""
        model, rows, x = self._model, self._rows, self._x
        state = self._taken[:STATE]
        lengths, codes, positions = self._taken[STATE:].reshape(3, rows)
        torch.add(model.mel_embedding(codes), model.mel_pos_embedding.emb(positions), out=x)
        for number, block in enumerate(model.gpt.h):
            first, second = block.ln_1, block.ln_2
            into, out = block.attn.c_attn, block.attn.c_proj
            wide, narrow = block.mlp.c_fc, block.mlp.c_proj
            rows_linear(x, into.weight.t(), into.bias, self._qkv, (first.weight, first.bias))
            decode_attention(self._qkv, state, lengths, number, self._like, model.heads, self._heads)
            rows_linear(self._heads, out.weight.t(), out.bias, x, add=True)
            rows_linear(x, wide.weight.t(), wide.bias, self._inner, (second.weight, second.bias), gelu=True)
            rows_linear(self._inner, narrow.weight.t(), narrow.bias, x, add=True)
        latents = x
        for weight, bias in self._norms:
            latents = F.layer_norm(latents, (x.shape[1],), weight, bias)
        vocabulary = model.mel_head.weight.shape[0]
        self.out[:, vocabulary:] = latents
        rows_linear(latents, model.mel_head.weight, model.mel_head.bias, self.out[:, :vocabulary])
