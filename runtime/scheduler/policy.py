"""What is done next: pure decisions over plain numbers, with no arrays and no engine.

A *request* is known from ``submit`` to ``drop``. It may want *samples*, each of which needs a *row* of the pool while
it is decoded, and it may wait for *calls*, each of which runs a graph. The policy says which samples the free rows
take and which calls run together, and knows at any moment who holds what.

- Higher priorities come first, between rows and calls as well. But a priority that ``patience`` decisions have passed
  over gets the next one, so that nobody starves: a share of one in ``patience`` is its own, whatever comes before it.
- Among equals, the request that holds the fewest rows gets the next one, and the one that was served longest ago
  the next call; then in order of arrival.
- A request begins only while fewer than ``open_limit`` of its priority are open: begun, with samples still waiting.
  Each costs the memory of a prompt.
- At most ``queue`` requests are known at a time: past that, ``submit`` raises QueueFull.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from ..errors import QueueFull


class Priority(enum.IntEnum):
    """Who comes first; the lower the sooner."""

    STREAM = 0  #: somebody is listening already
    NORMAL = 1  #: somebody waits for the result
    BULK = 2  #: nobody waits


@dataclass
class Call:
    """A graph to be run for a request. Calls of one ``kind`` can run as one."""

    request: int
    kind: Hashable
    rows: int  #: how large it is


@dataclass
class _Entry:
    request: int
    priority: int
    arrival: int
    deadline: float | None
    samples: int = 0  #: wanted in all
    most: int | None = None  #: rows it may hold at a time
    next: int = 0  #: the first that has had no row yet
    held: set[int] = field(default_factory=set)  #: those that have one
    served: int = 0  #: the decision at which it last got a call

    @property
    def waiting(self) -> bool:
        return self.next < self.samples

    @property
    def may_hold_more(self) -> bool:
        return self.waiting and (self.most is None or len(self.held) < self.most)

    @property
    def open(self) -> bool:
        return 0 < self.next < self.samples


class _Shares:
    """Which of the priorities that wait comes next: the first, but for the share of the others."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._passed = Counter[int]()  #: priority -> decisions that have passed it over since its last

    def choose(self, waiting: set[int]) -> int:
        due = [priority for priority in waiting if self._passed[priority] >= self._patience]
        chosen = max(due, key=lambda priority: self._passed[priority]) if due else min(waiting)
        for priority in waiting:
            self._passed[priority] += 1
        self._passed[chosen] = 0
        return chosen


