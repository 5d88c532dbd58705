"""Exports: what they replace, what they leave behind, and two at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_cli import TOKENIZER

from tortoise_rt import bundle as bundles
from tortoise_rt.bundle import MANIFEST, read_bundle
from tortoise_rt.errors import OutputError


@pytest.fixture
def checkpoints(
    data: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """One small network in the official layout."""
    for package in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setenv("TORTOISE_RT_CACHE", str(tmp_path_factory.mktemp("cache")))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("config.json", "classifier.pth"):
        shutil.copy(data / name, folder)
    return folder


def export(checkpoints: Path, output: Path, **options: Any) -> Any:
    from tortoise_rt.export.bundle import export_bundle

    return export_bundle(checkpoints, output, check=False, **options)[0]


def test_force_replaces_bundles_and_nothing_else(checkpoints: Path, tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.mkdir()
    (browser / MANIFEST).write_text('{"manifest_version": 3, "name": "extension", "version": "1.0"}')
    (browser / "background.js").write_text("1")
    with pytest.raises(OutputError, match="not an engine bundle: it will not be replaced"):
        export(checkpoints, browser, force=True)
    assert sorted(p.name for p in browser.iterdir()) == ["background.js", MANIFEST]

    output = tmp_path / "bundle"
    export(checkpoints, output)
    with pytest.raises(OutputError, match="--force"):
        export(checkpoints, output)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"also holds notes\.txt"):
        export(checkpoints, output, force=True)
    (output / "notes.txt").unlink()
    manifest = json.loads((output / MANIFEST).read_text())
    (output / MANIFEST).write_text(json.dumps({**manifest, "format": 1}))
    (output / "detector.data").write_bytes(b"damaged")
    export(checkpoints, output, force=True)
    read_bundle(output)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["browser", "bundle", "checkpoints"]


@pytest.fixture
def inhabited(checkpoints: Path, tmp_path: Path) -> Path:
    """A bundle beside a folder that is no part of it."""
    output = tmp_path / "bundle"
    export(checkpoints, output, name="first")
    (output / "train").mkdir()
    (output / "train" / "notes.txt").write_text("mine")
    return output


def test_sub_folders_stay_when_a_bundle_is_replaced(checkpoints: Path, inhabited: Path) -> None:
    (inhabited / ".DS_Store").touch()
    exported = export(checkpoints, inhabited, name="second", force=True)
    assert read_bundle(inhabited).manifest["model"]["name"] == "second"
    assert {p.name for p in inhabited.iterdir()} == {MANIFEST, "train", *exported.manifest["files"]}
    assert (inhabited / "train" / "notes.txt").read_text() == "mine"
    for file in [p for p in inhabited.iterdir() if p.is_file()]:
        file.unlink()
    export(checkpoints, inhabited, force=True)
    assert sorted(p.name for p in inhabited.parent.iterdir()) == ["bundle", "checkpoints"]


@pytest.mark.parametrize("move", range(6))
def test_a_failed_exchange_of_files_is_undone(
    checkpoints: Path, inhabited: Path, monkeypatch: pytest.MonkeyPatch, move: int
) -> None:
    before = {p.name: p.read_bytes() for p in inhabited.iterdir() if p.is_file()}
    assert 2 * len(before) == 6  # renames of an exchange
    rename, moves = Path.rename, iter(range(100))

    def fail(self: Path, target: Path) -> Path:
        if next(moves) == move:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        export(checkpoints, inhabited, name="second", force=True)
    assert {p.name: p.read_bytes() for p in inhabited.iterdir() if p.is_file()} == before
    assert (inhabited / "train" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("move", range(7))
def test_an_exchange_that_was_killed_is_undone_by_the_next_export(
    checkpoints: Path, inhabited: Path, monkeypatch: pytest.MonkeyPatch, move: int
) -> None:
    """Killed before one of the renames of 3 files away and 4 in; the fourth has no counterpart among the old."""
    before = {p.name: p.read_bytes() for p in inhabited.iterdir() if p.is_file()}
    assert len(before) == 3
    rename, moves = Path.rename, iter(range(100))

    def die(self: Path, target: Path) -> Path:
        if next(moves) >= move:
            raise KeyboardInterrupt  # from here on nothing is put back either
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", die)
        export(checkpoints, inhabited, name="second", force=True, tokenizer=TOKENIZER)
    with pytest.raises(OutputError, match="--force"):
        export(checkpoints, inhabited)
    assert {p.name: p.read_bytes() for p in inhabited.iterdir() if p.is_file()} == before
    export(checkpoints, inhabited, name="third", force=True)
    assert read_bundle(inhabited).manifest["model"]["name"] == "third"
    assert sorted(p.name for p in inhabited.parent.iterdir()) == ["bundle", "checkpoints"]


def test_what_others_put_into_a_broken_bundle_stays(checkpoints: Path, inhabited: Path) -> None:
    old = inhabited.parent / ".bundle.old"
    old.mkdir()
    for name in (MANIFEST, "detector.data"):
        (inhabited / name).rename(old / name)
    (inhabited / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"also holds notes\.txt"):
        export(checkpoints, inhabited, force=True)
    (inhabited / "notes.txt").unlink()
    assert read_bundle(inhabited).manifest["model"]["name"] == "first"


def test_a_bundle_asks_for_what_its_graphs_need(checkpoints: Path, tmp_path: Path) -> None:
    exported = export(checkpoints, tmp_path / "bundle", precision="int8")
    assert set(exported.manifest["precision"].values()) == {"fp32"}  # no graph of this network has another
    assert exported.manifest["target"]["requires"] == {"onnxruntime": "1.20"}


def test_export_hashes_a_bundle_once(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} is hashed again")

    monkeypatch.setattr(bundles, "file_sha256", refuse)
    exported = export(checkpoints, tmp_path / "bundle")
    assert set(exported.verified) == set(exported.manifest["files"])
    read_bundle(tmp_path / "bundle")


def test_export_waits_for_no_lock(checkpoints: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / ".bundle.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another process is exporting"):
            export(checkpoints, tmp_path / "bundle")
    export(checkpoints, tmp_path / "bundle")  # left behind by a run that was killed
    assert not (tmp_path / ".bundle.lock").exists()


def test_a_lock_that_its_holder_removed_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    for package in ("torch", "onnx"):
        pytest.importorskip(package)
    from tortoise_rt.export.publish import locked

    lock, flock, calls = tmp_path / ".bundle.lock", fcntl.flock, []

    def late(file: Any, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            lock.unlink()  # the holder finished after the file was opened here
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path / "bundle"):
        assert lock.exists() and len(calls) == 2
        with pytest.raises(OutputError, match="another process"), locked(tmp_path / "bundle"):
            pass
    assert not lock.exists()


def test_a_failed_publication_keeps_the_old_bundle(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "bundle"
    export(checkpoints, output, name="first")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match="cannot write the bundle"):
        export(checkpoints, output, name="second", force=True)
    assert read_bundle(output).manifest["model"]["name"] == "first"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "checkpoints"]
