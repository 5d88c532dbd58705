"""What an engine says that lacks networks: one line, with what to do instead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_cli import ok, run, write_clip

from tortoise_rt import TextToSpeech, classify_audio_clip
from tortoise_rt.compat import api
from tortoise_rt.errors import EngineError, VoiceError

pytestmark = pytest.mark.usefixtures("folder")
SHORT = ("--max-mel-tokens", "8", "--seed", "1")
REMEDY = "an engine exported from checkpoints that have it, as the official ones do (tortoise-rt export"


@pytest.fixture
def engine(fast_bundle: Path, folder: Path) -> tuple[str, ...]:
    """Options of a bundle with the fast decoder alone, and a voice."""
    write_clip(folder / "mine" / "1.wav")
    return "--engine", str(fast_bundle), "--voice", "./mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--decoder diffusion",
            f"has no diffusion and no vocoder network (diffusion_decoder.pth, vocoder.pth): "
            f"use the decoder hifigan (--decoder hifigan), or {REMEDY}",
        ),
        ("--preset fast --decoder diffusion", "has no diffusion and no vocoder network"),
        (
            "--samples 4 --candidates 2",
            f"has no clvp network (clvp2.pth): use as many samples as are returned (--samples 2), or {REMEDY}",
        ),
        ("--cvvp-amount 1", "has no cvvp network (cvvp.pth): use a cvvp_amount of 0 (--cvvp-amount 0), or"),
        ("--cvvp-amount 0.5 --samples 2", "has no cvvp network (cvvp.pth)"),
        ("--voice random", "has no random voices (rlg_auto.pth): name a voice (tortoise-rt voices list)"),
    ],
)
def test_say_names_the_network_and_the_remedy(
    engine: tuple[str, ...], folder: Path, arguments: str, message: str
) -> None:
    result = run("say", "Hi.", *engine, *SHORT, *arguments.split())
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ") and message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (folder / "output.wav").exists()


def test_detect_needs_the_detector(engine: tuple[str, ...], folder: Path) -> None:
    result = run("detect", str(write_clip(folder / "a.wav")), *engine[:2])
    assert result.exit_code == 2
    assert f"has no detector network (classifier.pth): use {REMEDY}" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_presets_draw_what_can_be_ranked(engine: tuple[str, ...], folder: Path) -> None:
    ok("say", "Hi.", *engine, *SHORT, "-o", "plain.wav")
    named = ok("say", "Hi.", *engine, *SHORT, "--preset", "standard", "--verbose", "-o", "named.wav")
    assert "cannot rank samples: drawing no more than are returned" in named.stderr
    assert (folder / "plain.wav").read_bytes() == (folder / "named.wav").read_bytes()
    ok("say", "Hi.", *engine, *SHORT, "--samples", "2", "--candidates", "2", "-o", "both.wav")
    assert soundfile.info(folder / "both_1.wav").frames > 0


def test_python_raises_the_same(fast_bundle: Path) -> None:
    speaker = TextToSpeech(engine=fast_bundle)
    with pytest.raises(VoiceError, match="no random voices"):
        speaker.tts("Hi.", max_mel_tokens=8)
    clip = (0.1 * np.sin(np.arange(30000) * 0.05)).astype(np.float32)
    with pytest.raises(EngineError, match="no clvp network"):
        speaker.tts("Hi.", voice_samples=clip, num_autoregressive_samples=2)
    assert speaker.tts("Hi.", voice_samples=clip, max_mel_tokens=8, use_deterministic_seed=1).size > 0
    with pytest.raises(EngineError, match="no diffusion and no vocoder network"):
        api.TextToSpeech(models_dir=fast_bundle).tts("Hi.", voice_samples=[clip])
    with pytest.raises(EngineError, match="no detector network"):
        classify_audio_clip(clip, fast_bundle)
