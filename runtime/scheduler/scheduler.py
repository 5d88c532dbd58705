"""One loop owns an engine and runs what all requests in flight need of it, together where that is possible.

Where the model lies on several devices, each has a loop (``lane.py``), and a request stays on the one it was given to. A
request runs ``Pipeline.synthesize`` as it is, in a thread of its own, on a stand-in for the engine (``turns.py``)
that queues what it is asked and waits (``flight.py``). The loop (``loop.py``) decodes one step of all rows
(``rows.py``), and runs calls of one graph and equal shapes as one.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..autoregressive import ROWS
from ..config import Settings, check_number
from ..engine import Engine
from ..errors import QueueFull, RequestError
from ..pipeline import Pipeline, Result
from ..rng import Randomness
from ..streaming import Chunks, Pace
from ..text import Tokenizer
from ..voice import Voice, VoiceLatents
from .flight import Flight, Job
from .lane import Lane, Work
from .policy import Policy, Priority
from .request import Handle, StreamHandle
from .rows import Rows
from .stage import SharedStage

LONGEST = 10**6  #: seconds of a timeout
KV_BUDGET = 4 << 30  #: bytes of keys and values

T = TypeVar("T")
H = TypeVar("H", bound=Handle[Any])


class Scheduler:
    """Synthesis of many requests at once on an engine. Thread-safe.

    A request goes to the engine whose requests in flight have the fewest samples, where there are several (see
    ``Engine.members``), and to one that has failed in the last half minute only if all have; what follows is of each.

    ``rows``: samples that decode side by side; fewer where the keys and values of so many would not fit into
    ``kv_budget`` bytes (beside it are prompts, of few requests at a time, and a row whose latents are computed). They
    are kept for the next request. ``queue``: requests in flight at a time. ``strict``: nothing is joined and every
    step has the same shapes, for audio that is the same to the bit whatever else runs.
    """

    hastens = True

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | None = None,
        *,
        rows: int = ROWS,
        kv_budget: int = KV_BUDGET,
        queue: int = 64,
        strict: bool = False,
    ) -> None:
        check_number("rows", rows, 1, 1024, integer=True)
        check_number("queue", queue, 1, 4096, integer=True)
        self.engine, self.tokenizer, self.kv_budget = engine, tokenizer, kv_budget
        self.lanes = tuple(Lane(member, rows, kv_budget, queue, strict) for member in engine.members)
        self._lock = threading.Lock()  # so that no two requests choose at once
        self._numbers = itertools.count()

    @property
    def policy(self) -> Policy:
        """Who holds what of the first engine."""
        return self.lanes[0].policy

    @property
    def rows(self) -> Rows | None:
        """The pool of the first engine; made when first needed."""
        return self.lanes[0].rows

    # --- for callers ---

    def submit(
        self,
        text: str | Sequence[int],
        voice: Voice | VoiceLatents | None,
        settings: Settings,
        seed: int | Randomness,
        *,
        priority: Priority = Priority.NORMAL,
        timeout: float | None = None,
        continues: bool = False,
    ) -> Handle[Result]:
        """Have ``text`` said, as ``Pipeline.synthesize`` does. After ``timeout`` seconds the request is given up.

        Raises QueueFull where too much is in flight, unless it ``continues`` what somebody listens to; what is wrong with
        the request, the handle's ``result`` raises.
        """

        def synthesize(lane: Lane, job: Job, engine: Engine) -> Result:
            pipeline = self._pipeline(lane, job, engine, settings)
            return pipeline.synthesize(text, voice, settings, seed, job.handle.tell)

        return self._start(synthesize, priority, timeout, _handle, continues, settings.ar.samples)

    def stream(
        self,
        text: str | Sequence[int],
        voice: Voice | VoiceLatents | None,
        settings: Settings,
        seed: int | Randomness,
        *,
        chunks: Chunks | None = None,
        priority: Priority = Priority.STREAM,
        timeout: float | None = None,
        continues: bool = False,
    ) -> StreamHandle[Pace]:
        """Have ``text`` said in pieces, as ``Pipeline.stream`` does: iterate over the handle. Its result is the pace."""

        def speak(lane: Lane, job: Job, engine: Engine) -> Pace:
            pieces = self._pipeline(lane, job, engine, settings).stream(
                text, voice, settings, seed, chunks, job.handle.tell
            )
            while True:
                try:
                    piece = next(pieces)
                except StopIteration as end:
                    return end.value
                lane.flight.give(job, piece)

        return self._start(speak, priority, timeout, _stream_handle, continues)

    def _pipeline(self, lane: Lane, job: Job, engine: Engine, settings: Settings) -> Pipeline:
        take, take_more = (
            functools.partial(wait, job) for wait in (lane.flight.take_samples, lane.flight.take_more)
        )
        return Pipeline(engine, self.tokenizer, SharedStage(take, take_more, settings))

    def call(self, work: Callable[[Engine], T], priority: Priority = Priority.NORMAL) -> Handle[T]:
        """Have ``work`` done with the engine, whose calls take their turns among all others."""
        return self._start(lambda lane, job, engine: work(engine), priority, None, _handle)

    def _start(
        self,
        work: Work,
        priority: Priority,
        timeout: float | None,
        make_handle: Callable[[int, Flight], H],
        continues: bool = False,
        samples: int = 1,
    ) -> H:
        if timeout is not None:
            check_number("timeout", timeout, 0, LONGEST)
        if self.lanes[0].loop.forked:
            raise RequestError(
                "this process was forked from the one that opened the engine, whose threads it lacks: open an engine "
                'here, or start processes by "spawn"'
            )
        with self._lock:
            number = next(self._numbers)
            first, *others = sorted(self.lanes, key=lambda lane: (lane.shunned, lane.work))
            for lane in others:
                with contextlib.suppress(QueueFull):
                    return first.start(number, samples, work, priority, timeout, make_handle, continues)
                first = lane
            return first.start(number, samples, work, priority, timeout, make_handle, continues)

    def prioritize(self, handle: Handle[Any], priority: Priority) -> None:
        """A request in flight comes as ``priority`` says from now on; nothing happens when it has ended."""
        for lane in self.lanes:
            lane.prioritize(handle.number, priority)

    def close(self) -> None:
        """Give up what is in flight, and stop the loops. Then every handle has its result or its error."""
        for lane in self.lanes:
            with lane.flight.lock:
                lane.flight.closed = True
        for lane in self.lanes:
            lane.loop.close()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _handle(number: int, flight: Flight) -> Handle[Any]:
    return Handle(number, lambda: flight.give_up(number))


def _stream_handle(number: int, flight: Flight) -> StreamHandle[Any]:
    return StreamHandle(number, lambda: flight.give_up(number), flight.taken)
