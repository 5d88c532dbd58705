"""Whose calls of ONNX Runtime run beside each other, and by which thread."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from scheduling import WAIT
from standard import ragged, same, standard_engine, step, steps, watch

from tortoise_rt.backends import onnx, onnx_calls, onnx_standard, onnx_steps
from tortoise_rt.backends.onnx_calls import CALLS, Caller, Calls
from tortoise_rt.backends.onnx_standard import StandardEngine
from tortoise_rt.engine import EngineInfo
from tortoise_rt.errors import EngineError


@pytest.fixture
def engine(standard_graphs: EngineInfo) -> StandardEngine:
    return standard_engine(standard_graphs, records=True)


def test_all_threads_calls_are_made_by_one(engine: StandardEngine, standard_graphs: EngineInfo) -> None:
    """Of the engine's own: one at a time, and what each gets is what it gets alone."""
    threads, running = set(), threading.Lock()

    def told(number: str) -> None:
        assert running.acquire(blocking=False)
        threads.add(threading.get_ident())
        time.sleep(0.001)
        running.release()

    watch(engine, told)
    lengths = [(1, 7), (3,), (2, 9, 4), (5,), (8, 8)]
    others = standard_engine(standard_graphs)
    wanted = [steps(others, ragged(others, rows), 6) for rows in lengths]
    with ThreadPoolExecutor(len(lengths)) as pool:
        found = list(pool.map(lambda rows: steps(engine, ragged(engine, rows), 6), lengths))
    assert all(map(same, found, wanted))
    assert len(threads) == 1 and threading.get_ident() not in threads


class Counted(threading.Condition):
    """Knows how many wait."""

    waiting = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.waiting += 1
        try:
            return super().wait(timeout)
        finally:
            self.waiting -= 1


def counted() -> tuple[Calls, Callable[[int], None]]:
    """-> calls, and what returns when so many threads or more wait for their turn."""
    calls = Calls()
    calls._changed = changed = Counted()

    def wait(count: int) -> None:
        end = time.monotonic() + WAIT
        while changed.waiting < count:
            assert time.monotonic() < end, f"{changed.waiting} wait of {count}"
            time.sleep(0.001)

    return calls, wait


def test_a_recording_is_alone_in_the_process() -> None:
    (calls, wait), log = counted(), []
    inside, leave, recording, recorded = (threading.Event() for _ in range(4))

    def other() -> None:
        with calls.beside_others():
            log.append("other")
            inside.set()
            assert leave.wait(WAIT)
            log.append("other ends")

    def record(name: str) -> None:
        with calls.alone():
            log.append(name)
            recording.set()
            assert recorded.wait(WAIT)
            log.append(f"{name} ends")

    def late() -> None:
        with calls.beside_others():
            log.append("late")

    with ThreadPoolExecutor(3) as pool:
        made = [pool.submit(other)]
        assert inside.wait(WAIT)
        with calls.beside_others():  # those that record nothing do not wait for each other
            log.append("beside")
        made.append(pool.submit(record, "recording"))
        wait(1)
        made.append(pool.submit(late))
        wait(2)
        assert log == ["other", "beside"]
        leave.set()
        assert recording.wait(WAIT)
        made.append(pool.submit(record, "another"))
        wait(2)
        assert log[2:] == ["other ends", "recording"]
        recorded.set()
        for future in made:
            future.result(WAIT)
    assert log[4] == "recording ends" and sorted(log[5:]) == ["another", "another ends", "late"]
    assert log.index("another ends") == log.index("another") + 1


def test_a_call_within_a_call_does_not_wait() -> None:
    """Though a recording does, which waits for the outer one; and none is made there."""
    (calls, wait), log = counted(), []

    def record() -> None:
        with calls.alone():
            log.append("recording")

    recording = threading.Thread(target=record, daemon=True)

    def outer() -> None:
        with calls.beside_others():
            with pytest.raises(AssertionError), calls.alone():
                pass
            recording.start()
            wait(1)
            with calls.beside_others():
                log.append("inner")
            log.append("outer")

    thread = threading.Thread(target=outer, daemon=True)
    thread.start()
    thread.join(WAIT)
    recording.join(WAIT)
    assert log == ["inner", "outer", "recording"]


class Ending:
    """A session that says where it ended."""

    def __init__(self, session: Any, ended: list[str]) -> None:
        self._session, self._ended = session, ended

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def __del__(self) -> None:
        beside = threading.get_ident() in CALLS._beside and not CALLS._recording
        self._ended.append("beside others" if beside else "where another may record")


def ending(engine: StandardEngine) -> list[str]:
    """-> where sessions ended that the engine opens from now on."""
    ended: list[str] = []
    open_session = engine._open
    engine._open = lambda *given: Ending(open_session(*given), ended)  # type: ignore[method-assign]
    return ended


