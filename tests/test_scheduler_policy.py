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
    assert made.prefer([]) == (True, False)
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
    assert waited == 2 * 10  # two priorities up, then the oldest of the equals


def test_nobody_rises_while_no_row_is_free() -> None:
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
    assert made.prefer([]) == (True, False)
    for _ in range(20):
        assert made.prefer(bulk) == (True, False)
    assert made.prefer(bulk) == (True, True)  # it has risen to the priority of the stream
    made.finish(0, 0)
    assert made.prefer(bulk) == (False, True)


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
    made = policy(1, *[(1, Priority.NORMAL)] * 4)
    calls = [Call(0, "a", 2), Call(1, "b", 1), Call(2, "a", 2), Call(3, "a", 2)]
    assert made.choose(calls, 4) == [0, 2]
    assert made.choose([calls[3], calls[1]], 4) == [1]  # in order of arrival, as neither was served
    assert made.choose([Call(0, "c", 100), Call(1, "c", 1)], 4) == [
        0
    ]  # too large to be joined; served longest ago


def test_calls_take_turns() -> None:
    made = policy(1, *[(1, Priority.NORMAL)] * 3)
    served = []
    for step in range(9):
        (i,) = made.choose([Call(r, (r, step), 1) for r in range(3)], 8)
        served.append(i)
    assert served == [0, 1, 2] * 3


def test_calls_of_bulk_requests_do_not_starve() -> None:
    made = policy(1, (1, Priority.BULK), (1, Priority.STREAM), patience=5)
    waiting = Call(0, "bulk", 1)
    for step in range(11):
        if made.choose([waiting, Call(1, step, 1)], 8) == [0]:
            break
    assert step == 10


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
    rng = random.Random(7)
    made, running = Policy(8, queue=32), []
    for number in range(10_000):
        try:
            made.submit(number, rng.choice(list(Priority)), rng.choice([None, float(number + 50)]))
            made.want(number, rng.randint(1, 5))
        except QueueFull:
            pass
        running += made.admit()
        for gone in made.overdue(number):
            made.drop(gone)
            running = [held for held in running if held[0] != gone]
        for _ in range(rng.randint(0, 4)):
            if running:
                request, sample = running.pop(rng.randrange(len(running)))
                if made.finish(request, sample):
                    made.drop(request)
    for request in [request for request in range(10_000) if request in made]:
        made.drop(request)
    assert made.free == 8 and len(made) == 0 and not made.waiting and made.next_deadline() is None
