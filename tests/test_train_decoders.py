"""Training of the diffusion decoder and the vocoder, on sounds that are made up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tortoise_rt.engines.demo.train import diffusion, latents, loop, univnet, vqvae  # noqa: E402
from tortoise_rt.engines.demo.train.examples import Example  # noqa: E402
from tortoise_rt.export.models.univnet import UnivNetGenerator  # noqa: E402
from tortoise_rt.spec import CALM_TOKEN, MELS, codes_to_frames  # noqa: E402

VOICES = ("alto", "tenor")
CODES = 20


@pytest.fixture
def stored() -> dict[str, Any]:
    """What latents.make stores, of a few made-up sentences."""
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {name: {voice: [] for voice in VOICES} for name in ("latents", "tails", "wavs")}
    for voice in VOICES:
        for _ in range(4):
            t = np.arange(CODES * 1115) / 24000
            wav = 8000 * np.sin(2 * np.pi * rng.uniform(100, 900) * t)
            made["wavs"][voice].append(torch.from_numpy(wav.astype(np.int16)))
            made["latents"][voice].append(torch.randn(CODES, diffusion.DIM).half())
            made["tails"][voice].append(torch.randn(latents.TAIL, diffusion.DIM).half())
    made["codes"] = [torch.randint(0, vqvae.CODES, (CODES,)).short() for _ in range(4)]
    return made


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HELD_OUT", 4), ("CLIPS", 2), ("SHORTEST", 8), ("LONGEST", 10), ("FRAMES", 80)):
        monkeypatch.setattr(diffusion, name, value)


def test_the_first_diffusion_decoder_guesses_the_noise() -> None:
    torch.manual_seed(0)
    model, noising = diffusion.build().eval(), diffusion.Noising()
    mel, noise = torch.rand(4, MELS, 40) * 2 - 1, torch.randn(4, MELS, 40)
    late = torch.tensor([1500, 2500, 3300, 3999])
    with torch.no_grad():
        aligned, _ = model.align(
            torch.randn(4, 10, diffusion.DIM), torch.zeros(4, 2 * diffusion.CHANNELS), torch.arange(40) // 4
        )
        noisy = noising(mel, noise, late)
        found = model.denoise(noisy, model.condition(aligned, late), late)
    error = (found[:, :MELS] - noise).pow(2).mean((1, 2))
    assert np.all(np.diff(error.numpy()) < 0) and float(error[-1]) < 0.2
    assert torch.all(found[:, MELS:] == -1)  # of the variance: the lower bound


def test_segments_are_latents_and_their_sound(stored: dict[str, Any], small: None) -> None:
    speech, unheard = diffusion.Speech(stored), diffusion.Speech(stored, held_out=True)
    assert [len(rows) for rows in speech.latents] == [3, 3] and [len(rows) for rows in unheard.latents] == [
        1,
        1,
    ]
    batch = speech.draw(np.random.default_rng(0))
    rows, codes = batch.latents.shape[:2]
    assert 8 <= codes <= 10 and rows >= len(VOICES)
    assert batch.mel.shape == batch.noise.shape == (rows, MELS, codes_to_frames(codes))
    assert batch.mel.abs().max() <= 1 and len(batch.clips) == len(VOICES)
    assert batch.voice.tolist() == [i % len(VOICES) for i in range(rows)]
    whole = torch.cat([stored["latents"]["alto"][0], stored["tails"]["alto"][0]]).float()
    drawn = torch.cat([speech.draw(np.random.default_rng(i)).latents[0][None, :8] for i in range(60)])
    pieces = whole.unfold(0, 8, 1).transpose(1, 2)
    assert any(torch.equal(piece, row) for piece in pieces for row in drawn)


def test_an_interrupted_training_of_diffusion_goes_on(
    stored: dict[str, Any], small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents, "read", lambda work: stored)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole, parts = loop.Work(tmp_path / "whole"), loop.Work(tmp_path / "parts", until=0)

    diffusion.train(whole, steps=3)
    with pytest.raises(loop.OutOfTime):
        diffusion.train(parts, steps=3)
    parts.until = time.time() + 600
    diffusion.train(parts, steps=3)
    one, other = whole.read_state(diffusion.STAGE), parts.read_state(diffusion.STAGE)
    assert one is not None and other is not None and one["step"] == other["step"] == 3
    for name in ("model", "learner"):
        for key, value in one["modules"][name].items():
            assert torch.equal(value, other["modules"][name][key]), key
    assert not torch.equal(
        one["modules"]["model"]["mel_head.weight"], one["modules"]["learner"]["mel_head.weight"]
    )


def test_a_tail_is_silence_behind_a_sentence() -> None:
    rng = np.random.default_rng(0)
    example = Example(
        rng.integers(3, 255, 9), rng.integers(0, 1024, 12), np.linspace(0, 8.9, 12, dtype=np.float32),
        rng.integers(0, 99, (12, 2)), 3, 4,
    )  # fmt: skip
    longer = latents._with_tail(example)
    assert len(longer.codes) == len(longer.reading) == len(longer.phonemes) == 12 + latents.TAIL
    np.testing.assert_array_equal(longer.codes[:12], example.codes)
    assert set(longer.codes[12:].tolist()) == {CALM_TOKEN} and (longer.shard, longer.row) == (3, 4)


def test_vectors_that_latents_have_read_come_one_later() -> None:
    vectors = torch.randn(vqvae.CODES + 2, 5)
    codes = torch.tensor([7, 9, 11], dtype=torch.int16)
    torch.testing.assert_close(latents.read_vectors(codes, vectors), vectors[[CALM_TOKEN, 7, 9]])


def test_the_vocoder_hears_mels_as_they_are() -> None:
    torch.manual_seed(0)
    model = univnet.build().eval()
    mel, noise = univnet.MEAN + univnet.SCALE * torch.randn(2, MELS, 30), torch.randn(2, 64, 30)
    official = UnivNetGenerator(univnet.CHANNELS, univnet.HIDDEN, univnet.STRIDES, univnet.LAYERS).eval()
    official.load_state_dict(univnet.folded(model.state_dict()))
    with torch.no_grad():
        normalised = model((mel - univnet.MEAN) / univnet.SCALE, noise)
        torch.testing.assert_close(univnet.speak(model, mel, noise), official(mel, noise))
        inner = slice(20 * 256, 24 * 256)  # where no padding is heard
        torch.testing.assert_close(
            official(mel, noise)[..., inner], normalised[..., inner], atol=1e-3, rtol=1e-3
        )


def test_disturbed_mels_stay_mels() -> None:
    mel = torch.full((40, MELS, 12), -5.0)
    made = univnet.disturbed(mel, np.random.default_rng(0))
    changed = (made != mel).flatten(1).any(1)
    assert 5 < int(changed.sum()) < 35 and made.shape == mel.shape
    assert float((made - mel).abs().max()) < 3
