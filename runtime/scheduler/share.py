"""A scheduler as one of its callers uses it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ..config import Settings
from ..engine import Engine
from ..errors import Cancelled
from ..pipeline import Result
from ..voice import Voice, VoiceLatents
from .policy import Priority
from .protocol import AnyScheduler
from .request import Handle

T = TypeVar("T")


class Share:
    """Submits with one priority. When it is closed, what it has in flight is given up, and nothing else of the scheduler."""

    def __init__(self, scheduler: AnyScheduler, priority: Priority) -> None:
        self._scheduler, self._priority = scheduler, priority
        self._lock = threading.Lock()
        self._handles: set[Handle[Any]] = set()
        self._closed = False

    def submit(
        self, text: str, voice: Voice | VoiceLatents | None, settings: Settings, seed: int
    ) -> Handle[Result]:
        """As Scheduler.submit; raises Cancelled once it is closed."""
        return self._keep(
            lambda: self._scheduler.submit(text, voice, settings, seed, priority=self._priority)
        )

    def call(self, work: Callable[[Engine], T]) -> Handle[T]:
        """As Scheduler.call; raises Cancelled once it is closed."""
        return self._keep(lambda: self._scheduler.call(work, self._priority))

    def _keep(self, begin: Callable[[], Handle[T]]) -> Handle[T]:
        with self._lock:
            if self._closed:
                raise Cancelled("it was given up")
            self._handles = {handle for handle in self._handles if not handle.done}
            handle = begin()
            self._handles.add(handle)
        return handle

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for handle in self._handles:
                handle.cancel()

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
