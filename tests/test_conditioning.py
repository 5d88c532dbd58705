"""Voices and what they condition: origins of latents, missing networks."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.conditioning import (
    _warn_of_origin,
    check_latents,
    clip_latents,
    clip_mels,
    random_latents,
    resolve,
    voice_latents,
    voice_mels,
)
from tortoise_rt.config import make_settings
from tortoise_rt.errors import SettingsError, VoiceError
from tortoise_rt.latents import VoiceLatents, same_origin
from tortoise_rt.mel import ar_mel
from tortoise_rt.rng import Philox
from tortoise_rt.tts import TextToSpeech
from tortoise_rt.voice import Voice

OWN = "autoregressive=aa,diffusion=bb"


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (OWN, True),
        ("", True),
        ("autoregressive=aa", True),
        ("diffusion=bb", True),
        ("autoregressive=cc", False),
        ("autoregressive=aa,diffusion=cc", False),
    ],
)
def test_latents_of_another_checkpoint_are_warned_about(
    caplog: pytest.LogCaptureFixture, other: str, same: bool
) -> None:
    engine = FakeEngine()
    engine.info = dataclasses.replace(engine.info, fingerprint=OWN)
    latents = VoiceLatents(
        np.zeros((1, engine.dims["ar.dim"]), np.float32),
        np.zeros((1, engine.dims["diffusion.voice_dim"]), np.float32),
        other,
    )
    logging.getLogger("tortoise_rt").propagate = True
    _warn_of_origin.cache_clear()
    with caplog.at_level("WARNING", logger="tortoise_rt"):
        for _ in range(3):  # once is enough
            check_latents(engine, latents, "diffusion")
    assert len(caplog.records) == (not same)
    assert same_origin(OWN, other) is same
    assert ("another checkpoint" in caplog.text) is not same


def test_a_model_without_random_voices_says_so() -> None:
    engine = FakeEngine()
    engine.info = dataclasses.replace(engine.info, graphs=engine.info.graphs - {"rlg_auto"})
    with pytest.raises(VoiceError, match="no random voices"):
        random_latents(engine, Philox(0))


def test_checkpoints_without_random_voices_say_so(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tortoise_rt.backends import open_engine
    from tortoise_rt.config import make_settings
    from tortoise_rt.pipeline import Pipeline

    for name in ("autoregressive.pth", "hifidecoder.pth", "config.json"):
        shutil.copy(data / name, tmp_path)
    settings = make_settings(num_autoregressive_samples=1, decoder="hifigan")
    with pytest.raises(VoiceError, match="no random voices"):
        Pipeline(open_engine(tmp_path)).synthesize([3, 4], None, settings, 0)


def test_clips_are_heard_one_by_one() -> None:
    clips = [np.random.default_rng(i).standard_normal(132300).astype(np.float32) for i in range(2)]
    np.testing.assert_array_equal(voice_mels(clips), ar_mel(np.stack(clips)))


CLIPS = tuple(np.sin(np.arange(30000 + 1000 * n) * 0.02 * (n + 1)).astype(np.float32) for n in range(3))
SAVED = VoiceLatents(np.full(16, 0.5), np.full(16, -0.5))
MIXED = Voice(
    "a:2&b:1&saved:5", parts=((Voice("a", CLIPS[:2]), 2.0), (Voice("b", CLIPS[2:]), 1.0), (Voice("saved", latents=SAVED), 5.0))
)  # fmt: skip


def test_parts_are_averaged_by_weight() -> None:
    engine = FakeEngine()
    a, b = clip_latents(engine, CLIPS[:2]), clip_latents(engine, CLIPS[2:])
    made = voice_latents(engine, MIXED)
    assert made.diffusion is not None and a.diffusion is not None and b.diffusion is not None
    np.testing.assert_allclose(made.auto, (2 * a.auto + b.auto + 5 * 0.5) / 8, rtol=1e-5)
    np.testing.assert_allclose(made.diffusion, (2 * a.diffusion + b.diffusion - 5 * 0.5) / 8, rtol=1e-5)
    assert made.fingerprint == ""  # nobody knows where the saved ones are from
    heard, _ = resolve(
        engine, MIXED, make_settings(decoder="hifigan", num_autoregressive_samples=1), Philox(0)
    )
    np.testing.assert_array_equal(heard.auto, made.auto)
    assert heard.diffusion is None


def test_ranking_by_voice_hears_all_clips_of_parts() -> None:
    engine, settings = FakeEngine(), make_settings(cvvp_amount=0.5, num_autoregressive_samples=4)
    clips = Voice("a:2&b:1", parts=MIXED.parts[:2])
    _, mels = resolve(engine, clips, settings, Philox(0))
    assert mels is not None and len(mels) == 3
    np.testing.assert_array_equal(mels, voice_mels(CLIPS))
    assert clip_mels(MIXED) is None and clip_mels(None) is None
    with pytest.raises(SettingsError, match="needs the voice's clips"):
        resolve(engine, MIXED, settings, Philox(0))


def test_parts_must_fit_each_other_and_the_engine() -> None:
    engine = FakeEngine()
    engine.info = dataclasses.replace(engine.info, fingerprint=OWN)
    clips = (Voice("a", CLIPS[:1]), 1.0)
    for saved, message in [
        (
            VoiceLatents(np.zeros(1024), np.zeros(2048)),
            "autoregressive latent has 1024 values; this model's have 16",
        ),
        (VoiceLatents(np.zeros(16), np.zeros(16), "autoregressive=cc"), "different checkpoints"),
        (VoiceLatents(np.zeros(16)), "no diffusion latent"),
    ]:
        mixed = Voice("mixed", parts=(clips, (Voice("saved", latents=saved), 1.0)))
        with pytest.raises(VoiceError, match=message):
            resolve(engine, mixed, make_settings(), Philox(0))


def test_one_warning_for_a_whole_text(caplog: pytest.LogCaptureFixture) -> None:
    """Of latents of another checkpoint, however many sentences, calls and streams they are used for."""
    _warn_of_origin.cache_clear()
    engine = FakeEngine()
    engine.info = dataclasses.replace(engine.info, fingerprint=OWN)
    foreign = VoiceLatents(np.zeros(16), np.zeros(16), "autoregressive=cc")
    logging.getLogger("tortoise_rt").propagate = True
    with caplog.at_level("WARNING", logger="tortoise_rt"):
        speaker = TextToSpeech(engine=engine)
        speaker.tts(
            "One.", conditioning_latents=foreign, num_autoregressive_samples=1, diffusion_iterations=2
        )
        list(speaker.tts_stream("One. Two. Three.", conditioning_latents=foreign))
        list(speaker.tts_stream("Four. Five.", conditioning_latents=foreign))
    warned = [r.getMessage() for r in caplog.records if "another checkpoint" in r.getMessage()]
    assert len(warned) == 1 and "\n" not in warned[0]
    assert "autoregressive=cc" in warned[0] and OWN in warned[0] and "compute them again" in warned[0]
