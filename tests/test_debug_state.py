"""A run written down, read back and done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

from tortoise_rt import TextToSpeech
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.cli import main
from tortoise_rt.config import make_settings
from tortoise_rt.debug_state import ARRAYS, STATE, differences, load_debug_state, replay, save_debug_state
from tortoise_rt.engine import Engine
from tortoise_rt.errors import InputError, OutputError, SettingsError
from tortoise_rt.pipeline import Pipeline
from tortoise_rt.text import Tokenizer
from tortoise_rt.voice import Voice

TOKENIZER = Path(__file__).parent / "data" / "tokenizer.json"
QUICK: dict[str, Any] = {"num_autoregressive_samples": 3, "diffusion_iterations": 2, "max_mel_tokens": 20}
CLIP = (0.1 * np.sin(np.arange(30000) * 0.05)).astype(np.float32)
pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.parametrize(
    "arguments",
    [
        {"k": 2},  # a random voice
        {"voice_samples": [CLIP, CLIP[:20000]]},
        {"voice_samples": [CLIP], "cvvp_amount": 0.5},
        {"voice_samples": [CLIP], "decoder": "hifigan", "typical_sampling": True},
        {"k": 2, "check": True, "max_retries": 2},
    ],
    ids=["random", "clips", "cvvp", "hifigan", "checked"],
)
def test_a_run_is_done_again(engine: Engine, folder: Path, arguments: dict[str, Any]) -> None:
    speaker = TextToSpeech(engine=engine, tokenizer_vocab_file=TOKENIZER)
    said = speaker.tts(
        "Hello there.", use_deterministic_seed=5, debug_state=folder / "run", **{**QUICK, **arguments}
    )
    state = load_debug_state(folder / "run")
    assert (state.text, state.tries[0], state.settings.ar.max_mel_tokens) == ("Hello there.", 5, 20)
    assert state.seed == 5 or "check" in arguments
    samples = 3 * len({drawn.seed for drawn in state.drawn})
    assert state.codes.shape == (samples, 20) and state.scores.shape == (samples,)
    assert bool(state.clips) == ("cvvp_amount" in arguments)
    result = replay(state, engine, Tokenizer(TOKENIZER))
    assert differences(state, result) == {"codes": 0, "scores": 0, "latents": 0}
    clips = said if isinstance(said, list) else [said]
    for wav, clip in zip(result.wavs, clips, strict=True):
        np.testing.assert_array_equal(wav, clip[0, 0])


def test_a_weighted_blend_that_cvvp_ranked_by_is_done_again(folder: Path) -> None:
    engine = FakeEngine()
    chosen = make_settings(**{**QUICK, "cvvp_amount": 1.0})
    low, high = Voice("low", (CLIP,)), Voice("high", (CLIP[::-1].copy(), CLIP[:9000]))
    blend = Voice("both", parts=((low, 1.0), (high, 3.0)))
    result = Pipeline(engine).synthesize([5, 6, 7], blend, chosen, 1)
    save_debug_state(folder / "run", result, engine)
    state = load_debug_state(folder / "run")
    assert [len(clip) for clip in state.clips] == [30000, 30000, 9000]  # all that CVVP heard
    again = replay(state, engine)
    assert (
        differences(state, again) == {"codes": 0, "scores": 0, "latents": 0} and len(set(again.scores)) == 3
    )
    np.testing.assert_array_equal(result.wavs[0], again.wavs[0])


def test_ids_are_enough(folder: Path) -> None:
    engine = FakeEngine()
    result = Pipeline(engine).synthesize([5, 6, 7], None, make_settings(**QUICK), 1)
    save_debug_state(folder / "run", result, engine)
    state = load_debug_state(folder / "run")
    assert (state.text, state.ids) == (None, [5, 6, 7])
    assert differences(state, replay(state, engine))["codes"] == 0


def test_differences_are_seen(folder: Path) -> None:
    engine = FakeEngine()
    save_debug_state(
        folder / "run", Pipeline(engine).synthesize([5, 6], None, make_settings(**QUICK), 1), engine
    )
    state = load_debug_state(folder / "run")
    other = Pipeline(engine).synthesize([5, 6], None, make_settings(**QUICK), 2)
    assert differences(state, other)["codes"] > 0
    fewer = Pipeline(engine).synthesize(
        [5, 6], None, make_settings(**{**QUICK, "num_autoregressive_samples": 2}), 1
    )
    assert differences(state, fewer)["scores"] == np.inf


def test_another_tokenizer_is_refused(folder: Path) -> None:
    engine = FakeEngine()
    speaker = TextToSpeech(engine=engine, tokenizer_vocab_file=TOKENIZER)
    speaker.tts("$5", debug_state=folder / "run", **QUICK)
    with pytest.raises(SettingsError, match="makes other ids"):
        replay(load_debug_state(folder / "run"), engine, Tokenizer(TOKENIZER, basic=True))


@pytest.fixture
def run(folder: Path) -> Path:
    engine = FakeEngine()
    save_debug_state(
        folder / "run", Pipeline(engine).synthesize([5, 6], None, make_settings(**QUICK), 1), engine
    )
    return folder / "run"


def change(run: Path, **values: Any) -> None:
    state = json.loads((run / STATE).read_text())
    (run / STATE).write_text(json.dumps({**state, **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"version": 2}, "version 2; .* version 1 is read"),
        ({"format": "other"}, "has the format 'other'"),
        ({"settings": {"top_q": 1}}, "unknown setting 'top_q'"),
        ({"settings": 3}, "is damaged"),
        ({"clips": [{"seed": -1, "rank": 0}]}, "seed is -1"),
        ({"clips": []}, "is damaged"),
        ({"clips": [{"seed": 1, "rank": 1}]}, "is damaged"),
        ({"tries": [2]}, "is damaged"),
        ({"tries": []}, "is damaged"),
        ({"ids": [None]}, "is damaged"),
        ({"text": 5}, "is damaged"),
        ({"engine": None}, "is damaged"),
        ({"engine": {"precision": [1]}}, "is damaged"),
    ],
)
def test_damaged_states(run: Path, values: dict[str, Any], message: str) -> None:
    change(run, **values)
    with pytest.raises(InputError, match=message):
        load_debug_state(run)


def test_damaged_files(run: Path) -> None:
    arrays = safetensors.numpy.load_file(run / ARRAYS)
    for changed in (
        {"scores": arrays["scores"][:1]},
        {"codes": arrays["codes"].astype(np.float32)},
        {"chosen": np.array([9])},
    ):
        safetensors.numpy.save_file({**arrays, **changed}, run / ARRAYS)
        with pytest.raises(InputError, match="is damaged"):
            load_debug_state(run)
    del arrays["voice.auto"]
    safetensors.numpy.save_file(arrays, run / ARRAYS)
    with pytest.raises(InputError, match="is damaged"):
        load_debug_state(run)
    (run / ARRAYS).write_bytes(b"\x80\x04cposix\nsystem\n")  # a pickle is no safetensors file
    with pytest.raises(InputError, match="is not a sound .safetensors file"):
        load_debug_state(run)
    for content, message in (
        ("[1]", "holds no debug state"),
        ("{", "cannot be read"),
        ("[" * 100000, "cannot be read"),
    ):
        (run / STATE).write_text(content)
        with pytest.raises(InputError, match=message):
            load_debug_state(run)
    (run / STATE).unlink()
    with pytest.raises(InputError, match="there is no file"):
        load_debug_state(run)


def test_the_folder_is_looked_at_before_any_work(folder: Path) -> None:
    speaker = TextToSpeech(engine=FakeEngine(), tokenizer_vocab_file=TOKENIZER)
    (folder / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        speaker.tts("Hi.", debug_state="file")
    with pytest.raises(OutputError, match="does not exist: create it"):
        speaker.tts("Hi.", debug_state="a/b")


def test_from_the_command_line(folder: Path) -> None:
    def call(*arguments: str) -> Any:
        return CliRunner().invoke(main, list(arguments))

    fake = ["--backend", "fake", "--tokenizer", str(TOKENIZER)]
    said = call(
        "say", *fake, "Hello.", "--samples", "2", "--seed", "4", "--debug-state", "run", "-o", "a.wav"
    )
    assert said.exit_code == 0, said.output
    again = call("replay", "run", *fake, "-o", "b.wav")
    assert again.exit_code == 0 and "codes are the same" in again.stdout, again.output
    assert (folder / "a.wav").read_bytes() == (folder / "b.wav").read_bytes()
    change(folder / "run", clips=[{"seed": 5, "rank": 0}], tries=[5])
    other = call("replay", "run", *fake, "--json")
    assert other.exit_code == 1 and json.loads(other.stdout)["codes"] > 0
    assert call("say", *fake, "Hi.", "--stream", "-o", "c.wav", "--debug-state", "run").exit_code == 2
    missing = call("replay", "nothing", *fake)
    assert missing.exit_code == 2 and "there is no file nothing/state.json" in missing.output


def test_a_state_runs_on_the_engine_that_made_it(random_bundle: Path, folder: Path) -> None:
    made = CliRunner().invoke(
        main,
        ["say", "--engine", str(random_bundle), "Hi.", "--samples", "2", "--max-mel-tokens", "9", "-o", "a.wav",
         "--diffusion-iterations", "2", "--debug-state", "run", "--quiet"],
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    again = CliRunner().invoke(main, ["replay", "run"])
    assert again.exit_code == 0 and str(random_bundle) in again.stdout, again.output
