"""Which GPUs an export is for: those that are named, or all that the library and the precision can; else what to do."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from fake_driver import FakeDriver
from fake_gpu import FakeDevice

from tortoise_rt.errors import EngineError
from tortoise_rt.export import targets
from tortoise_rt.export.bundle import export_bundle
from tortoise_rt.export.targets import TARGETS, choose_capabilities, describe

RTX = SimpleNamespace(
    __name__="tensorrt_rtx",
    __version__="1.7",
    ComputeCapability=SimpleNamespace(
        __members__=dict.fromkeys(["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"])
    ),
)
PLAIN = SimpleNamespace(__name__="tensorrt", __version__="10.9")
ALL = ("8.0", "8.6", "8.9", "12.0", "12.1")


def gpu(capability: str) -> FakeDevice:
    return FakeDevice(driver=FakeDriver(capability=capability))


def chosen(
    precision: str, here: str = "", named: tuple[str, ...] = (), name: str = "tensorrt-rtx"
) -> tuple[str, ...]:
    library = RTX if name == "tensorrt-rtx" else PLAIN
    return choose_capabilities(TARGETS[name], precision, library, gpu(here) if here else None, named)


def test_what_plans_are_built_for() -> None:
    assert chosen("fp16") == chosen("int8") == chosen("fp32", here="8.6") == ALL
    assert chosen("fp8") == chosen("fp8", here="12.0") == ("8.9", "12.0", "12.1")
    assert chosen("fp16", named=("8.6",)) == chosen("fp16", here="9.0", named=("8.6",)) == ("8.6",)
    assert chosen("fp8", here="9.0", name="tensorrt") == ("9.0",)
    assert choose_capabilities(TARGETS["cuda"], "fp16", None, None, ()) == ()


@pytest.mark.parametrize(
    ("precision", "here", "named", "name", "message"),
    [
        ("fp16", "9.0", (), "tensorrt-rtx", "not 9.0: use --target tensorrt, .*; or .* --compute-capability 8.0"),
        ("fp16", "", ("9.0",), "tensorrt-rtx", "1.7 is for compute capability 8.0, .*, 12.1, not 9.0: use --target tensorrt"),
        ("fp32", "", ("8.9", "7.5"), "tensorrt-rtx", "not 7.5: use --target tensorrt"),
        ("fp8", "", ("8.6",), "tensorrt-rtx", "fp8 came with compute capability 8.9; a GPU of 8.6 lacks it: .* int8"),
        ("fp8", "8.0", (), "tensorrt", "a GPU of 8.0 lacks it"),
    ],
)  # fmt: skip
def test_what_is_refused(precision: str, here: str, named: tuple[str, ...], name: str, message: str) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        chosen(precision, here, named, name)
    assert len(str(caught.value).splitlines()) == 1


def test_an_export_on_such_a_gpu(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is written."""
    monkeypatch.setattr(targets, "load_library", lambda name: RTX)
    monkeypatch.setattr(targets, "Device", lambda: gpu("9.0"))
    shutil.copy(data / "rlg_auto.pth", tmp_path)
    with pytest.raises(EngineError, match="not 9.0: use --target tensorrt"):
        export_bundle(tmp_path, tmp_path / "bundle", target="tensorrt-rtx")
    assert not (tmp_path / "bundle").exists()


def test_the_manifest_names_them() -> None:
    said = describe(TARGETS["tensorrt-rtx"], ["fp16"], RTX, None, chosen("fp16"))
    assert said["compute_capability"] == list(ALL) and said["device_name"] is None
    here = gpu("9.0")
    said = describe(TARGETS["tensorrt"], ["fp16"], PLAIN, here, ("9.0",))
    assert said["compute_capability"] == ["9.0"] and said["device_name"] == here.name
