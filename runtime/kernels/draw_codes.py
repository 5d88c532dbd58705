"""Drawing codes where the logits are: what ``sampling.draw`` does for a row, for many rows at once.

The host's rules to the bit where it matters: float32 up to the scores, float64 from there on, ties as there. Thresholds are
found by halving the range of the numbers' bits, which needs no sorting. The usual settings keep few codes: those are gathered,
with some more, and one warp draws among them; whatever else there is one kernel does over all codes, slower. Its reference is
``ahead.draw_codes_ref``.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..sampling import NOTHING
from .ahead import FEW, SETTINGS, TINY, UNIT, WARPS
from .launch import early_start, gdc_launch_dependents, gdc_wait


def draw_codes(
    logits: Any,
    seen: Any,
    numbers: Any,
    steps: Any,
    drawn: Any,
    scratch: tuple[Any, Any, Any],
    start: int,
    stop: int,
) -> None:
    """Draws a code for every row that is live, and says what the row reads next.

    logits: (rows, vocabulary) float32, whose rows may lie apart; seen: (rows, vocabulary) uint8; numbers: (rows, SETTINGS +
    most) float64, of ``ahead.settings_row`` and the uniform numbers; steps: (5, rows) int64: positions held, code and its
    position, codes drawn so far, and to be drawn in all. A row of a negative length is left alone, as one is made that has
    ended. drawn: (rows, most) int64, where codes go; scratch: (rows,) int32, (rows, FEW) float32 and int32. All but logits
    and numbers are brought up to date.
    """
    rows, vocabulary = seen.shape
    early = early_start(logits)
    sizes = dict(
        VOCABULARY=vocabulary, SETTINGS=SETTINGS, MOST=drawn.shape[1], BLOCK=triton.next_power_of_2(vocabulary), **early
    )  # fmt: skip
    codes = dict(START=start, STOP=stop, NOTHING=NOTHING, UNIT=UNIT)
    row = logits.stride(0)
    _gather[(rows,)](logits, seen, numbers, steps, *scratch, row, **sizes, FEW=FEW, num_warps=WARPS)
    _draw_among_few[(rows,)](
        seen, numbers, steps, drawn, *scratch, rows, **sizes, **codes, FEW=FEW, num_warps=1
    )  # fmt: skip
    _draw_among_all[(rows,)](
        logits, seen, numbers, steps, drawn, scratch[0], row, rows, **sizes, **codes, TINY=TINY, num_warps=WARPS
    )  # fmt: skip


@triton.jit
def _gather(
    logits, seen, numbers, steps, counts, scores, ids, stride,
    VOCABULARY: tl.constexpr, SETTINGS: tl.constexpr, MOST: tl.constexpr, BLOCK: tl.constexpr, FEW: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Gathers the likeliest codes where top-k wants few: all that it wants, but not many more. A count of 0 if not."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    mine = numbers + row * (SETTINGS + MOST)
    k = tl.load(mine + 2)
    count = tl.full((), 0, tl.int32)
    usual = (k > 0) & (k <= FEW // 2) & (tl.load(mine + 4) == 0) & (tl.load(mine + 5) == 0)
    if usual & (tl.load(steps + row) >= 0):
        code = tl.arange(0, BLOCK)
        inside = code < VOCABULARY
        score, fine = _scores(logits + row * stride, seen + row * VOCABULARY, mine, code, inside)
        if fine:
            score = tl.math.div_rn(score, tl.load(mine + 1).to(tl.float32))
            low, high = tl.min(tl.where(inside, score, float("inf"))), tl.max(score)
            count = tl.full((), VOCABULARY, tl.int32)
            left = 24
            while (count > FEW) & (left > 0):
                middle = low + (high - low) * 0.5
                found = tl.sum((score >= middle).to(tl.int32))
                enough = found >= k
                count = tl.where(enough, found, count)
                low = tl.where(enough, middle, low)
                high = tl.where(enough, high, middle)
                left -= 1
            count = tl.where(count > FEW, 0, count)
            if count > 0:
                kept = score >= low
                place = tl.cumsum(kept.to(tl.int32)) - 1
                tl.store(scores + row * FEW + place, score, mask=kept)
                tl.store(ids + row * FEW + place, code, mask=kept)
    tl.store(counts + row, count)


@triton.jit(do_not_specialize=["rows"])
def _draw_among_few(
    seen, numbers, steps, drawn, counts, scores, ids, rows,
    VOCABULARY: tl.constexpr, SETTINGS: tl.constexpr, MOST: tl.constexpr, FEW: tl.constexpr, BLOCK: tl.constexpr,
    START: tl.constexpr, STOP: tl.constexpr, NOTHING: tl.constexpr, UNIT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A draw among what was gathered. It counts as not gathered where the start code alone comes through."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    count = tl.load(counts + row)
    if count > 0:
        mine = numbers + row * (SETTINGS + MOST)
        each = tl.arange(0, FEW)
        inside = each < count
        score = tl.load(scores + row * FEW + each, mask=inside, other=float("-inf"))
        code = tl.load(ids + row * FEW + each, mask=inside, other=VOCABULARY)
        u = tl.load(mine + SETTINGS + tl.load(steps + 3 * rows + row))
        chosen = _draw(score, code, inside, u, mine, FEW, BLOCK, START, NOTHING, UNIT)
        if chosen == NOTHING:
            tl.store(counts + row, 0)
        else:
            _go_on(chosen, row, rows, seen, steps, drawn, VOCABULARY, MOST, STOP)


@triton.jit(do_not_specialize=["rows"])
def _draw_among_all(
    logits, seen, numbers, steps, drawn, counts, stride, rows,
    VOCABULARY: tl.constexpr, SETTINGS: tl.constexpr, MOST: tl.constexpr, BLOCK: tl.constexpr,
    START: tl.constexpr, STOP: tl.constexpr, NOTHING: tl.constexpr, UNIT: tl.constexpr, TINY: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """A draw for rows of which nothing was gathered."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    if (tl.load(counts + row) == 0) & (tl.load(steps + row) >= 0):
        mine = numbers + row * (SETTINGS + MOST)
        code = tl.arange(0, BLOCK)
        inside = code < VOCABULARY
        score, fine = _scores(logits + row * stride, seen + row * VOCABULARY, mine, code, inside)
        if fine:
            if tl.load(mine + 5) > 0:
                score = tl.where(code == START, float("-inf"), score)
                chosen = tl.min(tl.where(score == tl.max(score), code, BLOCK))
            else:
                u, mass = tl.load(mine + SETTINGS + tl.load(steps + 3 * rows + row)), tl.load(mine + 4)
                temperature = tl.load(mine + 1).to(tl.float32)
                chosen = tl.full((), NOTHING, tl.int32)
                while chosen == NOTHING:
                    kept = inside
                    if mass > 0:
                        kept = kept & _typical(score, inside, mass, UNIT, TINY)
                    cooled = tl.math.div_rn(score, temperature)
                    chosen = _draw(cooled, code, kept, u, mine, BLOCK, BLOCK, START, NOTHING, UNIT)
                    score = tl.where(code == START, float("-inf"), score)  # if it alone comes through
            _go_on(chosen, row, rows, seen, steps, drawn, VOCABULARY, MOST, STOP)
        else:
            tl.store(steps + row, -1)


