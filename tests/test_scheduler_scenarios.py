"""Requests that come, go and fail at random: each gives what it gives alone, on every backend.

TORTOISE_RT_SCENARIOS=200 runs as many random scenarios on every backend instead of a few, and
TORTOISE_RT_SCENARIO_LOG=FILE appends what was seen as a line of JSON.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scheduling import (
    BOUND,
    TEXTS,
    WAIT,
    WORST,
    alone,
    assert_near,
    assert_same,
    scheduler,
    settings,
    settle,
    submit,
    voice,
)

from tortoise_rt import autoregressive, sampling
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.config import ARSettings
from tortoise_rt.engine import Array, Engine, KVCache
from tortoise_rt.errors import Cancelled, DeadlineExceeded, EngineError
from tortoise_rt.machine import environment
from tortoise_rt.scheduler import Handle, Priority, StreamHandle, loop, rows
from tortoise_rt.scheduler.turns import Turn

SCENARIOS = int(os.environ.get("TORTOISE_RT_SCENARIOS", "12"))


@dataclass(frozen=True)
class Said:
    """A request of a scenario."""

    text: str
    seed: int
    arguments: dict[str, Any]
    priority: Priority
    after: int  #: it is submitted when so many events of the first have come
    cancelled: int | None  #: given up after so many of its own events
    timeout: float | None  #: seconds it has; too few or plenty
    streams: bool  #: whether it is heard while it is drawn


def drawn(rng: random.Random) -> Said:
    samples = rng.choice([1, 1, 2, 3, 5, 7])
    arguments = dict(
        num_autoregressive_samples=samples,
        k=rng.randint(1, min(2, samples)),
        decoder=rng.choice(["hifigan", "diffusion"]),
        max_mel_tokens=rng.choice([6, 12, 24]),
        diffusion_iterations=rng.choice([4, 6, 10]),
        cond_free=rng.random() < 0.5,
        greedy=rng.random() < 0.1,
        kv_positions=rng.choice(["trained", "trained", "upstream"]),
        temperature=rng.choice([0.5, 0.8, 1.2]),
        sampler=rng.choice(["ancestral", "ddim", "dpm++2m"]),
        batch_rows=rng.choice([None, None, 1, 2]),
    )
    streams = rng.random() < 0.2
    if streams:
        arguments |= dict(num_autoregressive_samples=1, k=1, decoder="hifigan", kv_positions="trained")
    gone = rng.randint(0, 3) if rng.random() < 0.25 else None
    return Said(
        rng.choice(TEXTS),
        rng.randrange(10**9),
        arguments,
        rng.choice(list(Priority)),
        rng.randint(0, 3),
        gone,
        rng.choice([None, None, WAIT, WAIT, 0.003]),
        streams,
    )


def run_scenario(engine: Engine, rng: random.Random) -> Counter[str]:
    """Requests that come and go at random on a small pool -> how many were done, given up, and too late."""
    requests = [drawn(rng) for _ in range(rng.randint(2, 5))]
    ends = Counter[str]()
    with scheduler(engine, rows=rng.randint(1, 6)) as made:
        handles: list[Handle[Any]] = []
        for request in requests:
            if handles and request.after:
                for _ in zip(range(request.after), handles[0].events(), strict=False):
                    pass
            ask = dict(priority=request.priority, timeout=request.timeout)
            if request.streams:
                chosen = settings(**request.arguments)
                handles.append(made.stream(request.text, voice(engine), chosen, request.seed, **ask))
            else:
                handles.append(submit(made, request.text, request.seed, **request.arguments, **ask))
            if request.cancelled is not None:
                for _ in zip(range(request.cancelled), handles[-1].events(), strict=False):
                    pass
                handles[-1].cancel()
        for request, handle in zip(requests, handles, strict=True):
            try:
                result = list(handle) if isinstance(handle, StreamHandle) else handle.result(WAIT)
            except Cancelled:
                assert request.cancelled is not None
                ends["given_up"] += 1
            except DeadlineExceeded:
                assert request.timeout is not None and request.timeout < WAIT
                ends["too_late"] += 1
            else:
                if request.streams:
                    (wav,) = alone(engine, request.text, request.seed, **request.arguments).wavs
                    assert_near(np.concatenate(result), wav, BOUND, "streams")
                    ends["streamed"] += 1
                else:
                    assert_same(engine, result, request.seed, text=request.text, **request.arguments)
                ends["done"] += 1
        settle(made)
    return ends


class Draws:
    """Every draw of requests alone and in company: how far logits are apart, and how near a draw was to another code.

    A uniform number belongs to one seed, sample and step, so it tells which draws are the same.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._logits: dict[float, list[Array]] = {}
        self._margins: dict[float, float] = {}
        for module in (autoregressive, rows):
            monkeypatch.setattr(module, "draw", self._draw)

    def _draw(self, logits: Array, seen: Array, u: float, forbidden: int, settings: ARSettings) -> int:
        self._logits.setdefault(float(u), []).append(logits.copy())
        if not settings.greedy:
            ends = np.cumsum(sampling.distribution(logits, seen, settings)[1])
            # A change of all logits by e changes chances by at most 2 e / temperature of themselves.
            self._margins[float(u)] = float(np.abs(ends - u).min()) * settings.temperature / 2
        return sampling.draw(logits, seen, u, forbidden, settings)

    def summary(self) -> dict[str, float]:
        errors = {u: float(np.ptp(np.stack(found), axis=0).max()) for u, found in self._logits.items()}
        worst = max(errors.values())
        near = sum(margin < worst for margin in self._margins.values())
        return {"draws": len(errors), "logit_error": worst, "draws_nearer_to_an_edge_than_that": near}


