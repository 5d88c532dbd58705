"""Every error that tortoise-rt raises on purpose.

    TortoiseError
    ├── InputError             something the caller gave is not usable
    │   ├── TextError          empty text, too many tokens
    │   ├── AudioError         unreadable, non-finite, too short or too long audio
    │   ├── VoiceError         unknown voice, empty folder, unusable latents
    │   └── SettingsError      a setting out of its range
    ├── CheckpointError        checkpoint files: missing, unreadable, wrong keys or shapes
    ├── BundleError            engine bundles: missing, damaged, of another format
    │   └── BundleMismatch     a sound bundle that was made for another machine or library
    ├── EngineError            a network this engine lacks, wrong inputs to a graph
    ├── RequestError           a request in flight was not carried out
    │   ├── QueueFull          too many are in flight
    │   ├── Refused            a server does not take it: no key, too large, too often, not now
    │   ├── Cancelled          its caller gave it up
    │   └── DeadlineExceeded   its time was over
    ├── FetchError             a file could not be downloaded
    ├── OutputError            the result could not be written
    └── MissingDependency      an optional package is needed; the message names the extra

A message states the value, the limit and the remedy. The command line prints it and exits with 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TortoiseError(Exception):
    """Base of all errors raised on purpose."""


class InputError(TortoiseError, ValueError):
    """Something the caller gave is not usable."""


class TextError(InputError):
    """The text is empty or too long."""


class AudioError(InputError):
    """The audio cannot be used."""


class VoiceError(InputError):
    """The voice cannot be found or used."""


class SettingsError(InputError):
    """A setting is out of its range."""


class CheckpointError(TortoiseError):
    """A checkpoint cannot be used."""


class BundleError(TortoiseError):
    """An engine bundle cannot be used."""


class BundleMismatch(BundleError):
    """A sound bundle that was made for another machine or library."""


class EngineError(TortoiseError):
    """The engine cannot do what was asked of it."""


class RequestError(TortoiseError):
    """A request was not carried out."""


class QueueFull(RequestError):
    """Too many requests are in flight."""


class Refused(RequestError):
    """A server does not take the request."""

    def __init__(self, message: str, status: int, *, retry_after: float | None = None) -> None:
        """``status``: that of HTTP; ``retry_after``: seconds after which it may be taken."""
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class Cancelled(RequestError):
    """The caller gave the request up."""


class DeadlineExceeded(RequestError):
    """The request's time was over before it was done."""


class FetchError(TortoiseError):
    """A file could not be downloaded."""


class OutputError(TortoiseError):
    """The result could not be written."""


class MissingDependency(TortoiseError):
    """An optional package is not installed."""


def suggest(name: str, available: Iterable[str]) -> str:
    """A sentence that names the nearest spellings, or all there is: ``did you mean "emma"? Available: ...``."""
    names = sorted(available)
    if not names:
        return "None are available."
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    hint = "Did you mean " + " or ".join(f'"{n}"' for n in near) + "? " if near else ""
    return f"{hint}Available: {listed}."
