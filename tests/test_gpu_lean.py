"""What the GPU suite says of the kernels that bundles carry, on a GPU of NumPy: right ones, and one that is not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from fake_driver import FakeDriver
from fake_gpu import FakeDevice, fake_kernels

from tortoise_rt.engine import EngineInfo
from tortoise_rt.errors import MissingDependency

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from judge import gpu_lean, gpu_parity

DIMS = {"ar.mel_codes": 300, "ar.start_code": 298, "ar.stop_code": 299, "diffusion.dim": 8}


def test_kernels_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_lean, "DIMS", DIMS)
    driver = FakeDriver()
    device = FakeDevice(driver=driver)
    kernels = fake_kernels(device, driver, DIMS)
    for settings in gpu_lean.SETTINGS.values():
        assert [ok for _, ok, _ in gpu_lean.draws(device, kernels, settings)] == [True] * 4
    for guided in (True, False):
        assert max(error for _, error in gpu_lean.updates(device, kernels, guided)) < 1e-5
    wrong = {**kernels, "draw_among_few": kernels["draw_among_all"], "update_guided": kernels["update_free"]}
    usual = gpu_lean.SETTINGS["usual"]
    with pytest.raises((AssertionError, ValueError)):
        list(gpu_lean.draws(device, wrong, usual))
    assert min(error for _, error in gpu_lean.updates(device, wrong, True)) > 1e-2


def test_engines_are_checked(standard_graphs: EngineInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_tensorrt_runner import make_engine

    monkeypatch.setattr(gpu_parity, "DRAWN", {"nucleus": dict(top_k=0, top_p=0.9)})
    engine = make_engine(standard_graphs, ahead=True)
    rows = list(gpu_parity.loops(engine))
    assert [row["settings"] for row in rows if row["ok"]] == list(gpu_parity.DRAWN)
    found = gpu_lean.code(engine, 2, context=70, repeats=2)
    assert found["drawn_s"] > 0 and found["read_s"] > 0
    engine._draws._kernels = dict(engine._draws._kernels) | {
        "draw_among_few": engine._draws._kernels["gather"]
    }
    with pytest.raises((AssertionError, ValueError)):
        list(gpu_parity.loops(engine))


def test_what_cannot_run_is_said() -> None:
    def absent() -> None:
        raise MissingDependency("it is not installed")

    def broken() -> None:
        raise ValueError(np.zeros(1))

    rows = [row for work in (absent, broken) for row in gpu_lean.guarded("a part", work)]  # type: ignore[arg-type]
    assert [row["kind"] for row in rows] == ["skip", "took", "broken", "took"]
    assert (
        rows[0]["reason"] == "it is not installed"
        and rows[2]["ok"] is False
        and "test_gpu_lean.py" in rows[2]["at"]
    )
