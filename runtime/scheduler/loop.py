"""One loop owns the engine and runs what all requests in flight need of it, together where that is possible.

A request runs ``Pipeline.synthesize`` as it is, in a thread of its own, on a stand-in for the engine (``turns.py``)
that queues what it is asked and waits. Once all requests wait, the loop decides (``policy.py``): it decodes one step
of all rows (``rows.py``), and runs calls of one graph and equal shapes as one. So what runs together depends on what
was submitted, not on how fast threads are.
"""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import autoregressive
from ..config import ARSettings, Settings, check_number
from ..engine import Array, Engine
from ..errors import Cancelled, DeadlineExceeded, RequestError
from ..pipeline import Pipeline, Result
from ..rng import Randomness
from ..text import Tokenizer
from ..voice import Voice, VoiceLatents
from .policy import Policy, Priority
from .request import Handle
from .rows import Prompt, Rows, Sample
from .turns import MOST_ROWS, Turn, TurnEngine, run_together

PATIENCE = 0.02  #: seconds that the loop waits for threads that compute
ROWS = 16  #: samples that decode side by side
KV_BUDGET = 4 << 30  #: bytes of keys and values


@dataclass(eq=False)
class _Draw:
    """The samples that a request waits for."""

    voice: Array
    text: Array
    settings: ARSettings
    rand: Randomness
    progress: autoregressive.Progress
    decoder: str | None  #: whose latents are kept
    codes: Array  #: (samples, limit), padded with stop
    latents: dict[bytes, Array] = field(default_factory=dict)  #: codes -> (1, codes, dim)
    prompt: Prompt | None = None
    finished: int = 0


@dataclass(eq=False)
class _Job:
    """A request in flight."""

    handle: Handle[Result]
    error: BaseException | None = None  #: why it is given up
    waits_for: Turn | _Draw | None = None
    draw: _Draw | None = None  #: kept until the latents are asked for