def test_any_company_gives_what_a_request_gives_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = Draws(monkeypatch)
    WORST.clear()
    joined = Counter[str]()
    run_together = loop.run_together

    def counting(engine: Engine, turns: Sequence[Turn]) -> list[Any]:
        joined[turns[0].graph or "other"] += len(turns) > 1
        return run_together(engine, turns)

    monkeypatch.setattr(loop, "run_together", counting)
    ends = sum((run_scenario(engine, random.Random(seed)) for seed in range(SCENARIOS)), Counter[str]())
    assert ends["done"] > SCENARIOS  # most are done, and some are given up
    assert SCENARIOS < 10 or min(ends["given_up"], ends["too_late"], ends["streamed"]) > 0
    assert SCENARIOS < 100 or joined["diffusion_denoise"] > 0
    seen = draws.summary()
    assert seen["logit_error"] < 1e-3 and seen["draws_nearer_to_an_edge_than_that"] < seen["draws"] / 100
    if log := os.environ.get("TORTOISE_RT_SCENARIO_LOG"):
        row = {
            **environment(), "kind": "scenarios", "backend": engine.info.backend, "scenarios": SCENARIOS,
            **ends, "codes": "equal", "calls_run_as_one": {graph: n for graph, n in joined.items() if n}, **seen,
            "worst": {name: float(f"{share:.2g}") for name, share in WORST.items()},
        }  # fmt: skip
        with open(log, "a") as file:
            file.write(json.dumps(row) + "\n")


@pytest.mark.parametrize("decoder", ["hifigan", "diffusion"])
@pytest.mark.parametrize("samples", [1, 3])
def test_strict_audio_is_the_same_to_the_bit(engine: Engine, decoder: str, samples: int) -> None:
    """Whatever the texts, lengths and numbers beside it, and whatever a scheduler that is not strict did before."""
    asked: dict[str, Any] = dict(decoder=decoder, num_autoregressive_samples=samples, k=1)
    with scheduler(engine) as made:
        submit(made, **asked).result(WAIT)
    with scheduler(engine, rows=5, strict=True) as made:
        single = submit(made, **asked).result(WAIT)
        handles = [
            submit(made, text=text, seed=seed, **{**asked, "max_mel_tokens": limit})
            for text, seed, limit in ((TEXTS[2], 2, 60), (TEXTS[0], 1, 24), (TEXTS[3], 3, 12))
        ]
        among = [handle.result(WAIT) for handle in handles]
    for one, other in ((single.latents, among[1].latents), (single.wavs, among[1].wavs)):
        np.testing.assert_array_equal(one[0], other[0])
    assert single.wavs[0].shape != among[0].wavs[0].shape or not np.array_equal(
        single.wavs[0], among[0].wavs[0]
    )


