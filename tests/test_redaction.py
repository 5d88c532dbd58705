"""Words in brackets: how they are read, and that they are cut out of the sound and nothing else."""

from __future__ import annotations

import difflib
import functools
import logging
import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_alignment import heard_as

from tortoise_rt import Pipeline, TextToSpeech, make_settings
from tortoise_rt.alignment import Heard, Spelt, Word, align, hear
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.errors import EngineError, SettingsError, TextError
from tortoise_rt.reading import sentences_said
from tortoise_rt.redaction import (
    MOST_JOINED,
    Part,
    Prompt,
    all_in_brackets,
    check,
    cut,
    halves,
    parse,
    parts,
    whole_brackets,
)
from tortoise_rt.sentences import Sentence
from tortoise_rt.spec import GRAPHS, SAMPLE_RATE, SYMBOLS
from tortoise_rt.text import clean_english

# --- reading brackets ---


def test_parts() -> None:
    assert parts("[I am sad,] please [do] it") == [
        Part("I am sad,", True), Part(" please ", False), Part("do", True), Part(" it", False),
    ]  # fmt: skip
    assert parts("") == [] and parts("[] a") == [Part(" a", False)]


@pytest.mark.parametrize("text", ["a [ b", "a ] b", "a [b [c] d] e", "]a[", "[[a]]"])
def test_brackets_without_a_partner_are_refused(text: str) -> None:
    with pytest.raises(TextError, match=r"has no partner.*--no-redaction"):
        parts(text)


@pytest.mark.parametrize("text", ["[all of it]", "[a] [b]!", "  [a]. "])
def test_text_all_in_brackets_is_refused(text: str) -> None:
    with pytest.raises(TextError, match="nothing of it would be heard"):
        check(text)


def test_what_is_spoken_is_cleaned_and_has_no_brackets() -> None:
    prompt = parse('[Mr. 5,] un[believ]able  "John" [...]', clean_english)
    assert prompt.text == "mister five, unbelievable john ..." and prompt.sure
    assert [(w.text, inside, w.apart) for w, inside in zip(prompt.words, prompt.inside, strict=True)] == [
        ("mister", True, True), ("five,", True, True), ("un", False, True), ("believ", True, False),
        ("able", False, False), ("john", False, True),
    ]  # fmt: skip
    assert parse("a [b] c", clean_english, brackets=False).inside == (False, False, False)
    assert not parse("a [25] c", str.lower).sure  # no letters to listen for


def test_brackets_hold_sentences_together() -> None:
    def joined(*texts: str) -> list[str]:
        return [s.text for s in whole_brackets(map(Sentence, texts))]

    assert joined("[I am sad.", "Really.] Please.", "Yes.") == ["[I am sad. Really.] Please.", "Yes."]
    assert joined("[I am sad.]", "Please.", "Yes.") == ["[I am sad.] Please.", "Yes."]
    assert joined("One.", "[Two.]") == ["One.", "[Two.]"]
    assert joined("a ] b.", "c.") == ["a ] b.", "c."]
    assert len(joined("[open", *["word" * 20] * 60)) > 1  # for ever is too long
    many = joined(*["[I am sad.", "Really.]"] * 200, "Please.")  # much in brackets, each of which is short
    assert all(one.count("[") == one.count("]") for one in many) and max(map(len, many)) < 2 * MOST_JOINED
    chained = joined(*["Say [it.", "Now] Say"] * 400)  # nowhere does a sentence end outside
    assert "".join(chained).count("it.") == 400 and max(map(len, chained)) < 300
    assert all(one.count("[") == one.count("]") for one in chained)
    assert halves("[one two three] four", 8) == ("[one two]", "[three] four")
    assert halves("[one] two three", 9) == ("[one] two", "three")


# --- cutting ---

TONES = "  ab  cd  ef  "  #: an output for each 100 ms: tone, silence


