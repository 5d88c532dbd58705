"""The pipeline and its settings, on the fake engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.config import make_settings
from tortoise_rt.defaults import settings_for
from tortoise_rt.engine import EngineInfo
from tortoise_rt.errors import EngineError, SettingsError, TextError, VoiceError
from tortoise_rt.pipeline import Pipeline, Result
from tortoise_rt.spec import GRAPHS, HOP, SAMPLE_RATE, codes_to_frames
from tortoise_rt.text import Tokenizer
from tortoise_rt.voice import Voice, VoiceLatents

TOKENIZER = Path(__file__).parent / "data" / "tokenizer.json"
TEXT = "Hello there."


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(FakeEngine(), Tokenizer(TOKENIZER))


def say(pipeline: Pipeline, seed: int = 1, text: str = TEXT, **arguments: Any) -> Result:
    arguments = {"num_autoregressive_samples": 5, "diffusion_iterations": 3, **arguments}
    return pipeline.synthesize(text, None, make_settings(**arguments), seed)


@pytest.mark.parametrize("decoder", ["diffusion", "hifigan"])
def test_a_clip_is_as_long_as_its_codes(pipeline: Pipeline, decoder: str) -> None:
    result = say(pipeline, decoder=decoder)
    (wav,) = result.wavs
    assert wav.dtype == np.float32
    assert np.abs(wav).max() <= 1
    assert len(wav) == codes_to_frames(result.latents[0].shape[1]) * HOP
    assert result.complete
    assert result.audio_seconds == len(wav) / SAMPLE_RATE
    assert {"voice", "sampling", "ranking", "latents", "vocoder"} <= set(result.seconds)


@pytest.mark.parametrize("samples", [1, 2, 5, 17])
def test_exactly_as_many_samples_as_asked(pipeline: Pipeline, samples: int) -> None:
    result = say(pipeline, num_autoregressive_samples=samples, batch_rows=4, decoder="hifigan")
    assert result.codes.shape == (samples, 500)
    assert len({row.tobytes() for row in result.codes}) == samples


def test_batches_change_nothing(pipeline: Pipeline) -> None:
    whole, single = (say(pipeline, batch_rows=n, decoder="hifigan") for n in (16, 1))
    np.testing.assert_array_equal(whole.codes, single.codes)
    np.testing.assert_array_equal(whole.wavs[0], single.wavs[0])


@pytest.mark.parametrize("decoder", ["diffusion", "hifigan"])
def test_the_seed_decides(pipeline: Pipeline, decoder: str) -> None:
    first, again, other = (say(pipeline, seed, decoder=decoder).wavs[0] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_candidates_are_best_first(pipeline: Pipeline) -> None:
    one, two = say(pipeline, k=1), say(pipeline, k=2)
    np.testing.assert_array_equal(one.wavs[0], two.wavs[0])
    assert two.scores[two.chosen[0]] >= two.scores[two.chosen[1]] >= np.delete(two.scores, two.chosen).max()


def test_more_samples_keep_the_first_ones(pipeline: Pipeline) -> None:
    few, many = (say(pipeline, num_autoregressive_samples=n, decoder="hifigan") for n in (3, 6))
    np.testing.assert_array_equal(few.codes, many.codes[:3])


def test_greedy_draws_nothing(pipeline: Pipeline) -> None:
    # One voice for both seeds: a random voice would be another one.
    voice = VoiceLatents(np.ones(16), np.ones(16))
    settings = make_settings(greedy=True, decoder="hifigan")
    first, other = (pipeline.synthesize(TEXT, voice, settings, seed) for seed in (1, 2))
    np.testing.assert_array_equal(first.codes, other.codes)
    assert len(first.codes) == 1


def test_a_clip_that_reaches_the_limit_is_not_complete(pipeline: Pipeline) -> None:
    assert not say(pipeline, max_mel_tokens=3, decoder="hifigan").complete


def test_progress_is_reported_to_its_end(pipeline: Pipeline) -> None:
    seen: dict[str, tuple[int, int]] = {}
    pipeline.synthesize(
        TEXT,
        None,
        make_settings(num_autoregressive_samples=4, diffusion_iterations=3, k=2),
        1,
        lambda stage, done, total: seen.update({stage: (done, total)}),
    )
    assert seen == {"sampling": (4, 4), "ranking": (4, 4), "diffusion": (6, 6), "vocoder": (2, 2)}


def test_voices_of_every_kind(pipeline: Pipeline) -> None:
    settings = make_settings(num_autoregressive_samples=2, decoder="hifigan")
    clip = (0.1 * np.sin(np.arange(30000) * 0.05)).astype(np.float32)
    spoken = pipeline.synthesize(TEXT, Voice("a", clips=(clip, clip)), settings, 1)
    latents = pipeline.voice_latents([clip, clip])
    again = pipeline.synthesize(TEXT, latents, settings, 1)
    np.testing.assert_array_equal(spoken.wavs[0], again.wavs[0])
    drawn = pipeline.synthesize(TEXT, None, settings, 1)
    assert not np.array_equal(drawn.voice.auto, spoken.voice.auto)


def test_cvvp_needs_clips_and_says_so_before_it_draws(pipeline: Pipeline) -> None:
    drawn = []
    with pytest.raises(SettingsError, match="needs the voice's clips"):
        pipeline.synthesize(
            TEXT, None, make_settings(cvvp_amount=0.5), 1, lambda stage, done, total: drawn.append(stage)
        )
    assert drawn == []
    clip = (0.1 * np.sin(np.arange(30000) * 0.05)).astype(np.float32)
    settings = make_settings(cvvp_amount=0.5, num_autoregressive_samples=3, decoder="hifigan")
    assert len(pipeline.synthesize(TEXT, Voice("a", clips=(clip,)), settings, 1).wavs) == 1


@pytest.mark.parametrize("amount", [0.0, 0.5, 1.0])
def test_samples_that_are_all_returned_are_ranked_too(pipeline: Pipeline, amount: float) -> None:
    clip = (0.1 * np.sin(np.arange(30000) * 0.05)).astype(np.float32)
    settings = make_settings(cvvp_amount=amount, num_autoregressive_samples=3, k=3, decoder="hifigan")
    result = pipeline.synthesize(TEXT, Voice("a", clips=(clip,)), settings, 1)
    assert len(set(result.scores)) > 1
    assert (np.diff(result.scores[result.chosen]) <= 0).all()


@pytest.mark.parametrize("text", ["", "   ", "\U0001f600"])
def test_empty_text(pipeline: Pipeline, text: str) -> None:
    with pytest.raises(TextError, match="nothing to say"):
        say(pipeline, text=text)


def test_text_over_the_limit(pipeline: Pipeline) -> None:
    with pytest.raises(TextError, match=r"tokens; the limit is 398: split"):
        say(pipeline, text="word " * 400)


def test_latents_of_another_model(pipeline: Pipeline) -> None:
    with pytest.raises(VoiceError, match="latent has 4 values; this model's have 16"):
        pipeline.synthesize(TEXT, VoiceLatents(np.ones(4)), make_settings(decoder="hifigan"), 1)
    with pytest.raises(VoiceError, match="no diffusion latent"):
        pipeline.synthesize(TEXT, VoiceLatents(np.ones(16)), make_settings(), 1)


@pytest.mark.parametrize("seed", [-1, 2**63, True])
def test_seeds_out_of_range(pipeline: Pipeline, seed: int) -> None:
    with pytest.raises(SettingsError, match="seed is"):
        say(pipeline, seed)


def only(*names: str, **defaults: object) -> FakeEngine:
    """A fake engine without the graphs named, and with defaults."""
    engine = FakeEngine(frozenset(GRAPHS) - set(names))
    engine.info = EngineInfo(**{**vars(engine.info), "defaults": defaults})
    return engine


def test_networks_that_are_missing_are_named_before_any_work() -> None:
    engine = only("diffusion_denoise", "univnet")
    with pytest.raises(EngineError, match="no diffusion and no vocoder network .* use the decoder hifigan"):
        say(Pipeline(engine, Tokenizer(TOKENIZER)), decoder="diffusion")


def test_defaults_fit_the_engine() -> None:
    fast = settings_for(only("diffusion_denoise", "univnet", "clvp_speech"), fallback="fast")
    assert (fast.decoder, fast.ar.samples) == ("hifigan", 1)
    assert settings_for(only("clvp_speech"), k=3).ar.samples == 3
    assert settings_for(only("clvp_speech"), num_autoregressive_samples=7).ar.samples == 7
    whole = settings_for(only(), fallback="fast")
    assert (whole.decoder, whole.ar.samples, whole.diffusion.iterations) == ("diffusion", 96, 80)
    assert settings_for(only()).ar.samples == 512
    assert settings_for(only(), fallback="fast", greedy=True).ar.samples == 1


def test_defaults_of_the_engine_come_between() -> None:
    engine = only(num_autoregressive_samples=4, preset="standard", voice="emma")
    assert settings_for(engine, fallback="fast").ar.samples == 4
    assert settings_for(engine, fallback="fast").diffusion.iterations == 200
    assert settings_for(engine, "fast").ar.samples == 96
    assert settings_for(engine, k=9).ar.samples == 9 and settings_for(engine, k=2).ar.samples == 4
    assert settings_for(engine, "fast", num_autoregressive_samples=2).ar.samples == 2
