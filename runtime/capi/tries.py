"""A clip that is checked: drawn again while an aligner hears something else than its text."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait
from typing import Any

from ..checking import retried
from ..conditioning import one_voice
from ..config import Settings, check_number
from ..pipeline import Result
from ..scheduler import Handle, Priority, Scheduler
from ..scheduler.scheduler import LONGEST
from ..voice import Voice, VoiceLatents


class Tries:
    """Such a clip in flight, with what is used of a Handle. ``timeout``: seconds for all tries together."""

    def __init__(
        self,
        scheduler: Scheduler,
        text: str,
        voice: Voice | VoiceLatents | None,
        settings: Settings,
        seed: int,
        *,
        priority: Priority,
        timeout: float | None,
    ) -> None:
        """Raises as Scheduler.submit does."""
        if timeout is not None:
            check_number("timeout", timeout, 0, LONGEST)
        self._scheduler, self._text, self._settings, self._priority = scheduler, text, settings, priority
        self._ends = None if timeout is None else time.monotonic() + timeout
        self._cancelled = False
        self._made = Future[Result]()
        finding = scheduler.call(lambda engine: one_voice(engine, voice, settings, seed), priority)
        self._handle: Handle[Any] = finding
        threading.Thread(target=self._run, args=(finding, seed), name="tries", daemon=True).start()

    def wait(self, timeout: float | None = None) -> bool:
        """Until it has ended, in whatever way, or ``timeout`` seconds have passed; -> whether it has."""
        return bool(wait([self._made], timeout).done)

    def result(self) -> Result:
        """Wait for the result; raises what it failed with."""
        return self._made.result()

    def cancel(self) -> None:
        """Give it up. Nothing happens when it has ended."""
        self._cancelled = True
        self._handle.cancel()

    def _run(self, finding: Handle[Voice | VoiceLatents], seed: int) -> None:
        try:
            voice = finding.result()
            self._made.set_result(retried(lambda s: self._try(voice, s), seed, self._settings.max_retries))
        except BaseException as error:  # whatever it is, whoever waits gets it
            self._made.set_exception(error)

    def _try(self, voice: Voice | VoiceLatents, seed: int) -> Result:
        left = None if self._ends is None else max(0.0, self._ends - time.monotonic())
        handle = self._scheduler.submit(
            self._text, voice, self._settings, seed, priority=self._priority, timeout=left, continues=True
        )
        self._handle = handle
        if self._cancelled:  # looked at after the handle is there to be cancelled
            handle.cancel()
        return handle.result()
