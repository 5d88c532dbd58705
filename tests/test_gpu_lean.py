"""What the GPU suite says of the kernels that bundles carry, on a GPU of NumPy: right ones, and one that is not."""

from __future__ import annotations

import contextlib
import functools
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from fake_driver import FakeDriver
from fake_gpu import FakeDevice, fake_kernels
from standard import refusing, standard_engine, write_standard

from tortoise_rt.backends.device import Device
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.backends.onnx_standard import StandardEngine
from tortoise_rt.bundle import read_bundle
from tortoise_rt.engine import Engine, EngineInfo
from tortoise_rt.export.bundle import export_bundle
from tortoise_rt.export.targets import TARGETS

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


def test_every_precision_has_its_part() -> None:
    """Of those that are exported; eight bits are timed beside sixteen."""
    for target, (module, precisions) in gpu_lean.TARGETS.items():
        assert precisions == TARGETS[target].precisions
        assert module == (TARGETS[target].library or "onnxruntime")
    parts = gpu_lean.lean("tiny", True)
    assert {f"tensorrt in {precision}" for precision in ("fp32", "bf16", "int8", "fp8")} <= {*parts}
    timed = [name for name in parts if name.startswith("codes by tensorrt-rtx")]
    assert timed == [f"codes by tensorrt-rtx in {precision}, tiny" for precision in ("fp16", "int8", "fp8")]
    assert "cuda in int8" not in parts and not [
        name for name in gpu_lean.lean("tiny", False) if "tiny" in name
    ]


def test_speech_comes_before_what_matters_less() -> None:
    names = [*gpu_lean.lean("tiny", True)]
    order = [
        "cubins",
        "cuda in fp16",
        "ceilings",
        "tensorrt, tiny",
        "codes by tensorrt in fp16, tiny",
        "tensorrt in bf16",
    ]
    assert [name for name in names if name in order] == order
    assert "ceilings" not in gpu_lean.lean("tiny", False)


def test_copies_are_timed() -> None:
    driver = FakeDriver()
    (row,) = gpu_lean.ceilings(Device(driver=driver), 2 * gpu_lean.PITCH, repeats=3)
    assert row["kind"] == "ceiling" and row["what"] == "copy" and row["repeats"] == 3
    assert row["gb_per_s"] == pytest.approx(4 * gpu_lean.PITCH / row["median_s"] / 1e9)
    assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]


@pytest.mark.parametrize("late", [False, True])
def test_most_streams_are_run_where_there_is_time(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    @contextlib.contextmanager
    def engine(target: str, precision: str, size: str) -> Iterator[tuple[Engine, dict[str, str]]]:
        yield FakeEngine(), {"target": target, "precision": precision}

    def streams(made: Engine, together: list[int], room: object) -> Iterator[dict[str, object]]:
        for count in together:
            counts.append(count)
            yield {"kind": "streams", "together": count}

    monkeypatch.setattr(gpu_lean, "of_random_weights", engine)
    monkeypatch.setattr(gpu_lean.gpu_speech, "sentences", lambda engine, samples: iter(()))
    monkeypatch.setattr(gpu_lean.gpu_speech, "streams", streams)
    monkeypatch.setattr(gpu_lean, "MOST", 0.0 if late else 1e6)
    rows = list(gpu_lean.speech("tensorrt", "official"))
    assert counts == ([1, 8, 64] if late else [1, 8, 64, 256])
    assert rows[0] == {"kind": "streams", "together": 1, "target": "tensorrt", "precision": "fp16"}
    if late:
        assert rows[-1]["kind"] == "skip" and rows[-1]["what"] == "256 streams at once"


@contextlib.contextmanager
def on_the_cpu(
    checkpoints: Path, target: str, precision: str, records: bool = True
) -> Iterator[tuple[Engine, float]]:
    """As ``exported``, on ONNX Runtime's CPU provider, as if it recorded."""
    with tempfile.TemporaryDirectory() as folder:
        export_bundle(
            checkpoints,
            Path(folder) / "bundle",
            target=target,
            precision=precision,
            check=False,
            record_source=False,
        )
        made = read_bundle(Path(folder) / "bundle")
        engine = StandardEngine(made.folder, made.engine_info("onnx", "cpu"), made.graphs)
        engine.records = records
        yield engine, 1.0


def test_codes_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the one network that they need."""
    monkeypatch.setattr(gpu_lean, "exported", on_the_cpu)
    *rows, last = gpu_lean.codes("cuda", "fp16", "tiny")
    assert [(row["kind"], row["rows"]) for row in rows] == [("code", rows) for rows in (1, 4, 16)]
    assert all(row["read_s"] > 0 and row["precision"] == "fp16" and row["export_s"] == 1.0 for row in rows)
    assert (last["kind"], last["recorded"], last["refused"], last["ok"]) == ("recordings", 3, 0, True)


def test_where_nothing_is_recorded_is_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_lean, "exported", functools.partial(on_the_cpu, records=False))
    *_, last = gpu_lean.codes("cuda", "fp16", "tiny")
    assert (last["recorded"], last["ok"]) == (0, False)


def test_a_recording_that_is_refused_is_a_row(
    standard_graphs: EngineInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parity goes on without, and is as good; rows are moved."""
    engine = standard_engine(standard_graphs, records=True)
    monkeypatch.setattr(gpu_lean, "exported", lambda *given: contextlib.nullcontext((engine, 1.0)))
    monkeypatch.setattr(gpu_parity, "graphs", lambda engine: [])
    monkeypatch.setattr(gpu_parity, "whole_runs", lambda engine: [])
    first, *rows = gpu_lean.parity("cuda", "fp32")
    assert first["kind"] == "bundle" and [row["ok"] for row in rows] == [True] * 3
    assert [row.get("how") for row in rows] == ["taken", "put", None] and rows[-1]["recorded"] == 1
    refusing(engine)
    engine.release("ar_step")
    *moved, last = gpu_lean.parity("cuda", "fp32")
    assert (last["kind"], last["recorded"], last["refused"], last["ok"]) == ("recordings", 0, 1, False)
    assert all(row["ok"] for row in moved if row["kind"] == "moved rows")


def test_eight_bits_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fake_gpu import make_engine

    monkeypatch.setattr(gpu_parity, "DRAWN", {"usual": {}})
    engine = make_engine(write_standard(tmp_path, "int8"), ahead=True)
    (row,) = gpu_parity.loops(engine)
    assert row["ok"] and row["precision"] == "int8"
    found = {row["graph"]: row for row in gpu_parity.graphs(engine)}
    assert found["ar_step"]["precision"] == "int8" and all(row["ok"] for row in found.values())
    assert 1e-3 < found["ar_step"]["error"] < found["ar_step"]["bound"] == 0.05


def test_engines_are_checked(standard_graphs: EngineInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    from fake_gpu import make_engine

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
