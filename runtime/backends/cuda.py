"""What the torch backend does differently on CUDA: a stream of its own, replayed graphs, fused kernels."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.ahead import DRAWS_AHEAD
from ..samplers import DenoisingStep
from ..spec import Dims
from .cuda_graphs import Replays
from .cuda_hifigan import in_few_shapes
from .triton_needs import lacking

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
        with self.running():
            problem = _problem_of_triton(device)
        self.kernels = not problem
        self._decoder: Any = None
        self._reader: Any = None
        self._diffusion: Any = None
        if problem:
            log.warning("decoding and diffusion are slower: %s", problem)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The engine's device and stream are those that torch uses."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def run(
        self, graph: str, function: Callable[..., tuple[Tensor, ...]], module: Any, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The outputs of a stateless graph, on the device, until the next call."""
        if graph in ("diffusion_condition", "diffusion_denoise") and self.kernels:
            method = getattr(self._channels_last(module), graph.removeprefix("diffusion_"))
            return self._replays(graph, lambda *given: (method(*given),), inputs)
        if graph == "hifigan":
            latents, voice, (first, last) = inputs[0], inputs[1], inputs[2].tolist()
            return (
                in_few_shapes(lambda *g: self._replays(graph, function, g)[0], latents, voice, first, last),
            )
        return self._replays(graph, function, inputs) if graph in REPEATED else function(*inputs)

    def denoise(
        self,
        module: Any,
        x: Tensor,
        last: Tensor,
        aligned: Tensor,
        free: Tensor,
        steps: Sequence[DenoisingStep],
        noise: Callable[[int], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """As ``Engine.denoise``: the host is not waited for, and only makes noise meanwhile."""
        from ..kernels.ahead import step_row

        network = self._channels_last(module)
        timesteps = torch.tensor([step.timestep for step in steps], dtype=torch.float32).to(x.device)
        rows = torch.from_numpy(np.stack([step_row(step) for step in steps])).to(x.device)
        conditions = [self._conditions(network, aligned, timesteps)]
        if steps[0].guidance is not None:
            conditions.append(self._conditions(network, free.expand_as(aligned), timesteps))
        both = torch.stack(conditions, dim=1)
        for i in range(len(steps)):
            given = [x, last, both[i], timesteps[i : i + 1], rows[i], noise(i)]
            x, last = self._replays("denoising step", network.step, given)
        return x, last

    def _conditions(self, network: Any, row: Tensor, timesteps: Tensor) -> Tensor:
        """(1, frames, dim) at some timesteps -> (timesteps, frames, dim)."""
        given = [row.expand(len(timesteps), -1, -1).contiguous(), timesteps]
        return self._replays("diffusion_condition", lambda *g: (network.condition(*g),), given)[0].clone()

    def _channels_last(self, module: Any) -> Any:
        if self._diffusion is None:
            from .cuda_diffusion import ChannelsLast

            self._diffusion = ChannelsLast(module)
        return self._diffusion

    def draws_ahead(self, dims: Dims) -> int:
        """Codes that :meth:`draw` draws at a time; 0: :meth:`decoder` cannot do a network of such dimensions."""
        if not self.kernels:
            return 0
        from .cuda_decode import Decoder

        return DRAWS_AHEAD if Decoder.suits(dims.get("ar.dim", 0)) else 0

    def decoder(self, model: Any, dims: Dims) -> Any:
        """The :class:`~.cuda_decode.Decoder` of the network."""
        if self._decoder is None:
            from .cuda_decode import Decoder

            self._decoder = Decoder(model, self._stream, dims["ar.start_code"], dims["ar.stop_code"])
        return self._decoder

    def reader(self, model: Any, dims: Dims) -> Any:
        """The :class:`~.cuda_read.Reader` of the network."""
        if self._reader is None:
            from .cuda_read import Reader

            if self.draws_ahead(dims):
                self.decoder(model, dims)  # it moves the weights: from where a recorded graph would read them
            self._reader = Reader(model, self._replays, dims)
        return self._reader


def _problem_of_triton(device: torch.device) -> str:
    """Why Triton launches no kernel on the device, and what to do; "" where it does: it may be there and lack a compiler."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install 'tortoise-rt[kernels]')"
    out = torch.zeros(1, dtype=torch.int32, device=device)
    try:
        from ..kernels.try_out import try_out

        try_out(out)
    except Exception as error:  # whatever its compilers, its cache and the driver may say
        said = str(error).strip().partition("\n")[0]
        return (
            f"Triton does not work ({type(error).__name__}: {said}): {lacking() or 'see tortoise-rt doctor'}"
        )
    return ""
