"""Voices: where they are found, what a folder may hold, and how several become one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tortoise_rt.errors import AudioError, VoiceError
from tortoise_rt.voice import VoiceLatents, find_voices, load_voice

SOME = VoiceLatents(np.arange(4.0), np.arange(6.0))


def assert_same(a: VoiceLatents, b: VoiceLatents) -> None:
    assert a.diffusion is not None and b.diffusion is not None
    np.testing.assert_array_equal(a.auto, b.auto)
    np.testing.assert_array_equal(a.diffusion, b.diffusion)


@pytest.fixture(autouse=True)
def own_voices(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the user's voices."""
    folder = tmp_path_factory.mktemp("own")
    monkeypatch.setenv("TORTOISE_RT_VOICES", str(folder))
    return folder


@pytest.fixture
def make_clip() -> Callable[..., np.ndarray]:
    def make(path: Path, value: float = 0.1, rate: int = 22050) -> np.ndarray:
        path.parent.mkdir(parents=True, exist_ok=True)
        clip = np.full(rate // 2, value, np.float32)
        soundfile.write(path, clip, rate, subtype="FLOAT")
        return clip

    return make


def test_names_are_found_in_order(
    tmp_path: Path, own_voices: Path, make_clip: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_clip(own_voices / "emma" / "1.wav")
    make_clip(own_voices / "tom" / "1.wav")
    make_clip(own_voices / "__pycache__" / "1.wav")
    make_clip(tmp_path / "emma" / "1.wav")
    SOME.save(own_voices / "ann.safetensors")
    found = find_voices([tmp_path])
    assert {name: found[name].parent for name in ("ann", "emma", "tom")} == {
        "ann": own_voices,
        "emma": tmp_path,
        "tom": own_voices,
    }
    assert "__pycache__" not in found
    assert list(found) == sorted(found)
    with pytest.raises(VoiceError, match="voice folder .*nowhere does not exist"):
        find_voices([tmp_path / "nowhere"])
    monkeypatch.delenv("TORTOISE_RT_VOICES")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    make_clip(tmp_path / "tortoise-rt" / "voices" / "kim" / "1.wav")
    assert "kim" in find_voices()


def test_clips_are_loaded_sorted_at_the_models_rate(
    own_voices: Path, make_clip: Callable[..., np.ndarray]
) -> None:
    second = make_clip(own_voices / "emma" / "b.wav", 0.2)
    first = make_clip(own_voices / "emma" / "a.WAV", 0.1)
    make_clip(own_voices / "emma" / "c.flac.wav", 0.3, rate=44100)
    (own_voices / "emma" / "LICENSE").write_text("public domain")
    (own_voices / "emma" / "._a.wav").write_text("left by a Mac")
    voice = load_voice("emma")
    assert voice is not None and voice.latents is None and voice.name == "emma"
    np.testing.assert_array_equal(voice.clips[0], first)
    np.testing.assert_array_equal(voice.clips[1], second)
    assert [len(c) for c in voice.clips] == [11025] * 3


def test_paths_are_voices(tmp_path: Path, make_clip: Callable[..., np.ndarray]) -> None:
    make_clip(tmp_path / "a&b" / "1.wav")
    SOME.save(tmp_path / "v.pth")
    (tmp_path / "lone").mkdir()
    SOME.save(tmp_path / "lone" / "v.safetensors")
    for spec in ("a&b", "a&b/1.wav"):
        voice = load_voice(str(tmp_path / spec))
        assert voice is not None and len(voice.clips) == 1
    for spec in ("v.pth", "lone", "lone/v.safetensors"):
        voice = load_voice(str(tmp_path / spec))
        assert voice is not None and voice.latents is not None
        assert_same(voice.latents, SOME)
        with pytest.raises(VoiceError, match="unknown voice"):
            load_voice(str(tmp_path / spec), paths=False)


def test_combined_voices(own_voices: Path, make_clip: Callable[..., np.ndarray]) -> None:
    make_clip(own_voices / "a" / "1.wav", 0.1)
    make_clip(own_voices / "b" / "1.wav", 0.2)
    VoiceLatents(np.ones(4), np.ones(6)).save(own_voices / "x.pth")
    VoiceLatents(np.zeros(4), np.zeros(6)).save(own_voices / "y.pth")
    pooled = load_voice("a & b")
    assert pooled is not None and [clip[0] for clip in pooled.clips] == [np.float32(0.1), np.float32(0.2)]
    averaged = load_voice("x&y")
    assert averaged is not None and averaged.latents is not None
    assert_same(averaged.latents, VoiceLatents(np.full(4, 0.5), np.full(6, 0.5)))
    mixed = load_voice("a&b&x")
    assert mixed is not None and not mixed.clips and mixed.latents is None
    assert [(part.name, len(part.clips), weight) for part, weight in mixed.parts] == [
        ("a", 1, 1),
        ("b", 1, 1),
        ("x", 0, 1),
    ]


def test_weights(tmp_path: Path, own_voices: Path, make_clip: Callable[..., np.ndarray]) -> None:
    make_clip(own_voices / "a" / "1.wav", 0.1)
    make_clip(own_voices / "b" / "1.wav", 0.2)
    for folder in (own_voices, tmp_path / "dir"):
        folder.mkdir(exist_ok=True)
        VoiceLatents(np.ones(4), np.ones(6)).save(folder / "x.pth")
        VoiceLatents(np.zeros(4), np.zeros(6)).save(folder / "y.safetensors")
    path = tmp_path / "dir"
    for spec in (
        "x:3&y:1",
        "x:0.75 & y : 0.25",
        f"{path}/x.pth:7.5e-1&y:.25",
        f"x:0.3&{path}/y.safetensors:0.1",
    ):
        voice = load_voice(spec)
        assert voice is not None and voice.latents is not None
        np.testing.assert_allclose(voice.latents.auto, np.full((1, 4), 0.75), rtol=1e-6)
    weighted = load_voice("a:2&b:1")  # with weights even clips have latents of their own
    assert weighted is not None and [(p.name, w) for p, w in weighted.parts] == [("a", 2), ("b", 1)]
    assert weighted.made_of.startswith("a, 67 %: 1 clip of ") and "; b, 33 %: 1 clip of " in weighted.made_of
    assert not weighted.latents and len(weighted.all_clips) == 2
    known = load_voice("x:1e308&y:1e308")
    assert known is not None and [share for _, share in known.shares] == [0.5, 0.5] and not known.all_clips
    mixed = load_voice("a:1&x:1")
    assert mixed is not None and not mixed.all_clips and mixed.made_of.endswith("x, 50 %: latents")
    alone = load_voice("a:0.2")
    assert alone is not None and alone.name == "a" and len(alone.clips) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("a:0&b:1", r'weight of the voice "a" is 0; it must be a finite number above 0'),
        ("a:-1&b:1", "is -1; it must be"),
        ("a:nan&b:1", "is nan; it must be"),
        ("a:inf&b:1", "is inf; it must be"),
        ("a:1e999&b", "is 1e999; it must be"),
        ("a:0.5&b", "weights for some voices only"),
        ("a:half&b:1", 'the weight "half" of the voice "a" is no number'),
        ("a:&b:1", 'the weight "" of the voice "a" is no number'),
        (":0.5&b:0.5", "has an empty name in it"),
        ("a:0.5&random:0.5", "random voice stands alone.*voices latents random --seed 7"),
        ("random:0.5", "random voice stands alone"),
        (r"C:\voices\emma", r"unknown voice|there is no file or folder"),
        ("nobody:0.5", 'unknown voice "nobody"'),
        ("&".join(["a"] * 101), "101 voices are combined; the limit is 100"),
    ],
)
def test_weights_that_are_none(
    own_voices: Path, make_clip: Callable[..., np.ndarray], spec: str, message: str
) -> None:
    make_clip(own_voices / "a" / "1.wav")
    make_clip(own_voices / "b" / "1.wav")
    with pytest.raises(VoiceError, match=message):
        load_voice(spec)


