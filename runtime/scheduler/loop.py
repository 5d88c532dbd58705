"""The loop that owns the engine: one step of all rows, or calls of one graph as one, again and again.

Once all requests wait it decides (``policy.py``), so what runs together depends on what was submitted, not on how fast
threads are.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Iterable, Sequence

import numpy as np

from ..autoregressive import read_prompt
from ..engine import Engine
from ..errors import DeadlineExceeded, EngineError, TortoiseError
from .flight import Flight
from .rows import Rows, Sample
from .stage import Draw
from .turns import MOST_ROWS, Turn, run_together

PATIENCE = 0.02  #: seconds from when a thread goes on that the loop waits for what it asks next
PROMPTS_KEPT = 4  #: of requests whose samples are all begun, for the latents of the best

log = logging.getLogger("tortoise_rt")
#: one that runs is kept by its thread, though its scheduler is gone
_OPEN: weakref.WeakSet[Loop] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """At the program's end: a thread that is within the engine would take the process down."""
    try:
        for loop in list(_OPEN):
            loop.close()
    except KeyboardInterrupt:  # by whom the engine's step lasts too long
        os._exit(130)


class Loop:
    """Runs in a thread of its own while anything is in flight. ``capacity``: positions of a row of the pool."""

    def __init__(self, engine: Engine, flight: Flight, capacity: int, strict: bool) -> None:
        self._engine, self._flight, self._policy = engine, flight, flight.policy
        self._capacity, self._strict = capacity, strict
        self.rows: Rows | None = None  #: made when first needed
        self.thread: threading.Thread | None = None
        self.failed = -math.inf  #: when the engine last failed
        self._process = os.getpid()
        _OPEN.add(self)

    @property
    def forked(self) -> bool:
        """Whether this process was forked from the one that it runs in, and so lacks its threads."""
        return os.getpid() != self._process

    def start(self) -> None:
        """With the lock held: see to it that it runs."""
        if self.thread is None:
            thread = threading.Thread(target=self._run, name="tortoise-rt loop", daemon=True)
            thread.start()
            self.thread = thread

    def close(self) -> None:
        """Let nothing begin any more, give up what is in flight, and stop. Then every handle has its result or its error."""
        if self.forked:
            return
        with self._flight.lock:
            self._flight.closed = True
            for number in self._flight.jobs:
                self._flight.give_up(number)
            thread, handles = self.thread, [job.handle for job in self._flight.jobs.values()]
        if thread is not None:
            thread.join()
        for handle in handles:
            handle.wait()

    def _run(self) -> None:
        while True:
            try:
                if not self._wait_for_work():
                    return
                self._begin_samples()
                with self._flight.lock:
                    step, chosen = self._policy.decide(self._flight.turns, MOST_ROWS)
                    turns = [self._flight.turns[i] for i in chosen]
                    self._flight.turns = [
                        turn for i, turn in enumerate(self._flight.turns) if i not in chosen
                    ]
                if step:
                    self._decode()
                if turns:
                    self._run_turns(turns)
            except BaseException as error:  # of the loop itself: nobody may wait for ever
                log.exception("the scheduler failed; all requests in flight are given up")
                self.rows = None
                self._fail(list(self._flight.jobs), error)

    def _wait_for_work(self) -> bool:
        """Until there is something to do; -> False once nothing is in flight, which ends the loop's thread."""
        with self._flight.lock:
            while self._flight.jobs:
                now = time.monotonic()
                if any(
                    job.error is not None and job.waits_for is not None for job in self._flight.jobs.values()
                ):
                    return True
                deadline = self._policy.next_deadline()
                if deadline is not None and deadline <= now:
                    return True
                wake = [] if deadline is None else [deadline]
                if self._flight.turns or self._policy.waiting or (self.rows and self.rows.samples):
                    # What a thread computes is mostly short, and what it asks for next may be joined.
                    since = [job.computes_since for job in self._flight.jobs.values()]
                    patient = [t + PATIENCE for t in since if t is not None and t + PATIENCE > now]
                    if not patient:
                        return True
                    wake.append(max(patient))
                self._flight.lock.wait(min(wake) - now if wake else None)
            self.thread = None
            if self.rows is not None:
                self.rows.discard(self.rows.samples)  # of requests that ended by themselves
            return False

    def _end_given_up(self) -> None:
        with self._flight.lock:
            for number in self._policy.overdue(time.monotonic()):
                self._flight.give_up(number, DeadlineExceeded(f"request {number} was not done in its time"))
            given_up = {number: job for number, job in self._flight.jobs.items() if job.error is not None}
            for number in given_up:
                self._policy.release(number)
            self._flight.turns = [turn for turn in self._flight.turns if turn.request not in given_up]
            if self.rows is not None:  # those of requests, too, whose thread has ended without the loop
                live = self._flight.jobs.keys() - given_up
                self.rows.discard([sample for sample in self.rows.samples if sample.request not in live])
            for job in given_up.values():
                self._flight.done(job)

    def _fail(self, requests: Iterable[int], error: BaseException) -> None:
        """Give up the requests that an error touched, and no other."""
        for number in requests:
            self._flight.give_up(number, _of_one_request(error))
        self._end_given_up()

    def _engine_failed(self, error: BaseException) -> None:
        if isinstance(error, EngineError) or not isinstance(error, TortoiseError):
            self.failed = time.monotonic()

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
        while stuck := self.rows.close_holes():
            # A request that fails takes its other samples out, which leaves new holes.
            for sample, problem in stuck:
                self._fail([sample.request], problem)
        if not self.rows.samples:
            return
        try:
            self.rows.step(self._most_codes())
        except BaseException as error:
            self._engine_failed(error)
            touched, self.rows = self.rows.samples, None  # what the pool holds now is not known
            self._fail([sample.request for sample in touched], error)

    def _most_codes(self) -> int:
        """How many codes may be drawn before anybody is told: a stream's first sound waits for none too many."""
        with self._flight.lock:
            waiting = [job.draw for job in self._flight.jobs.values() if job.draw is job.waits_for]
        missing = [draw.wanted - draw.ready for draw in waiting if draw and draw.streams and not draw.taken]
        return max(1, min(missing, default=self._engine.draws_ahead))

    def _begin_samples(self) -> int:
        """Give free rows to samples that wait; -> how many. What the policy counts as free is free in the pool by then."""
        count = 0
        with self._flight.lock:
            self._end_given_up()
            admitted = [(self._flight.jobs[number], sample) for number, sample in self._policy.admit()]
        for job, sample in admitted:
            draw = job.draw
            if draw is None or job.error is not None:
                continue  # given up; its rows are free again before the next step
            try:
                self._begin(job.number, sample, draw)
                count += 1
            except BaseException as error:
                self._engine_failed(error)
                self._fail([job.number], error)
        with self._flight.lock:
            begun = [
                draw
                for number, job in self._flight.jobs.items()
                if (draw := job.draw) is not None and draw.prompt and not self._policy.more_samples(number)
            ]
        later = [
            draw for draw in begun if not (draw.keeps or draw.streams)
        ]  # whose latents are still to come
        for draw in begun:
            if draw not in later[-PROMPTS_KEPT:]:
                draw.prompt = None
        return count

    def _begin(self, number: int, sample: int, draw: Draw) -> None:
        engine, start = self._engine, self._engine.dims["ar.start_code"]
        if self.rows is None:
            self.rows = Rows(engine, self._policy.rows, self._capacity, self._strict)
        if draw.prompt is None:
            draw.prompt = read_prompt(engine, draw.voice, draw.text)
        uniforms = draw.rand.uniforms(sample, draw.codes.shape[1])
        keeps = draw.keeps or draw.streams
        made = Sample.begin(number, sample, draw.settings, uniforms, keeps, draw.prompt, start)
        draw.live = made if draw.streams else None
        self.rows.add(made, draw.prompt)

    def _keep(self, sample: Sample) -> None:
        """Take the codes of a sample that is done to its request, which goes on with the last one."""
        with self._flight.lock:
            job = self._flight.jobs.get(sample.request)
            if job is None or job.draw is None or job.error is not None:
                return
            draw = job.draw
            draw.codes[sample.number, : len(sample.codes)] = sample.codes
            if draw.keeps:
                draw.latents[np.array(sample.codes, np.int64).tobytes()] = np.stack(sample.latents)[None]
            draw.finished += 1
            draw.progress(draw.finished, len(draw.codes))
            if self._policy.finish(sample.request, sample.number) and job.waits_for is draw:
                self._flight.done(job)

    def _wake_streams(self) -> None:
        """Let requests go on that have as many codes as they wait for."""
        with self._flight.lock:
            for job in self._flight.jobs.values():
                draw = job.draw
                if draw is not None and job.waits_for is draw and draw.streams and draw.has_what_is_wanted:
                    self._flight.done(job)

    def _run_turns(self, turns: Sequence[Turn]) -> None:
        """The calls whose turn it is, as one, without those of requests that were given up meanwhile."""
        with self._flight.lock:
            turns = [turn for turn in turns if self._flight.waits(turn)]
        if not turns:
            return
        try:
            results = run_together(self._engine, turns)
        except BaseException as error:
            self._engine_failed(error)
            self._fail([turn.request for turn in turns], error)
            return
        with self._flight.lock:
            for turn, result in zip(turns, results, strict=True):
                if self._flight.waits(turn):
                    turn.result = result
                    self._flight.done(self._flight.jobs[turn.request])


def _of_one_request(error: BaseException) -> BaseException:
    """The error as an exception of its own, so that several threads can raise it; the original is its cause."""
    made: BaseException | None = None
    if isinstance(error, TortoiseError):
        with contextlib.suppress(Exception):  # one that is not made from its arguments alone
            made = type(error)(*error.args)
    made = made or EngineError(f"the engine failed: {type(error).__name__}: {error}")
    made.__cause__ = error
    return made
