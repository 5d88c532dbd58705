"""The engine and the voices that ship: what they hold, and what they do when nothing is named."""

from __future__ import annotations

import configparser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_cli import ok

from tortoise_rt import TextToSpeech, engines, load_voice, voices
from tortoise_rt.bundle import MANIFEST, demo_folder, read_bundle
from tortoise_rt.config import PRESETS
from tortoise_rt.defaults import settings_for
from tortoise_rt.spec import CHECKPOINT_FILES, CODE_RATE, SAMPLE_RATE
from tortoise_rt.voice import find_voices

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "engines" / "demo" / "train" / "weights"
LIMIT_MB = 25
TEXT = "Hello there, how are you today?"

pytestmark = pytest.mark.usefixtures("folder")


def test_the_bundle_is_small_and_names_its_decoder_and_voice() -> None:
    bundle = read_bundle(demo_folder())
    assert sum(file["bytes"] for file in bundle.manifest["files"].values()) < LIMIT_MB * 1e6
    assert {"ar_voice", "ar_step", "hifigan"} <= set(bundle.graphs)
    assert bundle.manifest["defaults"]["voice"] in find_voices()
    assert bundle.tokenizer is not None


def test_what_is_installed_of_it_is_the_bundle() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["tortoise_rt.engines"].split(", ")
    installed = {p for pattern in patterns for p in engines.folder().glob(pattern) if p.is_file()}
    bundle = read_bundle(demo_folder())
    assert {p.name for p in installed if p.parent == bundle.folder} == {MANIFEST, *bundle.manifest["files"]}
    assert {p.name for p in installed if p.parent != bundle.folder} == {"NOTICE.md", "MODEL_CARD.md"}


@pytest.mark.parametrize("name", sorted({p.parent.name for p in voices.folder().glob("*/*.flac")}))
def test_every_voice_says_where_it_comes_from(name: str) -> None:
    assert "synthetic" in (voices.folder() / name / "PROVENANCE.txt").read_text("utf-8")
    voice = load_voice(name, paths=False)
    assert voice is not None and voice.clips
    assert all(3 * CODE_RATE <= len(clip) <= 10 * CODE_RATE for clip in voice.clips)


def test_say_with_nothing_named(folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    result = ok("say", TEXT, "-o", "hello.wav", "--seed", "1")
    (line,) = result.stderr.splitlines()
    own = read_bundle(demo_folder()).manifest["defaults"]
    assert f"the demo engine speaks (voice {own['voice']}, decoder {own['decoder']}, " in line
    assert "tortoise-rt fetch" in line
    wav, rate = soundfile.read(folder / "hello.wav", dtype="float32")
    assert rate == 24000 and 1.0 < len(wav) / rate < 5.0
    assert ok("say", TEXT, "-o", "quiet.wav", "--seed", "1", "--quiet").output == ""
    assert (folder / "quiet.wav").read_bytes() == (folder / "hello.wav").read_bytes()
    spoken = TextToSpeech().tts(TEXT, use_deterministic_seed=1)
    np.testing.assert_allclose(spoken[0, 0], wav, atol=1 / 32000)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_speaks(preset: str) -> None:
    pytest.importorskip("onnxruntime")
    tts, samples = TextToSpeech(), PRESETS[preset]["num_autoregressive_samples"]
    assert settings_for(tts.engine, preset).ar.samples == samples
    fewer = {"num_autoregressive_samples": 32} if samples > 100 else {}  # seconds else
    wav = tts.tts_with_preset("Hello.", preset=preset, use_deterministic_seed=0, **fewer)[0, 0]
    assert 0.3 < len(wav) / SAMPLE_RATE < 2 and np.isfinite(wav).all()
    assert 0.01 < np.sqrt(np.mean(np.square(wav))) < 0.5


def test_the_bundle_is_made_of_the_committed_weights(tmp_path: Path) -> None:
    """Every graph, by its nodes and weights: the bytes of the graph files are those of a version of onnx."""
    onnx = pytest.importorskip("onnx")
    for package in ("torch", "onnxruntime"):
        pytest.importorskip(package)
    from tortoise_rt.engines.demo.train import checkpoint
    from tortoise_rt.export.bundle import export_bundle

    checkpoint.write(WEIGHTS, tmp_path / "checkpoint")
    built, _ = export_bundle(tmp_path / "checkpoint", tmp_path / "built", check=False)
    shipped = read_bundle(demo_folder())
    for key in ("graphs", "dims", "defaults", "precision"):
        assert built.manifest[key] == shipped.manifest[key]
    assert built.manifest["model"]["fingerprint"] == shipped.manifest["model"]["fingerprint"]
    assert built.manifest["files"].keys() == shipped.manifest["files"].keys()
    for name in built.manifest["files"].keys() - set(built.graphs.values()):
        assert built.manifest["files"][name] == shipped.manifest["files"][name], name
    for name in built.graphs.values():
        models = (onnx.load(b.folder / name, load_external_data=False) for b in (built, shipped))
        ours, theirs = (model.graph for model in models)
        assert list(ours.node) == list(theirs.node), name
        for one, other in zip(ours.initializer, theirs.initializer, strict=True):
            assert (one.name, one.external_data) == (other.name, other.external_data)
            if not one.external_data:  # processors round exp() of a weight in ways of their own
                values = map(onnx.numpy_helper.to_array, (one, other))
                np.testing.assert_allclose(*values, rtol=1e-6, err_msg=f"{one.name} of {name}")


def test_the_checkpoint_holds_the_committed_weights_under_official_keys(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from tortoise_rt.engines.demo.train import checkpoint
    from tortoise_rt.export.checkpoints import Checkpoints

    checkpoint.write(WEIGHTS, tmp_path)
    loaded = Checkpoints(tmp_path)
    for stage in checkpoint.NEEDED:
        kept, found = checkpoint.read(WEIGHTS, stage), loaded.load(stage).state_dict()
        assert kept.keys() == found.keys()
        assert all(torch.equal(kept[key], found[key]) for key in kept)
    stored = torch.load(tmp_path / CHECKPOINT_FILES["hifigan"], weights_only=True)
    assert {"conv_pre.weight_g", "ups.0.weight_v", "resblocks.0.convs1.0.weight_g"} <= stored.keys()
    assert "cond_layer.weight" in stored and stored["conv_pre.weight_g"].dtype == torch.float32
    dims = loaded.dims()
    assert (dims["ar.start_code"], dims["ar.stop_code"]) == (
        dims["ar.mel_codes"] - 2,
        dims["ar.mel_codes"] - 1,
    )
    assert dims["hifigan.in_dim"] == dims["ar.dim"]


def test_networks_that_are_trained_later_are_taken_along(data: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from tortoise_rt.engines.demo.train import checkpoint
    from tortoise_rt.export.checkpoints import Checkpoints

    weights, output = tmp_path / "weights", tmp_path / "checkpoint"
    weights.mkdir()
    for name in ("autoregressive.safetensors", "hifigan.safetensors", "tokenizer.json"):
        (weights / name).symlink_to(WEIGHTS / name)
    kept = {k: v.half() for k, v in Checkpoints(data).load("clvp").state_dict().items()}
    tensors = {**{f"model/{k}": v.contiguous() for k, v in kept.items()}, "judge/x": torch.ones(2)}
    save_file(tensors, weights / "clvp.safetensors")
    checkpoint.write(weights, output)
    loaded = Checkpoints(output)
    assert loaded.networks == ("autoregressive", "clvp", "hifigan")
    assert all(torch.equal(v, kept[k].float()) for k, v in loaded.load("clvp").state_dict().items())
