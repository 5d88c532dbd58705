"""Whether the C library touches memory that it must not, or loses any: valgrind over engines opened, used and closed.

    python benchmarks/capi_memcheck.py [--engine BUNDLE] [--cycles 50] [-o results.jsonl]

It first lets a program leak, which must be found. "Ours" is what the library's C code or the program does itself; what
Python and its packages do on their own account is only counted. Exits with 1 where something of ours is found. Takes minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from capi import TOKENIZER, compiled

from tortoise_rt.machine import environment

OURS = {"tortoise_rt.c", "python.c", "capi_load.c"}
OTHERS = ("libpython", "site-packages", "lib-dynload", "ld-linux")  #: whose frames end what is ours
ALLOCATOR = "vgpreload"
Row = dict[str, Any]


def is_ours(error: ET.Element) -> bool:
    """Whether our code is what did it: nearer than any frame of Python's and its packages."""
    for frame in error.findall("stack[1]/frame"):
        if frame.findtext("file") in OURS:
            return True
        if any(part in frame.findtext("obj", "") for part in OTHERS):
            return False
    return False


def checked(program: Path, engine: Sequence[str], *work: str) -> Row:
    """What valgrind finds in a run."""
    report = program.with_suffix(".xml")
    command = ["valgrind", "--xml=yes", f"--xml-file={report}", "--leak-check=full", "--show-leak-kinds=definite",
               "--num-callers=50", str(program), *engine, "codes=8", *work]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    kinds: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for error in ET.parse(report).getroot().findall("error"):
        kinds[is_ours(error)][error.findtext("kind", "")] += 1
    return {"work": list(work), "ours": dict(kinds[True]), "others": dict(kinds[False])}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", type=Path, help="a bundle [default: no networks, which is quick]")
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("-o", "--output", type=Path, help="append JSON lines to this file")
    options = parser.parse_args()
    fake = ("backend=fake", f"tokenizer={TOKENIZER}")
    engine = fake if options.engine is None else (f"engine={options.engine.resolve()}",)
    with tempfile.TemporaryDirectory() as folder:
        program = compiled(Path(folder))
        if checked(program, fake, "leak=1")["ours"].keys() != {"Leak_DefinitelyLost"}:
            raise SystemExit("a leak was not found")
        rows = [
            checked(program, engine, *work)
            for work in ([f"cycles={options.cycles}"], ["stream=1", "threads=4", "requests=3"])
        ]
    for row in rows:
        print(
            f"{' '.join(row['work'])}: of ours {row['ours'] or 'nothing'}; of others {row['others'] or 'nothing'}"
        )
    if options.output:
        version = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True).stdout
        about = {
            **environment(),
            "benchmark": "capi_memcheck",
            "valgrind": version.strip(),
            "engine": str(options.engine or "fake"),
        }
        with options.output.open("a") as file:
            file.writelines(
                json.dumps(row) + "\n" for row in [about, *({"kind": "memcheck", **r} for r in rows)]
            )
    return any(row["ours"] for row in rows)


if __name__ == "__main__":
    sys.exit(main())
