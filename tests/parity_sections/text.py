"""Cleaning, tokenising and splitting of text."""

from __future__ import annotations

import numpy as np

from tortoise_rt.engine import Array
from tortoise_rt.errors import TextError
from tortoise_rt.text import clean_english, split_and_recombine_text

from .recording import NO_TOKENIZER, Check, Recording, Subject

#: what the reference says wrongly and ours does not: it transliterates "£" before it looks for amounts
OURS = "£"


def objects(values: list[object]) -> Array:
    return np.fromiter(values, object, len(values))


def check_cleaning(recording: Recording, subject: Subject) -> None:
    rows = zip(recording["tokenizer.text"], recording["tokenizer.cleaned"], strict=True)
    own = [said if said is None or OURS in text else clean_english(text) for text, said in rows]
    recording.compare("tokenizer.cleaned", objects(own))


def check_ids(recording: Recording, subject: Subject) -> None:
    english, basic = subject.load_tokenizer(), subject.load_tokenizer(basic=True)
    if english is None or basic is None:
        for field in ("ids", "decoded", "basic_ids"):
            recording.report(f"tokenizer.{field}", "uncovered", NO_TOKENIZER)
        return
    texts, ids = recording["tokenizer.text"], recording["tokenizer.ids"]
    rows = list(zip(texts, ids, strict=True))
    recording.compare(
        "tokenizer.ids", objects([i if i is None or OURS in t else english.encode(t) for t, i in rows])
    )
    recording.compare("tokenizer.decoded", objects([i if i is None else english.decode(i) for i in ids]))
    known = recording["tokenizer.basic_ids"]
    recording.compare(
        "tokenizer.basic_ids",
        objects([k if k is None else basic.encode(t) for t, k in zip(texts, known, strict=True)]),
    )


def check_errors(recording: Recording, subject: Subject) -> None:
    """Where the reference raises, ours says something."""
    broken = recording["tokenizer.error"]
    texts = recording["tokenizer.text"]
    for text, error in zip(texts, broken, strict=True):
        if error is not None and not clean_english(text).strip():
            raise TextError(f"nothing is said of {text!r}")
    recording.compare("tokenizer.error", broken)


def check_split(recording: Recording, subject: Subject) -> None:
    texts = recording["split_and_recombine.text"]
    desired, longest = (
        recording["split_and_recombine.desired_length"],
        recording["split_and_recombine.max_length"],
    )
    own = [split_and_recombine_text(*arguments) for arguments in zip(texts, desired, longest, strict=True)]
    recording.compare("split_and_recombine.out", objects(list(own)))


CHECKS: tuple[Check, ...] = (check_cleaning, check_ids, check_errors, check_split)