class Scheduler:
    """Synthesis of many requests at once on one engine. Thread-safe.

    ``rows``: samples that decode side by side; fewer where the keys and values of so many would not fit into
    ``kv_budget`` bytes. ``queue``: requests in flight at a time. ``strict``: nothing is joined and every step has
    the same number of rows, for audio that is the same to the bit whatever else runs (onnx; on torch it is not).
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
        dims = engine.dims
        self._capacity = 1 + dims["ar.text_positions"] + dims["ar.mel_positions"]
        count = max(1, min(rows, kv_budget // (self._capacity * engine.position_bytes())))
        self.policy = Policy(count, queue=queue)
        self.rows: Rows | None = None  #: made when first needed
        self._lock = threading.Condition()
        self._jobs: dict[int, _Job] = {}
        self._turns: list[Turn] = []
        self._computing = 0  #: threads of requests that wait for nothing
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
        with self._lock:
            if self._closed:
                raise RequestError("the scheduler is closed")
            number = next(self._numbers)
            self.policy.submit(number, priority, None if timeout is None else time.monotonic() + timeout)
            handle: Handle[Result] = Handle(number, lambda: self._give_up(number))
            self._jobs[number] = _Job(handle)
            self._computing += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="tortoise-rt loop", daemon=True)
                self._thread.start()
        work = (number, text, voice, settings, seed)
        threading.Thread(target=self._synthesize, args=work, name=f"request {number}", daemon=True).start()
        return handle

    def close(self) -> None:
        """Give up what is in flight, and stop the loop."""
        with self._lock:
            self._closed = True
            for number in self._jobs:
                self._give_up(number)
            thread = self._thread
        if thread is not None:
            thread.join()

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

    def _synthesize(
        self,
        number: int,
        text: str | Sequence[int],
        voice: Voice | VoiceLatents | None,
        settings: Settings,
        seed: int | Randomness,
    ) -> None:
        job = self._jobs[number]
        result, error = None, None
        try:
            engine = TurnEngine(self.engine, number, lambda turn: self._take_turn(job, turn), self._strict)
            pipeline = Pipeline(engine, self.tokenizer, _Stage(self, job, settings))
            result = pipeline.synthesize(text, voice, settings, seed, job.handle.tell)
        except BaseException as raised:  # whatever it is, the caller gets it
            error = raised
        with self._lock:
            self.policy.drop(number)
            del self._jobs[number]
            self._computing -= 1
            self._lock.notify_all()
        job.handle.end(result, error)

    def _take_turn(self, job: _Job, turn: Turn) -> Any:
        with self._lock:
            self._wait_for(job, turn)
        return turn.result

    def take_samples(self, job: _Job, draw: _Draw) -> None:
        """Wait until all samples of ``draw`` are there."""
        with self._lock:
            job.draw = draw
            self._wait_for(job, draw)

    def _wait_for(self, job: _Job, what: Turn | _Draw) -> None:
        """With the lock held: wait until the loop has done ``what``; raises what the request is given up for."""
        if job.error is None:
            job.waits_for = what
            if isinstance(what, Turn):
                self._turns.append(what)
            else:
                self.policy.want(job.handle.number, len(what.codes))
            self._computing -= 1
            self._lock.notify_all()
            self._lock.wait_for(lambda: job.waits_for is None)
        if job.error is not None:
            raise job.error

    def _done(self, job: _Job, error: BaseException | None = None) -> None:
        """With the lock held: let the thread of a request go on, to its end where there is an error."""
        if job.waits_for is not None:
            job.waits_for = None
            self._computing += 1
        job.error = job.error or error
        self._lock.notify_all()

    # --- in the loop ---

    def _loop(self) -> None:
        while self._wait_for_work():
            try:
                self._end_given_up()
                self._decode()
                self._run_turns()
            except Exception as error:  # of the loop itself: nobody may wait for ever
                self.rows = None
                self._fail(set(self._jobs), error)

    def _wait_for_work(self) -> bool:
        """Until there is something to do; -> False once nothing is in flight, which ends the loop's thread."""
        with self._lock:
            since: float | None = None  #: when there was first something to do
            while self._jobs:
                now = time.monotonic()
                if any(job.error is not None and job.waits_for is not None for job in self._jobs.values()):
                    return True
                deadline = self.policy.next_deadline()
                if deadline is not None and deadline <= now and self.policy.overdue(now):
                    return True
                busy = bool(self._turns) or self.policy.waiting or bool(self.rows and self.rows.samples)
                since = (since or now) if busy else None
                if since is not None and (self._computing == 0 or now >= since + PATIENCE):
                    return True
                until = min(
                    (t for t in (deadline, since and since + PATIENCE) if t is not None), default=None
                )
                self._lock.wait(None if until is None else max(0.0, until - now))
            self._thread = None
            return False

    def _end_given_up(self) -> None:
        with self._lock:
            for number in self.policy.overdue(time.monotonic()):
                self._give_up(number, DeadlineExceeded(f"request {number} was not done in its time"))
            given_up = {number for number, job in self._jobs.items() if job.error is not None}
            for number in given_up:
                self.policy.release(number)
            self._turns = [turn for turn in self._turns if turn.request not in given_up]
        if self.rows is not None:
            self.rows.remove(lambda sample: sample.request in given_up)
        with self._lock:
            for number in given_up & self._jobs.keys():
                self._done(self._jobs[number])

    def _fail(self, requests: set[int], error: BaseException) -> None:
        """Give up the requests that an error touched, and no other."""
        for number in requests:
            self._give_up(number, copy.copy(error))
        self._end_given_up()

    def _decode(self) -> None:
        """One step of all rows. A row whose sample is done is taken by another sample before the step."""
        self._begin_samples()
        if self.rows is None:
            return
        try:
            while done := self.rows.draw():
                for sample in done:
                    self._keep(sample)
                if not self._begin_samples():
                    break
            if self.rows.samples:
                self.rows.step()
        except Exception as error:
            self._fail({sample.request for sample in self.rows.samples}, error)

    def _begin_samples(self) -> int:
        """Give free rows to samples that wait; -> how many."""
        count = 0
        with self._lock:
            admitted = list(self.policy.admit())
        for number, sample in admitted:
            draw = self._jobs[number].draw if number in self._jobs else None
            if draw is None or self._jobs[number].error is not None:
                continue  # given up; its rows are free again before the next step
            try:
                self._begin(number, sample, draw)
                count += 1
            except Exception as error:
                self._fail({number}, error)
        with self._lock:
            for number, job in self._jobs.items():
                if job.draw is not None and not self.policy.more_samples(number):
                    job.draw.prompt = None
        return count

    def _begin(self, number: int, sample: int, draw: _Draw) -> None:
        engine, start = self.engine, self.engine.dims["ar.start_code"]
        if self.rows is None:
            self.rows = Rows(engine, self.policy.rows, self._capacity, self._strict)
        if draw.prompt is None:
            draw.prompt = read_prompt(engine, draw.voice, draw.text)
        uniforms = draw.rand.uniforms(sample, draw.codes.shape[1])
        made = Sample.begin(number, sample, draw.settings, uniforms, draw.decoder, draw.prompt, start)
        self.rows.add(made, draw.prompt)

    def _keep(self, sample: Sample) -> None:
        """Take the codes of a sample that is done to its request, which goes on with the last one."""
        with self._lock:
            job = self._jobs.get(sample.request)
            if job is None or job.draw is None or job.error is not None:
                return
            draw = job.draw
            draw.codes[sample.number, : len(sample.codes)] = sample.codes
            kept = sample.kept_latents()
            if kept is not None:
                draw.latents[kept[0].tobytes()] = kept[1]
            draw.finished += 1
            if self.policy.finish(sample.request, sample.number):
                self._done(job)
        draw.progress(draw.finished, len(draw.codes))

    def _run_turns(self) -> None:
        """The calls whose turn it is, as one."""
        with self._lock:
            if not self._turns:
                return
            turns = [self._turns[i] for i in self.policy.choose(self._turns, MOST_ROWS)]
            self._turns = [turn for turn in self._turns if turn not in turns]
        try:
            results = run_together(self.engine, turns)
        except Exception as error:
            self._fail({turn.request for turn in turns}, error)
            return
        with self._lock:
            for turn, result in zip(turns, results, strict=True):
                turn.result = result
                if (job := self._jobs.get(turn.request)) is not None and job.waits_for is turn:
                    self._done(job)


