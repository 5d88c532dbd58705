"""A scheduler whose engines are in other processes: orders are sent there, and sent again when a process dies.

As the same seed gives the same sound, an order may be carried out by another process, from its first code on; what
was heard of it already is passed over. So whoever listens hears no seam, to the bit where the engines' schedulers are strict;
where they are not, what runs beside it may change the last bits of a sample, and, very rarely, a code and so the words.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, Protocol, TypeVar

from ..engine import Array, Engine, EngineInfo
from ..errors import Cancelled, EngineError, RequestError, TortoiseError
from ..pipeline import Result
from ..scheduler import AnyScheduler, Handle, Priority, StreamHandle
from ..streaming import Pace
from ..text import Tokenizer

log = logging.getLogger("tortoise_rt.server")
T = TypeVar("T")
H = TypeVar("H", bound=Handle[Any])
TRIES = 5  #: processes that an order may take down, or find dead, before it is given up
PAUSE = 0.2  #: seconds before the second try; twice as long before each further one


class Gone(Exception):
    """The process that had the order has died."""


@dataclass(frozen=True)
class Order:
    """A call of a scheduler's method."""

    method: Literal["submit", "stream", "call"]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """All samples are drawn."""


@dataclass(frozen=True)
class Done:
    """The end, and what came of it."""

    result: Any


@dataclass(frozen=True)
class Failed:
    """The end, by an error."""

    error: BaseException
    cause: BaseException | None  #: pickling loses it


Message = Array | Drawn | Done | Failed  #: arrays are sound, (samples,)


# --- where the engine is ---


async def carry_out(scheduler: AnyScheduler, order: Order) -> AsyncGenerator[Message, None]:
    """What becomes of an order. Closing the generator gives it up."""
    loop, told = asyncio.get_running_loop(), asyncio.Queue[Message]()

    def tell(message: Message) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(told.put_nowait, message)

    def watch(handle: Handle[Any]) -> None:
        handle.sampled.wait()
        tell(Drawn())

    def take(handle: Handle[Any]) -> None:
        try:
            for piece in handle if isinstance(handle, StreamHandle) else ():
                tell(piece)
            tell(Done(handle.result()))
        except BaseException as error:  # whatever it is, the caller gets it
            tell(_failed(error))

    try:
        handle = getattr(scheduler, order.method)(*order.arguments, **order.options)
    except TortoiseError as error:
        yield _failed(error)
        return
    try:
        for work in (watch, take):
            threading.Thread(target=work, args=(handle,), name=f"order {handle.number}", daemon=True).start()
        while True:
            message = await told.get()
            yield message
            if isinstance(message, Done | Failed):
                return
    finally:
        handle.cancel()


def _failed(error: BaseException) -> Failed:
    """With the cause of an engine's error; what is none of ours need not be known elsewhere, and goes as text."""
    ours = error if isinstance(error, TortoiseError) else RuntimeError(repr(error))
    cause = error.__cause__
    return Failed(
        ours, cause if cause is None or isinstance(cause, TortoiseError) else RuntimeError(repr(cause))
    )


# --- where it is not ---


class Answer(Protocol):
    """What comes of an order that was sent: messages up to Done or Failed. Iterating raises Gone where its process died."""

    def __iter__(self) -> Iterator[Message]: ...

    def cancel(self) -> None:
        """Give it up; whoever iterates gets some error."""


class Described(Engine):
    """What is known of the engines; they are elsewhere."""

    def __init__(self, info: EngineInfo) -> None:
        self.info = info

    def _run(self, *_: Any, **__: Any) -> NoReturn:
        raise EngineError("the engine is in another process: hand work to the scheduler's call()")

    _new_cache = _take_rows = _put_rows = _first_rows = _ar_step = _run


@dataclass
class _Flight:
    """An order on its way."""

    order: Order
    answer: Answer | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.cancelled.set()
        if self.answer is not None:
            self.answer.cancel()


