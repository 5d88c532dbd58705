"""Ten minutes of requests: memory may not grow, and nothing may become slower.

    python benchmarks/soak.py [--engine BUNDLE] [--minutes 10] [-o results.jsonl]

Clients ask for sentences of many lengths, with one or several samples, by either decoder where the engine has both, whole
or as streams; some give up in between. Each ten seconds they pause and one request, always the same, is timed alone. Exits with 1
where the line through memory over the last half rises by more than 2 % in its time, or the timed request takes more than 10 % longer
in the last third than in the one before.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt.defaults import default_voice, settings_for
from tortoise_rt.engine import Engine
from tortoise_rt.errors import Cancelled
from tortoise_rt.machine import environment, resident_mib
from tortoise_rt.scheduler import Scheduler
from tortoise_rt.tts import choose_engine, choose_tokenizer
from tortoise_rt.voice import load_voice

SENTENCES = (Path(__file__).parent / "sentences" / "everyday.txt").read_text("utf-8").split("\n")[:-1]
CLIENTS = 4
EACH = 10.0  #: seconds between pauses
PAUSE = 60.0  #: seconds until all requests in flight are done, at most
MOST_GROWTH = 0.02
MOST_SLOWDOWN = 0.10
Row = dict[str, Any]


def ask(scheduler: Scheduler, request: tuple[Any, ...], gives_up: bool) -> None:
    """The whole clip, or Cancelled where it is given up once it is being made."""
    handle = scheduler.submit(*request)
    if gives_up:
        next(handle.events(), None)
        handle.cancel()
    handle.result()


def listen(scheduler: Scheduler, request: tuple[Any, ...], gives_up: bool) -> None:
    """All pieces of a stream, or Cancelled behind the first."""
    pieces = iter(scheduler.stream(*request))
    for _ in pieces:
        if gives_up:
            pieces.close()
            raise Cancelled("gone")


def soak(engine: Engine, minutes: float) -> Row:
    """Memory each ten seconds, and how long the probe, one request that is always the same, takes meanwhile."""
    voice = load_voice(default_voice(engine))
    decoders = [d for d, graph in (("hifigan", "hifigan"), ("diffusion", "univnet")) if engine.has(graph)]
    probe = settings_for(engine, num_autoregressive_samples=1, decoder=decoders[0])
    until = time.monotonic() + 60 * minutes
    done, given_up = 0, 0
    failures: list[BaseException] = []
    lock, quiet = threading.Condition(), threading.Event()
    busy = CLIENTS  #: clients that are not paused
    memory: list[float] = []
    probes: list[float] = []
    with Scheduler(engine, choose_tokenizer(engine, None)) as scheduler:

        def client(seed: int) -> None:
            nonlocal busy, done, given_up
            rng = random.Random(seed)
            try:
                while time.monotonic() < until:
                    if quiet.is_set():
                        with lock:
                            busy -= 1
                            lock.notify_all()
                            lock.wait_for(lambda: not quiet.is_set())
                            busy += 1
                    settings = settings_for(
                        engine,
                        num_autoregressive_samples=rng.choice([1, 1, 4]),
                        decoder=rng.choice(decoders),
                        diffusion_iterations=10,
                    )
                    request = rng.choice(SENTENCES), voice, settings, rng.randrange(10**6)
                    streams = (
                        settings.decoder == "hifigan" and settings.ar.samples == 1 and rng.random() < 0.5
                    )
                    gives_up = rng.random() < 0.1
                    try:
                        listen(scheduler, request, gives_up) if streams else ask(scheduler, request, gives_up)
                    except Cancelled:
                        with lock:
                            given_up += 1
                    else:
                        with lock:
                            done += 1
            except BaseException as error:
                failures.append(error)
            finally:
                with lock:
                    busy -= 1
                    lock.notify_all()

        threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        while time.monotonic() < until and not failures:
            time.sleep(max(0.0, min(EACH, until - time.monotonic())))
            with lock:
                quiet.set()
                lock.wait_for(lambda: not busy or failures, PAUSE)
            times = []
            for _ in range(3):
                began = time.monotonic()
                scheduler.submit(SENTENCES[0], voice, probe, 1).result()
                times.append(time.monotonic() - began)
            probes.append(min(times))
            memory.append(resident_mib())
            with lock:
                quiet.clear()
                lock.notify_all()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    third = max(1, len(memory) // 3)
    if len(memory) < 3:
        raise SystemExit("too short to compare its thirds: --minutes 1 at least")
    half = memory[len(memory) // 2 :]
    slope, start = np.polyfit(np.arange(len(half)), half, 1)
    before, after = probes[third : 2 * third], probes[2 * third :]
    return {
        "kind": "soak", "minutes": minutes, "clients": CLIENTS, "done": done, "given_up": given_up,
        "memory_mib": [round(value, 1) for value in memory], "probe_s": [round(value, 3) for value in probes],
        "growth": round(float(slope * (len(half) - 1) / start), 4),
        "slowdown": round(statistics.median(after) / statistics.median(before) - 1, 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", type=Path, help="a bundle [default: the demo]")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("-o", "--output", type=Path, help="append JSON lines to this file")
    options = parser.parse_args()
    row = soak(choose_engine(options.engine), options.minutes)
    print(
        f"{row['done']} sentences, {row['given_up']} given up. Memory {row['memory_mib'][0]:.0f} MiB at first, "
        f"{row['memory_mib'][-1]:.0f} at the end: grown by {row['growth']:.1%}; slower by {row['slowdown']:.1%}"
    )
    if options.output:
        with options.output.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in ({**environment(), "benchmark": "soak"}, row))
    if row["growth"] > MOST_GROWTH or row["slowdown"] > MOST_SLOWDOWN:
        raise SystemExit("memory grew, or it became slower")


if __name__ == "__main__":
    main()