@triton.jit
def _scores(logits, seen, mine, code, inside):
    """-> a row's logits, penalised, -inf outside; whether they are finite."""
    score = tl.load(logits + code, mask=inside, other=0.0)
    fine = tl.min(tl.where(tl.abs(score) < float("inf"), 1, 0)) == 1
    penalty = tl.load(mine).to(tl.float32)
    punished = tl.load(seen + code, mask=inside, other=0) != 0
    score = tl.where(punished, tl.where(score < 0, score * penalty, tl.math.div_rn(score, penalty)), score)
    return tl.where(inside, score, float("-inf")), fine


@triton.jit
def _go_on(
    chosen, row, rows, seen, steps, drawn, VOCABULARY: tl.constexpr, MOST: tl.constexpr, STOP: tl.constexpr
):
    """Notes what was drawn, and what the row reads next."""
    place = tl.load(steps + 3 * rows + row)
    tl.store(seen + row * VOCABULARY + chosen, 1)
    tl.store(drawn + row * MOST + place, chosen.to(tl.int64))
    goes_on = (chosen != STOP) & (place + 1 < tl.load(steps + 4 * rows + row))
    tl.store(steps + row, tl.where(goes_on, tl.load(steps + row) + 1, -1))
    if goes_on:
        tl.store(steps + rows + row, chosen.to(tl.int64))
        tl.store(steps + 2 * rows + row, tl.load(steps + 2 * rows + row) + 1)
        tl.store(steps + 3 * rows + row, place + 1)


