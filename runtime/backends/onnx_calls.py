"""Who may call ONNX Runtime on a GPU, and when."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Calls:
    """Calls of all engines of a process: side by side, but for one that records, which is alone.

    While a stream of ONNX Runtime's records, CUDA refuses any thread of the process what cannot be recorded, as
    allocating and waiting, and the recording fails with it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._recording = False  # or about to

    @contextlib.contextmanager
    def beside_others(self) -> Iterator[None]:
        """For calls that record nothing."""
        with self._changed:
            self._changed.wait_for(lambda: not self._recording)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """For a call that records, of a thread that is in no other call."""
        with self._changed:
            self._changed.wait_for(lambda: not self._recording)
            self._recording = True
            self._changed.wait_for(lambda: not self._running)
        try:
            yield
        finally:
            with self._changed:
                self._recording = False
                self._changed.notify_all()


CALLS = Calls()  #: of the process
