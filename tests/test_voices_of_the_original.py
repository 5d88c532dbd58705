"""Voices as tortoise-tts makes them of the same files and networks (tests/record_voices.py), and its own latents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT
from record_voices import NAME, write_clips
from test_cli import ok

from tortoise_rt.audio import load_audio
from tortoise_rt.backends import open_engine
from tortoise_rt.conditioning import voice_latents
from tortoise_rt.config import make_settings
from tortoise_rt.detect import MAX_SAMPLES, detect
from tortoise_rt.engine import Engine
from tortoise_rt.latents import VoiceLatents, load_latents
from tortoise_rt.pipeline import Pipeline
from tortoise_rt.spec import SAMPLE_RATE
from tortoise_rt.voice import load_voice

SHARED = ROOT.parent / "shared" / "reference" / "voices"


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(ROOT / "tests" / "data" / NAME) as file:
        return dict(file)


@pytest.fixture(scope="module", params=["onnx", "torch"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "torch":
        pytest.importorskip("torch")
        return open_engine(request.getfixturevalue("data"), "torch", "cpu")
    return open_engine(request.getfixturevalue("random_bundle"), "onnx", "cpu")


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the voices "a" and "b"."""
    monkeypatch.setenv("TORTOISE_RT_VOICES", str(tmp_path))
    write_clips(tmp_path)
    return tmp_path


def shared(name: str) -> Path:
    place = SHARED / name
    if not place.exists():
        pytest.skip(f"no {place}: the original's voices are not part of this repository")
    return place


def assert_near(made: VoiceLatents, recorded: dict[str, np.ndarray], name: str) -> None:
    assert made.diffusion is not None
    for array, part in ((made.auto, "auto"), (made.diffusion, "diffusion")):
        wanted = recorded[f"{name}_{part}"]
        bound = 1e-4 * float(np.ptp(wanted))
        np.testing.assert_allclose(array, wanted, rtol=0, atol=bound, err_msg=f"{name}, {part}")


@pytest.mark.parametrize("spec", ["a", "b", "a&b"])
def test_folders_of_clips(engine: Engine, recorded: dict[str, np.ndarray], clips: Path, spec: str) -> None:
    voice = load_voice(spec)
    assert voice is not None
    assert_near(voice_latents(engine, voice), recorded, spec.replace("&", "+"))


def test_real_clips(engine: Engine, recorded: dict[str, np.ndarray]) -> None:
    voice = load_voice(str(shared("lj")))
    assert voice is not None
    assert_near(voice_latents(engine, voice), recorded, "lj")


def test_latents_are_averaged(engine: Engine, recorded: dict[str, np.ndarray], clips: Path) -> None:
    for voice, name in (("a", "x"), ("b", "y")):
        loaded = load_voice(voice)
        assert loaded is not None
        voice_latents(engine, loaded).save(clips / f"{name}.pth")
    for spec in ("x&y", "a:1&b:1", "a&y", "x:0.5&b:0.5"):  # with weights, or latents, each voice has its own
        loaded = load_voice(spec)
        assert loaded is not None
        assert_near(voice_latents(engine, loaded), recorded, "x+y")


def test_clips_are_classified(random_bundle: Path, recorded: dict[str, np.ndarray], clips: Path) -> None:
    engine = open_engine(random_bundle, "onnx", "cpu")
    if SHARED.exists():
        (clips / "lj").symlink_to(SHARED / "lj")
    heard = 0
    for name, wanted in recorded.items():
        file = clips / name.removesuffix("_probability")
        if name.endswith("_probability") and file.exists():
            wav = load_audio(file, SAMPLE_RATE)[:MAX_SAMPLES]
            assert abs(detect(engine, wav) - float(wanted)) < 1e-4, name
            heard += 1
    assert heard >= 3