def clip() -> np.ndarray:
    """Letters are tones of a loudness of their own, space is silence."""
    levels = np.repeat([0.0 if c == " " else 0.1 * (ord(c) - 96) for c in TONES], SAMPLE_RATE // 10)
    return (levels * np.sin(np.arange(len(levels)) * 0.5)).astype(np.float32)


def cut_clip(text: str, sure: float = 0.9) -> tuple[np.ndarray, list[Word]]:
    prompt = parse(text, clean_english)
    heard = heard_as(TONES, sure)
    words = align(type(heard)(heard.scores, 0.1, 0.05, 1.4), prompt.words)
    return cut(clip(), words, prompt)


def letters_in(wav: np.ndarray) -> str:
    """Which tones a clip has, by their loudness in windows of 10 ms."""
    peaks = np.abs(wav[: len(wav) // 240 * 240].reshape(-1, 240)).max(axis=1)
    found = "".join(
        chr(96 + round(p * 10)) if p > 0.05 and abs(p * 10 - round(p * 10)) < 0.05 else " " for p in peaks
    )
    return re.sub(r"\s+", " ", re.sub(r"(.)\1+", r"\1", found)).strip()


@pytest.mark.parametrize(
    ("text", "left", "seconds"),
    [
        ("[ab] cd ef", "cd ef", 0.9), ("ab [cd] ef", "ab ef", 1.0), ("ab cd [ef]", "ab cd", 0.9),
        ("[ab] cd [ef]", "cd", 0.4), ("[ab cd] ef", "ef", 0.5),
    ],
)  # fmt: skip
def test_the_tones_in_brackets_are_gone_and_no_others(text: str, left: str, seconds: float) -> None:
    wav, words = cut_clip(text)
    assert letters_in(wav) == left and " ".join(w.text for w in words) == left
    assert len(wav) / SAMPLE_RATE == pytest.approx(seconds, abs=0.25)
    for word in words:  # they are where the words left say
        middle = round((word.start + word.end) / 2 * SAMPLE_RATE)
        assert np.abs(wav[middle - 1200 : middle + 1200]).max() > 0.05


def test_sound_fades_at_cuts() -> None:
    prompt = parse("ab [cd] ef", clean_english)
    heard = heard_as(TONES)
    words = align(type(heard)(heard.scores, 0.1, 0.05, 1.4), prompt.words)
    steady = np.ones(round(1.4 * SAMPLE_RATE), np.float32)
    wav, _ = cut(steady, words, prompt)
    assert wav[0] == wav[-1] == 1 and wav.min() < 0.01  # the clip's own ends stay
    assert np.abs(np.diff(wav)).max() < 0.02  # no click
    assert (wav < 1).sum() == pytest.approx(0.010 * SAMPLE_RATE, abs=4)


def test_where_it_is_not_sure_the_whole_clip_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "tortoise_rt"):
        wav, words = cut_clip("[ab] cd ef", sure=0.05)
    assert len(wav) == len(clip()) and len(words) == 3 and "the whole clip is kept" in caplog.text
    assert len(cut(clip(), [], Prompt("25", (), (), sure=False))[0]) == len(clip())


# --- with engines ---


@pytest.fixture(scope="module")
def tts() -> TextToSpeech:
    pytest.importorskip("onnxruntime")
    return TextToSpeech()


@pytest.mark.parametrize(
    ("text", "left", "gone"),
    [
        ("[I am so sad,] please feed me.", "please feed", "sad"),
        ("The weather is lovely today, [so let us go outside.]", "lovely today", "outside"),
        ("It was a bright [cold] day in April.", "bright day", "cold"),
    ],
)
def test_the_demo_speaks_without_what_is_in_brackets(
    tts: TextToSpeech, text: str, left: str, gone: str
) -> None:
    wav = tts.tts(text, use_deterministic_seed=1)[0, 0]
    whole = tts.tts(re.sub(r"[\[\]]", "", text), use_deterministic_seed=1)[0, 0]
    assert len(wav) < len(whole) - 0.2 * SAMPLE_RATE
    letters = hear(tts.engine, wav).reading().replace(" ", "")
    before = hear(tts.engine, whole).reading().replace(" ", "")
    assert alike(left, letters) >= alike(left, before) - 0.15
    assert alike(gone, letters) <= alike(gone, before) - 0.25


def alike(wanted: str, letters: str) -> float:
    """How much of ``wanted`` stands in one place of ``letters``, from 0 to 1."""
    wanted = wanted.replace(" ", "")
    windows = (letters[i : i + len(wanted)] for i in range(max(1, len(letters) - len(wanted) + 1)))
    return max(difflib.SequenceMatcher(None, wanted, window, autojunk=False).ratio() for window in windows)


def test_a_reading_keeps_brackets_whole(tts: TextToSpeech) -> None:
    text = "[I am so sad.] Please feed me. I am hungry."
    arguments = {"use_deterministic_seed": 1, "pause": 0.0}
    pieces = list(tts.tts_stream(text, **arguments))  # type: ignore[arg-type]
    one = tts.tts("[I am so sad.] Please feed me.", use_deterministic_seed=1)[0, 0]
    np.testing.assert_allclose(pieces[0], one, atol=1e-5)  # not in pieces, as it is cut first
    live = np.concatenate(list(tts.tts_stream(iter(text), **arguments)))  # type: ignore[arg-type]
    np.testing.assert_allclose(live, np.concatenate(pieces), atol=1e-5)


def test_without_an_aligner_brackets_are_refused_and_can_be_spoken() -> None:
    engine = FakeEngine(frozenset(GRAPHS) - {"aligner", "wav2vec2"})
    deaf = TextToSpeech(engine=engine)
    quick = dict(num_autoregressive_samples=1, decoder="hifigan", use_deterministic_seed=1)
    with pytest.raises(EngineError, match=r"cutting \[sadly\].*fetch --aligner.*--no-redaction"):
        deaf.tts("[sadly] Hello.", **quick)
    with pytest.raises(EngineError, match="fetch --aligner"):
        list(deaf.tts_stream("[sadly] Hello."))
    with pytest.raises(EngineError, match="fetch --aligner"):
        deaf.tts("Hello.", check=True, **quick)
    assert TextToSpeech(engine=engine, enable_redaction=False).tts("[sadly] Hello.", **quick).size > 0
    assert deaf.tts("[sadly] Hello.", enable_redaction=False, **quick).size > 0


def test_what_must_be_complete_is_not_streamed() -> None:
    pipeline, chosen = Pipeline(FakeEngine()), make_settings(num_autoregressive_samples=1, decoder="hifigan")
    with pytest.raises(SettingsError, match="cannot be streamed"):
        next(pipeline.stream("[sadly] Hello.", None, chosen, 1))
    with pytest.raises(TextError, match="token ids cannot be checked"):
        pipeline.synthesize([5, 6], None, make_settings(check=True, num_autoregressive_samples=1), 1)


OUTSIDE = st.text(st.characters(codec="utf-8", exclude_characters="[]"), max_size=12) | st.sampled_from(
    ["I am so sad, ", "Please feed me. ", "un", "Mr. 5 ", "at 10:05, ", "$3.5M", "12 Elm Dr. ", "\n\n", "\x00\x07", "... ",
     "\u200b", "漢字 ", "é", "1,2,3", "!?", '"', "'", "5 ft. "]
)  # fmt: skip


def bracketed(pieces: list[str], times: int) -> str:
    """The pieces so many times, 5,000 characters at most, the last bracket with its partner."""
    text = "".join(pieces * times)[:5000]
    return text if text.count("[") == text.count("]") else text.rpartition("[")[0]


PROMPTS = st.builds(
    bracketed,
    st.lists(OUTSIDE | OUTSIDE.map(lambda text: f"[{text}]"), max_size=12),
    st.sampled_from([1, 1, 1, 1, 1, 5, 40]),
)
BRACKETED = st.text(
    st.sampled_from("abcde [].,!0123456789 é漢\x00\n'\"$£") | st.characters(codec="utf-8"), max_size=400
)


@settings(max_examples=200, deadline=None)
@given(BRACKETED)
def test_no_text_breaks_the_cutting_and_no_letter_outside_is_lost(text: str) -> None:
    try:
        prompt = parse(text, clean_english)
    except TextError:
        return
    engine = FakeEngine()
    wav = np.random.default_rng(len(text)).normal(size=SAMPLE_RATE // 2).astype(np.float32)
    kept, words = cut(wav, align(hear(engine, wav), prompt.words), prompt)
    assert 0 < len(kept) <= len(wav) and np.isfinite(kept).all()
    if any(part.inside for part in parts(text)):
        spoken = "".join(clean_english(part.text) for part in parts(text))
        assert alnum(prompt.text) == alnum(spoken)
    if len(kept) < len(wav):
        assert [w.text for w in words] == [
            w.text for w, i in zip(prompt.words, prompt.inside, strict=True) if not i
        ]


@settings(max_examples=1000, deadline=None)
@given(PROMPTS)
def test_no_letter_or_digit_outside_brackets_is_lost(text: str) -> None:
    """Through cleaning, cutting into sentences, and cutting out of the sound."""
    clean = functools.lru_cache(None)(clean_english)  # of pieces that come many times
    found = parts(text)
    cleaned = [clean(part.text) for part in found]
    outside = "".join(c for c, part in zip(cleaned, found, strict=True) if not part.inside)
    if not all_in_brackets(text):
        prompt = parse(text, clean)
        assert alnum("".join(w.text for w in prompt.words)) == alnum("".join(cleaned))
        heard = [w.text for w, inside in zip(prompt.words, prompt.inside, strict=True) if not inside]
        assert alnum("".join(heard)) == alnum(outside)
        if len(prompt.words) < 60:  # finding them takes the square of their number
            listened = said_clearly(prompt.words)
            wav = np.zeros(round(listened.seconds * SAMPLE_RATE), np.float32)
            _, left = cut(wav, align(listened, prompt.words), prompt)
            said_all = [word.text for word in prompt.words]
            assert [word.text for word in left] == (heard if prompt.sure else said_all)
    fits = lambda piece: -(-len(piece.strip()) // 150)  # noqa: E731
    said = [part for sentence in sentences_said(text, fits, brackets=True) for part in parts(sentence.text)]
    assert alnum("".join(p.text for p in said if not p.inside)) == alnum(
        "".join(p.text for p in found if not p.inside)
    )


def said_clearly(words: Sequence[Spelt]) -> Heard:
    """What an aligner hears of words that are said one letter after another, with silence between those that are apart."""
    outputs = ""
    for word in words:
        outputs += ("  " if word.apart else "__") + "_".join(SYMBOLS[letter] for letter in word.letters)
    return heard_as(f"{outputs}  ")


def alnum(text: str) -> str:
    return "".join(c for c in text if c.isalnum())
