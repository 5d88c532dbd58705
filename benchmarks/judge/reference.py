"""The reference in a process of its own, which times itself on request (see reference_worker.py)."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("reference_worker.py")


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the reference beside it")
    group.add_argument(
        "--reference",
        type=Path,
        metavar="PYTHON",
        help="the Python of an environment with tortoise-tts 3.0.0",
    )
    group.add_argument(
        "--reference-source",
        type=Path,
        metavar="DIR",
        help="its unpacked sdist, where it is not installed there",
    )
    group.add_argument(
        "--checkpoints", type=Path, metavar="DIR", help="the checkpoints the bundle is made of"
    )


class Reference:
    """One worker process. ``ask`` runs a job there and waits for its answer."""

    def __init__(self, python: Path, checkpoints: Path, source: Path | None = None) -> None:
        command = [str(python), str(WORKER), "--checkpoints", str(checkpoints)]
        if source is not None:
            command += ["--source", str(source)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """The worker's answer; raises RuntimeError where the job failed there."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"what": what, **arguments}) + "\n")
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process ended"}
        if "error" in answer:
            raise RuntimeError(f"the reference, asked for {what}: {answer['error']}")
        return answer

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def chosen(options: argparse.Namespace) -> Reference | None:
    """What ``add_options`` asks for."""
    if options.reference is None:
        return None
    if options.checkpoints is None:
        raise SystemExit("--reference needs --checkpoints")
    return Reference(options.reference, options.checkpoints, options.reference_source)
