"""What the GPU suite says of the kernels that bundles carry, on a GPU of NumPy: right ones, and one that is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from fake_driver import FakeDriver
from fake_gpu import FakeDevice, fake_kernels

from tortoise_rt.engine import EngineInfo

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from judge import gpu_cubins, gpu_lean, gpu_parity

DIMS = {
    "ar.mel_codes": 300, "ar.start_code": 298, "ar.stop_code": 299, "ar.dim": 8, "ar.text_positions": 20, "ar.mel_positions": 40,
    "diffusion.dim": 8,
}  # fmt: skip


def test_kernels_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_cubins, "DIMS", DIMS)
    monkeypatch.setattr(gpu_cubins, "FRAMES", 31)
    driver = FakeDriver()
    device = FakeDevice(driver=driver)
    kernels = fake_kernels(device, driver, DIMS)
    for settings in gpu_cubins.SETTINGS.values():
        assert [ok for _, ok, _ in gpu_cubins.draws(device, kernels, settings)] == [True] * 4
    for guided in (True, False):
        assert max(error for _, error in gpu_cubins.updates(device, kernels, guided)) < 1e-5
    wrong = {**kernels, "draw_among_few": kernels["draw_among_all"], "update_guided": kernels["update_free"]}
    assert min(error for _, error in gpu_cubins.updates(device, wrong, True)) > 1e-2
    usual = gpu_cubins.SETTINGS["usual"]
    with pytest.raises((AssertionError, ValueError)):
        list(gpu_cubins.draws(device, wrong, usual))


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