class _Stage:
    """The autoregressive stage of one request, as its pipeline calls it."""

    def __init__(self, scheduler: Scheduler, job: _Job, settings: Settings) -> None:
        self._scheduler, self._job, self._settings = scheduler, job, settings

    def sample_codes(
        self,
        engine: Engine,
        voice: Array,
        text: Array,
        settings: ARSettings,
        rand: Randomness,
        progress: autoregressive.Progress,
    ) -> Array:
        """As ``autoregressive.sample_codes``, in rows that all requests share."""
        limit = autoregressive.code_limit(settings, engine.dims)
        samples = 1 if settings.greedy else settings.samples  # greedy ones are all the same
        codes = np.full((samples, limit), engine.dims["ar.stop_code"], np.int64)
        # Where every sample is decoded, its latents are kept as they come; else a pass over the best ones is cheaper.
        keep = settings.samples == self._settings.candidates and settings.kv_positions == "trained"
        decoder = self._settings.decoder if keep else None
        self._scheduler.take_samples(self._job, _Draw(voice, text, settings, rand, progress, decoder, codes))
        return np.repeat(codes, settings.samples // samples, axis=0)

    def code_latents(self, engine: Engine, voice: Array, text: Array, rows: Sequence[Array]) -> list[Array]:
        """As ``autoregressive.code_latents``; what is known from decoding is not computed again."""
        known = self._job.draw.latents if self._job.draw is not None else {}
        self._job.draw = None
        missing = [row for row in rows if row.tobytes() not in known]
        if missing:
            found = autoregressive.code_latents(engine, voice, text, missing)
            known |= {row.tobytes(): latents for row, latents in zip(missing, found, strict=True)}
        return [known[row.tobytes()] for row in rows]


def read_prompt(engine: Engine, voice: Array, text: Array) -> Prompt:
    """Voice (1, dim), text (1, text) and the start code, read into a cache of their own."""
    cache = engine.new_cache(1, 1 + text.shape[1] + 1)
    start = np.array([[engine.dims["ar.start_code"]]], np.int64)
    logits, latents = engine.ar_step(cache, start, np.zeros((1, 1), np.int64), voice, text)
    return Prompt(cache, logits[0], latents[0, 0])
