"""Kernels that bundles carry: which of them a GPU gets, what is refused, and what Triton compiles them to."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_driver import FakeDriver
from fake_gpu import FakeDevice

from tortoise_rt.backends.cubins import load_kernels, nearest
from tortoise_rt.bundle import Bundle
from tortoise_rt.errors import BundleError
from tortoise_rt.kernels import ahead
from tortoise_rt.kernels.ahead import carried

DIMS = {"ar.mel_codes": 37, "ar.start_code": 35, "ar.stop_code": 36, "diffusion.dim": 8}
OFFERED = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0", "12.1")


def carrying(folder: Path, **changes: Any) -> tuple[Bundle, FakeDevice]:
    """A bundle that carries kernels for 8.0 and 9.0, and a GPU that knows them."""
    driver = FakeDriver()
    kernels, files = {}, {}
    for name, kernel in carried(DIMS).items():
        compiled = {}
        for capability in ("8.0", "9.0"):
            file = f"{name}.sm{capability.replace('.', '')}.cubin"
            (folder / file).write_bytes(file.encode())
            driver.kernels[file.encode()] = lambda *given: None
            files[file] = {}
            compiled[capability] = {"file": file, "shared": 64, "spare": 2}
        kernels[name] = kernel.described() | {"compiled": compiled}
    manifest = {"kernels": kernels, "files": files, "dims": DIMS} | changes
    return Bundle(folder, json.loads(json.dumps(manifest))), FakeDevice(driver=driver)


def test_a_gpu_gets_the_nearest_that_it_can_run() -> None:
    """Machine code runs on later GPUs of its major version, but for what Triton compiles for one alone, from 9.0 on."""
    wanted = {
        "7.5": None, "8.0": "8.0", "8.6": "8.6", "8.7": None, "8.9": "8.9", "9.0": "9.0", "10.0": "10.0", "10.3": None,
        "12.0": "12.0", "12.1": "12.1", "13.0": None,
    }  # fmt: skip
    assert {name: nearest(name, OFFERED) for name in wanted} == wanted


def test_a_bundle_s_kernels_are_loaded(tmp_path: Path) -> None:
    bundle, device = carrying(tmp_path)
    kernels = load_kernels(bundle, device)
    assert kernels.keys() == carried(DIMS).keys()
    cubin, _, function = kernels["gather"].function
    assert (cubin, function) == (b"gather.sm80.cubin", "_gather")  # a GPU of 8.9 runs what is for 8.0
    assert (kernels["gather"].threads, kernels["draw_among_few"].threads) == (512, 32)
    assert [len(kernels[name].types) for name in ("gather", "update_free")] == [8 + 2, 7 + 2]


@pytest.mark.parametrize("capability", ["7.5", "10.0"])
def test_a_gpu_without_kernels_is_told_so(
    tmp_path: Path, capability: str, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, _ = carrying(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert load_kernels(bundle, FakeDevice(driver=FakeDriver(capability=capability))) == {}
    (message,) = caplog.messages
    assert f"Fake GPU (compute capability {capability})" in message and "tortoise-rt[kernels]" in message


def test_kernels_of_something_else_are_not_used(tmp_path: Path) -> None:
    bundle, device = carrying(tmp_path)
    entry = bundle.manifest["kernels"]["gather"]
    for key, value in (
        ("warps", 8),
        ("function", "_kernel"),
        ("arguments", entry["arguments"][::-1]),
        ("multiples", {}),
    ):
        changed = entry | {key: value}
        assert (
            load_kernels(Bundle(tmp_path, {**bundle.manifest, "kernels": {"gather": changed}}), device) == {}
        )
    for other in (DIMS | {"ar.mel_codes": 40}, DIMS | {"ar.start_code": 1}):
        assert load_kernels(Bundle(tmp_path, {**bundle.manifest, "dims": other}), device) == {}
    for nothing in ({}, [], None, {"gather": 1}, {"gather": entry | {"compiled": {"x": 1, "8": 2}}}):
        assert load_kernels(Bundle(tmp_path, {**bundle.manifest, "kernels": nothing}), device) == {}


@pytest.mark.parametrize(
    "made",
    [
        {"file": "other.cubin", "shared": 1, "spare": 2},
        {"file": ["x"], "shared": 1, "spare": 2},
        {"file": "gather.sm80.cubin", "shared": -1, "spare": 2},
        {"file": "gather.sm80.cubin", "shared": 1 << 30, "spare": 2},
        {"file": "gather.sm80.cubin", "shared": 1, "spare": "2"},
        {"file": "gather.sm80.cubin", "shared": 1, "spare": 99},
        [],
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, made: Any) -> None:
    bundle, device = carrying(tmp_path)
    bundle.manifest["kernels"]["gather"]["compiled"]["8.0"] = made
    with pytest.raises(BundleError, match="says of a kernel .*, which cannot be: export it again"):
        load_kernels(bundle, device)


def test_what_the_driver_does_not_load_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle, device = carrying(tmp_path)
    (tmp_path / "gather.sm80.cubin").write_bytes(b"nothing")
    with caplog.at_level(logging.WARNING):
        assert load_kernels(bundle, device) == {}
    assert "the GPU could not load a kernel: CUDA_ERROR_NO_BINARY_FOR_GPU" in caplog.messages[0]


def test_kernels_of_another_source_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, device = carrying(tmp_path)
    assert load_kernels(bundle, device)
    monkeypatch.setattr(ahead, "_digest", lambda module: "another")
    assert load_kernels(bundle, device) == {}


def test_no_kernels_are_compiled_for_a_gpu_that_none_fit(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tortoise_rt.export.kernels import compile_kernels

    assert compile_kernels(DIMS, ["10.3"], tmp_path) == {} and not list(tmp_path.iterdir())


PROGRAM = """
import json, sys
from pathlib import Path
from tortoise_rt.export.kernels import _compile, compile_kernels
from tortoise_rt.kernels.ahead import carried
dims, capabilities, folder = json.loads(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
said = compile_kernels(dims, capabilities, folder)
print(_compile(carried(dims)["update_guided"], 90).asm["ptx"].count("st.global.v4"), json.dumps(said))
"""


def test_triton_compiles_what_the_loader_takes(tmp_path: Path) -> None:
    """In a Python of its own: beside the interpreter that other tests use, Triton compiles nothing."""
    pytest.importorskip("torch")
    from tortoise_rt.export.kernels import can_compile

    if not can_compile():
        pytest.skip("needs Triton: pip install 'tortoise-rt[kernels]'")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(DIMS), json.dumps(["9.0", "12.1"]), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    by_fours, _, what = done.stdout.splitlines()[-1].partition(" ")
    assert int(by_fours) > 0  # values are stored at a time: it knows that addresses and sizes are round
    said = json.loads(what)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == 10 and all((tmp_path / name).read_bytes()[:4] == b"\x7fELF" for name in files)
    bundle = Bundle(tmp_path, {"kernels": said, "files": dict.fromkeys(files), "dims": DIMS})
    for capability in ("9.0", "12.1"):
        driver = FakeDriver(capability=capability)
        for name in files:
            driver.kernels[(tmp_path / name).read_bytes()] = lambda *given: None
        kernels = load_kernels(bundle, FakeDevice(driver=driver))
        assert kernels.keys() == carried(DIMS).keys()
        for name, kernel in kernels.items():
            cubin, _, function = kernel.function
            assert cubin == (tmp_path / f"{name}.sm{capability.replace('.', '')}.cubin").read_bytes()
            assert b"." + function.encode() in cubin  # ".text._gather": the function's code
