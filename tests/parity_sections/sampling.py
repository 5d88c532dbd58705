"""Processed distributions, and codes drawn with recorded random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from tortoise_rt.autoregressive import sample_codes, stopped_length
from tortoise_rt.config import ARSettings
from tortoise_rt.engine import Array
from tortoise_rt.sampling import distribution, draw, penalize

from .autoregressive import TRAINED, UPSTREAM, forced_logits, padded_text_row
from .randomness import Recorded
from .recording import Check, Recording, Subject, count_unequal, largest_difference

ANY_CODE = -1  #: no code is forbidden: the reference may draw the start code too

#: what the reference passes, for every name a recording has
FILTERS: dict[str, dict[str, Any]] = {
    "topk": {"top_p": 1.0},
    "topk_topp": {},
    "topp": {"top_k": 0},
    "typical_raw": {"repetition_penalty": 1.0, "typical": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
    "typical_chain": {"typical": True},
}
SAMPLES: dict[str, dict[str, Any]] = {"default": {}, "topk0": {"top_k": 0}, "typical": {"typical": True}}


def penalized(recording: Recording, penalty: float) -> Array:
    """The recorded logits with the penalty on the recorded history: (rows, vocabulary)."""
    logits, history = recording["logits"], recording["history"]
    rows = [
        penalize(row, seen_codes(past, len(row)), penalty) for row, past in zip(logits, history, strict=True)
    ]
    return np.stack(rows)


def check_repetition(recording: Recording, subject: Subject) -> None:
    recording.compare("after_repetition", penalized(recording, 2.0))


def check_filters(recording: Recording, subject: Subject) -> None:
    logits, history = recording["logits"], recording["history"]
    for name, changes in FILTERS.items():
        settings = ARSettings(**changes)
        probabilities = np.zeros(logits.shape)
        for row, scores, past in zip(probabilities, logits, history, strict=True):
            ids, kept = distribution(scores, seen_codes(past, len(scores)), settings)
            row[ids] = kept
        ranked = penalized(recording, settings.repetition_penalty)

        def unlike(own: Array, recorded: Array, ranked: Array = ranked) -> float:
            """Survivors that differ in score. Which of several equal ones survive, the reference's sort leaves open."""
            survivors = [np.unpackbits(packed, axis=1)[:, : ranked.shape[1]] for packed in (own, recorded)]
            return count_unequal(*(np.sort(np.where(mask, ranked, -np.inf), axis=1) for mask in survivors))

        recording.compare(f"{name}_keep", np.packbits(probabilities > 0, axis=1), 0.0, measure=unlike)
        recording.compare(f"{name}_count", (probabilities > 0).sum(axis=1))
        recording.compare(f"{name}_top_prob", -np.sort(-probabilities)[:, :8])


def seen_codes(history: Array, vocabulary: int) -> Array:
    """Mask of the codes in ``history``."""
    seen = np.zeros(vocabulary, bool)
    seen[history] = True
    return seen


def replay_draws(
    subject: Subject, voice: Array, text: Array, ids: Array, u: Array, settings: ARSettings
) -> Array:
    """The codes (rows, steps) that u (steps, rows) draws where the reference drew ``ids``.

    Ours never draws the start code. Where the reference did, each draw is made from the recorded codes before it.
    """
    engine = subject.engine
    if engine.dims["ar.start_code"] not in ids:
        return sample_codes(engine, voice, text, settings, Recorded(list(u.T)))
    logits, _ = forced_logits(engine, voice, text, ids[:, :-1], first_position(settings))
    own = np.full(ids.shape, engine.dims["ar.stop_code"])
    for row, drawn in enumerate(ids):
        seen = seen_so_far(drawn, engine.dims)
        for step in range(stopped_length(drawn, engine.dims["ar.stop_code"])):
            if settings.greedy:
                own[row, step] = penalize(logits[step, row], seen[step], settings.repetition_penalty).argmax()
            else:
                own[row, step] = draw(logits[step, row], seen[step], u[step, row], ANY_CODE, settings)
    return own


