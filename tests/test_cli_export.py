"""The commands ``export`` and ``verify``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import TOKENIZER, hostile_pickle, ok, run, write_clip

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "cdua"], 'target "cdua" is unknown. Did you mean "cuda"'),
        (["--target", "cuda", "--precision", "int8"], 'no precision is called "int8" for cuda.'),
        (["--target", "cuda", "--precision", "bf16"], "Available: fp16, fp32."),
        (["--precision", "fp16"], 'no precision is called "fp16" for cpu.'),
        (["--target", "tensorrt", "--compute-capability", "8.9"], "--compute-capability is for tensorrt-rtx"),
    ],
)
def test_what_a_target_cannot_do(arguments: list[str], message: str) -> None:
    result = run("export", "--checkpoints", ".", *arguments)
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("package", ["torch", "onnx"])
def test_the_lean_install_cannot_export(folder: Path, package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from tortoise_rt.cli import main; main()"
    command = [sys.executable, "-c", code, "export", "--checkpoints", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert f"needs {package}, which is not installed: pip install 'tortoise-rt[export]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture
def checkpoints(data: Path, folder: Path) -> Path:
    """Two small networks in the official layout."""
    source = folder / "checkpoints"
    source.mkdir()
    for file in ("config.json", "cvvp.pth", "classifier.pth"):
        shutil.copy(data / file, source)
    shutil.copy(TOKENIZER, source / "tokenizer.json")
    return source


def test_export_then_verify(checkpoints: Path, folder: Path) -> None:
    for package in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    result = ok("export", "--checkpoints", str(checkpoints), "-o", "bundle")
    assert "cvvp_voice" in result.output and "detector" in result.output
    again = run("export", "--checkpoints", str(checkpoints), "-o", "bundle")
    assert again.exit_code == 2 and "--force" in again.stderr

    checkpoints.rename(folder / "moved")
    assert "Not compared: the checkpoints" in ok("verify", "--engine", "bundle").output
    assert "3 graphs agree" in ok("verify", "--engine", "bundle", "--checkpoints", "moved").output
    write_clip(folder / "a.wav")
    ok("detect", "a.wav", "--engine", "bundle")

    damaged = next((folder / "bundle").glob("*.onnx"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    result = run("verify", "--engine", "bundle")
    assert result.exit_code == 2 and damaged.name in result.stderr


def test_verify_fails_when_a_graph_computes_something_else(
    checkpoints: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    ok("export", "--checkpoints", str(checkpoints), "-o", "bundle", "--no-check")
    monkeypatch.setattr("tortoise_rt.export.parity.BOUNDS", {"fp32": 0.0})
    monkeypatch.setattr("tortoise_rt.export.parity.ROUNDING_FACTOR", 0)
    result = run("verify", "--engine", "bundle")
    assert result.exit_code == 1 and "detector by" in result.stderr and "cvvp_voice by" in result.stderr
    assert len([line for line in result.stdout.splitlines() if line.endswith("NO")]) > 1
    result = run("export", "--checkpoints", str(checkpoints), "-o", "other")
    assert result.exit_code == 1 and "detector by" in result.stderr
    assert not (folder / "other").exists()


def test_export_finds_a_tokenizer(checkpoints: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    arguments = ("export", "--checkpoints", str(checkpoints), "--no-check", "--force", "-o", "bundle")
    (checkpoints / "tokenizer.json").unlink()
    monkeypatch.setattr("tortoise_rt.text.find_reference_tokenizer", lambda: None)
    assert "the bundle will have none" in ok(*arguments).stderr
    assert not (folder / "bundle" / "tokenizer.json").exists()
    assert "Warning" not in ok(*arguments, "--tokenizer", str(TOKENIZER)).stderr
    assert (folder / "bundle" / "tokenizer.json").read_bytes() == TOKENIZER.read_bytes()
    monkeypatch.setattr("tortoise_rt.text.find_reference_tokenizer", lambda: TOKENIZER)
    assert "Warning" not in ok(*arguments).stderr
    assert (folder / "bundle" / "tokenizer.json").is_file()
    result = run(*arguments, "--tokenizer", "missing.json")
    assert result.exit_code == 2 and "there is no tokenizer" in result.stderr


def test_hostile_checkpoints_are_not_executed(checkpoints: Path, folder: Path) -> None:
    pytest.importorskip("torch")
    hostile_pickle(checkpoints / "classifier.pth")
    write_clip(folder / "a.wav")
    result = run("detect", "a.wav", "--checkpoints", str(checkpoints))
    assert result.exit_code == 2 and "nothing in it was executed" in result.stderr
    assert not (folder / "executed").exists()


def test_a_bundle_for_cuda(checkpoints: Path, folder: Path) -> None:
    """Its graphs are compared on the CPU; where there is no CUDA it says so."""
    runtime = pytest.importorskip("onnxruntime")
    result = ok(
        "export", "--checkpoints", str(checkpoints), "--target", "cuda", "--precision", "fp16", "-o", "bundle"
    )
    rows = [line.split() for line in result.output.splitlines()]
    assert ["cvvp_speech", "fp16"] in [row[:2] for row in rows] and ["detector", "fp32"] in [
        row[:2] for row in rows
    ]
    target = json.loads((folder / "bundle" / "manifest.json").read_text())["target"]
    assert (target["backend"], target["device"]) == ("onnx", "cuda")
    assert target["provider"] == "CUDAExecutionProvider" and target["requires"] == {"onnxruntime": "1.27"}
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        write_clip(folder / "a.wav")
        failed = run("detect", "a.wav", "--engine", "bundle")
        assert failed.exit_code == 2 and "pip install 'tortoise-rt[gpu]'" in failed.stderr
