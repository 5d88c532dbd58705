"""What was given back of a GPU: calls of the driver that free it, made in one of the GPU's turns."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

Call = Callable[[], tuple[Any, ...]]  #: of the driver; -> an error, and what it gives

log = logging.getLogger("tortoise_rt")


class GivenBack:
    """Calls that free something. Any thread adds some at any time; whoever has the GPU makes them."""

    def __init__(self, fine: Any) -> None:
        """fine: the driver's word for what is no error."""
        self._fine = fine
        self._added: deque[tuple[Call, ...]] = deque()

    def add(self, *calls: Call) -> None:
        """Nothing comes between calls that are added together."""
        self._added.append(calls)

    def free(self) -> None:
        """Make all calls, in the order in which they were added.

        Whoever has the GPU now has no part in what fails, and what is behind it is freed still: it is logged.
        """
        while self._added:
            for call in self._added.popleft():
                self.fine(call())

    def fine(self, said: tuple[Any, ...]) -> bool:
        """Whether what the driver said is no error; one is logged."""
        if said[0] != self._fine:
            log.warning("the GPU could not free what was given back: %s", name_of(said[0]))
        return bool(said[0] == self._fine)


def free_all(driver: Any, context: Any, given_back: GivenBack, ends: Sequence[Call], end: Call) -> None:
    """Free what was given back to a device that nobody uses any more, end what it was made of, the last first, and with
    ``end`` its use of the context."""
    if given_back.fine(driver.cuCtxPushCurrent(context)):  # else there is no GPU left to free anything of
        given_back.add(*reversed(ends))
        given_back.free()
        driver.cuCtxPopCurrent()
    given_back.add(end)
    given_back.free()


def order(driver: Any, event: Any, first: int, then: int) -> Sequence[Call]:
    """The calls that have a stream wait for what another has queued when they are made."""
    return (
        lambda: driver.cuEventRecord(event, first),
        lambda: driver.cuStreamWaitEvent(then, event, 0),
    )


def name_of(error: Any) -> str:
    """The driver's name for an error."""
    return getattr(error, "name", str(error))