class Faulty(FakeEngine):
    """Fails now and then, whatever it is asked. ``at_work`` is set to the requests that a call is made for."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng
        self.at_work: set[int] = set()
        self.touched: list[tuple[BaseException, set[int]]] = []

    def _fault(self) -> None:
        if self._rng.random() < 0.01:
            error = self._rng.choice([EngineError("out of memory"), Odd(1, 2), SystemExit("gone")])
            self.touched.append((error, self.at_work))
            raise error

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        self._fault()
        return super()._run(graph, inputs)

    def _new_cache(self, rows: int, capacity: int) -> Array:
        self._fault()
        return super()._new_cache(rows, capacity)

    def _put_rows(self, target: KVCache, places: Array, source: KVCache, rows: Array) -> None:
        self._fault()
        super()._put_rows(target, places, source, rows)

    def _first_rows(self, cache: KVCache, count: int) -> Array:
        self._fault()
        return super()._first_rows(cache, count)

    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        self._fault()
        return super()._ar_step(cache, inputs)


class Odd(Exception):
    """Cannot be made from its arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def watch(monkeypatch: pytest.MonkeyPatch, engine: Faulty) -> None:
    """Keep ``engine.at_work`` up to date, from what the loop is about to do."""

    def wrap(owner: Any, name: str, requests_of: Callable[..., set[int]]) -> None:
        wrapped = getattr(owner, name)

        def watching(*args: Any) -> Any:
            before, engine.at_work = engine.at_work, requests_of(*args)
            try:
                return wrapped(*args)
            finally:
                engine.at_work = before

        monkeypatch.setattr(owner, name, watching)

    wrap(loop, "run_together", lambda engine, turns: {turn.request for turn in turns})
    wrap(loop.Loop, "_begin", lambda self, number, *_: {number})
    wrap(rows.Rows, "step", lambda self, *_: {sample.request for sample in self.samples})

    def move(self: rows.Rows) -> list[tuple[rows.Sample, BaseException]]:
        before, slots = len(engine.touched), [sample for sample in self._slots if sample is not None]
        failed = close_holes(self)
        for (
            sample,
            error,
        ) in failed:  # of several samples it is known only afterwards which could not be moved
            assert sample in slots
            place = next(i for i, (e, _) in enumerate(engine.touched) if i >= before and e is error)
            engine.touched[place] = error, {sample.request}
        return failed

    close_holes = rows.Rows.close_holes
    monkeypatch.setattr(rows.Rows, "close_holes", move)


def test_faults_of_the_engine_end_the_requests_they_touched_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = Counter[str]()
    for seed in range(2 * SCENARIOS):
        rng = random.Random(seed)
        engine = Faulty(rng)
        with monkeypatch.context() as patch, scheduler(engine, rows=rng.randint(1, 5)) as made:
            watch(patch, engine)
            requests = [drawn(rng) for _ in range(4)]
            handles: list[Handle[Any]] = []
            for r in requests:
                if r.streams:
                    asked = settings(**r.arguments)
                    handles.append(made.stream(r.text, voice(engine), asked, r.seed, priority=r.priority))
                else:
                    handles.append(submit(made, r.text, r.seed, **r.arguments, priority=r.priority))
            for request, handle in zip(requests, handles, strict=True):
                try:
                    result = list(handle) if isinstance(handle, StreamHandle) else handle.result(WAIT)
                except EngineError as error:
                    (touched,) = [numbers for fault, numbers in engine.touched if fault is error.__cause__]
                    assert handle.number in touched
                    ends["failed"] += 1
                else:
                    if request.streams:
                        (wav,) = alone(FakeEngine(), request.text, request.seed, **request.arguments).wavs
                        assert_near(np.concatenate(result), wav, BOUND, "streams")
                    else:
                        assert_same(
                            FakeEngine(), result, request.seed, text=request.text, **request.arguments
                        )
                    ends["done"] += 1
            settle(made)
    assert min(ends["done"], ends["failed"]) > SCENARIOS
