"""What ``say --explain`` says, and that no network runs for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tortoise_rt.backends import fake, open_engine
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.cli import main
from tortoise_rt.config import make_settings
from tortoise_rt.defaults import settings_for, settings_origins
from tortoise_rt.engine import Array, Engine, KVCache
from tortoise_rt.errors import TextError
from tortoise_rt.explain import describe_voice, explain
from tortoise_rt.latents import VoiceLatents
from tortoise_rt.pipeline import Pipeline
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
        "tenor, 1 clip of 9.6 s, option",
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
        Pipeline(engine),
        [Sentence("Hi.")],
        describe_voice("random", None, "option"),
        settings,
        origins,
        1,
    )
    assert made.clips[0].fits and not engine._sessions  # type: ignore[attr-defined]
    mute = FakeEngine()
    mute.info = replace(mute.info, tokenizer=None)
    with pytest.raises(TextError, match="has no tokenizer"):
        explain(Pipeline(mute), [Sentence("Hi.")], {}, settings, origins, 1)


# --- it is what is said ---


def spoken_by(*arguments: str) -> list[list[int]]:
    """The token ids that the network gets by the same command without --explain, clip by clip."""
    heard: list[list[int]] = []
    step = FakeEngine._ar_step

    def listen(self: FakeEngine, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        row = inputs["text_ids"][0].tolist()
        if row and row not in heard:
            heard.append(row)
        return step(self, cache, inputs)

    command = [
        "say",
        "--backend",
        "fake",
        "--tokenizer",
        str(TOKENIZER),
        "--max-mel-tokens",
        "9",
        "--samples",
        "1",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeEngine, "_ar_step", listen)
        done = CliRunner().invoke(main, [*command, *arguments, "-o", "said.wav"])
    assert done.exit_code == 0, done.output
    return heard


LONG = "Wherever you go, and whoever you meet there, "
TEXTS = {
    "plain": ["Dr. No: 50%."],
    "brackets": ["[I am sad,] feed me 5 times, [Mr. Brown]."],
    "no redaction": ["[I am so sad,] feed me.", "--no-redaction"],
    "checked": ["Feed me 5 times.", "--check"],
    "stream": ["One is here. Two is not.\n\nThree.", "--stream"],
    "stream with brackets": ["[I am sad. Really.] Feed me. [Thank you.] [All of it.]", "--stream"],
    "long sentence": [f"{LONG * 3}there is more. Yes.", "--stream"],
    "long brackets": [f"[{LONG * 3}] please feed me. Yes.", "--stream"],
    "long and no redaction": [f"[{LONG * 3}] feed me. Yes.", "--stream", "--no-redaction"],
}


@pytest.mark.parametrize("arguments", TEXTS.values(), ids=TEXTS)
def test_what_is_explained_is_what_is_said(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "DIMS", {**fake.DIMS, "ar.text_positions": 53})  # 50 tokens
    ids = [clip["ids"] for clip in explained(*arguments)["clips"]]
    assert [row[1:-2] for row in spoken_by(*arguments)] == ids  # between start and stop
    assert all(ids) and max(map(len, ids)) <= 50


def test_brackets_are_shown_as_they_are_cut() -> None:
    (clip,) = explained("[I am SO sad,] feed me [2] apples.", "--seed", "1")["clips"]
    assert clip["cleaned"] == "i am so sad, feed me two apples." and clip["heard"] == "feed me apples."
    assert clip["cut"] == ["i am so sad,", "two"]
    shown = explained("[I am SO sad,] feed me.", json_out=False)
    assert "  heard   feed me." in shown and "  cut     [i am so sad,]" in shown
    assert "nothing: what is in brackets has no letters" in explained(
        "[25] a", "--basic-cleaners", json_out=False
    )
    plain = explained("[I am sad,] feed me.", "--no-redaction")["clips"][0]
    assert (plain["cut"], plain["heard"]) == ([], "") and plain["unheard"] == ["[", "]"]


def test_what_a_request_refuses_is_refused() -> None:
    command = ["say", "--backend", "fake", "--tokenizer", str(TOKENIZER)]
    for arguments in (["[All of it.]"], ["a [ b"], ["Hi.", "--stream", "--check"]):
        for more in ([], ["--explain"]):
            done = CliRunner().invoke(main, [*command, *arguments, *more, "-o", "a.wav"])
            assert done.exit_code == 2 and done.stderr.startswith("Error: "), (arguments, more, done.output)
    assert "Nothing   is said" in explained("\u200b", "--stream", json_out=False)


def test_the_parts_of_a_voice_are_named(folder: Path) -> None:
    rng = np.random.default_rng(0)
    VoiceLatents(*rng.standard_normal((2, 1, 16)).astype(np.float32)).save(folder / "pat.pth")
    voice = explained("Hi.", "--voice", "tenor:3&pat.pth:1")["voice"]
    assert voice["parts"] == [
        {"name": "tenor", "weight": 0.75, "made_of": "1 clip of 9.6 s"},
        {"name": "pat", "weight": 0.25, "made_of": "latents"},
    ]
    assert voice["made_of"] == "tenor, 75 %: 1 clip of 9.6 s; pat, 25 %: latents"
    shown = explained("Hi.", "--voice", "tenor:3&pat.pth:1", json_out=False)
    assert "\n  tenor   75 %, 1 clip of 9.6 s\n  pat     25 %, latents\n" in shown
    only = explained("Hi.", "--voice", "pat.pth:1&pat.pth:4")["voice"]
    assert [part["weight"] for part in only["parts"]] == [0.2, 0.8]
    assert "parts" not in explained("Hi.", "--voice", "alto&tenor")["voice"]  # one pool of clips