def first_position(settings: ARSettings) -> int:
    """The position of a sample's first code."""
    return UPSTREAM if settings.kv_positions == "upstream" else TRAINED


def check_greedy(recording: Recording, subject: Subject) -> None:
    engine = subject.engine
    voice, text = recording["cond_latent"], padded_text_row(recording["text"], engine)
    for match in recording.matches(r"greedy_(cached|nocache)_pen(\d+)"):
        ids = recording[match[0]]
        settings = ARSettings(
            samples=1,
            greedy=True,
            repetition_penalty=float(match[2]),
            max_mel_tokens=ids.shape[1],
            kv_positions="upstream" if match[1] == "cached" else "trained",
        )
        own = replay_draws(subject, voice, text, ids, np.zeros(ids.T.shape), settings)
        recording.compare(match[0], own)
        if f"{match[0]}_margin" in recording:
            logits, _ = forced_logits(engine, voice, text, ids[:, :-1], first_position(settings))
            steps = zip(logits[:, 0], seen_so_far(ids[0], engine.dims), strict=True)
            margins = [second_best_margin(scores, seen, settings) for scores, seen in steps]
            recording.compare(f"{match[0]}_margin", np.array(margins))


def seen_so_far(ids: Array, dims: Any) -> Array:
    """(codes, vocabulary) bool: what the penalty falls on at each draw of ``ids`` (codes,)."""
    drawn = np.zeros((len(ids), dims["ar.mel_codes"]), bool)
    drawn[0, [1, dims["ar.start_code"]]] = True
    drawn[np.arange(1, len(ids)), ids[:-1]] = True
    return np.logical_or.accumulate(drawn)


def second_best_margin(logits: Array, seen: Array, settings: ARSettings) -> float:
    """How far the best code is ahead of the second best."""
    best = np.sort(penalize(logits, seen, settings.repetition_penalty))
    return float(best[-1] - best[-2])


def interval_margin(logits: Array, seen: Array, u: float, settings: ARSettings) -> float:
    """How far ``u`` is from the nearer edge of the interval it falls into."""
    _, probabilities = distribution(logits, seen, settings)
    ends = np.cumsum(probabilities)
    choice = min(int(np.searchsorted(ends, u, side="right")), len(ends) - 1)
    return float(min(ends[choice] - u, u - (ends[choice] - probabilities[choice])))


def draw_margins(
    subject: Subject, voice: Array, text: Array, ids: Array, u: Array, settings: ARSettings
) -> Array:
    """(steps, rows): margins of every draw that led to ids (rows, steps) with u (steps, rows).

    As in the reference, rows that have stopped are fed stop codes, and their draws are made and discarded.
    """
    logits, _ = forced_logits(subject.engine, voice, text, ids[:, :-1], first_position(settings))
    margins = np.zeros(u.shape)
    for row in range(len(ids)):
        seen = seen_so_far(ids[row], subject.engine.dims)
        for step in range(len(u)):
            margins[step, row] = interval_margin(logits[step, row], seen[step], u[step, row], settings)
    return margins


def check_samples(recording: Recording, subject: Subject) -> None:
    voice, text = recording["cond_latent"], padded_text_row(recording["text"], subject.engine)
    for name, changes in SAMPLES.items():
        if f"sample_{name}_ids" not in recording:
            recording.compare(f"sample_{name}_ids", ())
            continue
        ids, u = recording[f"sample_{name}_ids"], recording[f"sample_{name}_u"]
        settings = ARSettings(
            samples=len(ids), max_mel_tokens=ids.shape[1], kv_positions="upstream", **changes
        )
        recording.compare(f"sample_{name}_ids", replay_draws(subject, voice, text, ids, u, settings))
        margins = draw_margins(subject, voice, text, ids, u, settings)
        recording.compare(f"sample_{name}_margin", margins, measure=largest_difference)


GENERATE_CHECKS: tuple[Check, ...] = (check_greedy, check_samples)
PROCESSOR_CHECKS: tuple[Check, ...] = (check_repetition, check_filters)