def test_sessions_end_while_nobody_records(
    standard_graphs: EngineInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are released, that give way to others, that are refused, and those of an engine that goes."""
    engine, (calls, wait) = standard_engine(standard_graphs, records=True), counted()
    monkeypatch.setattr(onnx_calls, "CALLS", calls)
    for module in (onnx_standard, onnx_steps, sys.modules[__name__]):
        monkeypatch.setattr(module, "CALLS", calls)
    monkeypatch.setattr(onnx_steps, "MOST_RECORDED", 1)
    ended = ending(engine)
    cache = ragged(engine, (2, 3))
    engine.run("rlg_auto", noise=np.zeros((1, engine.dims["rlg_auto.dim"]), np.float32))
    step(engine, cache)
    step(engine, engine.first_rows(cache, 1))
    assert len(ended) == 1
    engine.release("ar_step")
    engine.release("rlg_auto")
    assert len(ended) == 3
    with monkeypatch.context() as broken, pytest.raises(ValueError) as raised:
        broken.setattr(onnx, "check_provider", lambda *given: int("no number"))
        step(engine, cache)
    assert len(ended) == 4 and raised.traceback
    step(engine, cache)
    gc.collect()  # engines of other tests
    with calls.alone():
        del engine, cache, raised
        gc.collect()
        wait(1)
        assert len(ended) == 4
    deadline = time.monotonic() + WAIT
    while len(ended) < 7:  # the step, and those that clear and copy
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert ended == ["beside others"] * 7


def test_an_engine_that_goes_takes_its_thread_along(standard_graphs: EngineInfo) -> None:
    def running() -> Iterator[threading.Thread]:
        return (thread for thread in threading.enumerate() if thread.name.startswith("onnxruntime"))

    before = set(running())
    engine = standard_engine(standard_graphs)
    step(engine, ragged(engine, (2,)))
    (own,) = set(running()) - before
    del engine
    gc.collect()
    own.join(WAIT)
    assert not own.is_alive()


ENDING = """
import atexit, threading, time

@atexit.register  # before the library does, so that it is done behind what the library does
def check():
    [thread.join() for thread in threads]
    try:
        caller(work, 0)
    except EngineError as error:
        told.append(str(error))
    print(*sorted(told), sep="\\n")

from tortoise_rt.backends.onnx_calls import Caller
from tortoise_rt.errors import EngineError

caller, begun, waiting, told = Caller("ends"), threading.Event(), threading.Event(), []

def work(seconds):
    begun.set()
    waiting.wait()
    time.sleep(seconds)
    told.append("done")

def ask(seconds):
    try:
        caller(work, seconds)
    except EngineError as error:
        told.append(str(error))

threads = [threading.Thread(target=ask, args=(seconds,), daemon=True) for seconds in (0.5, 60, 60)]
threads[0].start()
begun.wait()
[thread.start() for thread in threads[1:]]
while caller._asked.qsize() < 2:
    time.sleep(0.001)
waiting.set()
"""

GONE = """
import time
from tortoise_rt.backends.onnx_calls import Caller

def last():
    time.sleep(0.5)
    print("ended")

caller = Caller("gone")
caller(int)
caller.end(last)
del caller
"""


def test_a_program_ends_though_calls_are_waiting() -> None:
    """With the one that is being done, which would break; the others are told, and those who come later."""
    ran = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=WAIT, check=True
    )
    assert ran.stdout.splitlines() == ["done", *["the program is ending"] * 3] and not ran.stderr


def test_a_program_ends_behind_the_end_of_what_is_gone() -> None:
    """As where an engine goes when ``main`` returns: its sessions end while the library is there."""
    ran = subprocess.run(
        [sys.executable, "-c", GONE], capture_output=True, text=True, timeout=WAIT, check=True
    )
    assert (ran.stdout, ran.stderr) == ("ended\n", "")


def test_the_end_comes_though_nothing_else_does() -> None:
    """What ends a caller is done by its thread, whatever was asked before."""
    caller, begun, may_go, ended = Caller("stops"), threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        may_go.wait(WAIT)

    asked = threading.Thread(target=caller, args=(work,))
    asked.start()
    assert begun.wait(WAIT)
    caller.end(lambda: ended.append(threading.current_thread() is caller._thread))
    threading.Timer(0.1, may_go.set).start()
    caller.stop()
    asked.join(WAIT)
    assert ended == [True]


def test_what_fails_keeps_nothing() -> None:
    class Large:
        pass

    caller, given = Caller("fails"), Large()
    seen = weakref.ref(given)

    def work(large: Large) -> None:
        raise EngineError("no memory")

    gc.disable()
    try:
        with contextlib.suppress(EngineError):
            caller(work, given)
        del given
        caller(int)  # the thread is behind it
        assert seen() is None
    finally:
        gc.enable()
        caller.stop()


def test_what_fails_is_the_callers_error() -> None:
    caller = Caller("fails")
    with pytest.raises(ZeroDivisionError):
        caller(lambda: 1 // 0)
    assert caller(lambda a, b: a + b, 3, 4) == 7
    caller.stop()
    with pytest.raises(EngineError, match="ending"):
        caller(int)
