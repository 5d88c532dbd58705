"""What is done next: pure decisions over plain numbers, with no arrays and no engine.

A *request* is known from ``submit`` to ``drop``. It may want *samples*, each of which needs a *row* of the pool while
it is decoded, and it may wait for *calls*, each of which runs a graph. The policy says which samples the free rows
take and which calls run together, and knows at any moment who holds what.

- Higher priorities come first, between rows and calls as well. What is passed over rises by one priority for every
  ``patience`` decisions that prefer another, so that nobody starves.
- Among equals, the request that holds the fewest rows gets the next one, and the one that was served longest ago
  the next call; then in order of arrival.
- Of each priority and above, at most ``open_limit`` requests are open: begun, with samples still waiting. Each costs
  the memory of a prompt.
- At most ``queue`` requests are known at a time: past that, ``submit`` raises QueueFull.
"""

from __future__ import annotations

import enum
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
    passed: int = 0  #: decisions that have passed it by


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
    passed: int = 0  #: decisions about rows that have passed it by since it held one
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


class Policy:
    """Decides for a pool of ``rows`` rows. Not thread-safe: one loop owns it."""

    def __init__(self, rows: int, *, queue: int = 64, open_limit: int = 4, patience: int = 200) -> None:
        self.rows, self.queue, self.open_limit, self.patience = rows, queue, open_limit, patience
        self.free = rows
        self._entries: dict[int, _Entry] = {}
        self._arrivals = 0
        self._decisions = 0
        self._rows_passed = 0  #: decisions that have preferred calls to a step of the rows

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request: int) -> bool:
        return request in self._entries

    # --- requests ---

    def submit(
        self, request: int, priority: Priority = Priority.NORMAL, deadline: float | None = None
    ) -> None:
        """Know a new request, to be done before the time ``deadline``. Raises QueueFull."""
        if request in self._entries:
            raise ValueError(f"request {request} is known already")
        if len(self._entries) >= self.queue:
            raise QueueFull(f"{self.queue} requests are in flight, as many as are taken: try again later")
        self._entries[request] = _Entry(request, int(priority), self._arrivals, deadline)
        self._arrivals += 1

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
        given = 0
        while self.free and (entry := self._next_for_a_row()) is not None:
            given += 1
            sample = entry.next
            entry.next += 1
            entry.held.add(sample)
            entry.passed = 0
            self.free -= 1
            yield entry.request, sample
        for entry in self._entries.values():
            entry.passed += given > 0 and entry.waiting and not entry.held

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
        opened = [entry.priority for entry in self._entries.values() if entry.open]
        chosen: tuple[tuple[int, int, int], _Entry] | None = None
        for entry in self._entries.values():
            priority = self._risen(entry.priority, entry.passed)
            # A request of one sample needs no prompt kept for another: it may always begin.
            may_open = entry.samples == 1 or sum(p <= priority for p in opened) < self.open_limit
            place = (priority, len(entry.held), entry.arrival)
            if entry.may_hold_more and (entry.open or may_open) and (chosen is None or place < chosen[0]):
                chosen = place, entry
        return chosen and chosen[1]

    # --- calls ---

    def choose(self, calls: Sequence[Call], most_rows: int) -> list[int]:
        """Indices of the calls that run together next: the first in line, and all that can join it in ``most_rows`` rows.

        A call with more rows than that runs alone.
        """
        self._decisions += 1

        def place(i: int) -> tuple[int, int, int, int]:
            entry = self._entries[calls[i].request]
            return self._risen(entry.priority, calls[i].passed), entry.served, entry.arrival, i

        line = sorted(range(len(calls)), key=place)
        chosen, rows = line[:1], calls[line[0]].rows
        for i in line[1:]:
            if calls[i].kind == calls[chosen[0]].kind and rows + calls[i].rows <= most_rows:
                chosen.append(i)
                rows += calls[i].rows
        for i in set(line).difference(chosen):
            calls[i].passed += 1
        for i in chosen:
            self._entries[calls[i].request].served = self._decisions
        return chosen

    def prefer(self, calls: Sequence[Call]) -> tuple[bool, bool]:
        """Whether the rows are stepped next and whether calls run: the side whose best request comes first, or both."""
        able = [e for e in self._entries.values() if e.held or (e.may_hold_more and self.free)]
        if not able or not calls:
            return bool(able), bool(calls)
        rows = self._risen(min(entry.priority for entry in able), self._rows_passed)
        best = min(self._risen(self._entries[call.request].priority, call.passed) for call in calls)
        self._rows_passed = self._rows_passed + 1 if best < rows else 0
        for call in calls:
            call.passed += rows < best
        return rows <= best, best <= rows

    def _risen(self, priority: int, passed: int) -> int:
        return max(0, priority - passed // self.patience)
