"""Bundles: what is refused at load, and what is noticed afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tortoise_rt import bundle as bundles
from tortoise_rt.backends import open_engine
from tortoise_rt.bundle import MANIFEST, demo_folder, manifest_sha256, read_bundle, verify_files
from tortoise_rt.errors import BundleError, BundleMismatch, EngineError

GRAPH, TOKENIZER = b"not a model", b"{}"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TORTOISE_RT_CACHE", str(folder))
    return folder


def edit(folder: Path, path: str, value: Any) -> None:
    """Set (or delete, with ...) one field of a manifest, and make its own checksum right again."""
    manifest = json.loads((folder / MANIFEST).read_text())
    *parents, last = path.split("/")
    inner = manifest
    for key in parents:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    manifest["sha256"] = manifest_sha256(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A bundle of one graph that is none."""
    folder = tmp_path / "small"
    folder.mkdir()
    contents = {"detector.onnx": GRAPH, "tokenizer.json": TOKENIZER}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    manifest = {
        "format": bundles.FORMAT,
        "model": {"name": "small", "folder": ""},
        "target": {"backend": "onnx", "device": "cpu", "requires": {"onnxruntime": "1.20"}},
        "precision": {"detector": "fp32"},
        "graphs": {"detector": "detector.onnx"},
        "files": {n: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)} for n, c in contents.items()},
        "dims": {},
        "defaults": {"preset": "fast"},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    edit(folder, "format", bundles.FORMAT)
    return folder


