"""A server under load, on this machine: is each result that of the same request alone, and what do callers wait?

    python benchmarks/service.py [--minutes 2] [--share 0.7] [--strict] [--engine BUNDLE] [--seed 1] [-o results.jsonl]

Starts ``tortoise-rt serve`` and

1. asks for each of a set of requests (voices, blends, lengths, settings; no two sound alike) with nothing beside it: once to learn
   its samples, then three times more to see that it gives them again and how long the first sound takes;
2. finds what the server gets through: the best of 4, 8, 16 and 32 callers who ask again at once (32 are all that it takes at a time);
3. sends --share of that as callers come (Poisson), half of them as streams. A tenth of them leave early. Hostile ones come beside
   them, one in twenty of all: bad JSON, bodies too large, readers that read nothing or in sips, tricks with paths and names, broken
   Unicode, heads that do not end;
4. asks for each alone once more: where its first sound takes another time than before, something else ran on this machine.

Every whole result must be the one alone: its samples within 1/1000 of full scale, with --strict the same. The server must log no
error; in the end nothing may be in flight, no file left or open, and it must stop by itself. The 95th percentile of the first sound
of streams may be three times that alone. From ten minutes on the line through memory over the last half may rise by 2 % in its time.
Exits with 1 where any of that is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from service_callers import Callers, Seen, asks

from tortoise_rt.machine import environment

PASSES = 3  #: in which requests alone are timed
CROWDS = (4, 8, 16, 32)  #: callers of the closed loops
RAMP, LOOP = 10.0, 30.0  #: seconds of each: until all are busy, and counted
LOOK = 10.0  #: seconds between two looks at the server's memory
TOLD = 3  #: looks from one line of progress to the next
MOST_GROWTH = 0.02  #: of memory, in runs of LONG minutes or more
LONG = 10.0
IDLE = 40  #: seconds in which connections that nobody uses are closed
MORE_FILES = 2  #: open in the end, at most
MOST_WAIT = 3.0  #: 95th percentile of the first sound, times that alone
OTHERS_FILES = {".ses"}  #: what onnxruntime leaves in the temporary folder
PERCENTILES = (50, 90, 95, 99)
Row = dict[str, Any]


@dataclass
class Process:
    """The server."""

    folder: Path
    url: str = ""
    faults: list[str] = field(default_factory=list)  #: known once it has ended


@contextlib.contextmanager
def server(arguments: list[str]) -> Iterator[Process]:
    """One that is ready, whose voices, cache and temporary files are in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+") as log:
        made = Process(Path(folder))
        places = {"TORTOISE_RT_VOICES": "voices", "TORTOISE_RT_CACHE": "cache", "TMPDIR": "temporary"}
        for name in places.values():
            (made.folder / name).mkdir()
        command = [sys.executable, "-m", "tortoise_rt", "serve", "--port", "0", "--per-key", "32", "--per-minute", "1000000"]  # fmt: skip
        surroundings = {
            **os.environ,
            **{variable: str(made.folder / name) for variable, name in places.items()},
        }
        process = subprocess.Popen([*command, *arguments], stderr=log, env=surroundings)
        written = Path(log.name).read_text
        try:
            while not (found := re.search(r"Listening on (\S+)", written())):
                if process.poll() is not None:
                    raise SystemExit(written())
                time.sleep(0.1)
            made.url = found[1]
            while httpx.get(f"{made.url}/readyz").status_code != 200:
                time.sleep(0.1)
            yield made
        finally:
            process.terminate()
            try:
                code: object = process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                code = "nothing within a minute"
        made.faults = [f"logged: {line}" for line in written().splitlines() if '"level": "error"' in line]
        if code != 0:
            made.faults.append(f"the server was told to stop and ended with {code}")
        for name in ("temporary", "voices"):
            left = {path.name for path in (made.folder / name).iterdir()} - OTHERS_FILES
            if left:
                made.faults.append(f"left in the folder {name}: {', '.join(sorted(left)[:5])}")


async def metrics(callers: Callers) -> dict[str, float]:
    """Name -> value, of those without labels."""
    text = (await callers.http.get("/metrics")).text
    return {name: float(value) for name, value in re.findall(r"^([a-z_]+) (\S+)$", text, re.MULTILINE)}


async def settled(callers: Callers) -> dict[str, float]:
    """The metrics once nothing is in flight, or after half a minute."""
    for _ in range(60):
        found = await metrics(callers)
        if found["tortoise_rt_in_flight"] == found["tortoise_rt_calls_in_flight"] == 0:
            break
        await asyncio.sleep(0.5)
    return found


async def watch(callers: Callers, memory: list[float], began: float) -> None:
    """Look at the server's memory, and tell how far it is."""
    seen = callers.seen
    while True:
        found = await metrics(callers)
        memory.append(found["process_resident_memory_bytes"] / 2**20)
        if len(memory) % TOLD == 0:
            whole = len(seen.streams) + len(seen.whole)
            print(
                f"{(time.perf_counter() - began) / 60:5.1f} min: {whole} whole results, {seen.equal} the same to the bit; "
                f"{found['tortoise_rt_in_flight']:.0f} in flight, {memory[-1]:.0f} MiB; first sound {told(seen.first)}; "
                f"{len(seen.faults)} faults",
                flush=True,
            )
        await asyncio.sleep(LOOK)


