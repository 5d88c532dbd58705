"""Exceptions -> the status codes of ``tortoise_rt.h``."""

from __future__ import annotations

import enum
import functools
import logging
from collections.abc import Callable
from typing import Any

from .. import errors

log = logging.getLogger("tortoise_rt")


class Status(enum.IntEnum):
    """``enum trt_status``, but for what the C side alone says."""

    OK = 0
    PENDING = 1
    END = 2
    ARGUMENT = 10
    CLOSED = 11
    TEXT = 12
    VOICE = 13
    AUDIO = 14
    SETTINGS = 15
    BUNDLE = 16
    ENGINE = 17
    BUSY = 18
    CANCELLED = 19
    TIMEOUT = 20
    OUTPUT = 21
    MEMORY = 22
    ENVIRONMENT = 23
    INTERNAL = 25


class Closed(Exception):
    """A handle that is not open."""


#: the first that an exception is one of counts
_STATUS: tuple[tuple[type[BaseException], Status], ...] = (
    (Closed, Status.CLOSED),
    (errors.TextError, Status.TEXT),
    (errors.VoiceError, Status.VOICE),
    (errors.AudioError, Status.AUDIO),
    (errors.SettingsError, Status.SETTINGS),
    (errors.InputError, Status.ARGUMENT),
    (errors.BundleError, Status.BUNDLE),
    (errors.CheckpointError, Status.BUNDLE),
    (errors.EngineError, Status.ENGINE),
    (errors.QueueFull, Status.BUSY),
    (errors.Cancelled, Status.CANCELLED),
    (errors.DeadlineExceeded, Status.TIMEOUT),
    (errors.RequestError, Status.CANCELLED),  # the engine was closed
    (errors.OutputError, Status.OUTPUT),
    (errors.MissingDependency, Status.ENVIRONMENT),
    (MemoryError, Status.MEMORY),
)


def answers(function: Callable[..., Status | None]) -> Callable[..., tuple[int, str]]:
    """``function`` as the C side calls it: -> (status, message), whatever it raises."""

    @functools.wraps(function)
    def answer(*arguments: Any) -> tuple[int, str]:
        try:
            return int(function(*arguments) or Status.OK), ""
        except BaseException as error:
            return failure(error)

    return answer


def failure(error: BaseException) -> tuple[int, str]:
    """-> (status, message in one line) of an exception; the log gets one that is a fault of ours whole."""
    message = " ".join(str(error).split())
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return int(status), message or kind.__name__
    log.error("a fault of the C library's", exc_info=error)
    return int(Status.INTERNAL), f"{type(error).__name__}: {message}"