def test_the_originals_latents_speak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pat.pth, made by the official weights: read, converted, blended, and said by a shallow model of their widths."""
    pat = load_latents(shared("pat_latents") / "pat.pth")
    assert pat.diffusion is not None and (pat.auto.shape, pat.diffusion.shape) == ((1, 1024), (1, 2048))
    assert np.linalg.norm(pat.auto) == pytest.approx(92.846, abs=1e-3)
    pat.save(tmp_path / "pat.safetensors")
    pat.save(tmp_path / "again.pth")
    for name in ("pat.safetensors", "again.pth"):
        converted = load_latents(tmp_path / name)
        np.testing.assert_array_equal(converted.auto, pat.auto)
        np.testing.assert_array_equal(converted.diffusion, pat.diffusion)

    engine = shallow_engine(tmp_path / "wide", monkeypatch)
    clip = str(shared("lj") / "1.wav")
    settings = {
        decoder: make_settings(
            decoder=decoder, num_autoregressive_samples=1, max_mel_tokens=12, diffusion_iterations=2
        )
        for decoder in ("diffusion", "hifigan")
    }
    wavs = []
    for spec in (str(tmp_path / "pat.safetensors"), f"{tmp_path}/pat.safetensors:0.7&{clip}:0.3"):
        for decoder in ("diffusion", "hifigan"):
            result = Pipeline(engine).synthesize([5, 6, 7], load_voice(spec), settings[decoder], 1)
            assert np.isfinite(result.wavs[0]).all() and len(result.wavs[0])
            wavs.append(result)
    alone = load_voice(clip)
    assert alone is not None
    own = voice_latents(engine, alone)
    np.testing.assert_allclose(wavs[2].voice.auto, 0.7 * pat.auto + 0.3 * own.auto, rtol=1e-5, atol=1e-5)
    assert wavs[3].voice.diffusion is None  # HiFi-GAN hears the other one


def test_a_persons_recordings_by_every_command(folder: Path) -> None:
    """By the engine that ships: blended, checked, written down, said again, read and streamed."""
    pytest.importorskip("onnxruntime")
    ok("voices", "add", "lj", str(shared("lj")))
    shown = ok("say", "--explain", "Hello there.", "--voice", "lj:0.7&alto:0.3").stdout
    assert "  lj      70 %, 2 clips of 18.7 s together\n  alto    30 %, 1 clip of " in shown
    ok("say", "Hello there.", "--voice", "lj:0.7&alto:0.3", "--seed", "1", "--check", "--words", "w.json",
       "--debug-state", "run", "-o", "a.wav")  # fmt: skip
    assert [word["word"] for word in json.loads((folder / "w.json").read_text())] == ["hello", "there."]
    ok("replay", "run", "-o", "b.wav")
    assert (folder / "a.wav").read_bytes() == (folder / "b.wav").read_bytes()
    (folder / "play.txt").write_text("Enter a person.\nLJ: Hello there.\n")
    ok("read", "play.txt", "-o", "play", "--cast", "LJ=lj", "--seed", "1")
    clips = json.loads((folder / "play" / "manifest.json").read_text())["clips"]
    assert [clip["speaker"] for clip in clips] == ["", "LJ"]
    ok(
        "say", "Hello there.", "--voice", "lj", "--seed", "2", "-o", "c.wav"
    )  # what was read: seed 1, and 1 more
    ok("say", "Hello there.", "--voice", "lj", "--seed", "2", "--stream", "-o", "d.wav")
    said, read, streamed = (
        soundfile.read(path)[0] for path in ("c.wav", f"play/clips/{clips[1]['files'][0]}", "d.wav")
    )
    np.testing.assert_allclose(said, read, atol=1e-4)
    np.testing.assert_allclose(said, streamed, atol=1e-4)


def shallow_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """A model as wide as the official one where voices come in, with one layer or few channels everywhere else."""
    pytest.importorskip("torch")
    from tortoise_rt.export import random_checkpoint
    from tortoise_rt.export.models.autoregressive import UnifiedVoice
    from tortoise_rt.export.models.diffusion import DiffusionTts
    from tortoise_rt.export.models.hifigan import HifiganGenerator
    from tortoise_rt.export.models.univnet import UnivNetGenerator

    depths = dict(
        layers=1, final_blocks=1, integrator_layers=1, latent_blocks=1, code_blocks=1, voice_blocks=1
    )
    built = {
        "autoregressive": lambda: UnifiedVoice(
            dim=1024, layers=1, heads=16, inner=64, voice_blocks=1, text_ids=256, text_positions=40, mel_codes=258,
            mel_positions=40,
        ),
        "diffusion": lambda: DiffusionTts(channels=1024, heads=16, latent_dim=1024, codes=257, **depths),
        "vocoder": lambda: UnivNetGenerator(4, 8, [8, 8, 4], 4),
        "hifigan": lambda: HifiganGenerator(
            in_dim=1024, voice_dim=1024, channels=16, upsample_kernels=[16, 16, 4, 4], upsample_factors=[8, 8, 2, 2],
            block_kernels=[3, 7, 11], block_dilations=[[1, 3, 5]] * 3,
        ),
    }  # fmt: skip
    monkeypatch.setattr(random_checkpoint, "networks", lambda size: built)
    random_checkpoint.write_checkpoints(folder, "official")
    return open_engine(folder, "torch", "cpu")
