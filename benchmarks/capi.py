"""What the C library costs beside the Python API, and what threads gain by sharing an engine.

    python benchmarks/capi.py [--engine BUNDLE] [--repeats 7] [-o results.jsonl]

It verifies first that C and Python say the same to the bit; then, each by turns: a process from its start to its first clip,
a call with as good as nothing to compute, eight threads at once beside one after another, and the memory of 500 clips
and of 50 engines.
Exits with 1 over a limit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tortoise_rt.capi.build import build
from tortoise_rt.machine import environment

MAX_START = 1.2  #: times Python's own
MAX_CALL_MS = 1.0  #: beside Python's own
LEAST_GAIN = 1.5  #: in clips a second, of threads that share steps
MAX_GROWN_MIB = 8.0  #: from the 100th clip to the 500th, from the 10th engine to the 50th
HERE = Path(__file__).parent
TOKENIZER = HERE.parent / "tests" / "data" / "tokenizer.json"
TEXT = "Hello there, how are you today?"
Row = dict[str, Any]

#: as capi_load.c does it: what it prints, but for memory
PYTHON = """
import json, sys, time
start = time.monotonic()
from tortoise_rt.defaults import default_voice, settings_for
from tortoise_rt.scheduler import Scheduler
from tortoise_rt.tts import choose_engine, choose_tokenizer
from tortoise_rt.voice import load_voice
given = json.loads(sys.argv[1])
engine = choose_engine(given.get("engine"), backend=given.get("backend", "auto"))
scheduler = Scheduler(engine, choose_tokenizer(engine, given.get("tokenizer")))
settings = settings_for(engine, decoder="hifigan", num_autoregressive_samples=1, max_mel_tokens=given.get("codes"))
voice = load_voice(default_voice(engine), paths=False)
say = lambda seed: scheduler.submit(given["text"], voice, settings, seed).result().wavs[0]
say(0)
first = time.monotonic() - start
wavs, spent = [], []
for seed in range(given["requests"]):
    start = time.monotonic()
    wavs.append(say(seed))
    spent.append(time.monotonic() - start)
def fnv(data, seen=14695981039346656037):
    for byte in data:
        seen = ((seen ^ byte) * 1099511628211) % 2**64
    return f"{seen:016x}"
