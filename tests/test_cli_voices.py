"""The commands about voices, and the detector's: what they print, what they write, and how they fail."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_cli import FAKE, SAY, ok, run, write_clip

from tortoise_rt.latents import VoiceLatents

pytestmark = pytest.mark.usefixtures("folder")


def test_voices_are_listed_and_shown(folder: Path) -> None:
    assert "No voices yet" in ok("voices", "list").output or "name" in ok("voices", "list").output
    write_clip(folder / "v" / "emma" / "1.wav", 2)
    write_clip(folder / "v" / "emma" / "2.wav", 1.5)
    VoiceLatents(np.ones(16), np.ones(16), "abc").save(folder / "v" / "tom.safetensors")
    lines = [line.split()[:4] for line in ok("voices", "list", "--voices-dir", "v").output.splitlines()]
    assert ["emma", "clips", "2", "3.5"] in lines
    assert ["tom", "latents", "-", "-"] in lines
    shown = ok("voices", "show", "emma", "--voices-dir", "v").output
    assert "2.00" in shown and "-20.0" in shown
    assert "abc" in ok("voices", "show", "v/tom.safetensors").output
    assert run("voices", "show", "nobody").exit_code == 2


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_latents_of_clips_are_a_voice(folder: Path, suffix: str) -> None:
    write_clip(folder / "a.wav")
    write_clip(folder / "v" / "1.wav", value=0.3)
    result = ok("voices", "latents", "a.wav", "v", "-o", f"both{suffix}", *FAKE)
    assert "latents of 2 clips" in result.output
    ok(*SAY, "Hi", "--voice", f"both{suffix}")
    again = run("voices", "latents", f"both{suffix}", "-o", "x.pth", *FAKE)
    assert again.exit_code == 0  # latents are converted
    assert run("voices", "latents", "a.wav", "-o", "x.txt", *FAKE).exit_code == 2


def test_detect(folder: Path) -> None:
    write_clip(folder / "a.wav")
    write_clip(folder / "b.wav", value=0.9)
    assert ok("detect", "a.wav", *FAKE).stdout.endswith("  a.wav\n")
    found = json.loads(ok("detect", "a.wav", "b.wav", "--json", *FAKE).stdout)
    assert [one["clip"] for one in found] == ["a.wav", "b.wav"]
    assert 0 < found[0]["probability"] < found[1]["probability"] < 1
    between = (found[0]["probability"] + found[1]["probability"]) / 2
    assert run("detect", "a.wav", "--threshold", str(between), *FAKE).exit_code == 0
    assert run("detect", "a.wav", "b.wav", "--threshold", str(between), *FAKE).exit_code == 1
    assert run("detect", "a.wav", "--threshold", "2", *FAKE).exit_code == 2
    assert run("detect", "missing.wav", *FAKE).exit_code == 2


def test_detect_looks_into_folders(folder: Path) -> None:
    for name in ("in/a.wav", "in/deep/b.wav", "in/.hidden.wav"):
        write_clip(folder / name)
    (folder / "in" / "notes.txt").write_text("no clip")
    (folder / "in" / "back").symlink_to(folder / "in")
    result = ok("detect", "in", *FAKE)
    assert [line.split()[-1] for line in result.stdout.splitlines()] == ["in/a.wav", "in/deep/b.wav"]
    assert "a low one proves nothing" in result.stderr
    assert ok("detect", "in", "-q", *FAKE).stderr == ""
    (folder / "in" / "c.wav").write_text("no audio")
    result = run(
        "detect", "in", "--threshold", "0", "--json", *FAKE
    )  # one was not heard: that is what counts
    assert result.exit_code == 2
    found = json.loads(result.stdout)
    assert [one["clip"] for one in found] == ["in/a.wav", "in/c.wav", "in/deep/b.wav"]
    assert found[1]["probability"] is None and "cannot be read as audio" in found[1]["error"]
    assert found[0]["error"] is None and 0 < found[0]["probability"] < 1
    (folder / "empty").mkdir()
    assert "holds no audio" in run("detect", "empty", *FAKE).stderr
    assert "no file or folder" in run("detect", "nowhere", *FAKE).stderr


def test_voices_blend(folder: Path) -> None:
    write_clip(folder / "v" / "emma" / "1.wav")
    write_clip(folder / "v" / "tom" / "1.wav", value=0.4)
    result = ok("voices", "latents", "random", "--seed", "7", "-o", "r.safetensors", *FAKE)
    assert "latents of a random voice, seed 7" in result.stdout
    ok("voices", "latents", "random", "--seed", "7", "-o", "r7.safetensors", *FAKE)
    ok("voices", "latents", "random", "-o", "other.safetensors", *FAKE)
    r, r7, other = (load_file(folder / f"{name}.safetensors")["auto"] for name in ("r", "r7", "other"))
    assert (r == r7).all() and not (r == other).all()  # the files' own order of metadata is not fixed
    result = ok("voices", "blend", "emma:2", "r.safetensors:1", "--voices-dir", "v", "-o", "m.pth", *FAKE)
    assert result.stdout.startswith("m.pth: latents of emma:2&r.safetensors:1\n")
    ok(*SAY, "Hi", "--voice", "emma:2&r.safetensors:1", "--voices-dir", "v", "--seed", "1", "-o", "a.wav")
    ok(*SAY, "Hi", "--voice", "m.pth", "--seed", "1", "-o", "b.wav")
    assert (folder / "a.wav").read_bytes() == (folder / "b.wav").read_bytes()
    ok(*SAY, "Hi", "--voice", "random", "--seed", "7", "-o", "c.wav")  # a saved voice is the seed's
    ok(*SAY, "Hi", "--voice", "r.safetensors", "--seed", "7", "-o", "d.wav")
    assert (folder / "c.wav").read_bytes() == (folder / "d.wav").read_bytes()
    ok("voices", "blend", "m.pth:1", "r.safetensors:3", "-o", "n.safetensors")  # latents alone need no engine
    shown = ok("voices", "show", "emma:3&tom:1", "--voices-dir", "v").stdout
    assert "emma: 1 clip of 1.0 s, 75 %" in shown
    for arguments, message in [
        (("latents", "emma", "--seed", "1", "-o", "x.pth"), "seed 1 has no effect"),
        (("blend", "emma:1", "tom", "-o", "x.pth"), "weights for some voices only"),
        (("blend", "emma:0", "tom:1", "-o", "x.pth"), "above 0"),
        (("blend", "emma", "random", "-o", "x.pth"), "stands alone"),
        (("blend", "emma", "-o", "no/x.pth"), "folder no does not exist"),
    ]:
        failed = run("voices", *arguments, "--voices-dir", "v", *FAKE)
        assert failed.exit_code == 2 and message in failed.stderr, arguments


def test_latents_are_computed_once(folder: Path) -> None:
    write_clip(folder / "a.wav")
    write_clip(folder / "own" / "1.wav", value=0.2)
    ok(*SAY, "Hi", "--voice", "a.wav", "--seed", "1", "-o", "a.wav.wav")
    kept = sorted((folder / ".cache" / "latents").iterdir())
    assert len(kept) == 2
    ok(*SAY, "Hi", "--voice", "a.wav", "--seed", "1", "-o", "b.wav")
    assert sorted((folder / ".cache" / "latents").iterdir()) == kept
    assert (folder / "a.wav.wav").read_bytes() == (folder / "b.wav").read_bytes()


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_voices_are_drawn(folder: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    write_clip(folder / "v" / "1.wav", 2)
    write_clip(folder / "v" / "2.wav", 14)
    write_clip(folder / "w.wav")
    VoiceLatents(np.ones(16)).save(folder / "x.safetensors")
    picture = folder / f"p{suffix}"
    drawn = [["v", "w.wav", "x.safetensors"], ["v:0.5&x.safetensors:0.5"]] if suffix == ".png" else [["v"]]
    for voices in drawn:
        assert f"{picture.name}: drawn" in ok("voices", "show", *voices, "--plot", picture.name, *FAKE).stdout
        assert picture.read_bytes().startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
        picture.unlink()
    VoiceLatents(np.ones(64)).save(folder / "y.safetensors")
    for arguments, message in [
        (("v", "y.safetensors", "--plot", picture.name), "latents of 16 and 64 values cannot be compared"),
        (("v", "--plot", "p.gif"), "its suffix must be one of .png, .svg, .pdf"),
        (("v", "--plot", "no/p.png"), "folder no does not exist"),
        (("random", "--plot", picture.name), "nothing to draw"),
    ]:
        failed = run("voices", "show", *arguments, *FAKE)
        assert failed.exit_code == 2 and message in failed.stderr, arguments
    assert not picture.exists()


def test_drawing_needs_a_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(folder / "a.wav")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    failed = run("voices", "show", "a.wav", "--plot", "a.png")
    assert failed.exit_code == 2 and "pip install 'tortoise-rt[plot]'" in failed.stderr


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch proof",)


def test_hostile_latents_are_refused(folder: Path) -> None:
    write_clip(folder / "a.wav")
    (folder / "v.pth").write_bytes(pickle.dumps(Hostile()))
    for arguments in (
        (*SAY, "Hi", "--voice", "v.pth"),
        (*SAY, "Hi", "--voice", "v.pth:0.5&a.wav:0.5"),
        ("voices", "show", "v.pth"),
        ("voices", "add", "emma", "v.pth"),
        ("voices", "latents", "v.pth", "-o", "w.pth"),
    ):
        failed = run(*arguments)
        assert (
            failed.exit_code == 2
            and "cannot use v.pth" in failed.stderr
            and "\n" not in failed.stderr.strip()
        )
    assert sorted(p.name for p in folder.iterdir() if p.name != ".cache") == ["a.wav", "v.pth"]
