"""Parity and speed on a GPU in less than nine minutes; JSON lines out. Needs PyTorch and this package.

    python benchmarks/gpu_suite.py [-o results.jsonl] [--size official|tiny] [--repeats 5] [--device cuda]
                                   [--precisions fp32,fp16,bf16] [--reference-source DIR]
    python benchmarks/gpu_suite.py --lean [--lean-speed] [-o results.jsonl]

With ``--lean``: what runs without PyTorch, which is here to make bundles and to compare with: the kernels that bundles carry
(with Triton and cuda-bindings), TensorRT's plans (with tensorrt-rtx or tensorrt) and ONNX Runtime's CUDA provider (with
onnxruntime-gpu), each as far as it is installed; ``--lean-speed`` times them as well. Else the PyTorch backend:

Verifies first, fp32 and fp16: every graph on the device against the module on the CPU, three times, so that replayed
graphs are checked too, whole small runs, and what the device does by itself against the same with the host in between. Then
times, beside the machine's own ceilings and the reference's classes, measured in the same run, every stage of the model on
random weights of the chosen size, whole sentences and streams in fp16, and our kernels beside the library's form. Last come
bf16, and the speed of fp32.

Parts run in a process of their own: one that breaks or hangs does not take the others' results. What cannot run is a row that
is a skip, with its reason, and what there was no time for one that says "not reached". Ends with 1 where something is wrong, 2
where something was not reached, else 0: also without a GPU, where nothing is but a skip. ``--device cpu`` runs the same
suite on the CPU, ``--parts`` some of it, without a bound on the time.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib.util
import itertools
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judge import gpu_kernels, gpu_parity, gpu_reference
from judge.gpu_parts import SECONDS, guarded, supervise
from judge.gpu_speech import sentences, streams
from judge.gpu_stages import Stages, ceilings, timed

from tortoise_rt._version import __version__
from tortoise_rt.backends.driver import gpu_names
from tortoise_rt.backends.torch import PRECISIONS, TorchEngine
from tortoise_rt.export.random_checkpoint import write_checkpoints
from tortoise_rt.machine import cpu_name

Row = dict[str, Any]
Parts = dict[str, Callable[[], Iterator[Row]]]


def environment(device: torch.device) -> Iterator[Row]:
    """What the figures were taken on."""
    cuda = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else None
    yield {
        "kind": "environment",
        "tortoise_rt": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": gpu_names(),
        "device": torch.cuda.get_device_name(device) if cuda else cpu_name(),
        "capability": list(torch.cuda.get_device_capability(device)) if cuda else None,
        "memory_gib": memory and round(memory / 2**30, 1),
        "triton": importlib.util.find_spec("triton") is not None and __import__("triton").__version__,
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
    }


def parity(device: str, precision: str) -> Iterator[Row]:
    """Every graph, and what the device does by itself; in fp32 also whole runs."""
    engine = TorchEngine(gpu_parity.TINY, device, precision)
    yield from gpu_parity.graphs(engine)
    yield from gpu_parity.loops(engine)
    if precision == "fp32":
        yield from gpu_parity.whole_runs(engine)


@functools.cache
def checkpoints(size: str) -> tempfile.TemporaryDirectory[str]:
    """Random weights that never stop by themselves, for all that are timed."""
    folder = tempfile.TemporaryDirectory()
    write_checkpoints(Path(folder.name), size, stop_bias=-1000.0)
    return folder


def room(device: torch.device) -> int | None:
    """Bytes of a GPU that are free for tensors, what PyTorch has cached among them; None for what is none."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def speed(device: str, precision: str, size: str, repeats: int) -> Iterator[Row]:
    """Stages, then whole sentences and streams."""
    engine = TorchEngine(checkpoints(size).name, device, precision)
    spoken = sentences(engine), streams(engine, room=functools.partial(room, engine.device))
    for row in itertools.chain(Stages(engine, repeats).all(), *spoken):
        yield {**row, "precision": precision, "size": size}
    gc.collect()


