"""A suite of parts within a time: parts run in a process that may break or hang, and what was not reached is said."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tortoise_rt.errors import MissingDependency

Row = dict[str, Any]
Emit = Callable[[Row], None]
SECONDS = 510.0  #: of a suite
MOST = 240.0  #: of a part


class Skip(Exception):
    """There is nothing to do here; says why."""


def guarded(what: str, rows: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """The rows, and one of how long they took; instead of the rest, why there is no more."""
    start = time.perf_counter()
    try:
        yield from rows()
    except Exception as error:  # one that breaks must not take the others' time
        if reason := _lacking(error):
            yield {"kind": "skip", "what": what, "reason": reason}
        else:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            yield broken(what, f"{type(error).__name__}: {error}") | {"at": place}
    yield {"kind": "took", "what": what, "seconds": round(time.perf_counter() - start, 1)}


def _lacking(error: Exception) -> str | None:
    """Why there is nothing to do here, if that is the error: a package that is there but lacks a module is no reason."""
    if isinstance(error, MissingDependency | Skip):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
        return f"{error.name} is not installed"
    return None


def broken(what: str, error: str) -> Row:
    """The row of a part that did not work."""
    return {"kind": "broken", "what": what, "error": error, "ok": False}


def supervise(
    command: Sequence[str], parts: Sequence[str], emit: Emit, seconds: float = SECONDS, most: float = MOST
) -> None:
    """Runs ``command`` with the names of parts behind it, which prints the rows of each in turn, as ``guarded`` makes them.

    A part that ends the process, or takes longer than ``most``, is broken, and the others go on in a new process. When
    ``seconds`` are over all ends, and the rest is not reached.
    """
    left, end = list(parts), time.monotonic() + seconds
    while left and time.monotonic() < end:
        error = _run([*command, *left], left, emit, end, most)
        if left and time.monotonic() < end:
            emit(broken(left.pop(0), error))
    for what in left:
        emit({"kind": "not reached", "what": what, "reason": f"the {seconds:g} s of the suite were over"})


def _run(command: Sequence[str], left: list[str], emit: Emit, end: float, most: float) -> str:
    """Takes what is done from ``left``; -> why the process did not do the next."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    begun = time.monotonic()
    try:
        while left:
            line = lines.get(timeout=max(0.0, min(end, begun + most) - time.monotonic()))
            if line is None:
                return f"the process ended with {process.wait()}"
            row = _row(line)
            if row is None:
                sys.stderr.write(line)
                continue
            emit(row)
            if (row.get("kind"), row.get("what")) == ("took", left[0]):
                left.pop(0)
                begun = time.monotonic()
        return ""
    except queue.Empty:
        return f"it took longer than {most:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _row(line: str) -> Row | None:
    """A row; None for what else libraries print."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
