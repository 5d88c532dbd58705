"""Arguments of Hugging Face's generate(): accepted where they ask for nothing, refused with the reason elsewhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from tortoise_rt import TextToSpeech, defaults
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.errors import SettingsError
from tortoise_rt.generate import settings_of_generate

TOKENIZER = Path(__file__).parent / "data" / "tokenizer.json"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("num_beams", 4, "num_beams is 4.*raise num_autoregressive_samples"),
        ("early_stopping", True, "beam search"),
        ("penalty_alpha", 0.6, "contrastive"),
        ("typical_p", 0.5, "typical_mass=P"),
        ("max_new_tokens", 100, "max_mel_tokens"),
        ("num_return_sequences", 2, "num_autoregressive_samples"),
        ("bad_words_ids", [[1]], "filtered by"),
        ("output_attentions", True, "debug_state"),
        ("input_tokens", [1], "not available"),
    ],
)
def test_what_has_no_meaning_is_refused_with_the_reason(name: str, value: Any, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        settings_of_generate({name: value})


def test_what_asks_for_nothing_is_accepted() -> None:
    neutral: dict[str, Any] = {
        "num_beams": 1, "early_stopping": False, "typical_p": 1.0, "use_cache": False, "no_repeat_ngram_size": 0,
        "output_scores": False, "max_length": None, "do_sample": None,
    }  # fmt: skip
    assert settings_of_generate({**neutral, "top_k": 5}) == {"top_k": 5}
    assert settings_of_generate({"do_sample": False}) == {"greedy": True}
    assert settings_of_generate({"greedy": False, "do_sample": False}) == {"greedy": False}


def test_through_tts() -> None:
    speaker = TextToSpeech(engine=FakeEngine(), tokenizer_vocab_file=TOKENIZER)
    quick: dict[str, Any] = {"num_autoregressive_samples": 2, "diffusion_iterations": 2}
    speaker.tts("Hi.", num_beams=1, use_cache=True, output_attentions=False, **quick)
    for speak in (speaker.tts, lambda *a, **k: list(speaker.tts_stream(*a, **k))):
        with pytest.raises(SettingsError, match="which beam search is not"):
            speak("Hi.", num_beams=2)
    with pytest.raises(
        SettingsError, match='unknown setting .repetition_penaltie.. Did you mean "repetition_penalty"'
    ):
        speaker.tts("Hi.", repetition_penaltie=2)


def test_length_penalty_says_that_it_has_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    defaults._warn_about_length_penalty.cache_clear()
    with caplog.at_level(logging.WARNING, "tortoise_rt"):
        defaults.settings_for(FakeEngine(), "fast")
        assert not caplog.records
        for _ in range(2):
            defaults.settings_for(FakeEngine(), length_penalty=8)
    assert [record.message.split(":")[0] for record in caplog.records] == ["length_penalty has no effect"]
