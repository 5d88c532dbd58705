"""The GPU suite's parts: what cannot run, breaks, dies or hangs is said, takes no other's results, and time is bounded."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from judge.gpu_parts import Skip, guarded, supervise

WORKER = """
import json, os, sys, time
for name in sys.argv[1:]:
    print(json.dumps({"kind": "figure", "of": name}), flush=True)
    if name == "hangs":
        time.sleep(60)
    if name == "dies":
        os._exit(3)
    print("what a library prints", flush=True)
    print(json.dumps({"kind": "took", "what": name}), flush=True)
"""
COMMAND = [sys.executable, "-S", "-c", WORKER]


def run(parts: list[str], **bounds: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    supervise(COMMAND, parts, rows.append, **bounds)
    return rows


def test_a_part_takes_no_others_results() -> None:
    rows = run(["first", "dies", "second", "hangs", "third"], most=4.0)
    for name in ("first", "second", "third"):
        assert {"kind": "figure", "of": name} in rows and {"kind": "took", "what": name} in rows
    assert len(rows) == 2 * 3 + 2 * 2
    errors = {row["what"]: row["error"] for row in rows if row["kind"] == "broken" and row["ok"] is False}
    assert errors == {"dies": "the process ended with 3", "hangs": "it took longer than 4 s"}


def test_what_was_not_reached_is_said() -> None:
    begun = time.monotonic()
    rows = run(["first", "hangs", "last"], seconds=3.0)
    assert time.monotonic() - begun < 20
    missed = [row for row in rows if row["kind"] == "not reached"]
    assert [row["what"] for row in missed] == ["hangs", "last"]
    assert missed[0]["reason"] == "the 3 s of the suite were over"
    assert {"kind": "took", "what": "first"} in rows


def test_what_cannot_run_is_said() -> None:
    def absent() -> Any:
        raise Skip("it is not installed")

    def wrong() -> Any:
        yield {"kind": "figure"}
        raise ValueError("no")

    def no_package() -> Any:
        importlib.import_module("a_package_that_nobody_has.part")
        yield {}

    def no_module() -> Any:
        importlib.import_module("json.a_module_that_it_lacks")
        yield {}

    rows = [row for work in (absent, wrong, no_package, no_module) for row in guarded("a part", work)]
    assert [row["kind"] for row in rows if row["kind"] != "took"] == [
        "skip",
        "figure",
        "broken",
        "skip",
        "broken",
    ]
    assert [row["kind"] for row in rows].count("took") == 4
    assert rows[0]["reason"] == "it is not installed"
    assert rows[3]["ok"] is False and rows[3]["error"] == "ValueError: no"
    assert "test_gpu_parts.py" in rows[3]["at"]
    assert rows[5]["reason"] == "a_package_that_nobody_has is not installed"


@pytest.mark.parametrize("more", [[], ["--lean"]])
def test_without_a_gpu_there_is_one_skip(
    more: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    import gpu_suite

    monkeypatch.setattr(gpu_suite, "gpu_names", list)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = tmp_path / "rows.jsonl"
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", "-o", str(output), *more])
    assert gpu_suite.main() == 0
    (row,) = map(json.loads, output.read_text().splitlines())
    assert row == json.loads(capsys.readouterr().out)
    assert row["kind"] == "skip" and ("driver" if more else "CUDA") in row["reason"]


@pytest.mark.parametrize(
    ("precisions", "wanted"),
    [
        (
            "fp32,fp16,bf16",
            "environment, parity in fp32, parity in fp16, ceilings, reference, speed in fp16, kernels, "
            "parity in bf16, speed in bf16, speed in fp32",
        ),
        ("fp16", "environment, parity in fp32, parity in fp16, ceilings, reference, speed in fp16, kernels"),
        ("bf16", "environment, parity in fp32, ceilings, reference, kernels, parity in bf16, speed in bf16"),
    ],
)
def test_what_matters_most_comes_first(precisions: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    import gpu_suite

    arguments = ["gpu_suite.py", "--precisions", precisions, "--reference-source", "somewhere"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert ", ".join(gpu_suite.parts_of(gpu_suite.parsed())) == wanted
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", "--precisions", "fp16,fp8"])
    with pytest.raises(SystemExit, match="no precision 'fp8'. Available: fp32, fp16, bf16"):
        gpu_suite.parts_of(gpu_suite.parsed())


def suite(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The suite on the CPU, as it is called."""
    pytest.importorskip("torch")
    import gpu_suite

    monkeypatch.setattr(sys, "argv", [str(gpu_suite.__file__), "--device", "cpu", *arguments])
    return gpu_suite.main()


def test_rows_are_written_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of parts that run here, and of those that a process of its own runs, whose parent writes."""
    torch = pytest.importorskip("torch")
    import gpu_suite

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as PyTorch begins
    files = [tmp_path / "here", tmp_path / "apart"]
    assert suite(monkeypatch, "--parts", "environment", "-o", str(files[0])) == 0
    monkeypatch.setattr(gpu_suite, "parts_of", lambda arguments: {"environment": None})
    assert suite(monkeypatch, "-o", str(files[1])) == 0
    for file in files:
        first, second = map(json.loads, file.read_text().splitlines())
        assert (first["kind"], first["tf32"], second["kind"]) == ("environment", False, "took")


#: of the package and of exports; a machine to measure on may have PyTorch, Triton and NumPy alone
LACKING = ("click", "onnx", "onnxruntime", "safetensors", "soundfile", "text_unidecode", "tokenizers")
BARE = f"""
import sys
sys.modules.update(dict.fromkeys({LACKING}))
import gpu_suite
gpu_suite.gpu_parity.DRAWN = dict(greedy=dict(greedy=True))  # one of several, for the time
sys.exit(gpu_suite.main())
"""


def test_with_no_more_than_pytorch() -> None:
    """Parts with the modules run; those that make bundles say what they lack."""
    pytest.importorskip("torch")
    folder = Path(__file__).parent.parent / "benchmarks"
    command = [sys.executable, "-c", BARE, "--device", "cpu", "--size", "tiny", "--repeats", "1"]
    done = subprocess.run(
        [*command, "--precisions", "fp32", "--parts", "environment", "parity in fp32"],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    kinds = [row["kind"] for row in rows]
    assert kinds.count("took") == 2 and {"parity", "whole run"} < {*kinds} and "skip" not in kinds
    lean = """
sys.path.insert(0, ".")
from judge import gpu_lean, gpu_parts
gpu_lean.importlib.util.find_spec = lambda name: True
gpu_lean.TARGETS = {"tensorrt": ("tensorrt", ("fp32",))}
for row in gpu_parts.guarded("a part", gpu_lean.lean("tiny", False)["tensorrt in fp32"]):
    print(row)
"""
    program = BARE.partition("import gpu_suite")[0] + lean
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert "'reason': 'onnx is not installed'" in done.stdout, done.stderr[-2000:] + done.stdout


def test_kernels_are_not_timed_without_a_gpu() -> None:
    torch = pytest.importorskip("torch")
    from judge.gpu_kernels import kernels

    rows = list(guarded("kernels", lambda: kernels(torch.device("cpu"), "tiny", 1)))
    assert [row["kind"] for row in rows] == ["skip", "took"]
