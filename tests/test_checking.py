"""Clips against their text: what is missing, said twice, added or goes on; drawing again; times of words as files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scheduling import TOKENIZER
from test_alignment import heard_as
from test_cli import ok

from tortoise_rt import Pipeline, Result, TextToSpeech, VoiceLatents, load_voice, make_settings
from tortoise_rt.alignment import Word, hear, spell
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.checking import Drawn, Report, judge, retried
from tortoise_rt.conditioning import one_voice
from tortoise_rt.debug_state import load_debug_state, replay
from tortoise_rt.errors import OutputError
from tortoise_rt.text import Tokenizer, clean_english
from tortoise_rt.word_times import write_words

pytestmark = pytest.mark.usefixtures("folder")
TEXT = "the small dog ran away"


def report_of(outputs: str, text: str = TEXT, stopped: bool = True) -> Report:
    return judge(heard_as(outputs), spell(text), stopped)[0]


def spoken(text: str) -> str:
    """Every letter for two outputs, with silence around words."""
    return "  " + "".join(c * 2 + "_" if c != " " else "  " for c in text) + "  "


def test_a_clip_that_says_its_text_is_fine() -> None:
    report = report_of(spoken(TEXT))
    assert report.ok and report.problems == [] and report.heard == TEXT and report.confidence > 0.8
    assert report.as_json()["ok"] is True


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("the dog ran away", {"missing": ("small",)}),
        ("the small dog ran", {"missing": ("away",)}),
        ("the small small dog ran away", {"repeated": ("small",)}),
        ("the small garden dog ran away", {"extra": ("garden",)}),
        ("oh the small dog ran away", {"extra": ("oh",)}),
        ("the small dog ran away and home", {"tail": "and home"}),
    ],
)
def test_what_is_wrong_is_named(said: str, found: dict[str, object]) -> None:
    report = report_of(spoken(said))
    assert not report.ok
    assert replace(report, heard="", confidence=1.0) == Report(
        "",
        **{
            "missing": (),
            "repeated": (),
            "extra": (),
            "tail": "",
            "stopped": True,
            "confidence": 1.0,
            **found,
        },  # type: ignore[arg-type]
    )


def test_a_single_letter_too_many_is_misheard() -> None:
    assert report_of(spoken("the small t dog ran away")).ok


def test_several_words_may_be_missing() -> None:
    report = report_of(spoken("the dog ran from home today"), "the small dog ran away from home today")
    assert report.missing == ("small", "away") and not report.extra and not report.tail


def test_no_stop_and_another_text_are_named() -> None:
    assert report_of(spoken(TEXT), stopped=False).problems == ["no stop within the limit of codes"]
    other = report_of(spoken("who would have thought of it"))
    assert any("hardly understood" in problem for problem in other.problems)
    assert report_of("", "ab").missing == ("ab",) and report_of("abc", "").ok is False


SENTENCES = [
    "It was a bright cold day in April, and the clocks were striking thirteen.",
    "I really wanted to see the new house before the winter comes.",
    "A small dog ran across the green field.",
]


@pytest.fixture(scope="module")
def tts() -> TextToSpeech:
    pytest.importorskip("onnxruntime")
    return TextToSpeech()


@pytest.mark.parametrize("text", SENTENCES)
def test_the_demo_is_told_from_what_it_did_not_say(tts: TextToSpeech, text: str) -> None:
    """The clip is the text's; the text it is compared with lacks a word, or has one more."""
    heard = hear(tts.engine, tts.tts(text, use_deterministic_seed=1)[0, 0])
    words = spell(clean_english(text))
    assert judge(heard, words, True)[0].ok
    middle = len(words) // 2 + 1
    added = judge(heard, [*words[:middle], *words[middle + 1 :]], True)[0]
    assert (added.extra or added.repeated) and not added.missing
    missing = judge(heard, [*words[:middle], *spell("umbrella"), *words[middle:]], True)[0]
    assert missing.missing == ("umbrella",) and not missing.extra
    tail = judge(heard, words[:-2], True)[0]
    assert tail.tail or tail.extra


# --- drawing again ---


def result_of(*reports: Report, name: float = 0.0, seed: int = 5) -> Result:
    """A result whose clips are known by their one sample."""
    count = len(reports)
    return Result(
        [np.full(1, name + n, np.float32) for n in range(count)], np.full((count, 3), name, np.int64), np.zeros(count),
        np.arange(count), [np.zeros(1)] * count, [], VoiceLatents(np.ones(2)), 9,
        [Drawn(seed, n) for n in range(count)], (seed,), {"sampling": 1.0}, words=[[] for _ in reports], reports=list(reports),
    )  # fmt: skip


