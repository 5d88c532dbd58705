"""The training loop every stage shares: seeded, restartable, with progress and a results file."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

#: (step, generator of its numbers) -> losses; runs forward, backward and the optimisers
Step = Callable[[int, np.random.Generator], Mapping[str, float]]

KEPT = Path(__file__).parent / "weights"  #: weights without optimisers, as committed
#: stage -> parts of its model that are not kept: nothing that goes on from kept weights needs them
LEFT_OUT: Mapping[str, tuple[str, ...]] = {"vqvae": ("decoder.", "to_mel.", "to_phonemes.")}
LOG_EVERY = 100  #: steps
SAVE_EVERY = 120  #: seconds


def keep_memory() -> None:
    """Have glibc keep freed memory: giving it back and faulting it in again costs a CPU most of a training step."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # another C library
        return
    top_pad, trim_threshold, mmap_max = -2, -1, -4  # malloc.h
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 256 << 20)


class OutOfTime(Exception):
    """The piece of time this run was given is over; the same command goes on from here."""


@dataclass
class Work:
    """A folder of training data and states, and how to compute."""

    folder: Path
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    scale: float = 1.0  #: of every stage's steps; below 1 for trials
    until: float = field(default=float("inf"))  #: time.time() after which to stop

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def state(self, stage: str) -> Path:
        return self.folder / f"{stage}.pt"

    def read_state(self, stage: str) -> dict[str, Any] | None:
        path = self.state(stage)
        return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None

    def weights(self, stage: str, module: str = "model") -> dict[str, Tensor]:
        """A stage's weights so far: of this folder, else the committed ones."""
        state = self.read_state(stage)
        if state is not None:
            return dict(state["modules"][module])
        path = KEPT / f"{stage}.safetensors"
        if not path.exists():
            raise FileNotFoundError(
                f"stage {stage} has not run: neither {self.state(stage)} nor {path} exists"
            )
        prefix = f"{module}/"
        return {k.removeprefix(prefix): v.float() for k, v in load_file(path).items() if k.startswith(prefix)}

    def finished(self, stage: str) -> bool:
        state = self.read_state(stage)
        return state is not None and state["step"] >= state["steps"]

    def log(self, record: Mapping[str, Any]) -> None:
        with (self.folder / "results.jsonl").open("a") as file:
            file.write(json.dumps({**record, "machine": _machine(), "torch": torch.__version__}) + "\n")

    def keep(self, stage: str) -> Path:
        """Write a stage's model, rounded to half precision, to where it is committed: what helped it learn is left out."""
        state = self.read_state(stage)
        if state is None:
            raise FileNotFoundError(f"nothing to keep: {self.state(stage)} does not exist")
        KEPT.mkdir(exist_ok=True)
        tensors = {
            f"model/{key}": (value.half() if value.is_floating_point() else value).contiguous()
            for key, value in state["modules"]["model"].items()
            if not key.startswith(LEFT_OUT.get(stage, ()))
        }
        path = KEPT / f"{stage}.safetensors"
        save_file(tensors, path, metadata={"stage": stage, "step": str(state["step"])})
        return path


@functools.cache
def _machine() -> str:
    """The processor's model where the system tells it, and the number of cores."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count()} cores"


def save(value: Any, path: Path) -> None:
    """All of it or nothing."""
    part = path.with_suffix(".part")
    torch.save(value, part)
    os.replace(part, path)


def run(
    work: Work,
    stage: str,
    step: Step,
    steps: int,
    modules: Mapping[str, nn.Module],
    optimizers: list[torch.optim.Optimizer],
    schedule: Callable[[int, int], float],
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    evaluate_every: int = 1000,
    finish: Callable[[], None] | None = None,
) -> None:
    """Train to the last step, from where an earlier run stopped.

    ``schedule`` gives the factor of every learning rate at (step, steps). Each step draws from a generator of
    its own, so a run that was interrupted sees the same data. ``finish`` runs once, after the last step.
    """
    steps = max(1, round(steps * work.scale))
    done, spent = 0, 0.0
    state = work.read_state(stage)
    if state is not None:
        for name, module in modules.items():
            module.load_state_dict(state["modules"][name])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        done, spent = state["step"], state["seconds"]
    if done >= steps:
        print(f"{stage}: done ({done} steps)", flush=True)
        return
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    if state is not None:
        base = state["rates"]
    began, saved_at = time.time() - spent, time.time()
    sums: dict[str, float] = {}

    def store() -> None:
        content = dict(
            modules={name: module.state_dict() for name, module in modules.items()},
            optimizers=[optimizer.state_dict() for optimizer in optimizers],
            rates=base,
            step=done,
            steps=steps,
            seconds=time.time() - began,
        )
        save(content, work.state(stage))

    at, first = time.time(), done
    while done < steps:
        factor = schedule(done, steps)
        for optimizer, rates in zip(optimizers, base, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = float(rate * factor)
        torch.manual_seed(work.seed * 1_000_003 + done)
        for name, value in step(done, np.random.default_rng([work.seed, done])).items():
            sums[name] = sums.get(name, 0.0) + value
        done += 1
        if done % LOG_EVERY == 0 or done == steps:
            count = (done - 1) % LOG_EVERY + 1 if done - first >= LOG_EVERY else (done - first)
            record = {name: round(value / count, 4) for name, value in sums.items()}
            sums = {}
            if evaluate is not None and (done % evaluate_every == 0 or done == steps):
                record |= {f"held_out_{name}": round(value, 4) for name, value in evaluate().items()}
            pace = (time.time() - at) / (done - first)
            _report(work, stage, done, steps, record, pace, time.time() - began)
        if time.time() - saved_at > SAVE_EVERY:
            store()
            saved_at = time.time()
        if time.time() > work.until and done < steps:
            store()
            raise OutOfTime(f"{stage}: stopped at step {done} of {steps}; run again to go on")
    if finish is not None:
        finish()
    store()


def _report(
    work: Work, stage: str, done: int, steps: int, record: Mapping[str, float], pace: float, seconds: float
) -> None:
    left = pace * (steps - done)
    numbers = "  ".join(f"{name} {value:.4g}" for name, value in record.items())
    print(f"{stage} {done}/{steps}  {numbers}  {pace:.3f} s/step, {left / 60:.0f} min left", flush=True)
    work.log(
        {
            "stage": stage,
            "step": done,
            "steps": steps,
            **record,
            "seconds": round(seconds),
            "seconds_per_step": round(pace, 4),
        }
    )


def cosine(warmup: int = 100, floor: float = 0.02) -> Callable[[int, int], float]:
    """Linear warm-up, then a cosine down to ``floor``."""

    def factor(step: int, steps: int) -> float:
        return min(1.0, (step + 1) / warmup) * (
            floor + (1 - floor) * 0.5 * (1 + np.cos(np.pi * step / steps))
        )

    return factor


def late_decay(warmup: int = 60, flat: float = 0.4, floor: float = 0.01) -> Callable[[int, int], float]:
    """Linear warm-up, constant for a share of the steps, then linear to ``floor``."""

    def factor(step: int, steps: int) -> float:
        return min(1.0, (step + 1) / warmup) * min(1.0, (1 - step / steps) / (1 - flat) + floor)

    return factor