class Policy:
    """Decides for a pool of ``rows`` rows. Not thread-safe: one loop owns it."""

    def __init__(self, rows: int, *, queue: int = 64, open_limit: int = 4, patience: int = 100) -> None:
        self.rows, self.queue, self.open_limit = rows, queue, open_limit
        self.free = rows
        self._entries: dict[int, _Entry] = {}
        self._arrivals = 0
        self._decisions = 0
        self._row_shares, self._shares = _Shares(patience), _Shares(patience)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request: int) -> bool:
        return request in self._entries

    # --- requests ---

    def submit(
        self,
        request: int,
        priority: Priority = Priority.NORMAL,
        deadline: float | None = None,
        continues: bool = False,
    ) -> None:
        """Know a new request, to be done before the time ``deadline``. Raises QueueFull, unless it ``continues`` another."""
        if request in self._entries:
            raise ValueError(f"request {request} is known already")
        if len(self._entries) >= self.queue and not continues:
            raise QueueFull(f"{self.queue} requests are in flight, as many as are taken: try again later")
        self._entries[request] = _Entry(request, int(priority), self._arrivals, deadline)
        self._arrivals += 1

    def prioritize(self, request: int, priority: Priority) -> None:
        """The request comes as ``priority`` says from now on."""
        self._entries[request].priority = int(priority)

    def release(self, request: int) -> frozenset[int]:
        """The request is given up; -> its samples whose rows are free by that."""
        entry = self._entries[request]
        held, entry.held = frozenset(entry.held), set()
        entry.next, entry.deadline = entry.samples, None
        self.free += len(held)
        return held

    def drop(self, request: int) -> None:
        """Forget a request, done or not, and free its rows."""
        self.release(request)
        del self._entries[request]

    def next_deadline(self) -> float | None:
        """The earliest deadline of all."""
        return min((e.deadline for e in self._entries.values() if e.deadline is not None), default=None)

    def overdue(self, now: float) -> list[int]:
        """Requests whose deadline has passed."""
        return [e.request for e in self._entries.values() if e.deadline is not None and e.deadline <= now]

    # --- samples and rows ---

    @property
    def waiting(self) -> bool:
        """Whether any sample waits for a row."""
        return any(entry.waiting for entry in self._entries.values())

    def want(self, request: int, samples: int, most: int | None = None) -> None:
        """The request needs rows for ``samples`` samples, numbered from 0, ``most`` of them at a time."""
        entry = self._entries[request]
        if samples < 1 or entry.samples:
            raise ValueError(f"request {request} wants {samples} samples after {entry.samples}")
        entry.samples, entry.most = samples, most

    def admit(self) -> Iterator[tuple[int, int]]:
        """-> (request, sample) for each row that is free and wanted; every row is taken as it is given."""
        while self.free and (entry := self._next_for_a_row()) is not None:
            sample = entry.next
            entry.next += 1
            entry.held.add(sample)
            self.free -= 1
            yield entry.request, sample

    def finish(self, request: int, sample: int) -> bool:
        """A sample is done and its row free; -> whether it was the request's last."""
        entry = self._entries[request]
        entry.held.remove(sample)
        self.free += 1
        return not entry.held and not entry.waiting

    def more_samples(self, request: int) -> bool:
        """Whether samples of the request still wait for rows, so that its prompt is still needed."""
        return self._entries[request].waiting

    def _next_for_a_row(self) -> _Entry | None:
        opened = Counter(entry.priority for entry in self._entries.values() if entry.open)
        able = [
            entry
            for entry in self._entries.values()
            # A request of one sample needs no prompt kept for another: it may always begin.
            if entry.may_hold_more
            and (entry.open or entry.samples == 1 or opened[entry.priority] < self.open_limit)
        ]
        if not able:
            return None
        priority = self._row_shares.choose({entry.priority for entry in able})
        equals = (entry for entry in able if entry.priority == priority)
        return min(equals, key=lambda entry: (len(entry.held), entry.arrival))

    # --- rows and calls ---

    def decide(self, calls: Sequence[Call], most_rows: int) -> tuple[bool, list[int]]:
        """-> whether the rows are stepped next, and the indices of the calls that run next, as one.

        Both, where the best request of either side has the same priority. Calls: the first in line and all that can
        join it in ``most_rows`` rows; one with more rows than that runs alone.
        """
        priorities = [self._entries[call.request].priority for call in calls]
        able = [e.priority for e in self._entries.values() if e.held or (e.may_hold_more and self.free)]
        sides = {*priorities, *([min(able)] if able else [])}
        if not sides:
            return False, []
        priority = self._shares.choose(sides)
        line = [i for i in range(len(calls)) if priorities[i] == priority]
        return bool(able) and min(able) == priority, self._joined(calls, line, most_rows) if line else []

    def _joined(self, calls: Sequence[Call], line: Sequence[int], most_rows: int) -> list[int]:
        """The first of ``line``, and of all calls those that can join it, the ones in line before others."""
        self._decisions += 1

        def place(i: int) -> tuple[bool, int, int, int]:
            entry = self._entries[calls[i].request]
            return i not in line, entry.served, entry.arrival, i

        first, *others = sorted(range(len(calls)), key=place)
        chosen, rows = [first], calls[first].rows
        for i in others:
            if calls[i].kind == calls[first].kind and rows + calls[i].rows <= most_rows:
                chosen.append(i)
                rows += calls[i].rows
        for i in chosen:
            self._entries[calls[i].request].served = self._decisions
        return chosen
