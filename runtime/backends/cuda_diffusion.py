"""The denoiser on a CUDA device, channels last: there its convolutions are plain matrix products.

The same weights as the module's, in another order in memory; between the products, kernels that do all at once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tortoise_rt.export.models.diffusion import DiffusionTts
from tortoise_rt.export.models.layers import MAX_DISTANCE, relative_buckets

from ..kernels.denoising_update import denoising_update
from ..kernels.group_norm import group_norm
from ..kernels.relative_attention import relative_attention


class ChannelsLast:
    """``DiffusionTts.condition`` and ``denoise``. The weights' order in memory is changed; the module goes on working."""

    @torch.inference_mode(False)
    def __init__(self, model: DiffusionTts) -> None:
        self._model = model
        self._biases: dict[Any, Tensor] = {}
        convolutions: list[Any] = [model.inp_block, model.out[2]]
        for layer in (*model.conditioning_timestep_integrator, *model.layers):
            if hasattr(layer, "attn"):
                self._biases[layer.attn] = _bias_table(layer.attn.relative_pos_embeddings)
            convolutions.append(getattr(layer, "resblk", layer).out_layers[3])
        for convolution in convolutions:
            lay_out(convolution)

    def condition(self, aligned: Tensor, timestep: Tensor) -> Tensor:
        """As the module's: (rows, frames, dim), (rows,) -> (rows, frames, dim)."""
        x, time = aligned, self._model.embed_time(timestep)
        for layer in self._model.conditioning_timestep_integrator:
            x = self._layer(layer, x, time)
        return x

    def denoise(self, x: Tensor, condition: Tensor, timestep: Tensor) -> Tensor:
        """As the module's: (rows, MELS, frames), (rows, frames, dim), (rows,) -> (rows, 2 * MELS, frames)."""
        model, time = self._model, self._model.embed_time(timestep)
        taps = beside_neighbours(x.transpose(1, 2))
        h = torch.cat((product(model.inp_block, taps), condition), dim=2)
        h = product(model.integrating_conv, h)
        for layer in model.layers:
            h = self._layer(layer, h, time)
        h = product(model.out[2], _norm(model.out[0], h, taps=3, silu=True))
        return h.transpose(1, 2).contiguous()

    def step(
        self, x: Tensor, last: Tensor, condition: Tensor, timestep: Tensor, numbers: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A step of the loop, see ``denoising_update``; condition: (1 or 2, frames, dim) -> x, last."""
        rows = condition.shape[0]
        out = self.denoise(x.to(condition.dtype).expand(rows, -1, -1), condition, timestep.expand(rows))
        x, last = x.clone(), last.clone()
        denoising_update(x, last, out, noise, numbers)
        return x, last

    def _layer(self, layer: Any, x: Tensor, time: Tensor) -> Tensor:
        if not hasattr(layer, "attn"):
            return _residual(layer, x, time)
        x, block = _residual(layer.resblk, x, time), layer.attn
        qkv, h = product(block.qkv, _norm(block.norm, x)), torch.empty_like(x)
        relative_attention(qkv, self._biases[block], h)
        return x + product(block.proj_out, h)


def _residual(block: Any, x: Tensor, time: Tensor) -> Tensor:
    h = product(block.in_layers[2], _norm(block.in_layers[0], x, silu=True))
    h = _norm(block.out_layers[0], h, block.emb_layers(time), taps=3, silu=True)
    return x + product(block.out_layers[3], h)


def _norm(
    norm: Any, x: Tensor, modulation: Tensor | None = None, taps: int = 1, silu: bool = False
) -> Tensor:
    """(rows, frames, channels) -> (rows, frames, taps * channels)."""
    out = x.new_empty((*x.shape[:2], taps * x.shape[2]))
    group_norm(x, norm.weight, norm.bias, norm.num_groups, out, modulation, silu)
    return out


def lay_out(convolution: Any) -> None:
    """Weights in the order of :func:`product`, which then copies none."""
    convolution.weight.data = convolution.weight.transpose(1, 2).contiguous().transpose(1, 2)


def beside_neighbours(x: Tensor) -> Tensor:
    """(rows, frames, channels) -> (rows, frames, 3 * channels): the frame before, itself and the one behind; zeros beyond the ends."""
    padded = F.pad(x, (0, 0, 1, 1))
    return torch.cat((padded[:, :-2], padded[:, 1:-1], padded[:, 2:]), dim=2)


def product(convolution: Any, x: Tensor) -> Tensor:
    """A convolution whose taps lie side by side: (rows, frames, taps * channels) -> (rows, frames, out)."""
    return F.linear(x, convolution.weight.transpose(1, 2).flatten(1), convolution.bias)


def _bias_table(bias: Any) -> Tensor:
    """(heads, 2 * MAX_DISTANCE + 1) float32, of the distances from -MAX_DISTANCE to MAX_DISTANCE."""
    buckets = relative_buckets(MAX_DISTANCE + 1)
    distances = torch.cat((buckets[-1, :-1], buckets[0]))
    weight = bias.relative_attention_bias.weight
    return (weight.float()[distances.to(weight.device)] * bias.scale).t().contiguous()
