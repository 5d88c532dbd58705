"""Kernels of our own beside what the library does for the same, on the same card: one that beats nothing is not kept."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tortoise_rt.export.checkpoints import Checkpoints
from tortoise_rt.export.models.univnet import SLOPE, TAPS, location_variable_conv
from tortoise_rt.export.parity import BOUNDS, relative_error
from tortoise_rt.export.random_checkpoint import write_checkpoints
from tortoise_rt.spec import MELS, VOCODER_NOISE

from .gpu_parts import Skip
from .gpu_stages import timed

Row = dict[str, Any]
CALLS = 10  #: in a recording: one alone is over before the host has launched it
FRAMES = 930  #: mel frames of 10 s, and what UnivNet wants behind them
BOUND = 1e-5  #: of the range, fp32, of a layer


def kernels(device: torch.device, size: str, repeats: int) -> Iterator[Row]:
    """Each kernel, and the networks that it is for, of random weights of a ``size``."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        raise Skip("kernels need CUDA and Triton")
    with torch.inference_mode(), torch.device(device):
        for hop in (8, 64, 256):
            yield location_variable(device, hop, repeats)
        yield whole_univnet(device, size, repeats)


def compared(
    device: torch.device,
    library: Callable[[], Tensor],
    ours: Callable[[], Tensor],
    repeats: int,
    bound: float = BOUND,
) -> Row:
    """How far apart they are, seconds of each, and how many times as fast ours is."""
    found, wanted = (work().float().cpu().numpy() for work in (ours, library))
    error = relative_error(found, wanted)
    row: Row = {"kind": "kernel", "error": error, "bound": bound, "ok": error < bound}
    for name, work in (("library_s", library), ("ours_s", ours)):
        row[name] = timed(recorded(work), device, repeats)["median_s"] / CALLS
    return row | {"times": row["library_s"] / row["ours_s"]}


def recorded(work: Callable[[], Tensor]) -> Callable[[], None]:
    """CALLS of ``work``, to be replayed at once."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            work()
    return graph.replay


def location_variable(device: torch.device, hop: int, repeats: int, channels: int = 32) -> Row:
    """A layer of UnivNet over 10 s: ``hop`` samples to a frame."""
    from tortoise_rt.kernels.location_variable import location_variable as kernel

    x, h, shift = (torch.randn(1, channels, FRAMES * hop) for _ in range(3))
    shift = shift[0, :, 0].contiguous()
    of_frames = torch.randn(1, FRAMES, channels, 2 * channels, TAPS) / channels**0.5
    laid = of_frames.movedim(1, 4)  # each frame's side by side, as ``cuda_univnet`` has them
    apart, biases = laid.contiguous(), torch.randn(1, 2 * channels, FRAMES)

    def library() -> Tensor:
        taken = F.leaky_relu(h + shift[:, None], SLOPE)
        gate, value = location_variable_conv(taken, apart, biases).chunk(2, dim=1)
        return x + torch.sigmoid(gate) * torch.tanh(value)

    made = x.clone()

    def ours() -> Tensor:  # the first time; later it adds to that
        kernel(made, h, shift, laid, biases)
        return made

    row = compared(device, library, ours, repeats)
    moved = 3 * x.nbytes + of_frames.nbytes + biases.nbytes
    about = {"kernel": "location_variable", "precision": "fp32", "hop": hop, "frames": FRAMES}
    return {**about, **row, "ours_gb_per_s": moved / row["ours_s"] / 1e9}


def whole_univnet(device: torch.device, size: str, repeats: int) -> Row:
    """UnivNet over 10 s: the module, and the module by the kernel."""
    from tortoise_rt.backends.cuda_univnet import UnivNet

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False), torch.device("cpu"):
        write_checkpoints(Path(folder), size, only=["vocoder"])
        module, other = (Checkpoints(folder).load("vocoder").to(device) for _ in range(2))
        fast = UnivNet(other)
    mel, noise = torch.randn(1, MELS, FRAMES), torch.randn(1, VOCODER_NOISE, FRAMES)
    row = compared(device, lambda: module(mel, noise), lambda: fast(mel, noise), repeats, BOUNDS["fp32"])
    return {"kernel": "univnet by location_variable", "precision": "fp32", "frames": FRAMES, **row}
