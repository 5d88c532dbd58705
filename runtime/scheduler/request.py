"""What the caller of ``submit`` holds of a request in flight."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")
MOST_PIECES = 8  #: that a stream makes ahead of whoever takes them


class Event(NamedTuple):
    """How far a stage is."""

    stage: str  #: as in pipeline.Progress: "sampling", "ranking", "diffusion", "vocoder"
    done: int
    total: int


class Handle(Generic[T]):
    """A request in flight. Safe to use from any thread."""

    def __init__(self, number: int, cancel: Callable[[], None]) -> None:
        self.number = number
        self._cancel = cancel
        self._ended = threading.Event()
        self.sampled = threading.Event()  #: set once all samples are drawn, or it has ended
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._result: T | None = None
        self._error: BaseException | None = None
        self.began, self.ended = time.monotonic(), math.inf  #: when, by time.monotonic, as all times here
        self.rests: list[
            tuple[float, float]
        ] = []  #: when nothing could be made of it, as nobody took what there was

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._ended.is_set()

    @property
    def failed(self) -> bool:
        """Whether it has ended without a result."""
        return self._error is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Until it has ended, in whatever way, or ``timeout`` seconds have passed; -> whether it has."""
        return self._ended.wait(timeout)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result; raises what the request failed with, or TimeoutError after ``timeout`` seconds."""
        if not self.wait(timeout):
            raise TimeoutError(f"request {self.number} is not done after {timeout:g} s")
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def busy(self) -> list[tuple[float, float]]:
        """When it was worked on, or waited for its turn: from, to. The last may go on."""
        edges = [self.began, *(edge for rest in list(self.rests) for edge in rest), self.ended]
        return list(zip(edges[::2], edges[1::2], strict=True))

    def events(self) -> Iterator[Event]:
        """What has happened since the last reading and what happens on, until the request ends. For one reader."""
        while (event := self._events.get()) is not None:
            yield event
        self._events.put(None)  # for whoever reads again

    def cancel(self) -> None:
        """Give the request up; its rows are free by the next step. Nothing happens when it has ended."""
        if not self.done:
            self._cancel()

    def tell(self, stage: str, done: int, total: int) -> None:
        """Pass an event on to the reader."""
        if stage == "sampling" and done == total:
            self.sampled.set()
        self._events.put(Event(stage, done, total))

    def end(self, result: T | None = None, error: BaseException | None = None) -> None:
        """Once: the result or the error."""
        self._result, self._error = result, error
        self.ended = time.monotonic()
        self._ended.set()
        self.sampled.set()
        self._events.put(None)


class StreamHandle(Handle[T]):
    """A request whose sound comes in pieces: iterate over it, once, from any one thread.

    What it failed with is raised behind the last piece. Whoever leaves the loop early gives the request up. It makes
    MOST_PIECES ahead, and waits where they are not taken: iterate over it or cancel it, or give it a timeout, as one that
    is merely dropped holds its place.
    """

    def __init__(self, number: int, cancel: Callable[[], None], taken: Callable[[int], None]) -> None:
        """``taken`` is called with the number whenever a piece was taken."""
        super().__init__(number, cancel)
        self._taken = taken
        self._pieces: deque[tuple[float, Any]] = deque()  #: and when each was made
        self.made = self.began  #: when the piece that was taken last was made
        self._news = threading.Condition()

    def __iter__(self) -> Iterator[Any]:
        try:
            while True:
                with self._news:
                    self._news.wait_for(lambda: self._pieces or self.done)
                    if not self._pieces:
                        break
                    self.made, piece = self._pieces.popleft()
                self._taken(self.number)
                yield piece
        finally:
            self.cancel()  # nothing where it has ended
        self.result()

    @property
    def has_room(self) -> bool:
        return len(self._pieces) < MOST_PIECES

    def put(self, piece: Any) -> None:
        """One piece more, for which there must be room."""
        with self._news:
            self._pieces.append((time.monotonic(), piece))
            self._news.notify_all()

    def end(self, result: T | None = None, error: BaseException | None = None) -> None:
        super().end(result, error)
        with self._news:
            self._news.notify_all()
