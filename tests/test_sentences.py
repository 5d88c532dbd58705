"""Where sentences end, whatever the pieces in which a text comes."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortoise_rt.sentences import LONGEST, SentenceCutter, cut

PROSE = (
    """Hello there. This is Dr. Smith, who paid $3.50 for it! "Stop!" he said. "Why?" She left... and came back.
A wrapped line goes on
here. J. R. Smith knows. I did it, as did I. You did too?

A new paragraph without an end

Then """
    + "word " * 80
    + "and so on; "
    + "a" * 450
    + ". End"
)


def texts_of(text: str) -> list[str]:
    return [sentence.text for sentence in cut(text)]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Hi.", ["Hi."]),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Mr. and Mrs. Dursley, of No. 4.", ["Mr. and Mrs. Dursley, of No. 4."]),
        ("J. R. Smith. He wrote.", ["J. R. Smith.", "He wrote."]),
        ("So do I. Good.", ["So do I.", "Good."]),
        ("It cost $3.50, e.g. at Harrod's. Yes.", ["It cost $3.50, e.g. at Harrod's.", "Yes."]),
        ('"Stop!" he said. "No."', ['"Stop!" he said.', '"No."']),
        ("Wait... what? OK...", ["Wait... what?", "OK..."]),
        ("A line\nthat goes on.\nAnother.", ["A line that goes on.", "Another."]),
        ("No end\n\nbut a paragraph", ["No end", "but a paragraph"]),
        ("Spaces   \t and\r\nall.", ["Spaces and all."]),
        ("", []),
        (" \n\t\n ", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert texts_of(text) == sentences


def test_paragraphs_are_known() -> None:
    assert [s.new_paragraph for s in cut("One. Two.\n\nThree. Four.\n \nFive")] == [
        False,
        False,
        True,
        False,
        True,
    ]


def test_long_sentences_are_cut_where_they_breathe() -> None:
    found = texts_of("word " * 30 + "so, " + "word " * 100)
    assert found[0].endswith("so,") and all(0 < len(text) <= LONGEST for text in found)
    assert texts_of("a" * 450) == ["a" * LONGEST, "a" * LONGEST, "a" * 50]
    assert " ".join(found).split() == ("word " * 30 + "so, " + "word " * 100).split()


@pytest.mark.parametrize("seed", range(30))
def test_pieces_do_not_matter(seed: int) -> None:
    rng, parts, at = random.Random(seed), [], 0
    while at < len(PROSE):
        parts.append(PROSE[at : at + rng.choice([1, 1, 2, 3, 5, 9, 40, 300])])
        at += len(parts[-1])
    assert list(cut(parts)) == list(cut(PROSE))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='ab A.!?,;\n"…—)1', max_size=500), st.integers(0, 2**32))
def test_any_text_in_any_pieces(text: str, seed: int) -> None:
    rng, parts, at = random.Random(seed), [], 0
    while at < len(text):
        parts.append(text[at : at + rng.randint(1, 7)])
        at += len(parts[-1])
    found = list(cut(parts))
    assert found == list(cut(text))
    assert "".join("".join(s.text for s in found).split()) == "".join(text.split())  # nothing is lost
    assert all(0 < len(s.text) <= LONGEST for s in found)


def test_sentences_come_as_soon_as_they_are_certain() -> None:
    cutter = SentenceCutter()
    assert cutter.feed("Hello there.") == []  # it may be the middle of a number or an address
    assert cutter.feed(" ") == []  # the next word may go on
    assert [s.text for s in cutter.feed("H")] == ["Hello there."]
    assert [s.text for s in cutter.feed("ow are you?\n")] == ["How are you?"]  # a line that ends is said
    assert cutter.finish() == []


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("I said no. Then he left.", ["I said no.", "Then he left."]),
        ("See no. 5 of it. Then go.", ["See no. 5 of it.", "Then go."]),
        ("It lay in the sun. The sea shone.", ["It lay in the sun.", "The sea shone."]),
        ("On Sun. The fifth we met.", ["On Sun. The fifth we met."]),
    ],
)
def test_words_that_may_be_abbreviations(text: str, sentences: list[str]) -> None:
    assert [sentence.text for sentence in cut(text)] == sentences


def test_a_large_part_is_not_cut_whole_before_the_first_sentence() -> None:
    part = "The boat came in. " * 20_000
    found = cut(iter([part]))
    began = time.perf_counter()
    assert next(found).text == "The boat came in."
    first = time.perf_counter() - began
    for _ in range(2000):
        next(found)
    assert first < (time.perf_counter() - began) / 4


def test_long_texts_take_time_in_proportion() -> None:
    text = " ".join("Word." if i % 9 == 0 else "word" for i in range(20_000))
    began = time.perf_counter()
    assert len(list(cut(text))) > 500
    assert len(list(cut(text[i : i + 1] for i in range(len(text))))) > 500
    assert time.perf_counter() - began < 10