GOOD = Report("", (), (), (), "", True, 1.0)
BAD, WORSE = replace(GOOD, tail="x"), replace(GOOD, tail="x", missing=("a", "b"))


def test_bad_clips_are_drawn_again_and_the_best_are_kept() -> None:
    tries = {
        5: result_of(WORSE, name=1),
        6: result_of(BAD, name=2),
        7: result_of(WORSE, name=3),
        8: result_of(GOOD, name=4),
    }
    asked: list[int] = []

    def say(seed: int) -> Result:
        asked.append(seed)
        return tries[seed]

    best = retried(say, 5, 2)
    assert asked == [5, 6, 7] and best.wavs[0] == 2 and best.reports == [BAD]
    assert (best.seed, best.tries, best.made_with()) == (6, (5, 6, 7), "seed 6 (3 tries from seed 5)")
    assert (
        best.codes.tolist() == [[2, 2, 2]]
        and best.chosen.tolist() == [0]
        and best.seconds == {"sampling": 3.0}
    )
    assert retried(say, 5, 9).wavs[0] == 4 and asked[-1] == 8  # no further than a good one
    once = retried(say, 5, 0)
    assert once.reports == [WORSE] and once.made_with() == "seed 5"
    two = retried(lambda seed: result_of(BAD, GOOD, name=10.0 * seed), 0, 1)
    assert [float(wav[0]) for wav in two.wavs] == [1, 11] and two.reports == [GOOD, GOOD]
    assert [two.made_with(n) for n in (0, 1)] == [
        "seed 0 (2 tries from seed 0)",
        "seed 1 (2 tries from seed 0)",
    ]
    assert two.codes[two.chosen].tolist() == [[0, 0, 0], [10, 10, 10]]


def test_unchecked_results_are_drawn_once() -> None:
    assert retried(lambda seed: result_of(name=seed), 3, 5).codes.shape == (0, 3)


def test_a_bad_engine_is_asked_as_often_as_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = TextToSpeech(engine=FakeEngine())  # noise: never what was asked for
    drawn: list[int] = []
    submit = speaker.scheduler.submit
    monkeypatch.setattr(speaker.scheduler, "submit", lambda *a, **k: drawn.append(a[3]) or submit(*a, **k))
    speaker.tts(
        "Hello there.",
        check=True,
        max_retries=3,
        num_autoregressive_samples=2,
        use_deterministic_seed=7,
        decoder="hifigan",
    )
    assert drawn == [7, 8, 9, 10]


def test_the_result_carries_reports_and_words(tts: TextToSpeech) -> None:
    chosen = make_settings(check=True, num_autoregressive_samples=2, k=2, decoder="hifigan")
    result = Pipeline(tts.engine).synthesize(
        "A small dog ran across the green field.", load_voice("alto"), chosen, 1
    )
    assert [r.ok for r in result.reports] == [True, True] and {r.seed for r in result.reports} == {1}
    assert [[w.text for w in words] for words in result.words] == [
        ["a", "small", "dog", "ran", "across", "the", "green", "field."]
    ] * 2
    ends = [words[-1].end for words in result.words]
    assert all(0.5 < end <= len(wav) / 24000 for end, wav in zip(ends, result.wavs, strict=True))


# --- times of words ---

WORDS = [Word("<so>", 0.5, 1.25, 0.75, (0.6, 1.2)), Word("long,", 3661.0, 3661.0, 0.5, (3661.0, 3661.0))]


def test_formats(tmp_path: Path) -> None:
    for suffix in (".srt", ".vtt", ".json"):
        write_words(tmp_path / f"words{suffix}", WORDS)
    assert (tmp_path / "words.srt").read_text() == (
        "1\n00:00:00,500 --> 00:00:01,250\n<so>\n\n2\n01:01:01,000 --> 01:01:01,010\nlong,\n\n"
    )
    assert (tmp_path / "words.vtt").read_text() == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:01.250\n&lt;so&gt;\n\n01:01:01.000 --> 01:01:01.010\nlong,\n\n"
    )
    assert json.loads((tmp_path / "words.json").read_text())[0] == {
        "word": "<so>", "start": 0.5, "end": 1.25, "confidence": 0.75,
    }  # fmt: skip
    with pytest.raises(OutputError, match="its suffix must be one of .srt, .vtt, .json"):
        write_words(tmp_path / "words.txt", WORDS)


