"""What callers need of a scheduler, wherever its engines are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from ..config import Settings
from ..engine import Engine
from ..pipeline import Result
from ..rng import Randomness
from ..streaming import Chunks, Pace
from ..text import Tokenizer
from ..voice import Voice, VoiceLatents
from .policy import Priority
from .request import Handle, StreamHandle

T = TypeVar("T")


class AnyScheduler(Protocol):
    """A Scheduler, or what passes requests on to others. Methods as theirs."""

    engine: Engine  #: what it is made of; its graphs are for ``call``
    tokenizer: Tokenizer | None
    hastens: bool  #: whether ``prioritize`` does anything

    def submit(
        self,
        text: str | Sequence[int],
        voice: Voice | VoiceLatents | None,
        settings: Settings,
        seed: int | Randomness,
        *,
        priority: Priority = ...,
        continues: bool = ...,
    ) -> Handle[Result]: ...

    def stream(
        self,
        text: str | Sequence[int],
        voice: Voice | VoiceLatents | None,
        settings: Settings,
        seed: int | Randomness,
        *,
        chunks: Chunks | None = ...,
        priority: Priority = ...,
        continues: bool = ...,
    ) -> StreamHandle[Pace]: ...

    def call(self, work: Callable[[Engine], T], priority: Priority = ...) -> Handle[T]: ...

    def prioritize(self, handle: Handle[Any], priority: Priority) -> None: ...

    def close(self) -> None: ...