hashes = [fnv(wav.tobytes()) for wav in wavs] if given.get("verify") else []
scheduler.close()
print(json.dumps({"first_s": first, "median_s": sorted(spent)[len(spent) // 2], "hashes": hashes}))
"""


def timed(command: Sequence[str | Path]) -> Row:
    """What a program reports, with the seconds that its process took."""
    start = time.perf_counter()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    spent = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return {**json.loads(done.stdout), "process_s": spent}


def by_c(program: Path, **given: Any) -> Row:
    return timed([program, *(f"{name}={value}" for name, value in given.items())])


def by_python(**given: Any) -> Row:
    return timed([sys.executable, "-c", PYTHON, json.dumps({"text": TEXT, "requests": 1, **given})])


def by_turns(repeats: int, *measures: Callable[[], float]) -> list[list[float]]:
    """``repeats`` values of each, taken by turns behind one that does not count."""
    for measure in measures:
        measure()
    return [list(column) for column in zip(*([m() for m in measures] for _ in range(repeats)), strict=True)]


def compared(kind: str, unit: str, c: list[float], python: list[float]) -> Row:
    """The least of each is compared: what else the machine does only adds to it."""
    return {
        "kind": kind, f"c_{unit}": c, f"python_{unit}": python, "ratio": min(c) / min(python), "difference": min(c) - min(python)
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", type=Path, help="a bundle [default: the demo]")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path, help="append JSON lines to this file")
    options = parser.parse_args()
    engine = {} if options.engine is None else {"engine": str(options.engine.resolve())}
    tiny = {"backend": "fake", "tokenizer": str(TOKENIZER), "codes": 2, "requests": 300}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        program = compiled(Path(folder))
        if (
            by_c(program, **engine, requests=2)["hashes"]
            != by_python(**engine, requests=2, verify=True)["hashes"]
        ):
            raise SystemExit("C and Python do not say the same")
        start = by_turns(
            options.repeats,
            lambda: by_c(program, **engine)["process_s"],
            lambda: by_python(**engine)["process_s"],
        )
        rows.append(compared("start", "s", *start))
        calls = by_turns(
            options.repeats,
            lambda: 1000 * by_c(program, **tiny)["median_s"],
            lambda: 1000 * by_python(**tiny)["median_s"],
        )
        rows.append(compared("call", "ms", *calls))
        rows.append(threads(program, engine, max(1, options.repeats // 2)))
        rows.append(memory("clips", 500, by_c(program, **engine, requests=500)))
        rows.append(memory("engines", 50, by_c(program, **engine, cycles=50)))
    report(rows)
    if options.output:
        about = {**environment(), "benchmark": "capi", **engine}
        with options.output.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in [about, *rows])
    problems = over(rows)
    for problem in problems:
        print(problem, file=sys.stderr)
    return bool(problems)


def compiled(folder: Path) -> Path:
    library = build(folder / "capi").parent
    program = folder / "capi_load"
    subprocess.run(
        [os.environ.get("CC", "cc"), "-std=c99", "-O2", "-g", str(HERE / "capi_load.c"), f"-I{library.parent / 'include'}", f"-L{library}",
         f"-Wl,-rpath,{library}", "-ltortoise_rt", "-pthread", "-o", str(program)], check=True,
    )  # fmt: skip
    return program


def threads(program: Path, engine: Row, repeats: int) -> Row:
    """Eight threads with five clips each, at once and one after another."""
    work = {**engine, "threads": 8, "requests": 5}
    found: dict[int, Row] = {}

    def seconds(aside: int) -> float:
        found[aside] = by_c(program, **work, aside=aside)
        return float(found[aside]["seconds"])

    together, apart = by_turns(repeats, lambda: seconds(1), lambda: seconds(0))
    return {
        "kind": "threads", "threads": 8, "clips": 40, "together_s": together, "apart_s": apart,
        "gain": statistics.median(apart) / statistics.median(together),
        "rows_a_step": found[1]["decoded"] / found[1]["steps"], "rows_a_step_apart": found[0]["decoded"] / found[0]["steps"],
    }  # fmt: skip


def memory(what: str, count: int, found: Row) -> Row:
    """After a fifth of so many clips, or engines opened and closed, and after all."""
    return {
        "kind": "memory",
        what: count,
        "early_mib": found["early_kib"] / 1024,
        "late_mib": found["late_kib"] / 1024,
    }


def report(rows: Sequence[Row]) -> None:
    start, call, side, clips, engines = rows
    print(f"start to first clip: {start['ratio']:.3f} times Python's ({min(start['python_s']):.2f} s)")
    print(f"a call: {call['difference']:+.3f} ms beside Python's ({min(call['python_ms']):.2f} ms)")
    print(f"8 threads at once: {side['gain']:.2f} times as fast, {side['rows_a_step']:.1f} rows a step")
    for row, what in ((clips, "clip"), (engines, "engine")):
        early, late = row["early_mib"], row["late_mib"]
        print(f"memory: {early:.1f} MiB after a fifth of {row[what + 's']} {what}s, {late:.1f} after all")


def over(rows: Sequence[Row]) -> list[str]:
    """What is over its limit."""
    start, call, side, clips, engines = rows
    grown = max(row["late_mib"] - row["early_mib"] for row in (clips, engines))
    checks = [
        (start["ratio"] > MAX_START, f"starting takes over {MAX_START} times as long as in Python"),
        (call["difference"] > MAX_CALL_MS, f"a call takes over {MAX_CALL_MS} ms more than in Python"),
        (side["gain"] < LEAST_GAIN, f"threads that share an engine gain less than {LEAST_GAIN} times"),
        (grown > MAX_GROWN_MIB, f"memory grew by over {MAX_GROWN_MIB} MiB"),
    ]
    return [problem for wrong, problem in checks if wrong]


if __name__ == "__main__":
    sys.exit(main())
