"""Progress on a terminal, one line per stage; silent elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType

WIDTH = 30
_REDRAW_SECONDS = 0.1


class Bar:
    """Called with (stage, done, total); draws on standard error when that is a terminal."""

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled and sys.stderr.isatty()
        self._stage = ""
        self._drawn_at = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not self._enabled:
            return
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._drawn_at < _REDRAW_SECONDS:
            return
        self._stage, self._drawn_at = stage, now
        filled = WIDTH * done // max(total, 1)
        sys.stderr.write(f"\r\x1b[K{stage:<28} [{'#' * filled}{'-' * (WIDTH - filled)}] {done}/{total}")
        sys.stderr.flush()

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled and self._stage:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first a heading, in aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )
