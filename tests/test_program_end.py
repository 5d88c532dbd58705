"""How a program ends while speech is in flight, and what a process can do that is forked from it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

#: An engine whose steps take ``step`` seconds, and a request that can be within one.
SLOW = """
    import threading, time
    from scheduling import Counting, scheduler, submit

    def slow(graph, rows):
        within.set()
        time.sleep(step)

    within, engine = threading.Event(), Counting()
    engine.before = slow
"""


def start(*program: str, arguments: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """The parts of a program, one behind the other."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(map(textwrap.dedent, program)), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.parametrize("what", ["a text that never goes on", "work in flight"])
def test_a_program_ends_with_a_stream_open(what: str) -> None:
    program = """
        import sys, threading
        from tortoise_rt import TextToSpeech

        def text():
            yield "Hello there. How are"
            threading.Event().wait()

        tts = TextToSpeech()
        if sys.argv[1] == "work in flight":
            from tortoise_rt.voice import load_voice
            from tortoise_rt.defaults import settings_for
            settings = settings_for(tts.engine, num_autoregressive_samples=64)
            tts.scheduler.submit("Hello there, how are you?", load_voice("alto"), settings, 1)
        pieces = tts.tts_stream(text(), use_deterministic_seed=1)
        print(len(next(pieces)))
    """
    process = start(program, arguments=(what,))
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and int(said) > 1000 and not errors


def test_a_program_ends_behind_the_engine_though_the_scheduler_is_gone() -> None:
    """A stream that is given up while it waits for its listener ends at once, and the engine may be within its next step."""
    program = """
        import atexit, gc, threading, time

        running = lambda: [t.name for t in threading.enumerate() if t.name == "tortoise-rt loop"]
        atexit.register(lambda: print(running()))  # the first is called last
        from scheduling import TEXTS, Counting, scheduler, settings, voice
        from tortoise_rt.streaming import Chunks

        step, within, engine = 0.02, threading.Event(), Counting()

        def slow(graph, rows):
            if graph == "ar_step":
                within.set()
                time.sleep(step)

        def speak():
            global step
            long = settings(num_autoregressive_samples=1, max_mel_tokens=400)
            handle = scheduler(engine).stream(TEXTS[2], voice(engine), long, 35, chunks=Chunks(1, 1))
            while not handle.rests:
                time.sleep(0.001)
            step = 1
            within.clear()
            within.wait()
            handle.cancel()
            handle.wait()

        engine.before = slow
        speak()
        gc.collect()
        print(running())
    """
    process = start(program)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and said.splitlines() == ["['tortoise-rt loop']", "[]"], errors


def test_an_interruption_ends_a_program_that_waits_for_the_engine() -> None:
    program = """
        import atexit

        step = 60
        made = scheduler(engine)
        submit(made)
        within.wait()
        atexit.register(lambda: print("the end", flush=True))  # the last is called first
    """
    process = start(SLOW, program)
    assert process.stdout is not None and process.stdout.readline() == "the end\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and not errors


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_is_told_what_to_do() -> None:
    """It has the scheduler, and none of its threads."""
    program = """
        import os

        step = 0.1
        made = scheduler(engine)
        handle = submit(made)
        within.wait()
        if os.fork() == 0:
            try:
                submit(made)
            except Exception as error:
                print(type(error).__name__, error, flush=True)
            made.close()
            os._exit(0)
        print(os.wait()[1], len(handle.result().wavs))
    """
    process = start(SLOW, program)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    told, ended = said.splitlines()
    assert told.startswith("RequestError this process was forked") and ended == "0 1"
