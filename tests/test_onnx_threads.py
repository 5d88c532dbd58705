"""How many threads ONNX Runtime computes with, and that their number changes no bit."""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from tortoise_rt import Pipeline, load_voice, make_settings, open_engine
from tortoise_rt.backends.onnx import THREADS_VARIABLE, OnnxEngine, thread_count
from tortoise_rt.bundle import demo_folder
from tortoise_rt.errors import EngineError


def set_threads(monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    """None: as many as there are CPUs."""
    if count is None:
        monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(THREADS_VARIABLE, str(count))


def test_threads_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (None, 3):
        set_threads(monkeypatch, count)
        assert thread_count() == (count or len(os.sched_getaffinity(0)))
        engine = open_engine(demo_folder())
        assert isinstance(engine, OnnxEngine)
        options = engine.session("hifigan").get_session_options()
        assert options.intra_op_num_threads == thread_count()
    monkeypatch.setenv(THREADS_VARIABLE, "many")
    pytest.raises(EngineError, thread_count).match("many")


@pytest.mark.parametrize("decoder", ["hifigan", "diffusion"])
def test_their_number_changes_no_bit(monkeypatch: pytest.MonkeyPatch, decoder: str) -> None:
    """Of codes, latents, sound and times of words: of the demo engine, whose matrices are large enough to be shared out."""
    settings = make_settings(
        num_autoregressive_samples=3, max_mel_tokens=24, decoder=decoder, diffusion_iterations=3, check=True
    )
    voice, results = load_voice("alto", paths=False), []
    for count in (1, 3):
        set_threads(monkeypatch, count)
        results.append(
            Pipeline(open_engine(demo_folder())).synthesize("Hello there, my dear.", voice, settings, 1)
        )
    one, other = results
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(one.voice.auto, other.voice.auto)
    np.testing.assert_array_equal(one.latents[0], other.latents[0])
    np.testing.assert_array_equal(one.wavs[0], other.wavs[0])
    assert one.words == other.words