@pytest.fixture
def whole(random_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of all networks, to be changed."""
    return Path(shutil.copytree(random_bundle, tmp_path / "whole"))


# --- the manifest ---

ENTRY = {"sha256": "0" * 64, "bytes": 1}
BAD_FIELDS = [
    ("format", True, "not the manifest"),
    ("format", 1, "format 1; this version reads"),
    ("files", [], '"files" is missing'),
    ("target", ..., '"target" is missing'),
    ("model/folder", 3, "model.folder"),
    ("model/folder", "a\0b", "model.folder"),
    ("target/backend", None, "target.backend"),
    ("target/device", ..., "target.device"),
    ("target/requires", ["onnxruntime"], "target.requires"),
    ("target/requires/onnxruntime", 1.2, "target.requires.onnxruntime is 1.2"),
    ("target/requires/onnxruntime", "²", "target.requires.onnxruntime"),
    ("precision/detector", 32, "precision.detector"),
    ("precision/univnet", "fp32", "precision does not name"),
    ("graphs/detektor", "detector.onnx", "unknown graphs detektor"),
    ("graphs/detector", ["detector.onnx"], "graphs.detector"),
    ("graphs/detector", "other.onnx", "graphs.detector"),
    ("files/detector.onnx", "0" * 64, "files.detector.onnx is"),
    ("files/detector.onnx/sha256", ..., "detector.onnx.sha256 is None"),
    ("files/detector.onnx/sha256", "0" * 63, "64 hexadecimal"),
    ("files/detector.onnx/sha256", "G" * 64, "64 hexadecimal"),
    ("files/detector.onnx/bytes", -1, "detector.onnx.bytes is -1"),
    ("files/detector.onnx/bytes", True, "detector.onnx.bytes is True"),
    ("files/detector.onnx/bytes", 1.0, "detector.onnx.bytes is 1.0"),
    *(("files", {name: ENTRY}, "is no file name") for name in ("..", "", "a\0b", "a\\b", "C:a", MANIFEST)),
    ("dims/ar.dim", 1.5, "dimension ar.dim is 1.5"),
    ("dims/ar.dim", True, "dimension ar.dim is True"),
    ("dims/ar.layers", 1 << 40, "dimension ar.layers"),
    ("dims/ar.layers", -1, "dimension ar.layers"),
    ("defaults/preset", 7, "defaults.preset is 7"),
    ("defaults/decoder", ["hifigan"], "defaults.decoder"),
    ("defaults/voice", {"a": 1}, "defaults.voice"),
    ("defaults/seed", [1], "defaults.seed"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD_FIELDS)
def test_manifest_fields_are_checked(small: Path, path: str, value: Any, message: str) -> None:
    read_bundle(small)
    edit(small, path, value)
    with pytest.raises(BundleError, match=message):
        read_bundle(small, verify=False)


@pytest.mark.parametrize("name", ["../up.onnx", "/etc/passwd", "sub/x.onnx"])
def test_files_outside_the_folder_are_refused(small: Path, name: str) -> None:
    manifest = json.loads((small / MANIFEST).read_text())
    edit(small, "files", {**manifest["files"], name: ENTRY})
    with pytest.raises(BundleError, match="is no file name of a bundle"):
        read_bundle(small)


def test_missing_dimensions_are_named(small: Path) -> None:
    edit(small, "graphs", {"rlg_auto": "detector.onnx"})
    edit(small, "precision", {"rlg_auto": "fp32"})
    with pytest.raises(BundleError, match=r"rlg_auto\.dim is None"):
        read_bundle(small)


@pytest.mark.parametrize("content", ["", "[1]", "{}", "[" * 100_000, '{"format": 2}', "\x00" * 10])
def test_what_is_no_manifest(small: Path, content: str) -> None:
    (small / MANIFEST).write_text(content)
    with pytest.raises(BundleError, match=MANIFEST):
        read_bundle(small)


def test_manifest_of_another_kind(small: Path) -> None:
    with (small / MANIFEST).open("wb") as file:
        file.truncate(bundles.MAX_MANIFEST + 1)
    with pytest.raises(BundleError, match="no file of at most"):
        read_bundle(small)
    (small / MANIFEST).unlink()
    (small / MANIFEST).mkdir()
    with pytest.raises(BundleError, match="no file of at most"):
        read_bundle(small)


def test_edited_manifest_is_noticed(small: Path) -> None:
    text = (small / MANIFEST).read_text()
    (small / MANIFEST).write_text(json.dumps(json.loads(text), indent=3, sort_keys=True))
    read_bundle(small)  # only its layout changed
    (small / MANIFEST).write_text(text.replace('"fast"', '"ultra_fast"'))
    with pytest.raises(BundleError, match="does not match its own checksum"):
        read_bundle(small)


# --- the files ---


def test_files_must_be_those_listed(small: Path) -> None:
    assert read_bundle(small).tokenizer == small / "tokenizer.json"
    (small / ".DS_Store").touch()
    read_bundle(small)
    (small / "detector.data").touch()
    with pytest.raises(BundleError, match=r"holds 'detector\.data', which its manifest does not list"):
        read_bundle(small)
    (small / "detector.data").unlink()
    edit(small, "files/tokenizer.json", ...)
    assert read_bundle(small, verify=False).tokenizer is None
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        read_bundle(small)


def test_sub_folders_are_no_part_of_a_bundle(small: Path) -> None:
    (small / "train" / "weights").mkdir(parents=True)
    (small / "train" / "detector.data").write_bytes(b"x")
    (small / "train" / MANIFEST).write_text("{")
    assert set(read_bundle(small).verified) == {"detector.onnx", "tokenizer.json"}
    (small / "link").symlink_to(small / "train", target_is_directory=True)
    read_bundle(small)
    (small / "train.txt").touch()
    with pytest.raises(BundleError, match=r"holds 'train\.txt', which its manifest does not list"):
        read_bundle(small)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        (GRAPH + b"x", "has 12 bytes where the manifest has 11"),
        (GRAPH[::-1], "does not match"),
    ],
)
def test_damaged_files(small: Path, content: bytes | None, message: str) -> None:
    read_bundle(small)  # remembered as right
    path = small / "detector.onnx"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(BundleError, match=message):
        read_bundle(small)


def test_folder_in_a_files_place(small: Path) -> None:
    (small / "detector.onnx").unlink()
    (small / "detector.onnx").mkdir()
    with pytest.raises(BundleError, match=r"detector\.onnx"):
        read_bundle(small)


def test_an_edit_that_keeps_size_and_time_is_noticed(small: Path, cache: Path) -> None:
    read_bundle(small)
    path = next(p for p in sorted(small.iterdir()) if p.suffix == ".onnx")
    before, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BundleError, match="checksum"):
        read_bundle(small)


def test_what_systems_leave_in_folders_is_ignored(small: Path, cache: Path) -> None:
    for name in (".DS_Store", "._manifest.json", ".nfs0001"):
        (small / name).write_bytes(b"x")
    read_bundle(small)


def test_checksums_are_remembered(small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_bundle(small)
    hashed: list[Path] = []
    right = bundles.file_sha256
    monkeypatch.setattr(bundles, "file_sha256", lambda path: hashed.append(path) or right(path))
    assert verify_files(read_bundle(small)) and not hashed
    verify_files(read_bundle(small), remember=False)
    assert len(hashed) == 2
    next((cache / "verified").iterdir()).write_text('{"detector.onnx": "nonsense"}')
    read_bundle(small)
    assert len(hashed) == 4


def test_file_edited_between_opening_and_first_use(whole: Path) -> None:
    pytest.importorskip("onnxruntime")
    engine = open_engine(whole)
    os.utime(whole / "rlg_auto.data")  # new times, same content
    noise = np.zeros((1, engine.dims["rlg_auto.dim"]), np.float32)
    engine.run("rlg_auto", noise=noise)
    content = bytearray((whole / "rlg_diffuser.data").read_bytes())
    content[100] ^= 1
    (whole / "rlg_diffuser.data").write_bytes(content)
    with pytest.raises(BundleError, match=r"changed since it was opened.*rlg_diffuser\.data"):
        engine.run("rlg_diffuser", noise=np.zeros((1, engine.dims["rlg_diffuser.dim"]), np.float32))
    engine.run("rlg_auto", noise=noise)  # is in memory


# --- the model against the manifest ---


@pytest.mark.parametrize(
    ("graph", "dim", "change"),
    [
        ("ar_step", "ar.layers", 1),
        ("ar_step", "ar.layers", -1),
        ("ar_step", "ar.dim", 8),
        ("ar_step", "ar.heads", 1),
        ("ar_step", "ar.mel_codes", 1),
        ("ar_voice", "ar.dim", -8),
        ("diffusion_denoise", "diffusion.dim", 8),
        ("clvp_text", "clvp.latent_dim", 8),
    ],
)
def test_dimensions_are_the_models(whole: Path, graph: str, dim: str, change: int) -> None:
    pytest.importorskip("onnxruntime")
    edit(whole, f"dims/{dim}", json.loads((whole / MANIFEST).read_text())["dims"][dim] + change)
    engine = open_engine(whole)
    with pytest.raises(BundleError, match=rf"{graph}\.onnx: (in|out)put"):
        engine.session(graph)  # type: ignore[attr-defined]


def edit_model(folder: Path, graph: str, change: Callable[[Any], object]) -> None:
    """Change a graph, and make the manifest right again."""
    onnx = pytest.importorskip("onnx")
    path = folder / f"{graph}.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    path.write_bytes(content := model.SerializeToString())
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    edit(folder, f"files/{path.name}", entry)


@pytest.mark.parametrize("location", ["../outside.data", "{}/outside.data"])
def test_weights_outside_the_folder_are_refused(whole: Path, tmp_path: Path, location: str) -> None:
    pytest.importorskip("onnxruntime")
    shutil.copy(whole / "rlg_auto.data", tmp_path / "outside.data")

    def move(graph: Any) -> None:
        for entry in (e for tensor in graph.initializer for e in tensor.external_data):
            if entry.key == "location":
                entry.value = location.format(tmp_path)

    edit_model(whole, "rlg_auto", move)
    with pytest.raises(BundleError, match=r"rlg_auto\.onnx cannot be loaded"):
        open_engine(whole).session("rlg_auto")  # type: ignore[attr-defined]


def test_other_inputs_than_the_caches_are_refused(whole: Path) -> None:
    pytest.importorskip("onnxruntime")

    def add(graph: Any) -> None:
        extra = graph.input.add()
        extra.CopyFrom(graph.input[-2])
        extra.name = "key_9"

    edit_model(whole, "ar_step", add)
    with pytest.raises(BundleError, match="key_9.* are not those of graph"):
        open_engine(whole).session("ar_step")  # type: ignore[attr-defined]


def test_binding_failures_are_engine_errors() -> None:
    pytest.importorskip("onnxruntime")
    engine = open_engine()
    cache = engine.new_cache(1, 8)
    cache.state = cache.state[..., :-1]  # not what the graph declares
    with pytest.raises(EngineError, match='graph "ar_step" failed on'):
        engine.ar_step(cache, np.ones((1, 1), np.int64), np.zeros((1, 1), np.int64))


# --- devices ---


def test_device_names_are_checked_first() -> None:
    pytest.importorskip("onnxruntime")
    for device in ("bogus", "cpu:1", "cuda:", "cuda:²", "cuda:-1", "CUDA"):
        with pytest.raises(EngineError, match="has no device .* Use cpu, cuda or cuda:N"):
            open_engine(demo_folder(), device=device)


def test_cuda_and_the_cpu_have_bundles_of_their_own(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip("onnxruntime")
    assert open_engine(whole).info.device == "cpu"
    with pytest.raises(BundleMismatch, match="the device asked for is cuda.*export --target cuda"):
        open_engine(whole, device="cuda")
    edit(whole, "target/device", "cuda")
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match=r"needs ONNX Runtime's CUDAExecutionProvider.*tortoise-rt\[gpu\]"):
        open_engine(whole, device="cuda:1")
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("tortoise_rt.backends.onnx.gpu_names", lambda: ["A GPU", "another"])
    loaded: list[Any] = []
    monkeypatch.setattr("tortoise_rt.backends.onnx.load_libraries", loaded.append)
    engine = open_engine(whole, device="cuda:1")
    assert (
        loaded == [runtime] and engine.info.device == "cuda:1" and type(engine).__name__ == "StandardEngine"
    )
    options = SimpleNamespace(add_session_config_entry=lambda *entry: None)
    told = {"device_id": "1", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    assert engine._provider_options(options, "univnet") == told  # type: ignore[attr-defined]
    assert engine._provider_options(options, "ar_step") == told | {"enable_cuda_graph": "1"}  # type: ignore[attr-defined]


def test_bundles_for_other_machines(whole: Path) -> None:
    pytest.importorskip("onnxruntime")
    edit(whole, "target/device", "cuda")
    with pytest.raises(BundleMismatch, match="exported for cuda; the device asked for is cpu"):
        open_engine(whole, device="cpu")
    edit(whole, "target/device", "npu")
    with pytest.raises(BundleMismatch, match="exported for npu"):
        open_engine(whole)
    edit(whole, "target/device", "cpu")
    edit(whole, "target/requires/onnxruntime", "999.1")
    with pytest.raises(BundleMismatch, match=r"needs onnxruntime 999\.1.*pip install -U onnxruntime$"):
        open_engine(whole)
    edit(whole, "target/device", "cuda")
    with pytest.raises(
        BundleMismatch, match=r"needs onnxruntime-gpu 999\.1.*pip install -U onnxruntime-gpu$"
    ):
        open_engine(whole)
