"""What ``say --explain`` says, and that no network runs for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tortoise_rt.backends import open_engine
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.cli import main
from tortoise_rt.config import make_settings
from tortoise_rt.defaults import settings_for, settings_origins
from tortoise_rt.engine import Engine
from tortoise_rt.errors import TextError
from tortoise_rt.explain import describe_voice, explain
from tortoise_rt.sentences import Sentence
from tortoise_rt.text import Tokenizer

TOKENIZER = Path(__file__).parent / "data" / "tokenizer.json"
pytestmark = pytest.mark.usefixtures("folder")


def explained(*arguments: str, stdin: str | None = None, json_out: bool = True) -> Any:
    command = ["say", "--explain", "--backend", "fake", "--tokenizer", str(TOKENIZER), *arguments]
    with pytest.MonkeyPatch.context() as patch:  # a network that runs is an error
        for method in ("_run", "_ar_step", "_new_cache"):
            patch.setattr(FakeEngine, method, None)
        done = CliRunner().invoke(main, command + ["--json"] * json_out, input=stdin)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout) if json_out else done.stdout


def test_text_tokens_and_seed(folder: Path) -> None:
    said = explained("Dr. No: 50% & more.", "--seed", "7", "-o", "no/such/folder.wav")
    (clip,) = said["clips"]
    assert clip["cleaned"] == "doctor no: fifty% & more."
    tokenizer = Tokenizer(TOKENIZER)
    assert clip["ids"] == tokenizer.encode("Dr. No: 50% & more.")
    assert "".join(clip["pieces"]).replace("[SPACE]", " ") == clip["cleaned"]
    assert (clip["unheard"], clip["seed"], clip["fits"]) == (["%", "&"], 7, True)
    assert [path for path in folder.iterdir() if path.is_file()] == []


def test_where_settings_come_from() -> None:
    settings = explained("Hi.", "--preset", "standard", "--top-k", "9", "--greedy")["settings"]
    assert settings["top_k"] == {"value": 9, "from": "option"}
    assert settings["diffusion_iterations"] == {"value": 200, "from": "preset standard"}
    assert settings["typical_mass"] == {"value": 0.9, "from": "default"}
    assert settings["num_autoregressive_samples"]["value"] == 1  # one greedy draw is all there is
    assert "preset standard: 256" in settings["num_autoregressive_samples"]["from"]
    assert explained("Hi.")["settings"]["num_autoregressive_samples"] == {
        "value": 96, "from": "the default preset, fast",
    }  # fmt: skip


def test_origins_are_of_the_settings_that_are_used(engine: Engine) -> None:
    for arguments in ({}, {"preset": "turbo"}, {"k": 3}, {"greedy": True, "eta": 0.5}):
        origins = settings_origins(engine, fallback="fast", **arguments)  # type: ignore[arg-type]
        used = settings_for(engine, fallback="fast", **arguments)  # type: ignore[arg-type]
        assert make_settings(**{name: value for name, (value, _) in origins.items()}) == used


def test_a_stream_is_explained_sentence_by_sentence() -> None:
    said = explained("-", "--stream", "--seed", "5", stdin="One is here. Two is not.")
    assert [(c["text"], c["seed"]) for c in said["clips"]] == [("One is here.", 5), ("Two is not.", 6)]
    assert said["settings"]["decoder"] == {"value": "hifigan", "from": "--stream"}
    assert said["cost"]["denoising_passes"] == 0


def test_cost() -> None:
    cost = explained("Hello there.", "--samples", "4", "--diffusion-iterations", "10", "--candidates", "2",
                     "--cond-free-share", "0.5", "--max-mel-tokens", "30")["cost"]  # fmt: skip
    assert (cost["samples"], cost["codes_at_most"], cost["denoising_passes"]) == (4, 120, 2 * 15)
    assert cost["codes_expected"] == 4 * 17  # 12 characters
    assert cost["audio_seconds_expected"] == round(2 * 17 * 1024 / 22050, 1)


def test_for_people() -> None:
    shown = explained("Hello there.", "--seed", "3", "--voice", "tenor", json_out=False)
    for part in (
        "tenor, 1 clip of 9.6 s together, option",
        "said    hello there.",
        "seed    3",
        "Cost  ",
        "top_k",
    ):
        assert part in shown
    refused = explained("word " * 300, json_out=False)
    assert "refused too long: --stream cuts it into sentences" in refused
    assert "refused nothing to say" in explained("😀", json_out=False)


def test_no_graph_is_loaded(random_bundle: Path) -> None:
    engine = open_engine(random_bundle)
    settings = settings_for(engine)
    origins = settings_origins(engine)
    made = explain(
        engine,
        Tokenizer(TOKENIZER),
        [Sentence("Hi.")],
        describe_voice("random", None, "option"),
        settings,
        origins,
        1,
    )
    assert made.clips[0].fits and not engine._sessions  # type: ignore[attr-defined]
    with pytest.raises(TextError, match="has no tokenizer"):
        explain(engine, None, [Sentence("Hi.")], {}, settings, origins, 1)
