"""Voices and what they condition: origins of latents, missing networks."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.conditioning import check_latents, random_latents, same_origin, voice_mels
from tortoise_rt.errors import VoiceError
from tortoise_rt.mel import ar_mel
from tortoise_rt.rng import Philox
from tortoise_rt.voice import VoiceLatents

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
    with caplog.at_level("WARNING", logger="tortoise_rt"):
        check_latents(engine, latents, "diffusion")
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