class RemoteScheduler:
    """Passes requests on to processes with engines. Thread-safe."""

    hastens = False

    def __init__(self, engine: Engine, tokenizer: Tokenizer | None, send: Callable[[Order], Answer]) -> None:
        """``engine``: what they are made of. ``send``: hands an order to one of them, whichever is best."""
        self.engine, self.tokenizer = engine, tokenizer
        self.sent_again = 0  #: orders so far whose process died
        self._send = send
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._flights: dict[int, tuple[_Flight, Handle[Any]]] = {}
        self._closed = False

    def submit(self, *request: Any, **options: Any) -> Handle[Result]:
        return self._start(Order("submit", request, options), Handle)

    def stream(self, *request: Any, **options: Any) -> StreamHandle[Pace]:
        make_handle = functools.partial(StreamHandle, taken=lambda number: None)
        return self._start(Order("stream", request, options), make_handle)

    def call(self, work: Callable[[Engine], T], priority: Priority = Priority.NORMAL) -> Handle[T]:
        """``work`` must be what can be pickled."""
        return self._start(Order("call", (work, priority), {}), Handle)

    def prioritize(self, handle: Handle[Any], priority: Priority) -> None:
        """Orders come as they were sent."""

    def close(self) -> None:
        """Give up what is in flight. Then every handle has its result or its error."""
        with self._lock:
            self._closed = True
            flights = [*self._flights.values()]
        for flight, _ in flights:
            flight.cancel()
        for _, handle in flights:
            handle.wait()

    def _start(self, order: Order, make_handle: Callable[[int, Callable[[], None]], H]) -> H:
        flight = _Flight(order)
        with self._lock:
            if self._closed:
                raise RequestError("the scheduler is closed")
            number = next(self._numbers)
            handle = make_handle(number, flight.cancel)
            self._flights[number] = flight, handle
        try:
            threading.Thread(
                target=self._follow, args=(flight, handle), name=f"order {number}", daemon=True
            ).start()
        except BaseException:  # no more threads, or an interrupt
            with self._lock:
                del self._flights[number]
            raise
        return handle

    def _follow(self, flight: _Flight, handle: Handle[Any]) -> None:
        try:
            end = self._carried_out(flight, handle)
            if isinstance(end, Failed):
                end.error.__cause__ = end.cause
                handle.end(None, end.error)
            else:
                handle.end(end.result)
        except BaseException as error:  # whatever it is, the caller gets it
            given_up = flight.cancelled.is_set()
            handle.end(None, Cancelled("the request was given up") if given_up else error)
        with self._lock:
            del self._flights[handle.number]

    def _carried_out(self, flight: _Flight, handle: Handle[Any]) -> Done | Failed:
        """The order's end. Raises what sending it raises."""
        heard = 0  #: samples
        for attempt in range(TRIES):
            if attempt:
                with self._lock:
                    self.sent_again += 1
                log.warning("a process with an engine has died; what it was asked goes to another")
                flight.cancelled.wait(PAUSE * 2 ** (attempt - 1))
            flight.answer = self._send(flight.order)
            if flight.cancelled.is_set():  # looked at after the answer is there to be cancelled
                flight.answer.cancel()
            passed = 0
            try:
                for message in flight.answer:
                    if isinstance(message, Failed) and isinstance(message.error, Cancelled):
                        raise Gone  # nobody here gave it up: its process is ending
                    if isinstance(message, Done | Failed):
                        return message
                    if isinstance(message, Drawn):
                        handle.tell("sampling", 1, 1)
                        continue
                    passed += len(message)
                    fresh = message[max(0, len(message) - max(0, passed - heard)) :]
                    if len(fresh):
                        heard = passed
                        handle.put(fresh)  # type: ignore[attr-defined]  # sound comes of streams alone
            except Gone:
                flight.answer.cancel()  # it may live and only be out of reach
                if flight.cancelled.is_set():
                    raise
        raise RequestError(
            f"{TRIES} processes with an engine have died of the request, or before it: see their logs"
        )
