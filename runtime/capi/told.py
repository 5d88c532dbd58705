"""The log as C programs get it: by a function of theirs."""

from __future__ import annotations

import ctypes
import io
import logging
import queue
import threading

log = logging.getLogger("tortoise_rt")
_setting = threading.Lock()
_function_type = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class Printed(io.TextIOBase):
    """Takes what libraries print: it goes to the log, as the standard streams are the caller's."""

    def write(self, text: str) -> int:
        if text.strip():
            log.info("%s", text.rstrip())
        return len(text)


class Told(logging.Handler):
    """Passes the log on to a function of the caller's.

    That runs in a thread of its own, on which nothing else waits: it may take its time, and call what it likes.
    """

    def __init__(self, function: int, user: int, level: int) -> None:
        super().__init__(level)
        self._messages = queue.SimpleQueue[tuple[int, bytes] | None]()
        self._thread = threading.Thread(
            target=self._tell, args=(_function_type(function), user), name="log", daemon=True
        )
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = self.format(record)
        except Exception as error:
            message = f"{record.msg} ({error})"
        self._messages.put((record.levelno, message.encode("utf-8", "replace")))

    def end(self, seconds: float | None) -> None:
        """Wait until all that was logged is told, ``seconds`` at most; but not in the function itself, which goes on."""
        self.close()
        self._messages.put(None)
        if self._thread.ident != threading.get_ident():
            self._thread.join(seconds)

    def _tell(self, function: ctypes._FuncPointer, user: int) -> None:
        for level, message in iter(self._messages.get, None):
            function(level, message, user)


def tell(function: int, user: int, level: int, seconds: float | None = None) -> None:
    """Have messages from a level on told to ``function`` from now on; 0: to nobody.

    Waits ``seconds`` at most until the function before has run for the last time.
    """
    made = Told(function, user, level) if function else None
    with _setting:
        before = [handler for handler in log.handlers if isinstance(handler, Told)]
        for handler in before:
            log.removeHandler(handler)
        if made is not None:
            log.addHandler(made)
        log.setLevel(logging.WARNING if made is None else level)
    for handler in before:
        handler.end(seconds)
