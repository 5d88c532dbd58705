"""The GPU suite's parts: what cannot run, breaks, dies or hangs is said, takes no other's results, and time is bounded."""

from __future__ import annotations

import json
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

    rows = [row for work in (absent, wrong) for row in guarded("a part", work)]
    assert [row["kind"] for row in rows] == ["skip", "took", "figure", "broken", "took"]
    assert rows[0]["reason"] == "it is not installed"
    assert rows[3]["ok"] is False and rows[3]["error"] == "ValueError: no"
    assert "test_gpu_parts.py" in rows[3]["at"]


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


def test_kernels_are_not_timed_without_a_gpu() -> None:
    torch = pytest.importorskip("torch")
    from judge.gpu_kernels import kernels

    rows = list(guarded("kernels", lambda: kernels(torch.device("cpu"), "tiny", 1)))
    assert [row["kind"] for row in rows] == ["skip", "took"]
