"""One engine with its loop, and the requests that are in flight on it."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..engine import Engine, Memo
from ..errors import RequestError, SettingsError
from .flight import Flight, Job
from .loop import Loop
from .policy import Policy, Priority
from .request import Handle
from .rows import Rows
from .turns import TurnEngine

H = TypeVar("H", bound=Handle[Any])
#: what the thread of a request does, with what stands for the engine
Work = Callable[["Lane", Job, Engine], Any]
SHUNNED = 30.0  #: seconds in which an engine that failed comes behind others


class Lane:
    """See ``Scheduler`` for the arguments."""

    def __init__(self, engine: Engine, rows: int, kv_budget: int, queue: int, strict: bool) -> None:
        self.engine, self._strict = engine, strict
        # What calls that were joined gave may differ in the last bit.
        self._memo = Memo() if strict else engine.memo
        dims = engine.dims
        capacity = 1 + dims["ar.text_positions"] + dims["ar.mel_positions"]
        each = capacity * engine.position_bytes()
        count = min(rows, kv_budget // each - strict)  # strict holds one row more: see Rows
        if count < 1:
            raise SettingsError(
                f"kv_budget is {kv_budget} bytes; {each * (1 + strict)} are needed for one sample"
            )
        self.flight = Flight(Policy(count, queue=queue))
        self.loop = Loop(engine, self.flight, capacity, strict)

    @property
    def policy(self) -> Policy:
        """Who holds what."""
        return self.flight.policy

    @property
    def rows(self) -> Rows | None:
        """The pool; made when first needed."""
        return self.loop.rows

    @property
    def work(self) -> int:
        """Samples of the requests in flight."""
        with self.flight.lock:
            return sum(job.samples for job in self.flight.jobs.values())

    @property
    def shunned(self) -> bool:
        """Whether the engine has just failed: it is idle then, and would draw all requests."""
        return time.monotonic() - self.loop.failed < SHUNNED

    def start(
        self, number: int, samples: int, work: Work, priority: Priority, timeout: float | None,
        make_handle: Callable[[int, Flight], H], continues: bool,
    ) -> H:  # fmt: skip
        """Begin a request in a thread of its own; raises QueueFull, and RequestError once closed."""
        with self.flight.lock:
            if self.flight.closed:
                raise RequestError("the scheduler is closed")
            deadline = None if timeout is None else time.monotonic() + timeout
            self.policy.submit(number, Priority(priority), deadline, continues)
            handle = make_handle(number, self.flight)
            job = self.flight.join(number, handle, samples)
            try:
                self.loop.start()
                threading.Thread(
                    target=self._do, args=(job, work), name=f"request {number}", daemon=True
                ).start()
            except BaseException:  # no more threads, or an interrupt
                self.flight.forget(job)
                raise
        return handle

    def _do(self, job: Job, work: Work) -> None:
        result, error = None, None
        try:
            wait = functools.partial(self.flight.take_turn, job)
            result = work(self, job, TurnEngine(self.engine, job.number, wait, self._strict, self._memo))
        except BaseException as raised:  # whatever it is, the caller gets it
            error = raised
        with self.flight.lock:
            job.handle.end(result, error)  # before it is forgotten: close() waits for all that are not
            self.flight.forget(job)

    def prioritize(self, number: int, priority: Priority) -> None:
        """Nothing happens where such a request is not in flight."""
        with self.flight.lock:
            if number in self.policy:
                self.policy.prioritize(number, Priority(priority))
