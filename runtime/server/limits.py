"""How much a server takes, and from whom."""

from __future__ import annotations

import hashlib
import hmac
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..config import check_number
from ..errors import QueueFull, Refused, SettingsError

MINUTE = 60.0
MOST_QUEUED = 1024  #: the highest limit of requests in flight
MOST_CALLERS = 10_000  #: whose last minute is remembered


@dataclass(frozen=True)
class Limits:
    """What is taken of all callers, and of each."""

    queue: int = 32  #: requests for speech in flight at a time
    each: int = 16  #: of them, of one caller
    per_minute: int = 600  #: begun by one caller in a minute
    text: int = 20_000  #: characters of a request
    upload_bytes: int = 64 << 20  #: of a body with files
    timeout: float = 600.0  #: seconds that a request may take, beside twice those of the sound it was given

    def __post_init__(self) -> None:
        check_number("queue", self.queue, 1, MOST_QUEUED, integer=True)
        check_number("per-key", self.each, 1, MOST_QUEUED, integer=True)
        check_number("per-minute", self.per_minute, 1, 10**6, integer=True)
        check_number("max-text", self.text, 1, 10**7, integer=True)
        check_number("max-upload", self.upload_bytes, 1, 1 << 40, integer=True)
        check_number("timeout", self.timeout, 0, 86_400, above=True)

    @property
    def body_bytes(self) -> int:
        """Of a body without files: each character may be written as an escaped pair of surrogates."""
        return 12 * self.text + (64 << 10)


class Keys:
    """Who may ask: names and their keys, of which only digests are kept."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._digests = {name: _digest(key) for name, key in keys.items()}

    @classmethod
    def read(cls, path: Path) -> Keys:
        """A file with a name and a key, parted by a blank, on each line; "#" begins a comment."""
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeError) as error:
            raise SettingsError(
                f"cannot read the keys in {path} ({type(error).__name__}): name a text file"
            ) from None
        keys: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            parts = line.partition("#")[0].split()
            if not parts:
                continue
            if len(parts) != 2 or parts[0] in keys or len(parts[1]) < 16 or not parts[1].isascii():
                raise SettingsError(
                    f"line {number} of {path} must have a name of its own and a key of 16 or more letters, digits and signs of ASCII"
                )
            keys[parts[0]] = parts[1]
        if not keys:
            raise SettingsError(f"{path} has no keys: write a name and a key on each line")
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def name_of(self, key: str) -> str | None:
        """Whose key it is; takes as long whichever it is, and when it is none."""
        given, found = _digest(key), None
        for name, digest in self._digests.items():
            if hmac.compare_digest(given, digest):
                found = name
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


class Gate:
    """Counts who is in, and refuses whom there is no room for. Thread-safe."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._inside = Counter[str]()
        self._begun: dict[str, deque[float]] = {}
        self._typical = 1.0  #: seconds that a request takes, smoothed
        self.closed = False  #: whether none is let in any more

    @property
    def inside(self) -> int:
        return sum(self._inside.values())

    @contextmanager
    def enter(self, who: str) -> Iterator[None]:
        """A place for one request of ``who``, while the context lasts. Raises QueueFull or Refused."""
        with self._lock:
            now = time.monotonic()
            self._check(who, now)
            self._inside[who] += 1
            self._begun.setdefault(who, deque()).append(now)
        try:
            yield
        finally:
            with self._lock:
                self._inside[who] -= 1
                if not self._inside[who]:
                    del self._inside[who]
                self._typical += 0.1 * (time.monotonic() - now - self._typical)

    def _check(self, who: str, now: float) -> None:
        if self.closed:
            raise Refused("the server is stopping: ask another one, or later", 503, retry_after=5)
        if self.inside >= self._limits.queue:
            raise QueueFull(
                f"{self._limits.queue} requests are in flight, as many as are taken: try again later"
            )
        if self._inside[who] >= self._limits.each:
            raise Refused(
                f"{self._limits.each} requests of yours are in flight, as many as are taken: wait for one",
                429,
                retry_after=self.patience,
            )
        begun = self._begun.get(who, deque())
        while begun and begun[0] <= now - MINUTE:
            begun.popleft()
        if len(begun) >= self._limits.per_minute:
            raise Refused(
                f"{self._limits.per_minute} requests of yours were begun within a minute, as many as are taken: wait",
                429,
                retry_after=begun[0] + MINUTE - now,
            )
        if len(self._begun) > MOST_CALLERS:
            self._begun = {
                name: times for name, times in self._begun.items() if times and times[-1] > now - MINUTE
            }

    @property
    def patience(self) -> float:
        """Seconds after which there may be room."""
        return min(60, max(1, math.ceil(self._typical)))
