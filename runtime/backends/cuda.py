"""What the torch backend does differently on CUDA: a stream of its own, replayed graphs, fused kernels."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine import Array, KVCache
from .cuda_graphs import Replays

#: graphs that are run again and again with the same shapes
REPEATED = ("diffusion_condition", "diffusion_denoise", "univnet", "hifigan")

log = logging.getLogger("tortoise_rt")


class Fast:
    """Not for several threads at a time. Networks are given with each call, as the engine loads them when first used."""

    def __init__(self, device: torch.device) -> None:
        # fp32 means fp32; PyTorch lets convolutions use TF32 by default.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._replays = Replays(self._stream)
        self._kernels = importlib.util.find_spec("triton") is not None
        self._decoder: Any = None
        self._diffusion: Any = None
        if not self._kernels:
            log.warning("Triton is not installed: decoding and diffusion are slower (pip install triton)")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The engine's device and stream are those that torch uses."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def run(
        self, graph: str, function: Callable[..., tuple[Tensor, ...]], module: Any, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The outputs of a stateless graph, on the device, until the next call."""
        if graph in ("diffusion_condition", "diffusion_denoise") and self._kernels:
            from .cuda_diffusion import ChannelsLast

            self._diffusion = self._diffusion or ChannelsLast(module)
            method = getattr(self._diffusion, graph.removeprefix("diffusion_"))
            return self._replays(graph, lambda *given: (method(*given),), inputs)
        return self._replays(graph, function, inputs) if graph in REPEATED else function(*inputs)

    def decodes(self, model: Any) -> bool:
        """Whether :meth:`decode` can do the network."""
        if self._decoder is None and self._kernels:
            from .cuda_decode import Decoder

            if Decoder.suits(model):
                self._decoder = Decoder(model, self._stream)
        return self._decoder is not None

    def decode(self, cache: KVCache, codes: Array, positions: Array) -> tuple[Array, Array]:
        """One code per row: codes, positions (rows, 1) -> logits (rows, vocabulary), latents (rows, 1, dim)."""
        return self._decoder.step(cache, codes, positions)
