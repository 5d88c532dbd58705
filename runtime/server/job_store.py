"""Jobs as they are kept: a line each in SQLite, and a folder each beside it."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..output import locked_folder

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
_LISTS = ("files", "doubtful")


@dataclass
class Job:
    """One reading."""

    id: str
    owner: str  #: whose key asked for it; "" where there are no keys
    body: str  #: the request as JSON, but for its text
    source: str  #: name of the file with the text
    created: float  #: seconds since 1970
    total: int  #: clips
    status: str = WAITING
    made: int = 0  #: clips that are there
    error: str = ""
    files: list[dict[str, Any]] = field(default_factory=list)  #: name and bytes of each
    doubtful: list[int] = field(default_factory=list)  #: clips that may not say their text

    @property
    def ended(self) -> bool:
        return self.status in (DONE, FAILED, CANCELLED)


class JobStore:
    """The jobs in a folder. Every change is on disk when the call returns. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._held = ExitStack()
        columns = ", ".join(f"{f.name} PRIMARY KEY" if f.name == "id" else f.name for f in fields(Job))
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            busy = OutputError(f"another server has the jobs in {folder}: stop it, or name another folder")
            self._held.enter_context(locked_folder(folder, busy))
            self._base = sqlite3.connect(
                folder / "jobs.sqlite", check_same_thread=False, isolation_level=None
            )
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute(f"CREATE TABLE IF NOT EXISTS jobs ({columns})")
            # What ran when the process ended goes on from the clips that are there.
            self._base.execute("UPDATE jobs SET status = ? WHERE status = ?", (WAITING, RUNNING))
        except (OSError, sqlite3.Error) as error:
            raise OutputError(
                f"cannot keep jobs in {folder} ({error}): name another folder (--jobs)"
            ) from error

    def place(self, job: str) -> Path:
        """The folder of a job."""
        return self.folder / job

    def add(self, job: Job) -> None:
        row = _row(job)
        self._run(f"INSERT INTO jobs ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", *row.values())

    def change(self, job: str, **values: Any) -> None:
        """Set some of a job's fields."""
        stored = {name: json.dumps(value) if name in _LISTS else value for name, value in values.items()}
        self._run(
            f"UPDATE jobs SET {', '.join(f'{name} = ?' for name in stored)} WHERE id = ?",
            *stored.values(),
            job,
        )

    def remove(self, job: str) -> None:
        self._run("DELETE FROM jobs WHERE id = ?", job)

    def get(self, job: str) -> Job | None:
        return next(iter(self._find("id = ?", job)), None)

    def of(self, owner: str) -> list[Job]:
        """Those of one owner, the latest first."""
        return self._find("owner = ? ORDER BY created DESC", owner)

    def next(self) -> Job | None:
        """The one that has waited longest."""
        return next(iter(self._find("status = ? ORDER BY created LIMIT 1", WAITING)), None)

    def close(self) -> None:
        with self._lock:
            self._base.close()
            self._held.close()

    def _find(self, where: str, *values: Any) -> list[Job]:
        names = [f.name for f in fields(Job)]
        rows = self._run(f"SELECT {', '.join(names)} FROM jobs WHERE {where}", *values)
        found = [dict(zip(names, row, strict=True)) for row in rows]
        return [Job(**{**row, **{name: json.loads(row[name]) for name in _LISTS}}) for row in found]

    def _run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._base.execute(statement, values).fetchall()


def _row(job: Job) -> dict[str, Any]:
    return {name: json.dumps(value) if name in _LISTS else value for name, value in asdict(job).items()}


def now() -> float:
    return round(time.time(), 3)
