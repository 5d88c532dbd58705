"""The requests in flight: what their threads wait for, and how they are woken or given up."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import Any

from ..errors import Cancelled
from .policy import Policy
from .request import Handle, StreamHandle
from .stage import Draw
from .turns import Turn


@dataclass(eq=False)
class Job:
    """A request in flight."""

    number: int
    handle: Handle[Any]
    news: threading.Condition  #: of the flight's lock: what its thread sleeps on
    samples: int = 1  #: how much work it is
    error: BaseException | None = None  #: why it is given up
    computes_since: float | None = None  #: when its thread last went on, unless it waits
    waits_for: Turn | Draw | None = None
    draw: Draw | None = None  #: its samples


class Flight:
    """What the loop and the threads of requests share, under one lock. Methods take it, or say that it is held.

    Each thread sleeps on a condition of its own: hundreds that woke for the news of one would hold up the loop.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._lock = threading.RLock()
        self.lock = threading.Condition(self._lock)  #: what the loop sleeps on
        self.jobs: dict[int, Job] = {}
        self.turns: list[Turn] = []  #: calls that wait
        self.closed = False  #: whether no request may join any more

    def join(self, number: int, handle: Handle[Any], samples: int) -> Job:
        """With the lock held: a new request, whose thread is about to start."""
        news = threading.Condition(self._lock)
        job = self.jobs[number] = Job(number, handle, news, samples, computes_since=time.monotonic())
        return job

    def give_up(self, number: int, error: BaseException | None = None) -> None:
        """End a request: now if it waits, else when it next asks for something."""
        with self.lock:
            job = self.jobs.get(number)
            if job is not None and job.error is None:
                job.error = error or Cancelled(f"request {number} was cancelled")
                job.news.notify_all()
                self.lock.notify_all()

    def forget(self, job: Job) -> None:
        """With the lock held: the request is no longer in flight."""
        if self.jobs.pop(job.number, None) is not None:
            self.policy.drop(job.number)
            self.lock.notify_all()

    def take_turn(self, job: Job, turn: Turn) -> Any:
        with self.lock:
            if job.error is None:
                self.turns.append(turn)
            self._wait_for(job, turn)
        return turn.result

    def take_samples(self, job: Job, draw: Draw) -> None:
        """Wait until all samples of ``draw`` are there."""
        with self.lock:
            self._want(job, draw)
            self._wait_for(job, draw)

    def take_more(self, job: Job, draw: Draw) -> None:
        """Wait until as much as is wanted of ``draw``'s first sample is there, or all."""
        with self.lock:
            if job.draw is None:
                self._want(job, draw)
            if job.error is not None or not draw.has_what_is_wanted:
                self._wait_for(job, draw)

    def _want(self, job: Job, draw: Draw) -> None:
        """With the lock held."""
        if job.error is None:
            job.draw = draw
            self.policy.want(job.number, len(draw.codes), draw.settings.batch_rows)

    def _wait_for(self, job: Job, what: Turn | Draw) -> None:
        """With the lock held: wait until the loop has done ``what``; raises what the request is given up for."""
        if job.error is None:
            job.waits_for, job.computes_since = what, None
            self.lock.notify_all()
            job.news.wait_for(lambda: job.waits_for is None)
        if job.error is not None:
            raise job.error

    def give(self, job: Job, piece: Any) -> None:
        """Pass a piece on once there is room for it."""
        handle = job.handle
        assert isinstance(handle, StreamHandle)
        with self.lock:
            if not handle.has_room:  # it is the listener that takes time
                job.computes_since, full = None, time.monotonic()
                handle.rests.append((full, math.inf))
                job.news.wait_for(lambda: job.error is not None or handle.has_room)
                job.computes_since = time.monotonic()
                handle.rests[-1] = full, job.computes_since
            if job.error is not None:
                raise job.error
        handle.put(piece)

    def taken(self, number: int) -> None:
        """A piece of a stream was taken: there may be room for another."""
        with self.lock:
            if number in self.jobs:
                self.jobs[number].news.notify_all()

    def done(self, job: Job) -> None:
        """With the lock held: let the thread of a request go on, to its end where it is given up."""
        if job.waits_for is not None:
            job.waits_for = None
            job.computes_since = time.monotonic()
            job.news.notify_all()

    def waits(self, turn: Turn) -> bool:
        """With the lock held: whether the turn's request still waits for it."""
        job = self.jobs.get(turn.request)
        return job is not None and job.waits_for is turn
