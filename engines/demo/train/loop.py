"""The training loop every stage shares: seeded, restartable, with progress and a results file."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
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


def fast_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16, where matrix products are faster in it: a CPU without instructions for it is many times slower."""
    kind = torch.device(device).type
    return torch.bfloat16 if kind != "cpu" or _bfloat16_is_fast() else torch.float32


def mixed(device: str | torch.device) -> torch.autocast:
    """Matrix products in the fast dtype."""
    kind, dtype = torch.device(device).type, fast_dtype(device)
    return torch.autocast(kind, torch.bfloat16, enabled=dtype == torch.bfloat16)


@functools.cache
def _bfloat16_is_fast() -> bool:
    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(256, 256, dtype=dtype)
        a @ a  # the first product sets things up
        began = time.perf_counter()
        for _ in range(3):
            a @ a
        return time.perf_counter() - began

    return seconds(torch.bfloat16) < seconds(torch.float32)


class OutOfTime(Exception):
    """The piece of time this run was given is over; the same command goes on from here."""


class Mismatch(Exception):
    """What lies in the work folder does not fit what is asked for, or what it was made from."""


@dataclass
class Work:
    """A folder of training data and states, and how to compute."""

    folder: Path
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    scale: float = 1.0  #: of every stage's steps; below 1 for trials
    until: float = field(default=float("inf"))  #: time.time() after which to stop
    from_kept: bool = False  #: take the committed weights of stages without a state in the folder

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def state(self, stage: str) -> Path:
        return self.folder / f"{stage}.pt"

    def begin(self) -> None:
        """Make the folder, or go on in it: scale and seed must be those that it was begun with."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path, mine = self.folder / "work.json", {"scale": self.scale, "seed": self.seed}
        if not path.exists():
            path.write_text(json.dumps(mine) + "\n")
        begun = json.loads(path.read_text())
        if begun != mine:
            raise Mismatch(
                f"{self.folder} was begun with scale {begun['scale']} and seed {begun['seed']}, not with scale "
                f"{self.scale} and seed {self.seed}: give the same, or another folder"
            )

    def check_time(self, at: str) -> None:
        """Stop where no time is left; everything so far must be saved. ``at``: how far that is."""
        if time.time() > self.until:
            raise OutOfTime(f"{at}: stopped; run again to go on")

    def read_state(self, stage: str, source: str | None = None) -> dict[str, Any] | None:
        """None where the stage has not run. ``source``: the ``digest`` of what it must have learned from."""
        path = self.state(stage)
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if source is not None and state.get("source", source) != source:  # not in states of earlier versions
            raise Mismatch(
                f"{path} learned from the outputs of another network than {self.folder} has now: "
                "remove it to start again"
            )
        return state

    def weights(self, stage: str, module: str = "model") -> dict[str, Tensor]:
        """A stage's weights so far; with ``from_kept`` the committed ones of a stage without a state."""
        state = self.read_state(stage)
        if state is not None:
            return dict(state["modules"][module])
        kept = KEPT / f"{stage}.safetensors"
        if not (self.from_kept and kept.exists()):
            instead = ", or take the committed weights: --from-kept" if kept.exists() else ""
            raise FileNotFoundError(
                f"{self.state(stage)} does not exist: run the stage {stage} first{instead}"
            )
        prefix = f"{module}/"
        return {k.removeprefix(prefix): v for k, v in _read_kept(kept).items() if k.startswith(prefix)}

    def finished(self, stage: str, source: str | None = None) -> bool:
        """Whether the stage's last step is done; ``source``: see read_state."""
        state = self.read_state(stage, source)
        return state is not None and state["step"] >= state["steps"]

    def log(self, record: Mapping[str, Any]) -> None:
        with (self.folder / "results.jsonl").open("a") as file:
            file.write(json.dumps({**record, "machine": _machine(), "torch": torch.__version__}) + "\n")

    def keep(self, stage: str, folder: Path) -> Path:
        """Write a stage's model, rounded to half precision, into ``folder``: what helped it learn is left out."""
        state = self.read_state(stage)
        if state is None:
            raise FileNotFoundError(f"nothing to keep: {self.state(stage)} does not exist")
        folder.mkdir(exist_ok=True)
        tensors = {
            f"model/{key}": (value.half() if value.is_floating_point() else value).contiguous()
            for key, value in state["modules"]["model"].items()
            if not key.startswith(LEFT_OUT.get(stage, ()))
        }
        path = folder / f"{stage}.safetensors"
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


@functools.cache
def _read_kept(path: Path) -> dict[str, Tensor]:
    """Committed tensors as "module/key", float32; says once that they are used."""
    print(f"{path.stem}: the committed weights, {path}", flush=True)
    return {key: value.float() for key, value in load_file(path).items()}


def digest(*tensors: Tensor) -> str:
    """What tells networks apart: a hash of their weights in half precision, so of the kept ones as of the trained."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.half().numpy().tobytes())
    return found.hexdigest()


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
    source: str | None = None,
) -> None:
    """Train to the last step, from where an earlier run stopped.

    ``schedule`` gives the factor of every learning rate at (step, steps). Each step draws from a generator of
    its own, so a run that was interrupted sees the same data. ``finish`` runs once, after the last step. ``source``:
    the ``digest`` of the network whose outputs are learned from; a state that learned from another one is refused.
    """
    steps = max(1, round(steps * work.scale))
    done, spent = 0, 0.0
    state = work.read_state(stage, source)
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
    sums: dict[str, float] = {}  # since the last report
    counts: dict[str, int] = {}  # steps that had each of them

    def store() -> None:
        content = dict(
            modules={name: module.state_dict() for name, module in modules.items()},
            optimizers=[optimizer.state_dict() for optimizer in optimizers],
            rates=base,
            step=done,
            steps=steps,
            seconds=time.time() - began,
        )
        if source is not None:
            content["source"] = source
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
            counts[name] = counts.get(name, 0) + 1
        done += 1
        if done % LOG_EVERY == 0 or done == steps:
            record = {name: round(value / counts[name], 4) for name, value in sums.items()}
            sums.clear()
            counts.clear()
            if evaluate is not None and (done % evaluate_every == 0 or done == steps):
                record |= {f"held_out_{name}": round(value, 4) for name, value in evaluate().items()}
            pace = (time.time() - at) / (done - first)
            _report(work, stage, done, steps, record, pace, time.time() - began)
        if time.time() - saved_at > SAVE_EVERY:
            store()
            saved_at = time.time()
        if time.time() > work.until and done < steps:
            store()
            work.check_time(f"{stage}, step {done} of {steps}")
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
