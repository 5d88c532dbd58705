"""Words in time: the likeliest path, on scores whose answer is known, and what no clip and no text may break."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortoise_rt import open_engine
from tortoise_rt.alignment import (
    SYMBOLS,
    Heard,
    align,
    aligner_of,
    best_path,
    hear,
    spell,
    trace,
    typical_confidence,
)
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.engine import Engine
from tortoise_rt.errors import EngineError
from tortoise_rt.text import clean_english

STEP = 0.02


def heard_as(outputs: str, sure: float = 0.9) -> Heard:
    """One character for each output, "_" for blank, heard with probability ``sure``."""
    places = [0 if c == "_" else SYMBOLS.index(c) for c in outputs]
    rest = (1 - sure) / (len(SYMBOLS) - 1)
    scores = np.log(np.eye(len(SYMBOLS))[places].reshape(-1, len(SYMBOLS)) * (sure - rest) + rest)
    return Heard(scores.astype(np.float32), STEP, 0.0, len(outputs) * STEP)


def spans(heard: Heard, text: str) -> list[tuple[str, float, float]]:
    return [(w.text, w.start / STEP, w.end / STEP) for w in align(heard, spell(text))]


def test_words_are_where_their_letters_are_heard() -> None:
    heard = heard_as("  hhe__ll_lo   yoou_  ")
    found = spans(heard, "hello you")
    assert [(word, round(a, 6), round(b, 6)) for word, a, b in found] == [
        ("hello", 1.5, 11.5),
        ("you", 14.5, 19.5),
    ]
    assert all(word.confidence == pytest.approx(0.9) for word in align(heard, spell("hello you")))
    assert heard.reading() == "hello you"


def test_without_space_between_them_words_part_in_the_middle() -> None:
    heard = heard_as("a_____b_")
    assert spans(heard, "a b") == [
        ("a", pytest.approx(0), pytest.approx(3)),
        ("b", pytest.approx(3), pytest.approx(6.5)),
    ]


def test_repeated_words_are_told_apart() -> None:
    found = spans(heard_as("no  no  no "), "no no no")
    assert [round(start) for _, start, _ in found] == [0, 4, 8]


def test_the_same_letter_twice_needs_a_gap() -> None:
    path = trace(heard_as("ll"), spell("ll"))
    assert path is None
    path = trace(heard_as("l_l"), spell("ll"))
    assert path is not None and path.states.tolist() == [1, 2, 3]


def test_a_part_of_a_word_may_follow_at_once() -> None:
    one, other = spell("un")[0], spell(" done")[0]
    words = align(heard_as("undone"), [one, replace(other, apart=False)])
    assert [round(w.letters[0] / STEP) for w in words] == [0, 2]


@pytest.mark.parametrize("text", ["", "!?", "12 34", "   ", "'"])
def test_text_without_letters_has_no_words(text: str) -> None:
    assert (
        spell(text) == [] and trace(heard_as("abc"), spell(text)) is None and align(heard_as("abc"), []) == []
    )


def test_a_clip_that_is_too_short_is_not_sure() -> None:
    words = align(heard_as("ab"), spell("abc def"))
    assert [w.confidence for w in words] == [0, 0] and typical_confidence(words) < 1e-9
    assert [w.start for w in words] == pytest.approx([0, STEP]) and words[1].end == pytest.approx(2 * STEP)
    assert align(heard_as(""), spell("abc"))[0].end == 0


def test_another_text_is_heard_to_be_another() -> None:
    heard = heard_as("  the birch canoe  ")
    assert typical_confidence(align(heard, spell("the birch canoe"))) > 0.8
    assert typical_confidence(align(heard, spell("who ran away"))) < 0.05


def test_a_text_too_long_to_be_traced_is_spread() -> None:
    heard = heard_as("ab " * 2000)
    words = align(heard, spell("word " * 3000))
    assert len(words) == 3000 and typical_confidence(words) < 1e-9


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**31), st.integers(0, 7))
def test_the_path_is_the_best_of_all(outputs: int, letters: int, seed: int, bits: int) -> None:
    """Against trying every path."""
    states = 2 * letters + 1
    scores = np.random.default_rng(seed).normal(size=(outputs, states))
    may_skip = np.array(
        [state >= 3 and state % 2 == 1 and bool(bits >> state // 2 & 1) for state in range(states)]
    )

    def allowed(path: tuple[int, ...]) -> bool:
        steps = zip(path[:-1], path[1:], strict=True)
        return (
            path[0] < 2
            and path[-1] >= states - 2
            and all(b - a in (0, 1) or (b - a == 2 and may_skip[b]) for a, b in steps)
        )

    every = [p for p in itertools.product(range(states), repeat=outputs) if allowed(p)]
    found = best_path(scores, may_skip)
    if not every:
        assert found is None
        return
    best = max(sum(scores[i, s] for i, s in enumerate(p)) for p in every)
    assert found is not None and allowed(tuple(found.tolist()))
    assert scores[np.arange(outputs), found].sum() == pytest.approx(best)


TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from("ab '[]0123456789$£.,\n"), max_size=300)


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.text(st.sampled_from("_ab 'z"), max_size=60))
def test_no_text_and_no_clip_break_it(text: str, outputs: str) -> None:
    heard = heard_as(outputs)
    words = align(heard, spell(clean_english(text)))
    assert len(words) == len(spell(clean_english(text)))
    times = [time for word in words for time in (word.start, word.end)]
    assert all(0 <= time <= heard.seconds + 1e-6 for time in times)
    assert all(
        a.start <= a.end + 1e-6 and a.start <= b.start + 1e-6
        for a, b in zip(words, [*words[1:], *words[-1:]], strict=True)
    )
    assert all(0 <= word.confidence <= 1 for word in words)


@pytest.fixture(scope="module")
def demo() -> Engine:
    pytest.importorskip("onnxruntime")
    return open_engine(None)


def test_long_clips_are_heard_in_parts_as_whole(demo: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small aligner sees 0.9 s to either side, so parts of any length are exact."""
    wav = np.random.default_rng(0).normal(size=24000 * 9).astype(np.float32) * 0.1
    whole = hear(demo, wav)
    monkeypatch.setattr("tortoise_rt.alignment.PART", 2.5)
    parts = hear(demo, wav)
    assert parts.scores.shape == whole.scores.shape and parts.seconds == 9
    np.testing.assert_allclose(parts.scores, whole.scores, atol=1e-3)


@pytest.mark.parametrize("samples", [0, 1, 100, 24000])
@pytest.mark.parametrize("graph", ["aligner", "wav2vec2"])
def test_clips_of_any_length_are_heard(graph: str, samples: int, random_bundle: Path) -> None:
    for engine in (FakeEngine(frozenset([graph])), open_engine(random_bundle)):
        heard = hear(engine, np.zeros(samples, np.float32))
        assert np.isfinite(heard.scores).all() and heard.scores.shape[1] == len(SYMBOLS)
        np.testing.assert_allclose(np.exp(heard.scores).sum(1), 1, atol=1e-5)
        assert len(heard.scores) <= samples // 300 + 2


def test_the_better_aligner_is_taken_and_none_is_said() -> None:
    assert aligner_of(FakeEngine()) == "wav2vec2"
    with pytest.raises(EngineError, match="tortoise-rt fetch --aligner"):
        hear(FakeEngine(frozenset(["ar_step"])), np.zeros(100, np.float32))
