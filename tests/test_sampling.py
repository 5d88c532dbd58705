"""What must hold of every filtered distribution and every draw from it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tortoise_rt.config import ARSettings
from tortoise_rt.sampling import distribution, draw, keep_top_k, keep_top_p, keep_typical, penalize

FORBIDDEN = 2
PLAIN = ARSettings(top_k=0, top_p=1.0, temperature=1.0, repetition_penalty=1.0)

# Quarters, so that ties are common.
quarters = st.integers(-60, 60).map(lambda n: n / 4)
logits_rows = st.integers(4, 24).flatmap(lambda size: arrays(np.float32, size, elements=quarters))
seen_rows = st.integers(0, 2**24 - 1)
uniforms = st.floats(0, 1, exclude_max=True)
any_settings = st.builds(
    ARSettings,
    temperature=st.sampled_from([0.2, 0.8, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 3, 50]),
    top_p=st.sampled_from([0.1, 0.8, 1.0]),
    repetition_penalty=st.sampled_from([0.5, 1.0, 2.0]),
    typical=st.booleans(),
)


def mask(bits: int, size: int) -> np.ndarray:
    return (bits >> np.arange(size)) & 1 == 1


@given(logits_rows, seen_rows, any_settings)
def test_a_distribution_sums_to_one(logits: np.ndarray, bits: int, chosen: ARSettings) -> None:
    ids, probabilities = distribution(logits, mask(bits, len(logits)), chosen)
    assert len(ids) == len(probabilities) >= 1
    assert (np.diff(ids) > 0).all()
    assert (probabilities >= 0).all()
    assert abs(probabilities.sum() - 1) < 1e-12


@given(logits_rows, st.integers(1, 24), st.integers(1, 24))
def test_smaller_k_keeps_fewer(logits: np.ndarray, one: int, other: int) -> None:
    few, many = (keep_top_k(logits, k) for k in sorted((one, other)))
    assert not (few & ~many).any()
    assert min(one, other, len(logits)) <= few.sum()
    assert logits[few].min() > logits[~few].max(initial=-np.inf)


@given(logits_rows, st.floats(0.01, 1), st.floats(0.01, 1))
def test_smaller_mass_keeps_fewer(logits: np.ndarray, one: float, other: float) -> None:
    for keep in (keep_top_p, keep_typical):
        few, many = (keep(logits, mass) for mass in sorted((one, other)))
        assert few.any()
        assert not (few & ~many).any()


@given(logits_rows, st.floats(0.01, 0.99))
def test_the_nucleus_is_the_smallest_set_that_reaches_its_mass(logits: np.ndarray, mass: float) -> None:
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum()
    kept = probabilities[keep_top_p(logits, mass)]
    assert kept.sum() >= mass - 1e-6  # compared in float32
    assert kept.sum() - kept.min() <= mass + 1e-6


@pytest.mark.parametrize(("equal", "kept"), [(50, 40), (55, 44), (60, 49)])
def test_equal_codes_at_the_edge_of_the_nucleus_are_left_out_as_float32_sums_say(
    equal: int, kept: int
) -> None:
    assert keep_top_p(np.ones(equal, np.float32), 0.8).sum() == kept


@given(logits_rows, seen_rows, any_settings, uniforms)
def test_the_forbidden_code_is_never_drawn(
    logits: np.ndarray, bits: int, chosen: ARSettings, u: float
) -> None:
    assert draw(logits, mask(bits, len(logits)), u, FORBIDDEN, chosen) != FORBIDDEN


@pytest.mark.parametrize("chosen", [PLAIN, ARSettings()])
@pytest.mark.parametrize(
    "others", [0.0, 1.0, -2000.0]
)  # the last has no probability left beside the forbidden code
def test_a_certain_forbidden_code_gives_way_to_the_likeliest_others(
    chosen: ARSettings, others: float
) -> None:
    logits = np.full(6, others - 1000, np.float32)
    logits[[1, 4]] = others
    logits[FORBIDDEN] = 60
    drawn = {
        draw(logits, np.zeros(6, bool), u, FORBIDDEN, chosen) for u in np.linspace(0, 1, 50, endpoint=False)
    }
    assert drawn == {1, 4}


@settings(max_examples=25)
@given(
    st.integers(4, 7).flatmap(lambda size: arrays(np.float32, size, elements=st.integers(-4, 4).map(float)))
)
def test_without_the_forbidden_code_the_distribution_is_the_conditional_one(logits: np.ndarray) -> None:
    ids, probabilities = distribution(logits, np.zeros(len(logits), bool), PLAIN)
    places = 400
    drawn = [
        draw(logits, np.zeros(len(logits), bool), (i + 0.5) / places, FORBIDDEN, PLAIN) for i in range(places)
    ]
    share = np.bincount(drawn, minlength=len(logits)) / places
    wanted = np.where(ids == FORBIDDEN, 0, probabilities) / (1 - probabilities[FORBIDDEN])
    # What u = 0..1 gives each code is two intervals: its own, and its part of the forbidden one, whose places
    # stand for more than the grid's step.
    assert np.abs(share - wanted).max() <= 3 / places + 1e-9


@given(logits_rows, uniforms, uniforms)
def test_a_larger_number_never_draws_a_smaller_code(logits: np.ndarray, one: float, other: float) -> None:
    logits[FORBIDDEN] = -np.inf
    low, high = (draw(logits, np.zeros(len(logits), bool), u, FORBIDDEN, PLAIN) for u in sorted((one, other)))
    assert low <= high


@given(st.integers(1, 30), st.integers(1, 3))
def test_what_has_no_probability_is_not_drawn_when_rounding_leaves_a_gap_below_one(
    likely: int, impossible: int
) -> None:
    logits = np.array([0.0] * (likely + 3) + [-np.inf] * impossible, np.float32)
    almost_one = np.nextafter(1.0, 0.0)
    assert draw(logits, np.zeros(len(logits), bool), almost_one, FORBIDDEN, PLAIN) == likely + 2


@given(logits_rows, seen_rows, uniforms)
def test_greedy_is_the_limit_of_low_temperature(logits: np.ndarray, bits: int, u: float) -> None:
    seen = mask(bits, len(logits))
    scores = penalize(logits, seen, 2.0)
    scores[FORBIDDEN] = -np.inf
    first, second = np.sort(scores)[[-1, -2]]
    assume(first > second)
    greedy = draw(logits, seen, u, FORBIDDEN, ARSettings(greedy=True))
    assert greedy == scores.argmax()
    assert greedy == draw(logits, seen, u, FORBIDDEN, ARSettings(temperature=1e-4, top_k=0, top_p=1.0))


@given(logits_rows, seen_rows, st.floats(1, 10))
def test_the_penalty_lowers_seen_codes_only(logits: np.ndarray, bits: int, penalty: float) -> None:
    seen = mask(bits, len(logits))
    penalized = penalize(logits, seen, penalty)
    assert (penalized[~seen] == logits[~seen]).all()
    assert (penalized <= logits).all()
    wanted = np.where(logits > 0, logits / penalty, logits * penalty)[seen]
    np.testing.assert_allclose(penalized[seen], wanted, rtol=1e-6)


def test_the_temperature_flattens() -> None:
    logits = np.arange(6, dtype=np.float32)
    seen = np.zeros(6, bool)
    peaks = [
        distribution(logits, seen, ARSettings(temperature=t, top_p=1.0))[1].max() for t in (0.5, 1, 2, 8)
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > 0.8 > 0.3 > peaks[-1]