@triton.jit
def _draw(
    score, code, kept, u, mine, WIDTH: tl.constexpr, BLOCK: tl.constexpr, START: tl.constexpr, NOTHING: tl.constexpr,
    UNIT: tl.constexpr,
):  # fmt: skip
    """The code that u selects by top-k and top-p among those kept, of ascending ids; NOTHING if only START can be."""
    k, left_out = tl.load(mine + 2), tl.load(mine + 3).to(tl.float32)
    key = _ordered(score)
    count = tl.sum(kept.to(tl.int32))
    if (k > 0) & (k < count):
        kept = kept & (key >= _kth_largest(key, kept, count - k.to(tl.int32)))
    chance = tl.exp(score.to(tl.float64) - tl.max(tl.where(kept, score, float("-inf"))).to(tl.float64))
    chance = tl.where(kept, chance, 0.0)
    if left_out >= 0:
        rounded = (chance / tl.sum(chance)).to(tl.float32)
        weight = (rounded.to(tl.float64) * UNIT).to(tl.int64)
        place = key.to(tl.int64) * BLOCK + code
        least = _reaching(place, kept, weight, left_out.to(tl.float64), UNIT, True)
        chance = tl.where(place >= least, chance, 0.0)
    chance = chance / tl.sum(chance)
    each = tl.arange(0, WIDTH)
    choice, before = _select(chance, each, u, WIDTH)
    chosen = tl.sum(tl.where(each == choice, code, 0))
    if chosen == START:
        width = tl.sum(tl.where(each == choice, chance, 0.0))
        chance = tl.where(each == choice, 0.0, chance)
        total = tl.sum(chance)
        chosen = tl.full((), NOTHING, tl.int32)
        if total > 0:
            choice, before = _select(chance / total, each, (u - before) / width, WIDTH)
            chosen = tl.sum(tl.where(each == choice, code, 0))
    return chosen


@triton.jit
def _select(chance, each, u, WIDTH: tl.constexpr):
    """-> the index that u selects, and where its interval begins."""
    ends = tl.cumsum(chance)
    choice = tl.min(tl.where((ends > u) & (chance > 0), each, WIDTH))
    choice = tl.minimum(choice, tl.max(tl.where(chance > 0, each, -1)))
    return choice, tl.sum(tl.where(each == choice, ends - chance, 0.0))


@triton.jit
def _typical(score, inside, mass, UNIT: tl.constexpr, TINY: tl.constexpr):
    """Mask of the codes nearest to the entropy that together have more than ``mass``."""
    chance = tl.exp(score.to(tl.float64) - tl.max(score).to(tl.float64))
    chance = chance / tl.sum(chance)
    information = -tl.log(tl.maximum(chance, TINY))
    distance = tl.abs(information - tl.sum(chance * information))
    key = distance.to(tl.int64, bitcast=True)
    return key <= _reaching(key, inside, (chance * UNIT).to(tl.int64), mass, UNIT, False)


@triton.jit
def _ordered(x):
    """int32 in the order of float32."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _kth_largest(key, kept, smaller):
    """The key of those ``kept`` that has ``smaller`` of them, or fewer where some are equal, below it."""
    low = tl.min(tl.where(kept, key, 0x7FFFFFFF)).to(tl.int64)
    high = tl.max(tl.where(kept, key, -0x80000000)).to(tl.int64)
    while low < high:
        middle = (low + high) >> 1
        enough = tl.sum((kept & (key <= middle.to(tl.int32))).to(tl.int32)) > smaller
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return high.to(tl.int32)


@triton.jit
def _reaching(key, inside, weight, target, UNIT: tl.constexpr, ROUNDED: tl.constexpr):
    """The smallest key up to which the weights sum to more than ``target``, the largest if they do not."""
    low = tl.min(tl.where(inside, key, 0x7FFFFFFFFFFFFFFF))
    high = tl.max(tl.where(inside, key, -0x7FFFFFFFFFFFFFFF))
    while low < high:
        middle = low + ((high - low) >> 1)
        total = tl.sum(tl.where(inside & (key <= middle), weight, 0)).to(tl.float64) / UNIT
        if ROUNDED:  # as the reference compares
            total = total.to(tl.float32).to(tl.float64)
        enough = total > target
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return high
