"""Where Triton is installed and cannot launch a kernel, engines do without, and doctor says what it lacks."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_torch_cuda import entered

from tortoise_rt.backends import triton_needs
from tortoise_rt.backends.triton_needs import lacking
from tortoise_rt.cli.doctor_gpu import Driver, explain


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """One with gcc and Python.h: programs that are there, and the folder of the header."""
    (tmp_path / "Python.h").touch()
    there: dict[str, Any] = {"programs": {"gcc"}, "include": tmp_path, "scheme": "posix_prefix"}
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(
        triton_needs.shutil, "which", lambda name: name if name in there["programs"] else None
    )
    monkeypatch.setattr(sysconfig, "get_default_scheme", lambda: there["scheme"])
    paths = {"posix_prefix": there, "posix_local": {"include": "/nowhere"}}
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(paths[scheme]["include"])})
    return there


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("scheme", ["posix_prefix", "posix_local"])
def test_nothing_is_lacking(machine: dict[str, Any], compiler: str, scheme: str) -> None:
    machine |= {"programs": {compiler}, "scheme": scheme}
    assert lacking() == ""


def test_what_is_lacking(machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (machine["include"] / "Python.h").unlink()
    assert lacking() == (
        f"there is no {machine['include']}/Python.h: install Python's headers (apt install python3-dev)"
    )
    machine["programs"] = {"cc"}  # which Triton does not look for
    assert lacking().startswith("there is no C compiler: install gcc or clang")
    monkeypatch.setenv("CC", "icc")
    machine["programs"] = {"gcc"}
    assert lacking().startswith("CC names 'icc', which is no program here")


def test_doctor_says_so() -> None:
    installed = dict.fromkeys(("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt-rtx", "tensorrt"), "")
    installed |= {"cuda-bindings": "", "triton": "3.6"}
    rows = dict(
        explain(Driver(13000, "", ("9.0",)), installed, "", "", "cpu", "there is no C compiler: do this")
    )
    assert rows["kernels"].endswith("need no Triton; PyTorch is slower, as there is no C compiler: do this")


@pytest.mark.parametrize("works", [True, False])
def test_kernels_are_tried(
    works: bool,
    machine: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    from tortoise_rt.backends import cuda

    machine["programs"] = set()
    asked: list[Any] = []

    def try_out(out: Any) -> None:
        asked.append((out.device.type, list(now)))
        if not works:
            raise subprocess.CalledProcessError(1, ["gcc", "main.c"])

    now = entered(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "triton")
    monkeypatch.setitem(sys.modules, "tortoise_rt.kernels.try_out", SimpleNamespace(try_out=try_out))
    device = torch.device("cpu")
    with caplog.at_level(logging.WARNING, "tortoise_rt"):
        fast = cuda.Fast(device)
    assert fast.kernels is works and asked == [("cpu", [device, f"stream of {device}"])] and not now
    if works:
        assert not caplog.records
    else:
        assert fast.draws_ahead({"ar.dim": 1024}) == 0
        (record,) = caplog.records
        assert (
            "slower: Triton does not work (CalledProcessError: Command '['gcc', 'main.c']'" in record.message
        )
        assert record.message.endswith("or name one in CC")
