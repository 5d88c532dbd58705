"""One loop owns the engine and runs what all requests in flight need of it, together where that is possible.

A request runs ``Pipeline.synthesize`` as it is, in a thread of its own, on a stand-in for the engine (``turns.py``)
that queues what it is asked and waits. Once all requests wait, the loop decides (``policy.py``): it decodes one step
of all rows (``rows.py``), and runs calls of one graph and equal shapes as one. So what runs together depends on what
was submitted, not on how fast threads are.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..autoregressive import ROWS, read_prompt
from ..config import Settings, check_number
from ..engine import Engine, Memo
from ..errors import Cancelled, DeadlineExceeded, EngineError, RequestError, SettingsError, TortoiseError
from ..pipeline import Pipeline, Result
from ..rng import Randomness
from ..streaming import Chunks, Pace
from ..text import Tokenizer
from ..voice import Voice, VoiceLatents
from .policy import Policy, Priority
from .request import Handle, StreamHandle
from .rows import Rows, Sample
from .stage import Draw, SharedStage
from .turns import MOST_ROWS, Turn, TurnEngine, run_together

PATIENCE = 0.02  #: seconds from when a thread goes on that the loop waits for what it asks next
PROMPTS_KEPT = 4  #: of requests whose samples are all begun, for the latents of the best
LONGEST = 10**6  #: seconds of a timeout
KV_BUDGET = 4 << 30  #: bytes of keys and values

T = TypeVar("T")
H = TypeVar("H", bound=Handle[Any])
log = logging.getLogger("tortoise_rt")


@dataclass(eq=False)
class _Job:
    """A request in flight."""

    number: int
    handle: Handle[Any]
    error: BaseException | None = None  #: why it is given up
    computes_since: float | None = None  #: when its thread last went on, unless it waits
    waits_for: Turn | Draw | None = None
    draw: Draw | None = None  #: its samples


class Scheduler:
    """Synthesis of many requests at once on one engine. Thread-safe.

    ``rows``: samples that decode side by side; fewer where the keys and values of so many would not fit into
    ``kv_budget`` bytes (beside it are prompts, of few requests at a time, and a row whose latents are computed). They are kept for the next request. ``queue``: requests in flight at a time. ``strict``: nothing is joined and every step has
    the same shapes, for audio that is the same to the bit whatever else runs; it costs speed.
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
        self._capacity = 1 + dims["ar.text_positions"] + dims["ar.mel_positions"]
        each = self._capacity * engine.position_bytes()
        count = min(rows, kv_budget // each - strict)  # strict holds one row more: see Rows
        if count < 1:
            raise SettingsError(
                f"kv_budget is {kv_budget} bytes; {each * (1 + strict)} are needed for one sample"
            )
        self.policy = Policy(count, queue=queue)
        self.rows: Rows | None = None  #: made when first needed
        self._lock = threading.Condition()
        self._jobs: dict[int, _Job] = {}
        self._turns: list[Turn] = []
        self._numbers = itertools.count()
        self._closed = False
        self._thread: threading.Thread | None = None  #: runs the loop while anything is in flight

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
    ) -> Handle[Result]:
        """Have ``text`` said, as ``Pipeline.synthesize`` does. After ``timeout`` seconds the request is given up.

        Raises QueueFull where too much is in flight; what is wrong with the request, the handle's ``result`` raises.
        """

        def synthesize(job: _Job, engine: Engine) -> Result:
            pipeline = self._pipeline(job, engine, settings)
            return pipeline.synthesize(text, voice, settings, seed, job.handle.tell)

        return self._start(synthesize, priority, timeout, Handle)

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
    ) -> StreamHandle[Pace]:
        """Have ``text`` said in pieces, as ``Pipeline.stream`` does: iterate over the handle. Its result is the pace."""

        def speak(job: _Job, engine: Engine) -> Pace:
            pieces = self._pipeline(job, engine, settings).stream(
                text, voice, settings, seed, chunks, job.handle.tell
            )
            while True:
                try:
                    piece = next(pieces)
                except StopIteration as end:
                    return end.value
                self._give(job, piece)

        return self._start(speak, priority, timeout, functools.partial(StreamHandle, taken=self._notify))

    def _pipeline(self, job: _Job, engine: Engine, settings: Settings) -> Pipeline:
        take, take_more = (functools.partial(wait, job) for wait in (self._take_samples, self._take_more))
        return Pipeline(engine, self.tokenizer, SharedStage(take, take_more, settings))

    def call(self, work: Callable[[Engine], T], priority: Priority = Priority.NORMAL) -> Handle[T]:
        """Have ``work`` done with the engine, whose calls take their turns among all others."""
        return self._start(lambda job, engine: work(engine), priority, None, Handle)

    def _start(
        self,
        work: Callable[[_Job, Engine], Any],
        priority: Priority,
        timeout: float | None,
        make_handle: Callable[..., H],
    ) -> H:
        if timeout is not None:
            check_number("timeout", timeout, 0, LONGEST)
        with self._lock:
            if self._closed:
                raise RequestError("the scheduler is closed")
            number = next(self._numbers)
            deadline = None if timeout is None else time.monotonic() + timeout
            self.policy.submit(number, Priority(priority), deadline)
            handle = make_handle(number, lambda: self._give_up(number))
            job = _Job(number, handle, computes_since=time.monotonic())
            self._jobs[number] = job
            try:
                if self._thread is None:
                    thread = threading.Thread(target=self._loop, name="tortoise-rt loop", daemon=True)
                    thread.start()
                    self._thread = thread
                threading.Thread(
                    target=self._work, args=(job, work), name=f"request {number}", daemon=True
                ).start()
            except BaseException:  # no more threads, or an interrupt
                self._forget(job)
                raise
        return handle

    def close(self) -> None:
        """Give up what is in flight, and stop the loop. Then every handle has its result or its error."""
        with self._lock:
            self._closed = True
            for number in self._jobs:
                self._give_up(number)
            thread, handles = self._thread, [job.handle for job in self._jobs.values()]
        if thread is not None:
            thread.join()
        for handle in handles:
            handle.wait()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _give_up(self, number: int, error: BaseException | None = None) -> None:
        """End a request: now if it waits, else when it next asks for something."""
        with self._lock:
            job = self._jobs.get(number)
            if job is not None and job.error is None:
                job.error = error or Cancelled(f"request {number} was cancelled")
                self._lock.notify_all()

    # --- in the threads of requests ---

    def _work(self, job: _Job, work: Callable[[_Job, Engine], Any]) -> None:
        result, error = None, None
        try:
            wait = functools.partial(self._take_turn, job)
            engine = TurnEngine(self.engine, job.number, wait, self._strict, self._memo)
            result = work(job, engine)
        except BaseException as raised:  # whatever it is, the caller gets it
            error = raised
        with self._lock:
            job.handle.end(result, error)  # before it is forgotten: close() waits for all that are not
            self._forget(job)

    def _forget(self, job: _Job) -> None:
        """With the lock held: the request is no longer in flight."""
        if self._jobs.pop(job.number, None) is not None:
            self.policy.drop(job.number)
            self._lock.notify_all()

    def _take_turn(self, job: _Job, turn: Turn) -> Any:
        with self._lock:
            if job.error is None:
                self._turns.append(turn)
            self._wait_for(job, turn)
        return turn.result

    def _take_samples(self, job: _Job, draw: Draw) -> None:
        """Wait until all samples of ``draw`` are there."""
        with self._lock:
            self._want(job, draw)
            self._wait_for(job, draw)

    def _take_more(self, job: _Job, draw: Draw) -> None:
        """Wait until as much as is wanted of ``draw``'s first sample is there, or all."""
        with self._lock:
            if job.draw is None:
                self._want(job, draw)
            if job.error is not None or not _has_what_it_wants(draw):
                self._wait_for(job, draw)

    def _want(self, job: _Job, draw: Draw) -> None:
        """With the lock held."""
        if job.error is None:
            job.draw = draw
            self.policy.want(job.number, len(draw.codes), draw.settings.batch_rows)

    def _wait_for(self, job: _Job, what: Turn | Draw) -> None:
        """With the lock held: wait until the loop has done ``what``; raises what the request is given up for."""
        if job.error is None:
            job.waits_for, job.computes_since = what, None
            self._lock.notify_all()
            self._lock.wait_for(lambda: job.waits_for is None)
        if job.error is not None:
            raise job.error

    def _give(self, job: _Job, piece: Any) -> None:
        """Pass a piece on once there is room for it."""
        handle = job.handle
        assert isinstance(handle, StreamHandle)
        with self._lock:
            job.computes_since = None  # it is the listener that takes time
            self._lock.wait_for(lambda: job.error is not None or handle.has_room)
            job.computes_since = time.monotonic()
            if job.error is not None:
                raise job.error
        handle.put(piece)

    def _notify(self) -> None:
        with self._lock:
            self._lock.notify_all()

    def _done(self, job: _Job) -> None:
        """With the lock held: let the thread of a request go on, to its end where it is given up."""
        if job.waits_for is not None:
            job.waits_for = None
            job.computes_since = time.monotonic()
            self._lock.notify_all()

    # --- in the loop ---

    def _loop(self) -> None:
        while True:
            try:
                if not self._wait_for_work():
                    return
                self._end_given_up()
                self._begin_samples()
                with self._lock:
                    step, chosen = self.policy.decide(self._turns, MOST_ROWS)
                    turns = [self._turns[i] for i in chosen]
                    self._turns = [turn for i, turn in enumerate(self._turns) if i not in chosen]
                if step:
                    self._decode()
                if turns:
                    self._run_turns(turns)
            except BaseException as error:  # of the loop itself: nobody may wait for ever
                log.exception("the scheduler failed; all requests in flight are given up")
                self.rows = None
                self._fail(list(self._jobs), error)

    def _wait_for_work(self) -> bool:
        """Until there is something to do; -> False once nothing is in flight, which ends the loop's thread."""
        with self._lock:
            while self._jobs:
                now = time.monotonic()
                if any(job.error is not None and job.waits_for is not None for job in self._jobs.values()):
                    return True
                deadline = self.policy.next_deadline()
                if deadline is not None and deadline <= now:
                    return True
                wake = [] if deadline is None else [deadline]
                if self._turns or self.policy.waiting or (self.rows and self.rows.samples):
                    # What a thread computes is mostly short, and what it asks for next may be joined.
                    since = [job.computes_since for job in self._jobs.values()]
                    patient = [t + PATIENCE for t in since if t is not None and t + PATIENCE > now]
                    if not patient:
                        return True
                    wake.append(max(patient))
                self._lock.wait(min(wake) - now if wake else None)
            self._thread = None
            return False

    def _end_given_up(self) -> None:
        with self._lock:
            for number in self.policy.overdue(time.monotonic()):
                self._give_up(number, DeadlineExceeded(f"request {number} was not done in its time"))
            given_up = {number: job for number, job in self._jobs.items() if job.error is not None}
            for number in given_up:
                self.policy.release(number)
            self._turns = [turn for turn in self._turns if turn.request not in given_up]
            if self.rows is not None:
                self.rows.discard([sample for sample in self.rows.samples if sample.request in given_up])
            for job in given_up.values():
                self._done(job)

    def _fail(self, requests: Iterable[int], error: BaseException) -> None:
        """Give up the requests that an error touched, and no other."""
        for number in requests:
            self._give_up(number, _of_one_request(error))
        self._end_given_up()

    def _decode(self) -> None:
        """One step of all rows. A row whose sample is done is taken by another sample before the step."""
        if self.rows is None:
            return
        while True:
            done, failed = self.rows.draw()
            for sample in done:
                self._keep(sample)
            for sample, error in failed:
                self._fail([sample.request], error)
            if not done or not self._begin_samples():
                break
        self._wake_streams()
        while failed := self.rows.close_holes():
            # A request that fails takes its other samples out, which leaves new holes.
            for sample, error in failed:
                self._fail([sample.request], error)
        if not self.rows.samples:
            return
        try:
            self.rows.step()
        except BaseException as error:
            touched, self.rows = self.rows.samples, None  # what the pool holds now is not known
            self._fail([sample.request for sample in touched], error)

    def _begin_samples(self) -> int:
        """Give free rows to samples that wait; -> how many."""
        count = 0
        with self._lock:
            admitted = [(self._jobs[number], sample) for number, sample in self.policy.admit()]
        for job, sample in admitted:
            draw = job.draw
            if draw is None or job.error is not None:
                continue  # given up; its rows are free again before the next step
            try:
                self._begin(job.number, sample, draw)
                count += 1
            except BaseException as error:
                self._fail([job.number], error)
        with self._lock:
            begun = [
                draw
                for number, job in self._jobs.items()
                if (draw := job.draw) is not None and draw.prompt and not self.policy.more_samples(number)
            ]
        for draw in begun[:-PROMPTS_KEPT]:
            draw.prompt = None
        return count

    def _begin(self, number: int, sample: int, draw: Draw) -> None:
        engine, start = self.engine, self.engine.dims["ar.start_code"]
        if self.rows is None:
            self.rows = Rows(engine, self.policy.rows, self._capacity, self._strict)
        if draw.prompt is None:
            draw.prompt = read_prompt(engine, draw.voice, draw.text)
        uniforms = draw.rand.uniforms(sample, draw.codes.shape[1])
        made = Sample.begin(number, sample, draw.settings, uniforms, draw.keeps, draw.prompt, start)
        draw.live = made if draw.streams else None
        self.rows.add(made, draw.prompt)

    def _keep(self, sample: Sample) -> None:
        """Take the codes of a sample that is done to its request, which goes on with the last one."""
        with self._lock:
            job = self._jobs.get(sample.request)
            if job is None or job.draw is None or job.error is not None:
                return
            draw = job.draw
            draw.codes[sample.number, : len(sample.codes)] = sample.codes
            if sample.keeps:
                draw.latents[np.array(sample.codes, np.int64).tobytes()] = np.stack(sample.latents)[None]
            draw.finished += 1
            draw.progress(draw.finished, len(draw.codes))
            if self.policy.finish(sample.request, sample.number) and job.waits_for is draw:
                self._done(job)

    def _wake_streams(self) -> None:
        """Let requests go on that have as many codes as they wait for."""
        with self._lock:
            for job in self._jobs.values():
                draw = job.draw
                if draw is not None and job.waits_for is draw and draw.streams and _has_what_it_wants(draw):
                    self._done(job)

    def _run_turns(self, turns: Sequence[Turn]) -> None:
        """The calls whose turn it is, as one, without those of requests that were given up meanwhile."""
        with self._lock:
            turns = [turn for turn in turns if self._waits(turn)]
        if not turns:
            return
        try:
            results = run_together(self.engine, turns)
        except BaseException as error:
            self._fail([turn.request for turn in turns], error)
            return
        with self._lock:
            for turn, result in zip(turns, results, strict=True):
                if self._waits(turn):
                    turn.result = result
                    self._done(self._jobs[turn.request])

    def _waits(self, turn: Turn) -> bool:
        """With the lock held."""
        job = self._jobs.get(turn.request)
        return job is not None and job.waits_for is turn


def _has_what_it_wants(draw: Draw) -> bool:
    return draw.finished > 0 or draw.ready >= draw.wanted


def _of_one_request(error: BaseException) -> BaseException:
    """The error as an exception of its own, so that several threads can raise it; the original is its cause."""
    made: BaseException | None = None
    if isinstance(error, TortoiseError):
        with contextlib.suppress(Exception):  # one that is not made from its arguments alone
            made = type(error)(*error.args)
    made = made or EngineError(f"the engine failed: {type(error).__name__}: {error}")
    made.__cause__ = error
    return made