def parts_of(arguments: argparse.Namespace) -> Parts:
    """The suite, what matters most first: the time may not reach to the end."""
    device, repeats, size = torch.device(arguments.device), arguments.repeats, arguments.size
    parts: Parts = {"environment": lambda: environment(device)}
    if arguments.lean:
        from judge.gpu_lean import lean

        return parts | lean(size, arguments.lean_speed)
    wanted = arguments.precisions.split(",")
    if unknown := {*wanted} - {*PRECISIONS}:
        sys.exit(f"there is no precision {min(unknown)!r}. Available: {', '.join(PRECISIONS)}")

    def checks(*precisions: str) -> Parts:
        here = (p for p in precisions if p in {"fp32", *wanted})
        return {f"parity in {p}": functools.partial(parity, arguments.device, p) for p in here}

    def speeds(*precisions: str) -> Parts:
        here = (p for p in precisions if p in wanted)
        return {f"speed in {p}": functools.partial(speed, arguments.device, p, size, repeats) for p in here}

    parts |= checks("fp32", "fp16") | {"ceilings": lambda: ceilings(device, repeats)}
    if arguments.reference_source is not None:
        parts["reference"] = lambda: gpu_reference.stages(
            arguments.reference_source, device, lambda work: timed(work, device, repeats)
        )
    parts |= speeds("fp16") | {"kernels": lambda: gpu_kernels.kernels(device, size, repeats)}
    return parts | checks("bf16") | speeds("bf16", "fp32")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, help="also append the JSON lines to this file")
    parser.add_argument("--size", choices=("official", "tiny"), default="official")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--precisions", default="fp32,fp16,bf16", help="to be checked, as fp32 always is, and timed"
    )
    parser.add_argument(
        "--reference-source",
        type=Path,
        metavar="DIR",
        help="the reference's unpacked sdist, to be timed beside it",
    )
    parser.add_argument("--lean", action="store_true", help="check what runs without PyTorch, and that alone")
    parser.add_argument("--lean-speed", action="store_true", help="with --lean: time it as well")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that it may take")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="these alone, in this process")
    parser.add_argument(
        "--child", action="store_true", help=argparse.SUPPRESS
    )  # whose parent writes its rows
    return parser.parse_args()


def missing(arguments: argparse.Namespace) -> str | None:
    """Why nothing can run here, if so."""
    if arguments.lean and not gpu_names():
        return "there is no NVIDIA driver here, or it finds no GPU. See tortoise-rt doctor"
    if not arguments.lean and arguments.device.startswith("cuda") and not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no CUDA device here"
    return None


def main() -> int:
    arguments = parsed()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means fp32
    if arguments.lean and not torch.cuda.is_available():
        arguments.device = "cpu"  # PyTorch only makes bundles
    parts, rows = parts_of(arguments), list[Row]()
    if unknown := {*(arguments.parts or ())} - {*parts}:
        sys.exit(f"there is no part {min(unknown)!r}. Available: {', '.join(parts)}")

    def emit(row: Row) -> None:
        rows.append(row)
        line = json.dumps(row)
        print(line, flush=True)
        if arguments.output and not arguments.child:
            with arguments.output.open("a") as file:
                file.write(line + "\n")

    if reason := missing(arguments):
        emit({"kind": "skip", "what": "all", "reason": reason})
    elif arguments.parts:
        for name in arguments.parts:
            for row in guarded(name, parts[name]):
                emit(row)
    else:
        with tempfile.TemporaryDirectory() as folder:  # of a process that is ended, too
            os.environ["TMPDIR"] = folder
            command = [sys.executable, *sys.argv, "--child", "--parts"]
            supervise(command, list(parts), emit, arguments.seconds)
    if any(row.get("ok") is False for row in rows):
        return 1
    return 2 if any(row["kind"] == "not reached" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
