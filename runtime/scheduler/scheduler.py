"""One loop owns the engine and runs what all requests in flight need of it, together where that is possible.

A request runs ``Pipeline.synthesize`` as it is, in a thread of its own, on a stand-in for the engine (``turns.py``)
that queues what it is asked and waits (``flight.py``). The loop (``loop.py``) decodes one step of all rows
(``rows.py``), and runs calls of one graph and equal shapes as one.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..autoregressive import ROWS
from ..config import Settings, check_number
from ..engine import Engine, Memo
from ..errors import RequestError, SettingsError
from ..pipeline import Pipeline, Result
from ..rng import Randomness
from ..streaming import Chunks, Pace
from ..text import Tokenizer
from ..voice import Voice, VoiceLatents
from .flight import Flight, Job
from .loop import Loop
from .policy import Policy, Priority
from .request import Handle, StreamHandle
from .rows import Rows
from .stage import SharedStage
from .turns import TurnEngine

LONGEST = 10**6  #: seconds of a timeout
KV_BUDGET = 4 << 30  #: bytes of keys and values

T = TypeVar("T")
H = TypeVar("H", bound=Handle[Any])


class Scheduler:
    """Synthesis of many requests at once on one engine. Thread-safe.

    ``rows``: samples that decode side by side; fewer where the keys and values of so many would not fit into
    ``kv_budget`` bytes (beside it are prompts, of few requests at a time, and a row whose latents are computed). They
    are kept for the next request. ``queue``: requests in flight at a time. ``strict``: nothing is joined and every
    step has the same shapes, for audio that is the same to the bit whatever else runs.
    """

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
        self._strict = strict
        self._memo = (
            Memo() if strict else engine.memo
        )  # what calls that were joined gave may differ in the last bit
        dims = engine.dims
        capacity = 1 + dims["ar.text_positions"] + dims["ar.mel_positions"]
        each = capacity * engine.position_bytes()
        count = min(rows, kv_budget // each - strict)  # strict holds one row more: see Rows
        if count < 1:
            raise SettingsError(
                f"kv_budget is {kv_budget} bytes; {each * (1 + strict)} are needed for one sample"
            )
        self._flight = Flight(Policy(count, queue=queue))
        self._loop = Loop(engine, self._flight, capacity, strict)
        self._numbers = itertools.count()

    @property
    def policy(self) -> Policy:
        """Who holds what."""
        return self._flight.policy

    @property
    def rows(self) -> Rows | None:
        """The pool; made when first needed."""
        return self._loop.rows

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

        def synthesize(job: Job, engine: Engine) -> Result:
            pipeline = self._pipeline(job, engine, settings)
            return pipeline.synthesize(text, voice, settings, seed, job.handle.tell)

        return self._start(synthesize, priority, timeout, Handle, continues)

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

        def speak(job: Job, engine: Engine) -> Pace:
            pieces = self._pipeline(job, engine, settings).stream(
                text, voice, settings, seed, chunks, job.handle.tell
            )
            while True:
                try:
                    piece = next(pieces)
                except StopIteration as end:
                    return end.value
                self._flight.give(job, piece)

        handle = functools.partial(StreamHandle, taken=self._flight.taken)
        return self._start(speak, priority, timeout, handle, continues)

    def _pipeline(self, job: Job, engine: Engine, settings: Settings) -> Pipeline:
        take, take_more = (
            functools.partial(wait, job) for wait in (self._flight.take_samples, self._flight.take_more)
        )
        return Pipeline(engine, self.tokenizer, SharedStage(take, take_more, settings))

    def call(self, work: Callable[[Engine], T], priority: Priority = Priority.NORMAL) -> Handle[T]:
        """Have ``work`` done with the engine, whose calls take their turns among all others."""
        return self._start(lambda job, engine: work(engine), priority, None, Handle)

    def _start(
        self,
        work: Callable[[Job, Engine], Any],
        priority: Priority,
        timeout: float | None,
        make_handle: Callable[..., H],
        continues: bool = False,
    ) -> H:
        if timeout is not None:
            check_number("timeout", timeout, 0, LONGEST)
        if self._loop.forked:
            raise RequestError(
                "this process was forked from the one that opened the engine, whose threads it lacks: open an engine "
                'here, or start processes by "spawn"'
            )
        with self._flight.lock:
            if self._flight.closed:
                raise RequestError("the scheduler is closed")
            number = next(self._numbers)
            deadline = None if timeout is None else time.monotonic() + timeout
            self.policy.submit(number, Priority(priority), deadline, continues)
            handle = make_handle(number, lambda: self._flight.give_up(number))
            job = self._flight.join(number, handle)
            try:
                self._loop.start()
                threading.Thread(
                    target=self._work, args=(job, work), name=f"request {number}", daemon=True
                ).start()
            except BaseException:  # no more threads, or an interrupt
                self._flight.forget(job)
                raise
        return handle

    def prioritize(self, handle: Handle[Any], priority: Priority) -> None:
        """A request in flight comes as ``priority`` says from now on; nothing happens when it has ended."""
        with self._flight.lock:
            if handle.number in self.policy:
                self.policy.prioritize(handle.number, Priority(priority))

    def close(self) -> None:
        """Give up what is in flight, and stop the loop. Then every handle has its result or its error."""
        self._loop.close()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self, job: Job, work: Callable[[Job, Engine], Any]) -> None:
        result, error = None, None
        try:
            wait = functools.partial(self._flight.take_turn, job)
            engine = TurnEngine(self.engine, job.number, wait, self._strict, self._memo)
            result = work(job, engine)
        except BaseException as raised:  # whatever it is, the caller gets it
            error = raised
        with self._flight.lock:
            job.handle.end(result, error)  # before it is forgotten: close() waits for all that are not
            self._flight.forget(job)
