"""``tortoise-rt doctor``: what is installed, which engines match this machine, what to do next."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from .._version import __version__
from ..backends.triton_needs import lacking
from ..errors import MissingDependency
from .doctor_gpu import explain, find_driver, find_gpus
from .progress import table

PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "onnx",
    "tokenizers",
    "soundfile",
    "safetensors",
    "click",
    "cuda-bindings",
    "tensorrt-rtx",
    "tensorrt",
    "triton",
)


@click.command()
def doctor() -> None:
    """Report what is installed, which engines match this machine, and what to do next."""
    from ..bundle import cache_folder, demo_folder
    from ..voice import find_voices, user_folder

    installed = {package: _version(package) for package in PACKAGES}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    _section(
        "Machine",
        [
            ("tortoise-rt", __version__),
            ("Python", f"{platform.python_version()} ({sys.executable})"),
            ("platform", platform.platform()),
            ("CPU cores", str(cores)),
            *(("GPU", gpu) for gpu in find_gpus()),
        ],
    )
    _section("Packages", [(package, found or "not installed") for package, found in installed.items()])
    providers, cuda_lacks = _providers()  # before PyTorch is imported, which brings libraries of CUDA's
    devices = _torch_devices()
    _section("Runs on", [("onnx", providers), ("torch", devices)])
    _section("GPU", explain(find_driver(), installed, providers, cuda_lacks, devices, lacking()))
    _section(
        "Folders",
        [
            ("cache", str(cache_folder())),
            ("voices", f"{user_folder()} ({len(find_voices())} voices known)"),
        ],
    )
    folders = [demo_folder(), *sorted(p for p in (cache_folder() / "engines").glob("[!.]*") if p.is_dir())]
    states = {folder: _engine_state(folder) for folder in folders}
    _section("Engines", [(str(folder), state) for folder, (_, state) in states.items()])
    usable = [folder for folder, (works, _) in states.items() if works]
    click.echo("Next")
    for step in _next_steps(installed, usable, demo_folder()):
        click.echo(f"  {step}")


def _section(title: str, rows: list[tuple[str, str]]) -> None:
    lines = table(rows).splitlines()
    click.echo("\n".join([title, *(f"  {line}" for line in lines)]))


def _version(package: str) -> str:
    """The installed version; "" when there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _providers() -> tuple[str, str]:
    """-> ONNX Runtime's providers, and which of CUDA's libraries its CUDA provider misses, "" for none."""
    from ..backends.onnx import import_onnxruntime
    from ..backends.onnx_cuda import load_libraries

    try:
        runtime = import_onnxruntime()
    except MissingDependency:
        return "not installed", ""
    offered = runtime.get_available_providers()
    return ", ".join(offered), load_libraries(runtime) if "CUDAExecutionProvider" in offered else ""


def _torch_devices() -> str:
    try:
        import torch
    except ImportError:
        return "not installed"
    devices = ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))]
    return ", ".join(devices + ["mps"] * torch.backends.mps.is_available())


def _engine_state(folder: Path) -> tuple[bool, str]:
    """-> whether the bundle works on this machine, and what is to be said of it."""
    from ..backends import open_engine
    from ..errors import TortoiseError

    try:
        engine = open_engine(folder)
    except TortoiseError as error:
        return False, f"cannot be used: {error}"
    info = engine.info
    precision = "/".join(sorted(set(info.precision.values())))
    return (
        True,
        f"works here: {info.backend} on {info.device}, {precision}, {len(info.graphs)} graphs. {info.notice}",
    )


def _next_steps(installed: dict[str, str], usable: list[Path], demo: Path) -> list[str]:
    if not installed["onnxruntime"] and not installed["onnxruntime-gpu"]:
        return ["pip install 'tortoise-rt[cpu]'   (ONNX Runtime, to run engines)"]
    own = [folder for folder in usable if folder != demo]
    if own:
        return [f'tortoise-rt say --engine {own[0]} "Hello there." -o hello.wav']
    steps = []
    if usable:
        steps.append('tortoise-rt say "Hello there." -o hello.wav   (with the demo engine)')
    if not installed["torch"] or not installed["onnx"]:
        steps.append("pip install 'tortoise-rt[export]'   (PyTorch and ONNX, to export checkpoints)")
    return [*steps, "tortoise-rt fetch, then export --checkpoints DIR   (an engine of TorToiSe itself)"]