async def measure(url: str, options: argparse.Namespace) -> tuple[Row, list[str]]:
    """-> what was seen, and what is wrong with it."""
    rng = random.Random(options.seed)
    callers = Callers(url, asks(rng, options.requests), rng, options.strict)
    await callers.learn()
    alone = await callers.alone(PASSES)
    print(f"alone: first sound {told(alone)}", flush=True)
    crowds = {}
    for count in CROWDS:
        crowds[count] = await callers.rate(count, RAMP, LOOP)
        await settled(callers)
        print(f"{count} callers: {crowds[count]:.2f} requests/s", flush=True)
    capacity = max(crowds.values())
    rate = options.share * capacity
    again = callers.seen
    callers.seen = seen = Seen(faults=again.faults)
    before, memory, began = await settled(callers), list[float](), time.perf_counter()
    print(f"{rate:.2f} requests/s come now, for {options.minutes:g} minutes", flush=True)
    watching = asyncio.create_task(watch(callers, memory, began))
    await callers.run(60 * options.minutes, rate)
    took = time.perf_counter() - began
    watching.cancel()
    after = await settled(callers)
    for _ in range(IDLE):  # until connections that nobody uses are closed
        if after["process_open_fds"] <= before["process_open_fds"]:
            break
        await asyncio.sleep(1)
        after = await metrics(callers)
    callers.seen = Seen(faults=seen.faults)
    alone_after = await callers.alone(1)
    growth, wait = grown(memory), (percentiles(seen.first)["p95"] / percentiles(alone)["p95"])
    row = {
        "kind": "service",
        "engine": str(options.engine or "demo"),
        "minutes": round(took / 60, 2),
        "strict": options.strict,
        "seed": options.seed,
        "capacity_per_s": {str(count): round(value, 3) for count, value in crowds.items()},
        "share": options.share,
        "rate_per_s": round(rate, 3),
        "whole_results": len(seen.streams) + len(seen.whole),
        "same_bits": seen.equal,
        "worst_sample": seen.worst,
        "audio_s_per_s": round(seen.audio / took, 3),
        "first_alone_s": percentiles(alone),
        "first_alone_after_s": percentiles(alone_after),
        "first_loaded_s": percentiles(seen.first),
        "wait": round(wait, 3),
        "total_stream_s": percentiles(seen.streams),
        "total_whole_s": percentiles(seen.whole),
        "memory_mib": [round(value, 1) for value in memory],
        "growth": growth,
        "open_files": [before["process_open_fds"], after["process_open_fds"]],
        "outcomes": dict(sorted(seen.counts.items())),
    }
    faults = [*seen.faults]
    for name in ("tortoise_rt_in_flight", "tortoise_rt_calls_in_flight", "tortoise_rt_rows_used"):
        if after[name]:
            faults.append(f"{name} is {after[name]:g} in the end")
    if after["process_open_fds"] > before["process_open_fds"] + MORE_FILES:
        faults.append("files were left open")
    if options.minutes >= LONG and growth > MOST_GROWTH:
        faults.append(f"memory grew by {growth:.1%} in the last half")
    if not seen.first or not seen.whole:
        faults.append("nothing was heard: more --minutes are needed")
    if wait > MOST_WAIT:
        faults.append(f"the first sound took {wait:.1f} times as long as alone")
    return row, faults


def grown(memory: list[float]) -> float:
    """How much the line through the last half rises in its time, as a share of where it begins."""
    half = memory[len(memory) // 2 :]
    if len(half) < 2:
        return 0.0
    slope, start = np.polyfit(np.arange(len(half)), half, 1)
    return round(float(slope * (len(half) - 1) / start), 4)


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 3) if values else 0.0 for p in PERCENTILES}


def told(values: list[float]) -> str:
    return ", ".join(f"{name} {value:.2f} s" for name, value in percentiles(values).items())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--share", type=float, default=0.7, help="of what the server gets through")
    parser.add_argument("--requests", type=int, default=24, help="different ones")
    parser.add_argument("--strict", action="store_true", help="a strict server: the same samples to the bit")
    parser.add_argument("--engine", type=Path, help="a bundle; the demo otherwise")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="append JSON lines to this file")
    options = parser.parse_args()
    arguments = ["--strict"] * options.strict + (["--engine", str(options.engine)] if options.engine else [])
    with server(arguments) as process:
        row, faults = asyncio.run(measure(process.url, options))
    faults += process.faults
    row |= {"faults": faults[:20], "fault_count": len(faults)}
    print(json.dumps({name: value for name, value in row.items() if name != "memory_mib"}, indent=1))
    if options.output is not None:
        with options.output.open("a") as file:
            file.writelines(
                json.dumps(line) + "\n" for line in ({**environment(), "benchmark": "service"}, row)
            )
    print("FAILED" if faults else "every result was the one alone, and nothing was left behind")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
