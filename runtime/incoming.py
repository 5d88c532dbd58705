"""Text that is still being written, from whoever has it to whoever reads it aloud."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

from .errors import TextError


class IncomingText:
    """Text that comes in on one side and is iterated over, in a thread, on the other. At most ``most`` characters."""

    def __init__(self, most: int) -> None:
        self._parts: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._left, self._most = most, most
        self.ended = False

    def add(self, part: Any) -> None:
        if not isinstance(part, str):
            raise TextError(f"text must be a string, not {part!r:.40}")
        try:
            part.encode()
        except UnicodeError:
            raise TextError("the text has half a surrogate pair in it: send valid Unicode") from None
        self._left -= len(part)
        if self._left < 0:
            raise TextError(f"the text has more than {self._most} characters, the limit: start again")
        if part:  # nothing would cost nothing of what is left, and could be sent for ever
            self._parts.put(part)

    def end(self) -> None:
        self.ended = True
        self._parts.put(None)

    def __iter__(self) -> Iterator[str]:
        while (part := self._parts.get()) is not None:
            yield part
