"""What ONNX Runtime's session options do to the hot graphs: time, memory and loading, each option against the default.

    python benchmarks/session_options.py --engine BUNDLE [-o results.jsonl]

Each option is measured in a process of its own, by turns, as memory once taken is never quite given back.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt.backends import open_engine
from tortoise_rt.bench_graphs import graph_cases
from tortoise_rt.cli.progress import table
from tortoise_rt.machine import environment, resident_mib

Row = dict[str, Any]
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "no spinning": {"entries": {"session.intra_op.allow_spinning": "0"}},
    "no arena": {"attributes": {"enable_cpu_mem_arena": False}},
    "memory pattern": {"attributes": {"enable_mem_pattern": True}},  # which the runtime turns off
    "no prepacking": {"entries": {"session.disable_prepacking": "1"}},
    "one thread": {"attributes": {"intra_op_num_threads": 1}},
    "denormals as zero": {"entries": {"session.set_denormal_as_zero": "1"}},
}
HOT = ("decode, 1 rows", "decode, 16 rows", "prompt of 64", "denoise", "clvp_speech", "hifigan", "univnet")


def measure(bundle: Path, name: str, repeats: int) -> Row:
    """One option, in this process: milliseconds of each hot graph, seconds to load them, MiB held and at most."""
    import onnxruntime

    option = OPTIONS[name]
    original = onnxruntime.InferenceSession
    threads = option.get("attributes", {}).get("intra_op_num_threads")

    def load(path: str, options: Any, **rest: Any) -> Any:
        for key, value in option.get("entries", {}).items():
            options.add_session_config_entry(key, value)
        for key, value in option.get("attributes", {}).items():
            setattr(options, key, value)
        return original(path, options, **rest)

    onnxruntime.InferenceSession = load
    engine = open_engine(bundle)
    if threads:
        engine._threads = threads  # type: ignore[attr-defined]
    row: Row = {"kind": "session_options", "option": name}
    cases = [case for case in graph_cases(engine) if any(part in f"{case.graph} {case.what}" for part in HOT)]
    began = time.perf_counter()
    for graph in dict.fromkeys(case.graph for case in cases):
        engine.session(graph)  # type: ignore[attr-defined]
    row["load_s"] = round(time.perf_counter() - began, 2)
    row["loaded_mib"] = round(resident_mib())
    for case in cases:
        run = case.prepare(engine)
        seconds = []
        run()
        for _ in range(repeats):
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
        row[f"{case.graph} {case.what}"] = round(1e3 * float(np.median(seconds)), 1)
    row["held_mib"] = round(resident_mib())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", type=Path, required=True, help="a bundle")
    parser.add_argument("--repeats", type=int, default=3, help="of each graph in a process")
    parser.add_argument("--rounds", type=int, default=2, help="processes for each option, by turns")
    parser.add_argument("--option", choices=OPTIONS, help="only this one, in this process; prints JSON")
    parser.add_argument("-o", "--output", type=Path, help="append JSON lines to this file")
    options = parser.parse_args()
    if options.option:
        print(json.dumps(measure(options.engine, options.option, options.repeats)))
        return
    rows: list[Row] = []
    for _ in range(options.rounds):
        for name in OPTIONS:
            command = [sys.executable, __file__, "--engine", str(options.engine), "--option", name]
            made = subprocess.run(
                [*command, "--repeats", str(options.repeats)], stdout=subprocess.PIPE, text=True, check=True
            )
            rows.append(json.loads(made.stdout.splitlines()[-1]))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    names = [key for key in rows[0] if key not in ("kind", "option")]
    found = {name: [row for row in rows if row["option"] == name] for name in OPTIONS}
    middle = {
        name: {key: statistics.median(r[key] for r in rs) for key in names} for name, rs in found.items()
    }
    lines = [("", *OPTIONS)]
    lines += [(key, *(f"{middle[name][key]:g}" for name in OPTIONS)) for key in names]
    print(table(lines))
    if options.output:
        about = {**environment(), "benchmark": "session_options", "engine": str(options.engine.name)}
        with options.output.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in (about, *rows))


if __name__ == "__main__":
    main()