def test_names_and_paths_may_have_colons(
    tmp_path: Path, own_voices: Path, make_clip: Callable[..., np.ndarray]
) -> None:
    make_clip(own_voices / "act 1:2" / "1.wav", 0.1)
    make_clip(own_voices / "act 1" / "1.wav", 0.3)
    make_clip(tmp_path / "x:3" / "1.wav", 0.2)
    for spec, value in [("act 1:2", 0.1), (f"{tmp_path}/x:3", 0.2), ("act 1:0.5", 0.3), ("act 1:2:9", 0.1)]:
        voice = load_voice(spec)
        assert voice is not None and voice.clips[0][0] == np.float32(value), spec


def test_random_voices(own_voices: Path, make_clip: Callable[..., np.ndarray]) -> None:
    make_clip(own_voices / "a" / "1.wav")
    assert load_voice("random") is None
    with pytest.raises(VoiceError, match="stands alone"):
        load_voice("a&random")


def test_the_working_directory_takes_no_names(
    tmp_path: Path, own_voices: Path, make_clip: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(own_voices / "emma" / "1.wav", 0.1)
    for name in ("emma", "random", "here"):
        make_clip(tmp_path / name / "1.wav", 0.2)
    make_clip(tmp_path / "clip.wav", 0.2)
    assert load_voice("random") is None
    for spec, value in [("emma", 0.1), ("./emma", 0.2), ("here", 0.2), ("./random", 0.2), ("clip.wav", 0.2)]:
        voice = load_voice(spec)
        assert voice is not None and voice.clips[0][0] == np.float32(value), spec
    for spec in ("here", "clip.wav", "./emma", "/etc/passwd", "emma&clip.wav"):
        with pytest.raises(VoiceError, match="unknown voice"):
            load_voice(spec, paths=False)


def test_missing_folders_are_errors_for_random_voices_too(tmp_path: Path) -> None:
    with pytest.raises(VoiceError, match="voice folder .*nowhere does not exist"):
        load_voice("random", [tmp_path / "nowhere"])


def test_audio_of_a_voice_is_limited(
    own_voices: Path, make_clip: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        make_clip(own_voices / "emma" / f"{name}.wav")
        make_clip(own_voices / name / "1.wav")
    monkeypatch.setattr("tortoise_rt.voice.MAX_MINUTES", 1 / 60)
    with pytest.raises(VoiceError, match="the clips of .*emma last over"):
        load_voice("emma")
    with pytest.raises(VoiceError, match='the clips of the voice "a&b&c" last over'):
        load_voice("a&b&c")
    assert load_voice("a&b") is not None
    monkeypatch.setattr("tortoise_rt.voice.MAX_CLIPS", 2)
    with pytest.raises(VoiceError, match="holds 3 clips; the limit is 2"):
        load_voice("emma")


def test_voices_that_cannot_be_loaded(
    tmp_path: Path, own_voices: Path, make_clip: Callable[..., np.ndarray]
) -> None:
    make_clip(own_voices / "emma" / "1.wav")
    (own_voices / "void").mkdir()
    (own_voices / "void" / "notes.txt").write_text("no clip")
    make_clip(own_voices / "mixed" / "1.wav")
    SOME.save(own_voices / "mixed" / "v.pth")
    (own_voices / "two").mkdir()
    SOME.save(own_voices / "two" / "v.pth")
    SOME.save(own_voices / "two" / "w.pth")
    for spec, message in [
        ("ema", 'unknown voice "ema". Did you mean "emma"?'),
        ("", "empty name"),
        ("emma&", "empty name"),
        ("a\0b", "unknown voice"),
        ("x" * 5000, "unknown voice"),
        ("no/such/folder", "there is no file or folder no/such/folder"),
        ("void", "holds no audio"),
        ("mixed", "1 latent files and 1 clips"),
        ("two", "2 latent files and 0 clips"),
    ]:
        with pytest.raises(VoiceError, match=message):
            load_voice(spec)
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(AudioError, match="cannot be read as audio"):
        load_voice(str(tmp_path / "text.wav"))