def test_the_command(folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    said = ok(
        "say",
        "A small dog ran away.",
        "--check",
        "--words",
        "dog.json",
        "-o",
        "dog.wav",
        "--seed",
        "1",
        "--json",
    )
    report = json.loads(said.stdout)
    assert report["checks"][0]["ok"] and report["checks"][0]["seed"] == 1
    words = json.loads((folder / "dog.json").read_text())
    assert [w["word"] for w in words] == ["a", "small", "dog", "ran", "away."]
    wav, rate = soundfile.read(folder / "dog.wav")
    assert words[-1]["end"] <= len(wav) / rate
    cut = ok("say", "A [small] dog ran away.", "--words", "cut.srt", "-o", "cut.wav", "--seed", "1")
    assert "listening" in cut.output and "small" not in (folder / "cut.srt").read_text()
    ok("say", "A [small] dog.", "--no-redaction", "-o", "all.wav", "--seed", "1", "-q")
    ok("say", "A dog.", "--candidates", "2", "--samples", "2", "--words", "two.vtt", "-o", "two.wav", "-q")
    assert (folder / "two_0.vtt").exists() and (folder / "two_1.vtt").exists()


def test_all_tries_are_in_one_random_voice() -> None:
    engine = FakeEngine()
    pipeline = Pipeline(engine, Tokenizer(TOKENIZER))
    chosen = make_settings(
        check=True, max_retries=3, num_autoregressive_samples=1, max_mel_tokens=20, decoder="hifigan"
    )
    unchecked = replace(chosen, check=False)
    voice = one_voice(engine, None, chosen, 5)
    result = retried(lambda seed: pipeline.synthesize("Hello there.", voice, chosen, seed), 5, 3)
    alone = pipeline.synthesize("Hello there.", None, unchecked, 5)
    np.testing.assert_array_equal(result.voice.auto, alone.voice.auto)


@pytest.mark.parametrize("candidates", [1, 2])
def test_files_and_reports_name_the_seed_that_made_a_clip(folder: Path, candidates: int) -> None:
    """On noise, of which some is nearer to the text: no clip is good, and the best are of some of the tries."""
    fake = ["say", "Hello.", "--backend", "fake", "--tokenizer", str(TOKENIZER), "--max-mel-tokens", "20"]
    checked = [*fake, "--check", "--max-retries", "4", "--samples", "2", "--candidates", str(candidates)]
    made = json.loads(ok(*checked, "--seed", "3", "-o", "a.wav", "--debug-state", "run", "--json").stdout)
    assert made["tries"] == [3, 4, 5, 6, 7] and made["seed"] == made["checks"][0]["seed"]
    names = ["a.wav"] if candidates == 1 else ["a_0.wav", "a_1.wav"]
    for name, check in zip(names, made["checks"], strict=True):
        with soundfile.SoundFile(folder / name) as file:
            assert file.comment.endswith(f"seed {check['seed']} (5 tries from seed 3)")
    again = ok("replay", "run", *fake[2:6], "-o", "b.wav")
    assert "codes are the same" in again.output and f"seed {made['seed']} (5 tries" in again.output
    for name in names:
        assert (folder / name).read_bytes() == (folder / name.replace("a", "b", 1)).read_bytes()


def test_the_seed_alone_makes_the_clip_that_was_kept(tts: TextToSpeech, folder: Path) -> None:
    """Clips that are cut off are never good; what is kept is the clip of its own seed."""
    text = "A small dog ran away."
    chosen = dict(num_autoregressive_samples=1, decoder="hifigan", max_mel_tokens=14)
    wav, (first, *_) = tts.tts(
        text, check=True, max_retries=3, use_deterministic_seed=20, debug_state=folder / "run",
        return_deterministic_state=True, **chosen,
    )  # fmt: skip
    state = load_debug_state(folder / "run")
    assert first == 20 and state.tries == (20, 21, 22, 23)  # with the first seed it is all done again
    np.testing.assert_array_equal(wav, tts.tts(text, use_deterministic_seed=state.seed, **chosen))
    np.testing.assert_array_equal(wav[0, 0], replay(state, tts.engine).wavs[0])
    assert state.codes.shape == (1, 14)  # the try that was kept, and no other
