"""The user's own voices: added, imported, replaced and unpacked, from good and from hostile sources."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from test_cli import ok, run, write_clip

from tortoise_rt import voice_store
from tortoise_rt.errors import AudioError, OutputError, VoiceError
from tortoise_rt.latents import VoiceLatents
from tortoise_rt.voice import load_voice, user_folder
from tortoise_rt.voice_store import add_voice, import_voices, unpack_voices

pytestmark = pytest.mark.usefixtures("folder")
SOME = VoiceLatents(np.ones(4), np.ones(6))


def contents(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_clips_become_a_voice(folder: Path) -> None:
    write_clip(folder / "in" / "b.wav", 2)
    write_clip(folder / "in" / "a.WAV", 1)
    (folder / "in" / "notes.txt").write_text("of no interest")
    write_clip(folder / "c.wav", 3)
    assert add_voice("emma", ["in", "c.wav"]) == user_folder() / "emma"
    assert contents(user_folder()) == ["emma", "emma/001.wav", "emma/002.wav", "emma/003.wav"]
    voice = load_voice("emma")
    assert voice is not None and [len(c) for c in voice.clips] == [22050, 44100, 66150]
    assert (user_folder() / "emma" / "003.wav").read_bytes() == (folder / "c.wav").read_bytes()


def test_nothing_is_replaced_without_force(folder: Path) -> None:
    write_clip(folder / "a.wav")
    user_folder().mkdir()
    SOME.save(user_folder() / "emma.pth")
    with pytest.raises(VoiceError, match=r'a voice "emma" already .*emma\.pth.*--force'):
        add_voice("emma", ["a.wav"])
    assert contents(user_folder()) == ["emma.pth"]
    add_voice("emma", ["a.wav"], force=True)
    assert contents(user_folder()) == ["emma", "emma/001.wav"]
    SOME.save(folder / "x.safetensors")
    add_voice("emma", ["x.safetensors"], force=True)
    assert contents(user_folder()) == ["emma", "emma/001.safetensors"]


def test_a_link_is_replaced_not_followed(folder: Path) -> None:
    write_clip(folder / "elsewhere" / "1.wav")
    write_clip(folder / "a.wav")
    user_folder().mkdir()
    (user_folder() / "emma").symlink_to(folder / "elsewhere")
    add_voice("emma", ["a.wav"], force=True)
    assert (folder / "elsewhere" / "1.wav").exists() and not (user_folder() / "emma").is_symlink()


def test_what_fails_leaves_the_old_voice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(folder / "a.wav")
    add_voice("emma", ["a.wav"])
    before, rename = contents(user_folder()), Path.rename

    def full(path: Path, target: Path) -> Path:
        if target.name == "emma" and len(contents(path)) > 1:
            raise OSError("no space left")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OutputError, match="cannot write the voice .*emma.*no space left"):
        add_voice("emma", ["a.wav", "a.wav"], force=True)
    assert contents(user_folder()) == before


@pytest.mark.parametrize(
    "name",
    ["", "random", "../up", "a/b", "a\\b", ".hidden", "_off", "a&b", "a:1", "x.wav", "v.pth", "a\n", " a", "a.", "..", "x" * 61]
)  # fmt: skip
def test_names_that_are_none(folder: Path, name: str) -> None:
    write_clip(folder / "a.wav")
    with pytest.raises(VoiceError, match="a voice cannot be called"):
        add_voice(name, ["a.wav"])
    assert not user_folder().exists()


def test_sources_are_checked(folder: Path) -> None:
    write_clip(folder / "a.wav")
    write_clip(folder / "short.wav", 0.05)
    (folder / "bad.wav").write_text("no audio")
    (folder / "bad.pth").write_bytes(b"\x80\x04no latents")
    (folder / "empty").mkdir()
    SOME.save(folder / "x.pth")
    (folder / "a.au").write_bytes((folder / "a.wav").read_bytes())
    for sources, kind, message in [
        (["a.wav", "short.wav"], AudioError, "lasts 0.050 s"),
        (["a.wav", "bad.wav"], AudioError, "cannot be read as audio"),
        (["missing.wav"], VoiceError, "no file or folder missing.wav"),
        (["bad.pth"], VoiceError, "cannot use bad.pth"),
        (["a.wav", "x.pth"], VoiceError, "1 latent files and 1 clips"),
        (["empty"], VoiceError, "holds no audio"),
        (["a.au"], VoiceError, "would not be found again"),
    ]:
        with pytest.raises(kind, match=message):
            add_voice("emma", sources)
    assert not user_folder().exists()


def test_a_folder_of_voices_is_imported(folder: Path) -> None:
    write_clip(folder / "all" / "emma" / "1.wav")
    write_clip(folder / "all" / "tom" / "1.wav")
    write_clip(folder / "all" / "tom" / "2.wav")
    write_clip(folder / "all" / "__pycache__" / "1.wav")
    (folder / "all" / "void").mkdir()
    SOME.save(folder / "all" / "pat.pth")
    write_clip(folder / "old.wav")
    ok("voices", "add", "emma", "old.wav")
    result = run("voices", "import", "all")
    assert result.exit_code == 1  # the empty one
    assert result.stdout.splitlines() == [
        "emma: kept: there is a voice of this name already",
        "pat: imported: latents",
        "tom: imported: 2 clips",
    ]
    assert result.stderr.startswith("void: not imported: the voice folder all/void holds no audio")
    assert {one.name for one in import_voices("all", force=True) if not one.failed} == {"emma", "pat", "tom"}
    with pytest.raises(VoiceError, match="voices add NAME"):
        list(import_voices("all/emma"))
    with pytest.raises(VoiceError, match="nowhere is no folder"):
        list(import_voices("nowhere"))


def archive(path: Path, *members: tuple[str, bytes | str | None]) -> Path:
    """A .tar.gz; str content is a link's target, None a folder."""
    with tarfile.open(path, "w:gz") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = (tarfile.SYMTYPE, content) if content else (tarfile.DIRTYPE, "")
                file.addfile(info)
    return path


