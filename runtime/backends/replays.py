"""Work on a ``Device`` that repeats: recorded, and then launched as a whole."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import EngineError
from .device import Device, Recording

MOST_RECORDED = 64  #: kept; the one that was not used for longest goes first
T = TypeVar("T")

log = logging.getLogger("tortoise_rt")


@dataclass
class _Known:
    """Work that was queued before."""

    result: Any
    recording: Recording | None = None
    tried: bool = False  #: to record it; what cannot be recorded is not tried again


class Replays:
    """The first time, work is queued as it is; the second time, it is recorded as well; from then on that is launched.

    Only then: what a library puts off until it first runs in some shapes would else be left out. What cannot be recorded is
    always queued as it is, and a warning says so. Not for several threads at a time.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self.recorded = self.refused = 0  #: recordings made, and those that could not be
        self._known: OrderedDict[tuple[Any, ...], _Known] = OrderedDict()

    def __call__(self, key: tuple[Any, ...], work: Callable[[], T]) -> T:
        """Queue ``work``, which must always be the same for a ``key``, addresses included; -> its result, the first one.

        The key begins with what to call it.
        """
        known = self._known.get(key)
        if known is None:
            known = _Known(work())
        elif known.recording is not None:
            self._device.launch(known.recording)
        else:
            work()
            if not known.tried:
                known.recording, known.tried = self._record(key[0], work), True
        self._known[key] = known
        self._known.move_to_end(key)
        if len(self._known) > MOST_RECORDED:
            self._known.popitem(last=False)
        return known.result

    def _record(self, name: str, work: Callable[[], Any]) -> Recording | None:
        try:
            recording = self._device.record(work)
        except EngineError as error:
            self.refused += 1
            log.warning("%s is not recorded, and takes longer: %s", name, error)
            return None
        self.recorded += 1
        return recording

    def clear(self) -> None:
        """Forget all: memory that it uses is given back."""
        self._known.clear()
