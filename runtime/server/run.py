"""The process: a socket, a warm-up, and an end that lets what speaks finish."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from types import FrameType

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import OutputError
from .service import Service

log = logging.getLogger("tortoise_rt.server")
FORCED_SECONDS = 5  #: that connections have to close in once nothing speaks any more
KEEP_ALIVE_SECONDS = 30
HEAD_SECONDS = 30.0  #: in which the head of a request must have come; up to twice that where the connection had one before
MOST_CONNECTIONS = 512
BACKLOG = 256
SEND_BUFFER = (
    64 << 10
)  #: bytes of a connection that the system keeps: sound that nobody takes is not made for long


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, on any free port for 0. Raises OutputError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        made = socket.create_server((host, port), family=family, backlog=BACKLOG)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        return made
    except OSError as error:
        raise OutputError(
            f"cannot listen on {host}, port {port} ({error.strerror}): choose another --port or --host"
        ) from None


class Connection(H11Protocol):
    """HTTP/1.1. Who sends no whole head of a request in time is left, and who takes nothing of an answer that is over: such
    clients would take all the places there are."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._left = 0  # bytes that the client had not taken at the last look
        self._look_again(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _look_again(self, seen: object) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self._look, seen)

    def _look(self, seen: object) -> None:
        """``seen``: the request before the head that was waited for at the last look, None for none."""
        if self.transport.get_protocol() is not self:
            return  # a WebSocket by now
        left = self.transport.get_write_buffer_size()
        over = self.transport.is_closing() or self.cycle is None or self.cycle.response_complete
        if over and 0 < left == self._left:
            self.transport.abort()
            return
        self._left = left
        waits = self.conn.their_state is h11.IDLE
        if waits and self.cycle is seen and not left:
            self.transport.close()
        else:
            self._look_again(self.cycle if waits else self)


class Server(uvicorn.Server):
    """At the first signal it takes no new requests, and ends when nothing speaks any more; at the second it ends."""

    def __init__(self, app: ASGIApp, service: Service, drain_seconds: float) -> None:
        config = uvicorn.Config(
            app,
            http=Connection,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            ws_max_size=4 << 20,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=FORCED_SECONDS,
        )
        super().__init__(config)
        self._service, self._drain_seconds = service, drain_seconds
        self._drained_by = 0.0  #: by time.monotonic, once it drains
        self.failed = False  #: whether it never spoke

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        threading.Thread(target=self._warm_up, name="warm-up", daemon=True).start()

    def _warm_up(self) -> None:
        try:
            self._service.warm_up()
            log.info("ready")
        except Exception:
            if not self._service.gate.closed:
                log.exception("the first words failed; the server stops")
                self.failed = True
                self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by a signal, in the main thread."""
        if self._service.gate.closed:
            self._service.give_up()
            self.should_exit = self.force_exit = True
        else:
            self.drain()

    def drain(self) -> None:
        """Take no new requests, and end once what is in flight has ended, or its time is over."""
        self._service.gate.closed = True
        self._drained_by = time.monotonic() + self._drain_seconds
        log.info("stopping", extra={"facts": {"speaking": self._service.gate.inside}})

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self._service.gate.closed:
            late = time.monotonic() > self._drained_by
            if late:
                self._service.give_up()
            self.should_exit |= late or not self._service.gate.inside
        return await super().on_tick(counter)
