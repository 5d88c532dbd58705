"""``tortoise-rt read`` killed at random moments, until it is done: the result is that of a run that nobody kills.

    python benchmarks/killed_reading.py [--kills 30] [--sentences 40] [--engine BUNDLE] [--options '...'] [-o results.jsonl]

Kills with SIGKILL, goes on with the same command, and begins another folder whenever one is done, until there were so
many kills. Every file of every folder must be the undisturbed one's, byte for byte, and no clip may be made twice: one
that was there at a kill is the same file, of the same time, at the end. Exits with 1 where that is not so.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tortoise_rt.machine import environment

SENTENCES = Path(__file__).parent / "sentences"
Files = dict[str, bytes]


def book(sentences: int) -> str:
    """A text in which each sentence is a clip."""
    lines = [
        line
        for name in ("everyday", "harvard", "long")
        for line in (SENTENCES / f"{name}.txt").read_text("utf-8").splitlines()
    ]
    return " |\n".join(lines[:sentences]) + "\n"


def contents(folder: Path) -> Files:
    """Every file of a reading."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def clips(folder: Path) -> dict[str, tuple[int, int]]:
    """The clips that are there: name -> which file it is, and when it was written."""
    found = {}
    for path in folder.glob("clips/[0-9]*.wav"):
        status = path.stat()
        found[path.name] = (status.st_ino, status.st_mtime_ns)
    return found


def check(kills: int, sentences: int, options: Sequence[str], seed: int) -> dict[str, Any]:
    """Read undisturbed, then with kills; -> what was seen."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as work:
        text, whole, folder = (Path(work) / name for name in ("book.txt", "whole", "killed"))
        text.write_text(book(sentences), "utf-8")
        command = [
            sys.executable,
            "-m",
            "tortoise_rt",
            "read",
            str(text),
            "--seed",
            "7",
            "-q",
            *options,
            "-o",
        ]
        began = time.monotonic()
        subprocess.run([*command, str(whole)], check=True)
        seconds, wanted = time.monotonic() - began, contents(whole)
        killed = readings = made = twice = different = 0
        present: dict[str, tuple[int, int]] = {}
        while killed < kills or folder.exists() or not readings:
            process = subprocess.Popen([*command, str(folder)])
            try:
                status = process.wait(rng.uniform(0, seconds) if killed < kills else None)
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
                killed += 1
            before, present = present, clips(folder)
            twice += sum(present.get(name) != file for name, file in before.items())
            made += sum(name not in before for name in present)
            if status == 0:
                readings += 1
                different += contents(folder) != wanted
                shutil.rmtree(folder)
                present = {}
            elif status > 0:
                raise SystemExit(f"read failed with {status}")
    return {"sentences": sentences, "seconds": round(seconds, 2), "kills": killed, "readings": readings,
            "clips_made": made, "clips_made_twice": twice, "readings_that_differ": different}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--sentences", type=int, default=40)
    parser.add_argument("--engine", help="a bundle [default: the demo]")
    parser.add_argument("--options", default="", help="further ones of read, in quotes")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("-o", "--output", type=Path, help="append JSON lines to this file")
    chosen = parser.parse_args(arguments)
    options = [*(["--engine", chosen.engine] if chosen.engine else []), *shlex.split(chosen.options)]
    row = {"benchmark": "killed_reading", **check(chosen.kills, chosen.sentences, options, chosen.seed)}
    print(json.dumps(row))
    if chosen.output:
        with chosen.output.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in ({**environment(), **row},))
    wanted = row["readings"] * row["sentences"]
    if row["clips_made_twice"] or row["readings_that_differ"] or row["clips_made"] != wanted:
        raise SystemExit("a reading differs, or a clip was made twice")


if __name__ == "__main__":
    main()
