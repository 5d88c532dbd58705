"""Bundles of plans: which machine they are for, and what is missing on others."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from fake_driver import FakeDriver
from fake_gpu import FakeDevice, FakeLibrary

from tortoise_rt.backends import open_engine, tensorrt
from tortoise_rt.bundle import Bundle
from tortoise_rt.errors import BundleMismatch, EngineError, MissingDependency


def bundle(folder: Path, **target: Any) -> Bundle:
    said = {
        "backend": "tensorrt", "library": "tensorrt_rtx", "device": "cuda", "device_name": None,
        "compute_capability": None, "driver": None, "libraries": {"tensorrt_rtx": "1.7.0"},
    }  # fmt: skip
    model = {"name": "x", "folder": "/models/x"}
    manifest = {"target": said | target, "model": model, "graphs": {}, "files": {}, "dims": {}}
    precision = {"ar_step": "fp16", "univnet": "fp32"}
    return Bundle(folder, manifest | {"precision": precision, "defaults": {}})


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"libraries": {"tensorrt_rtx": "1.6.0"}}, "built with tensorrt_rtx 1.6.0; 1.7.0 is installed"),
        ({"compute_capability": ["7.5", "8.6"]}, "built for compute capability 7.5, 8.6; this machine has Fake GPU"),
        (
            {"library": "tensorrt", "libraries": {"tensorrt": "1.7.0"}, "device_name": "Other", "compute_capability": ["8.9"]},
            r"built for Other; this machine has Fake GPU \(compute capability 8.9\)",
        ),
    ],
)  # fmt: skip
def test_a_bundle_of_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(tensorrt, "load_library", lambda name: SimpleNamespace(__version__="1.7.0"))
    monkeypatch.setattr(tensorrt, "Device", lambda number: FakeDevice(number=number))
    with pytest.raises(BundleMismatch, match=message) as caught:
        tensorrt.open_bundle(bundle(tmp_path, **target))
    name = "tensorrt" if "device_name" in target else "tensorrt-rtx"
    command = (
        f"tortoise-rt export --checkpoints /models/x --target {name} --precision fp16 --force -o {tmp_path}"
    )
    assert str(caught.value).endswith(command)


def test_a_gpu_that_tensorrt_for_rtx_is_not_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor would it help to build for it with the same library; of int8, other graphs are in fp16."""
    monkeypatch.setattr(tensorrt, "load_library", lambda name: SimpleNamespace(__version__="1.7.0"))
    monkeypatch.setattr(tensorrt, "Device", lambda number: FakeDevice(driver=FakeDriver(capability="9.0")))
    made = bundle(tmp_path)
    made.manifest["precision"] = {"ar_step": "int8", "clvp_text": "fp16", "univnet": "fp32"}
    with pytest.raises(BundleMismatch, match=r"built for compute capability 8\.0, 8\.6, .*9\.0") as caught:
        tensorrt.open_bundle(made)
    assert f"--target tensorrt --precision int8 --force -o {tmp_path}" in str(caught.value)


def test_a_bundle_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary(tmp_path, {}, FakeDevice())
    monkeypatch.setattr(tensorrt, "load_library", lambda name: library)
    monkeypatch.setattr(tensorrt, "Device", lambda number: FakeDevice(number=number))
    for capability in (None, ["8.6", "8.9"]):
        engine = tensorrt.open_bundle(bundle(tmp_path, compute_capability=capability), "cuda:0")
        assert (engine.info.backend, engine.info.device) == ("tensorrt", "cuda:0")
    for name in ("cpu", "cuda:x", "cuda:²", "tpu"):
        with pytest.raises(EngineError, match="the tensorrt backend has no device"):
            tensorrt.open_bundle(bundle(tmp_path), name)


def test_a_bundle_for_another_backend(random_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BundleMismatch, match="exported for onnx; this is the tensorrt backend.*--target tensorrt"
    ):
        open_engine(random_bundle, "tensorrt")


def test_libraries_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, command in (
        ("tensorrt", "from NVIDIA's own package index"),
        ("tensorrt_rtx", r"pip install 'tortoise-rt\[tensorrt-rtx\]'"),
    ):
        for absent in (
            None,
            SimpleNamespace(__version__="10.0"),
        ):  # not installed; a package that holds nothing
            monkeypatch.setitem(sys.modules, name, absent)
            with pytest.raises(MissingDependency, match=f"the library {name} cannot be loaded .*{command}"):
                tensorrt.open_bundle(bundle(tmp_path, library=name))
