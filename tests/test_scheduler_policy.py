"""Who takes which row and what runs together: decisions on scripted requests, and what holds of any."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tortoise_rt.errors import QueueFull
from tortoise_rt.scheduler.policy import Call, Policy, Priority

SEEDS = st.integers(0, 2**32)


def policy(rows: int, *requests: tuple[int, Priority], **options: int) -> Policy:
    """A policy that knows requests 0, 1, ... of so many samples and such priorities."""
    made = Policy(rows, **options)
    for number, (samples, priority) in enumerate(requests):
        made.submit(number, priority)
        made.want(number, samples)
    return made


def calls_alone(*requests: tuple[int, Priority], **options: int) -> Policy:
    """A policy whose requests want no rows."""
    made = Policy(1, **options)
    for number, (_, priority) in enumerate(requests):
        made.submit(number, priority)
    return made


def test_equals_share_the_rows() -> None:
    made = policy(6, (10, Priority.NORMAL), (10, Priority.NORMAL), (10, Priority.NORMAL))
    assert list(made.admit()) == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    assert made.finish(1, 0) is False
    assert list(made.admit()) == [(1, 2)]  # it held the fewest


def test_a_request_can_hold_fewer_rows_than_there_are() -> None:
    made = Policy(rows=8)
    made.submit(0)
    made.want(0, 5, most=2)
    assert list(made.admit()) == [(0, 0), (0, 1)]
    assert made.decide([], 8) == (True, [])
    assert not made.finish(0, 1)
    assert list(made.admit()) == [(0, 2)]
    made.submit(1)
    made.want(1, 9)
    assert len(list(made.admit())) == 6  # what the first does not want


def test_a_late_request_does_not_wait_for_a_large_one_to_end() -> None:
    made = policy(4, (100, Priority.NORMAL))
    assert [sample for _, sample in made.admit()] == [0, 1, 2, 3]
    made.submit(1)
    made.want(1, 2)
    made.finish(0, 2)
    assert list(made.admit()) == [(1, 0)]


def test_streams_come_first_and_bulk_last() -> None:
    made = policy(2, (5, Priority.BULK), (1, Priority.NORMAL), (1, Priority.STREAM))
    assert list(made.admit()) == [(2, 0), (1, 0)]
    made.finish(1, 0)
    assert list(made.admit()) == [(0, 0)]


def test_nobody_starves_behind_streams() -> None:
    made = policy(1, (1, Priority.BULK), patience=10)
    waited = 0
    for number in range(1, 100):
        made.submit(number, Priority.STREAM)
        made.want(number, 1)
        ((request, sample),) = made.admit()
        made.finish(request, sample)
        if request == 0:
            break
        waited += 1
    assert waited == 10


def test_nobody_is_passed_over_while_no_row_is_free() -> None:
    made = policy(1, (1, Priority.NORMAL), (1, Priority.BULK), patience=5)
    assert list(made.admit()) == [(0, 0)]
    for _ in range(100):
        assert list(made.admit()) == []
    made.submit(2, Priority.STREAM)
    made.want(2, 1)
    made.finish(0, 0)
    assert list(made.admit()) == [(2, 0)]


def test_rows_and_calls_by_priority() -> None:
    made = policy(2, (1, Priority.STREAM), (1, Priority.BULK), patience=10)
    list(made.admit())
    made.finish(1, 0)
    bulk = [Call(1, "denoise", 1)]
    assert made.decide([], 8) == (True, [])
    for _ in range(3):
        for _ in range(10):
            assert made.decide(bulk, 8) == (True, [])
        assert made.decide(bulk, 8) == (False, [0])  # its share
    assert made.decide([Call(0, "rank", 1)], 8) == (True, [0])
    made.finish(0, 0)
    assert made.decide(bulk, 8) == (False, [0])
    made.drop(0)
    made.drop(1)
    assert made.decide([], 8) == (False, [])


@pytest.mark.parametrize("many", [1, 12])
def test_the_share_of_those_passed_over(many: int) -> None:
    """It is theirs however busy the others are, and no more however many they are."""
    made = calls_alone((1, Priority.STREAM), *[(1, Priority.BULK)] * many, patience=20)
    served = Counter[Priority]()
    waiting = [Call(1 + number, number, 1) for number in range(many)]
    for step in range(21 * 24):
        calls = [Call(0, ("stream", step), 1), *waiting]
        _, (chosen,) = made.decide(calls, 8)
        served[Priority.BULK if chosen else Priority.STREAM] += 1
        if chosen:
            number = calls[chosen].request
            assert number == 1 + (served[Priority.BULK] - 1) % many  # in turn
    assert served[Priority.BULK] == 24


def test_all_priorities_have_their_share_of_rows_and_calls() -> None:
    made = policy(2, (1, Priority.STREAM), (1, Priority.NORMAL), (1, Priority.BULK), patience=10)
    list(made.admit())
    calls = [Call(1, "normal", 1), Call(2, "bulk", 1)]
    served = Counter[object]()
    for _ in range(12 * 20):
        step, chosen = made.decide(calls, 8)
        served.update(calls[i].kind for i in chosen)
        served["rows"] += step
    assert min(served["normal"], served["bulk"]) >= 20 and served["rows"] > 180


@pytest.mark.parametrize("samples", [1, 16, 96])
@pytest.mark.parametrize("low", [Priority.NORMAL, Priority.BULK])
def test_nobody_starves_behind_open_requests(samples: int, low: Priority) -> None:
    """As many requests of a higher priority as may be open, again and again, and one of many samples below them."""
    made = policy(16, (8, low), queue=50, patience=20)
    running: list[tuple[int, int]] = []
    above, number, given = set[int](), 1, 0
    while True:
        while len(above) < 8:
            made.submit(number, Priority.STREAM)
            made.want(number, samples)
            above.add(number)
            number += 1
        for request, sample in made.admit():
            if request == 0:
                assert given <= 21
                return
            given += 1
            running.append((request, sample))
        request, sample = running.pop(0)
        if made.finish(request, sample):
            made.drop(request)
            above.discard(request)


def test_few_prompts_are_kept_at_a_time() -> None:
    made = policy(16, *[(8, Priority.NORMAL)] * 5, (1, Priority.NORMAL), open_limit=2)
    begun = {request for request, _ in made.admit()}
    assert begun == {0, 1, 5}  # the last keeps no prompt


def test_a_limit_for_those_below_does_not_hold_up_those_above() -> None:
    made = policy(4, (100, Priority.BULK), (100, Priority.BULK), open_limit=2)
    list(made.admit())
    made.submit(2, Priority.NORMAL)
    made.want(2, 3)
    made.finish(0, 0)
    assert list(made.admit()) == [(2, 0)]


def test_the_queue_is_bounded() -> None:
    made = policy(2, (1, Priority.NORMAL), (1, Priority.NORMAL), queue=2)
    with pytest.raises(QueueFull, match="2 requests are in flight"):
        made.submit(2)
    made.drop(0)
    made.submit(2)


def test_deadlines() -> None:
    made = Policy(1)
    made.submit(0, deadline=5.0)
    made.submit(1, deadline=3.0)
    made.submit(2)
    assert made.next_deadline() == 3.0 and made.overdue(2.9) == [] and made.overdue(4.0) == [1]
    made.release(1)
    assert made.overdue(4.0) == [] and made.next_deadline() == 5.0


def test_calls_of_one_kind_run_together() -> None:
    made = calls_alone(*[(1, Priority.NORMAL)] * 4)
    calls = [Call(0, "a", 2), Call(1, "b", 1), Call(2, "a", 2), Call(3, "a", 2)]
    assert made.decide(calls, 4) == (False, [0, 2])
    # in order of arrival, as neither was served
    assert made.decide([calls[3], calls[1]], 4) == (False, [1])
    # too large to be joined; served longest ago
    assert made.decide([Call(0, "c", 100), Call(1, "c", 1)], 4) == (False, [0])


def test_calls_of_all_priorities_can_be_joined() -> None:
    made = calls_alone((1, Priority.BULK), (1, Priority.NORMAL), (1, Priority.STREAM), (1, Priority.BULK))
    calls = [Call(0, "a", 1), Call(1, "b", 1), Call(2, "a", 1), Call(3, "a", 1)]
    assert made.decide(calls, 2) == (False, [2, 0])


def test_calls_take_turns() -> None:
    made = calls_alone(*[(1, Priority.NORMAL)] * 3)
    served = []
    for step in range(9):
        _, (i,) = made.decide([Call(r, (r, step), 1) for r in range(3)], 8)
        served.append(i)
    assert served == [0, 1, 2] * 3


@settings(deadline=None)
@given(SEEDS, st.integers(1, 9), st.integers(1, 4))
def test_every_sample_gets_one_row_and_no_row_is_lost(seed: int, rows: int, open_limit: int) -> None:
    """Random submissions, ends, cancellations and failures."""
    rng = random.Random(seed)
    made = Policy(rows, queue=8, open_limit=open_limit, patience=rng.choice([1, 3, 50]))
    wanted: dict[int, int] = {}
    most: dict[int, int | None] = {}
    given_rows: Counter[tuple[int, int]] = Counter()
    running: list[tuple[int, int]] = []
    finished: Counter[int] = Counter()
    number = 0
    for _ in range(300):
        action = rng.random()
        if action < 0.2 and len(made) < 8:
            made.submit(number, rng.choice(list(Priority)))
            wanted[number], most[number] = rng.randint(1, 12), rng.choice([None, None, 1, 3])
            made.want(number, wanted[number], most[number])
            number += 1
        elif action < 0.25 and wanted:
            gone = rng.choice(sorted(wanted))
            assert made.release(gone) == {sample for request, sample in running if request == gone}
            made.drop(gone)
            running = [held for held in running if held[0] != gone]
            del wanted[gone]
        elif action < 0.7 and running:
            request, sample = running.pop(rng.randrange(len(running)))
            finished[request] += 1
            last = made.finish(request, sample)
            assert last == (finished[request] == wanted[request])
            if last:
                made.drop(request)
                del wanted[request]
        else:
            for held in made.admit():
                given_rows[held] += 1
                running.append(held)
            held_by = Counter(request for request, _ in running)
            limits = {request: limit for request, limit in most.items() if limit is not None}
            assert all(held_by[request] <= limit for request, limit in limits.items())
            limited = any(held_by[request] == limits.get(request) for request in wanted)
            assert not made.free or not made.waiting or open_limit < len(wanted) or limited
        assert made.free + len(running) == rows
        assert set(wanted) == {request for request in range(number) if request in made}
    while wanted:  # all that is left comes to its end
        running += made.admit()
        request, sample = running.pop(0)
        if made.finish(request, sample):
            made.drop(request)
            del wanted[request]
    assert made.free == rows and not running and not len(made)
    assert set(given_rows.values()) <= {1}


def test_nothing_leaks_in_ten_thousand_random_steps() -> None:
    """Submissions, ends, cancellations, deadlines and failures of several requests at once."""
    rng = random.Random(7)
    made = Policy(8, queue=32)
    running: set[tuple[int, int]] = set()
    ends = Counter[str]()
    known: set[int] = set()

    def end(gone: list[int], how: str) -> None:
        nonlocal running
        ends[how] += len(gone)
        for number in gone:
            assert made.release(number) == {sample for request, sample in running if request == number}
            made.drop(number)
        running = {held for held in running if held[0] not in gone}
        known.difference_update(gone)

    for number in range(10_000):
        try:
            made.submit(number, rng.choice(list(Priority)), rng.choice([None, float(number + 50)]))
        except QueueFull:
            assert len(known) == 32
            ends["refused"] += 1
        else:
            known.add(number)
            made.want(number, rng.randint(1, 5), rng.choice([None, None, 2]))
        running |= set(made.admit())
        end(made.overdue(number), "overdue")
        if known and rng.random() < 0.1:
            end([rng.choice(sorted(known))], "cancelled")
        if running and rng.random() < 0.02:  # a step fails: all that are in it
            end(sorted({request for request, _ in running}), "failed")
        for _ in range(rng.randint(0, 4)):
            if running:
                held = rng.choice(sorted(running))
                running.remove(held)
                if made.finish(*held):
                    end([held[0]], "done")
        assert made.free == 8 - len(running)
        assert len(made) == len(known) and all(request in made for request in known)
    assert min(ends[how] for how in ("refused", "overdue", "cancelled", "failed", "done")) > 100
    end(sorted(known), "left")
    assert made.free == 8 and len(made) == 0 and not made.waiting and made.next_deadline() is None
