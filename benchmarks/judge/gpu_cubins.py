"""The kernels that bundles carry, compiled, loaded and launched as engines do it, on a GPU without PyTorch, beside their references."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt.backends.cubins import load_kernels
from tortoise_rt.backends.device import Block, Device, Kernel
from tortoise_rt.backends.replays import Replays
from tortoise_rt.backends.tensorrt_ahead import Denoising, Draws, Staged
from tortoise_rt.bundle import Bundle
from tortoise_rt.config import ARSettings
from tortoise_rt.engine import Array
from tortoise_rt.export.kernels import can_compile, compile_kernels
from tortoise_rt.kernels import ahead
from tortoise_rt.samplers import DenoisingStep, Update
from tortoise_rt.sampling import NOTHING, Drawing
from tortoise_rt.spec import MELS

from .gpu_parts import Skip, broken

Row = dict[str, Any]
DIMS = {
    "ar.mel_codes": 8194, "ar.start_code": 8192, "ar.stop_code": 8193, "ar.dim": 1024,
    "ar.text_positions": 404, "ar.mel_positions": 608, "diffusion.dim": 1024,
}  # fmt: skip
SETTINGS = {
    "usual": ARSettings(),
    "every code": ARSettings(top_k=0, top_p=1.0, temperature=3.0),
    "nucleus": ARSettings(top_k=0, top_p=0.95, temperature=2.0),
    "typical": ARSettings(typical=True, typical_mass=0.4, top_k=0),
    "greedy": ARSettings(greedy=True),
}
CALLS = 4  #: as it is, recorded as well, replayed, and once more
ROWS, FRAMES = 16, 871


def cubins() -> Iterator[Row]:
    """Every kernel in every way that it is used."""
    device = Device()
    if not can_compile():
        raise Skip("Triton is not installed")
    with tempfile.TemporaryDirectory() as folder:
        said = compile_kernels(DIMS, [device.compute_capability], Path(folder))
        if not said:
            raise Skip(f"no kernels for compute capability {device.compute_capability}")
        files = {path.name: {} for path in Path(folder).iterdir()}
        kernels = load_kernels(Bundle(Path(folder), {"kernels": said, "files": files, "dims": DIMS}), device)
    if not kernels:
        yield broken("cubins", "they do not load: the warning above says why")
        return
    about = {"kind": "cubin", "device": device.name, "compute_capability": device.compute_capability}
    for name, settings in SETTINGS.items():
        for call, ok, seconds in draws(device, kernels, settings):
            row = {"kernel": "draw_codes", "settings": name, "call": call, "ok": ok, "block_s": seconds}
            yield about | row
    for guided in (True, False):
        for call, error in updates(device, kernels, guided):
            row = {"kernel": "denoising_update", "guided": guided, "call": call, "error": error}
            yield about | row | {"ok": error < 1e-5}


class _Given:
    """In place of plans: what a network gives, which is always the same."""

    def __init__(self, device: Device, outputs: Mapping[str, Array]) -> None:
        """outputs: name -> (rows, ...) float32, on the host."""
        self._device, self._outputs, self.replays = device, outputs, Replays(device)
        self._staged = Staged(device, "a check", {name: (a.shape, a.dtype) for name, a in outputs.items()})
        for name, array in outputs.items():
            self._staged.host(name)[:] = array
            self._staged.upload(name, name)

    def queue(self, graph: str, inputs: Mapping[str, Any], outputs: Mapping[str, int]) -> None:
        for name, address in outputs.items():
            if name in self._outputs:
                nbytes = self._outputs[name].nbytes
                target, source = Block(address, nbytes, 1), Block(self._staged.at(name), nbytes, 1)
                self._device.copy(target, source, nbytes, 1, 1)

    def most_rows(self, graph: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
        return 2


def draws(
    device: Device, kernels: Mapping[str, Kernel], settings: ARSettings
) -> Iterator[tuple[int, bool, float]]:
    """Codes of rows, all but one, from the same logits -> call, whether they are the host's, seconds of the block."""
    rng, vocabulary, most = np.random.default_rng(0), DIMS["ar.mel_codes"], ahead.DRAWS_AHEAD
    logits = (3 * rng.standard_normal((ROWS, vocabulary))).astype(np.float32)
    uniforms, seen = rng.random((ROWS, most)), rng.random((ROWS, vocabulary)) < 0.01
    given = [None if row == 3 else Drawing(seen[row], uniforms[row], settings) for row in range(ROWS)]
    wanted, steps = np.full((ROWS, most), NOTHING), np.zeros((ahead.STEPS, ROWS), np.int64)
    steps[4] = most
    drawings = [d and Drawing(d.seen.copy(), d.uniforms, d.settings) for d in given]
    for _ in range(most):
        ahead.draw_codes_ref(logits, drawings, steps, wanted, DIMS["ar.start_code"], DIMS["ar.stop_code"])
    codes, lengths = np.zeros((ROWS, 1), np.int64), np.full(ROWS, 9)
    cache = {"key_0": (0, (ROWS, 1))}  # which only a network reads
    with device.turn():
        plans: Any = _Given(device, {"logits": logits})
        loop = Draws(plans, device, kernels, DIMS)
        for call in range(CALLS):
            start = time.perf_counter()
            drawn, _ = loop.draw(codes, codes, lengths, given, cache, most, 64)
            yield call, np.array_equal(drawn, wanted), time.perf_counter() - start


def updates(device: Device, kernels: Mapping[str, Kernel], guided: bool) -> Iterator[tuple[int, float]]:
    """Two diffusion steps, of which the network gives the same -> call, largest difference from the host's."""
    rng, shape, dim = np.random.default_rng(1), (1, MELS, FRAMES), DIMS["diffusion.dim"]
    x, last, *noise = (rng.standard_normal(shape).astype(np.float32) for _ in range(4))
    out = rng.standard_normal((1 + guided, 2 * MELS, FRAMES)).astype(np.float32)
    guidance = 1.5 if guided else None
    steps = [DenoisingStep(n, guidance, 1.1, 0.4, Update(0.3, 0.6, -0.1, -3.0, -2.0 - n)) for n in range(2)]
    wanted = x.copy(), last.copy()
    for step, of_step in zip(steps, noise, strict=True):
        ahead.denoising_update_ref(*wanted, out, of_step, step)
    aligned, free = np.zeros((1, FRAMES, dim), np.float32), np.zeros(dim, np.float32)
    with device.turn():
        plans: Any = _Given(device, {"out": out})
        loop = Denoising(plans, device, kernels, DIMS)
        for call in range(CALLS):
            found = loop.denoise(x, last, aligned, free, steps, lambda i: noise[i])
            yield call, max(float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True))
