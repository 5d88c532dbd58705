"""The loops that a GPU goes through by itself: drawing codes, taking diffusion steps. Plans, and kernels between them.

The host is asked once per several codes, and gives the noise of diffusion steps while those before are computed. What is
recorded is one code, or one step, whose place is data on the device. No GPU has run this yet: a driver of NumPy stood in for
one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..engine import Array
from ..kernels.ahead import (
    BLOCK,
    DENOISES_AHEAD,
    DRAWS_AHEAD,
    FEW,
    NUMBERS,
    SETTINGS,
    STEPS,
    step_row,
    write_drawings,
)
from ..samplers import DenoisingStep
from ..sampling import NOTHING, Drawing
from ..spec import MELS, Dims, cache_capacity
from .device import Block, Device, Kernel
from .tensorrt_plans import ALIGNED, Placed, Plans, bytes_of

MOST_HELD = 4  #: clips, by their length, whose memory is kept for the next


def _aligned(items: int, size: int = 4) -> int:
    """At least so many items of ``size`` bytes, the next of which may be a tensor's first."""
    return -(-items * size // ALIGNED) * ALIGNED // size


class Staged:
    """Arrays side by side in memory of a device, and as much pinned memory of the host: (shape, type) of each by name."""

    def __init__(self, device: Device, what: str, arrays: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
        self._device, self._arrays = device, arrays
        self._starts, total = {}, 0
        for name, (shape, dtype) in arrays.items():
            self._starts[name] = total
            total += _aligned(bytes_of(shape, np.dtype(dtype).itemsize), 1)
        self._memory, self._pinned = device.allocate(total, what, zeros=True), device.pinned(total)

    @property
    def address(self) -> int:
        """Where all of it begins."""
        return self._memory.address

    def at(self, name: str, *index: int) -> int:
        """Where an array lies on the device, or an item of it."""
        shape, dtype = self._arrays[name]
        strides = [bytes_of(shape[axis + 1 :], np.dtype(dtype).itemsize) for axis in range(len(shape))]
        return self.address + self._starts[name] + sum(i * s for i, s in zip(index, strides, strict=False))

    def host(self, name: str) -> Array:
        """An array as the host holds it."""
        shape, dtype = self._arrays[name]
        start = self._starts[name]
        return (
            self._pinned[start : start + bytes_of(shape, np.dtype(dtype).itemsize)].view(dtype).reshape(shape)
        )

    def upload(self, first: str, last: str) -> None:
        """Queue a copy of all from ``first`` to ``last`` to the device."""
        self._device.upload(self.at(first), self._bytes(first, last))

    def download(self, first: str, last: str) -> None:
        """Queue a copy of all from ``first`` to ``last`` to the host."""
        self._device.download(self._bytes(first, last), self.at(first))

    def _bytes(self, first: str, last: str) -> Array:
        return self._pinned[self._starts[first] : self._starts[last] + self.host(last).nbytes]


class Draws:
    """Several codes of each row, read by the plan of ar_step and drawn by kernels."""

    def __init__(self, plans: Plans, device: Device, kernels: Mapping[str, Kernel], dims: Dims) -> None:
        self._plans, self._device, self._kernels, self._dims = plans, device, kernels, dims
        self._staged: dict[int, Staged] = {}  # by rows

    def clear(self) -> None:
        """Give back all memory; what is queued must be done."""
        self._staged.clear()

    def draw(
        self, codes: Array, positions: Array, lengths: Array, drawings: Sequence[Drawing | None],
        cache: Mapping[str, Placed], count: int, span: int,
    ) -> tuple[Array, Array]:  # fmt: skip
        """As ``Engine.ar_draw``, of rows that one call of the plan can have.

        lengths: (rows,) positions held by ``cache``, which the plan reads and writes in place, and which may have more rows:
        they are left alone; count: codes at most; span: positions that are attended to.
        """
        given, dim = len(codes), self._dims["ar.dim"]
        rows = next(iter(cache.values()))[1][0]
        staged = self._arrays(rows)
        most = write_drawings(drawings, staged.host("numbers"), staged.host("seen"))
        steps = staged.host("steps")
        steps[:], steps[0] = 0, -1
        steps[0, :given] = np.where(most > 0, lengths, -1)
        steps[1, :given], steps[2, :given], steps[4, :given] = codes[:, 0], positions[:, 0], most
        staged.host("reach")[:] = np.arange(cache_capacity(self._dims))
        staged.host("drawn")[:] = NOTHING
        staged.upload("steps", "drawn")
        key = "draw", rows, span, tuple(address for address, _ in cache.values()), staged.address
        size = bytes_of((rows * dim,))
        latent = Block(staged.at("latent"), size, 1)
        for step in range(count):
            self._plans.replays(key, lambda: self._step(staged, rows, span, cache))
            self._device.copy(Block(staged.at("latents", step), size, 1), latent, size, 1, 1)
        staged.download("drawn", "latents")
        self._device.synchronize()
        latents = staged.host("latents")[:count, : given * dim].reshape(count, given, dim)
        return staged.host("drawn")[:given, :count].copy(), latents.swapaxes(0, 1).copy()

    def _step(self, staged: Staged, rows: int, span: int, cache: Mapping[str, Placed]) -> None:
        """Queue the reading of each row's code and the drawing of the next."""
        dims, at, kernels = self._dims, staged.at, self._kernels
        inputs = {
            "voice": (staged.address, (rows, 0, dims["ar.dim"])),
            "text_ids": (staged.address, (rows, 0)),
            "codes": (at("steps", 1), (rows, 1)),
            "code_positions": (at("steps", 2), (rows, 1)),
            "cache_lengths": (at("steps", 0), (rows,)),
            "reach": (at("reach"), (span,)),
            **cache,
        }
        outputs = {"logits": at("logits"), "latents": at("latent")}
        self._plans.queue(
            "ar_step", inputs, outputs | {f"new_{name}": place for name, (place, _) in cache.items()}
        )
        logits, drawn = at("logits"), at("drawn")
        state, few = (
            [at(name) for name in ("seen", "numbers", "steps")],
            [at(n) for n in ("counts", "scores", "ids")],
        )
        stride, apart = dims["ar.mel_codes"], _aligned(rows, 8)
        for name, arguments in (
            ("gather", [logits, *state, *few, stride]),
            ("draw_among_few", [*state, drawn, *few, apart]),
            ("draw_among_all", [logits, *state, drawn, few[0], stride, apart]),
        ):
            self._device.run(kernels[name], rows, arguments)

    def _arrays(self, rows: int) -> Staged:
        if rows not in self._staged:
            vocabulary, dim = self._dims["ar.mel_codes"], self._dims["ar.dim"]
            arrays: dict[str, tuple[tuple[int, ...], Any]] = {
                "steps": ((STEPS, _aligned(rows, 8)), np.int64),
                "numbers": ((rows, SETTINGS + DRAWS_AHEAD), np.float64),
                "seen": ((rows, vocabulary), np.uint8),
                "reach": ((cache_capacity(self._dims),), np.int64),
                "drawn": ((rows, DRAWS_AHEAD), np.int64),
                "latents": ((DRAWS_AHEAD, _aligned(rows * dim)), np.float32),
                "latent": ((rows * dim,), np.float32),
                "logits": ((rows, vocabulary), np.float32),
                "counts": ((rows,), np.int32),
                "scores": ((rows, FEW), np.float32),
                "ids": ((rows, FEW), np.int32),
            }
            self._staged[rows] = Staged(self._device, f"drawing {rows} rows", arrays)
        return self._staged[rows]


class Denoising:
    """Several steps of the diffusion loop of one clip."""

    def __init__(self, plans: Plans, device: Device, kernels: Mapping[str, Kernel], dims: Dims) -> None:
        self._plans, self._device, self._kernels, self._dims = plans, device, kernels, dims
        self._held: OrderedDict[tuple[int, int], tuple[Staged, Array]] = OrderedDict()  # by rows and frames

    def clear(self) -> None:
        """Give back all memory; what is queued must be done."""
        self._held.clear()

    def denoise(
        self, x: Array, last: Array, aligned: Array, free: Array, steps: Sequence[DenoisingStep],
        noise: Callable[[int], Array],
    ) -> tuple[Array, Array]:  # fmt: skip
        """As ``Engine.denoise``."""
        rows, frames, size = 1 + (steps[0].guidance is not None), x.shape[2], x.size
        together = self._together(rows, frames)
        staged, slots = self._arrays(rows, frames, together)
        staged.host("x")[:, :size] = x.reshape(1, -1)
        staged.host("last")[:] = last.reshape(-1)
        for row, of_row in zip(staged.host("aligned"), (aligned[0], free[None]), strict=False):
            row[: frames * self._dims["diffusion.dim"]].reshape(frames, -1)[:] = of_row
        staged.upload("x", "aligned")
        for i, (step, slot) in enumerate(zip(steps, slots, strict=False)):
            given, when = slot[: _aligned(size)], slot[_aligned(size) :]
            given[:size] = noise(i).reshape(-1)
            when[:rows], when[_aligned(rows) :][:NUMBERS] = step.timestep, step_row(step)
            self._device.upload(staged.at("given"), slot.view(np.uint8))
            key = "denoise", rows, frames, together, staged.address
            self._plans.replays(key, lambda: self._step(staged, rows, frames, together))
        staged.download("x", "last")
        self._device.synchronize()
        return staged.host("x")[0, :size].reshape(x.shape).copy(), staged.host("last").reshape(x.shape).copy()

    def _together(self, rows: int, frames: int) -> bool:
        """Whether the plans take all rows of such a clip in one call; else each has its turn."""
        dim = self._dims["diffusion.dim"]
        condition = {"aligned": (rows, frames, dim), "timestep": (rows,)}
        denoise = {"x": (rows, MELS, frames), "condition": (rows, frames, dim), "timestep": (rows,)}
        given = {"diffusion_condition": condition, "diffusion_denoise": denoise}
        return min(self._plans.most_rows(graph, shapes) for graph, shapes in given.items()) >= rows

    def _step(self, staged: Staged, rows: int, frames: int, together: bool) -> None:
        """Queue a step: what the network makes of both rows, and where that takes the mel."""
        dim, at, size = self._dims["diffusion.dim"], staged.at, MELS * frames
        count = rows if together else 1
        noise, numbers = at("given"), at("given", _aligned(size) + _aligned(rows))
        when = (at("given", _aligned(size)), (count,))
        for row in range(0, rows, count):
            aligned = (at("aligned", row), (count, frames, dim))
            inputs = {"aligned": aligned, "timestep": when}
            self._plans.queue("diffusion_condition", inputs, {"condition": at("condition", row)})
        for row in range(0, rows, count):
            condition = (at("condition", row), (count, frames, dim))
            inputs = {"x": (at("x"), (count, MELS, frames)), "condition": condition, "timestep": when}
            self._plans.queue("diffusion_denoise", inputs, {"out": at("out", row)})
        kernel = self._kernels["update_guided" if rows > 1 else "update_free"]
        arguments = [at("x"), at("last"), at("out"), at("out", rows - 1), noise, numbers, size]
        self._device.run(kernel, -(-size // BLOCK), arguments)
        if count > 1:
            nbytes = bytes_of((size,))
            copy, origin = (Block(at("x", row), nbytes, 1) for row in (1, 0))
            self._device.copy(copy, origin, nbytes, 1, 1)

    def _arrays(self, rows: int, frames: int, together: bool) -> tuple[Staged, Array]:
        """-> memory, and of the steps on the host: each one's noise, timestep and numbers."""
        key = rows, frames
        if key not in self._held:
            size, wide = MELS * frames, frames * self._dims["diffusion.dim"]
            room = (lambda items: items) if together else _aligned
            given = _aligned(size) + _aligned(rows) + NUMBERS
            arrays: dict[str, tuple[tuple[int, ...], Any]] = {
                "x": ((rows, size), np.float32),
                "last": ((size,), np.float32),
                "aligned": ((rows, room(wide)), np.float32),
                "condition": ((rows, room(wide)), np.float32),
                "out": ((rows, room(2 * size)), np.float32),
                "given": ((given,), np.float32),
            }
            slots = self._device.pinned(bytes_of((DENOISES_AHEAD, given)))
            made = Staged(self._device, f"a clip of {frames} frames", arrays), slots.view(np.float32)
            self._held[key] = made[0], made[1].reshape(DENOISES_AHEAD, given)
            if len(self._held) > MOST_HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]
