"""What callers hold: numbers that look like pointers, and what is behind them."""

from __future__ import annotations

import itertools
import threading
from typing import Any, Generic, TypeVar

from .status import Closed

T = TypeVar("T")
_numbers = itertools.count(16, 16)  #: never given twice, whatever the kind: a job's is no engine's


class Handles(Generic[T]):
    """The open handles of one kind. Thread-safe."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._open: dict[int, T] = {}

    def add(self, content: T) -> int:
        """-> its handle."""
        with self._lock:
            number = next(_numbers)
            self._open[number] = content
        return number

    def get(self, number: int) -> T:
        """Raises Closed."""
        with self._lock:
            if number not in self._open:
                raise Closed(f"there is no such {self._kind}: it was closed, or it is something else")
            return self._open[number]

    def take(self, number: int) -> T:
        """Close a handle; -> what was behind it. Raises Closed."""
        with self._lock:
            if number not in self._open:
                raise Closed(f"there is no such {self._kind}: it was closed already, or it is something else")
            return self._open.pop(number)

    def take_of(self, engine: Any) -> list[T]:
        """Close all handles whose ``engine`` that is, but for those that are ``lent``; -> what is behind all of them."""
        with self._lock:
            found = {number: content for number, content in self._open.items() if content.engine is engine}  # type: ignore[attr-defined]
            for number, content in found.items():
                if not getattr(content, "lent", False):
                    del self._open[number]
            return list(found.values())

    def numbers(self) -> list[int]:
        """Those that are open."""
        with self._lock:
            return list(self._open)