def test_nothing_leaves_an_archive_but_clips(folder: Path) -> None:
    root = "tortoise-tts-3.0.0/tortoise/voices"
    hostile = archive(
        folder / "x.tar.gz",
        ("", b""),
        (root, None),
        (f"{root}/emma", None),
        (f"{root}/emma/1.wav", b"one"),
        (f"{root}/emma/run.sh", b"no clip"),
        (f"{root}/emma/setup.py", b"no clip"),
        (f"{root}/../../../up/1.wav", b"up"),
        (f"{root}/emma/../../../../1.wav", b"up"),
        (f"{root}/../1.wav", b"up"),
        (f"{root}/.hidden/1.wav", b"hidden"),
        (f"{root}/emma/.1.wav", b"hidden"),
        ("/etc/tortoise/voices/emma/2.wav", b"absolute"),
        (f"{root}/emma/link.wav", "/etc/passwd"),
        (f"{root}/linked", "/tmp"),
        (f"{root}/linked/1.wav", b"through a link"),
        (f"{root}/emma/deep/1.wav", b"too deep"),
        ("tortoise/data/1.wav", b"elsewhere"),
    )
    into = folder / "into"
    into.mkdir()
    unpack_voices(hostile, into)
    files = [p for p in into.rglob("*") if not p.is_dir()]
    assert sorted(str(p.relative_to(into)) for p in files) == ["emma/1.wav", "emma/2.wav", "linked/1.wav"]
    assert not any(p.is_symlink() for p in into.rglob("*"))
    assert sorted(p.name for p in folder.iterdir()) == ["into", "x.tar.gz"]


def test_archives_that_are_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = archive(folder / "x.tar.gz", *((f"tortoise/voices/a/{n}.wav", bytes(9000)) for n in range(4)))
    whole = good.read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2], whole[:12]):
        good.write_bytes(content)
        with pytest.raises(VoiceError, match=r"x\.tar\.gz"):
            unpack_voices(good, folder)
    with pytest.raises(VoiceError, match="holds no voices"):
        unpack_voices(archive(folder / "y.tar.gz", ("readme", b"hello")), folder)
    good.write_bytes(whole)
    for limit, value in (("MAX_MEMBERS", 3), ("MAX_MEMBER", 8999)):
        with monkeypatch.context() as patch, pytest.raises(VoiceError, match="more or larger files"):
            patch.setattr(voice_store, limit, value)
            unpack_voices(good, folder)
