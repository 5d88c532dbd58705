"""UnivNet on a CUDA device: the kernels of each frame come from a matrix product, and one kernel of ours does what follows them.

The same weights as the module's, some in another order in memory. Engines use it once a GPU has shown that it is right and
faster: ``benchmarks/gpu_suite.py`` times it beside the module.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tortoise_rt.export.models.univnet import SLOPE, TAPS, UnivNetGenerator

from ..kernels.location_variable import location_variable
from .cuda_diffusion import beside_neighbours, lay_out, product


class UnivNet:
    """``UnivNetGenerator.forward``. The weights' order in memory is changed; the module goes on working."""

    @torch.inference_mode(False)
    def __init__(self, model: UnivNetGenerator) -> None:
        self._model = model
        predictors: list[Any] = [block.kernel_predictor for block in model.res_stack]
        for predictor in predictors:
            lay_out(predictor.kernel_conv)

    def __call__(self, mel: Tensor, noise: Tensor) -> Tensor:
        """As the module's: mel (rows, MELS, frames), noise (rows, VOCODER_NOISE, frames) -> (rows, samples)."""
        model = self._model
        x = model.conv_pre(noise)
        for block in model.res_stack:
            x = _block(block, x, mel)
        return model.conv_post(x)[:, 0]


def _block(block: Any, x: Tensor, mel: Tensor) -> Tensor:
    x = block.convt_pre(x)
    kernels, biases = _predicted(block.kernel_predictor, mel)
    for i, (_, convolution, _) in enumerate(block.conv_blocks):
        d = convolution.dilation
        h = F.conv1d(F.leaky_relu(x, SLOPE), convolution.weight, None, padding=d, dilation=d)
        location_variable(x, h, convolution.bias, kernels[:, i], biases[:, i])
    return x


def _predicted(predictor: Any, mel: Tensor) -> tuple[Tensor, Tensor]:
    """As the predictor's, but that in memory the kernels of a frame lie side by side."""
    x, channels, layers = predictor.hidden(mel), predictor.channels, predictor.layers
    kernels = product(predictor.kernel_conv, beside_neighbours(x.transpose(1, 2)))
    kernels = kernels.unflatten(2, (layers, channels, 2 * channels, TAPS)).permute(0, 2, 3, 4, 5, 1)
    return kernels, predictor.bias_conv(x).unflatten(1, (layers, 2 * channels))
