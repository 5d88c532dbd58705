"""The process: a socket, a warm-up, and an end that lets what speaks finish."""

from __future__ import annotations

import logging
import socket
import threading
import time
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from ..errors import OutputError
from .service import Service

log = logging.getLogger("tortoise_rt.server")
FORCED_SECONDS = 5  #: that connections have to close in once nothing speaks any more
KEEP_ALIVE_SECONDS = 30
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


class Server(uvicorn.Server):
    """At the first signal it takes no new requests, and ends when nothing speaks any more; at the second it ends."""

    def __init__(self, app: ASGIApp, service: Service, drain_seconds: float) -> None:
        config = uvicorn.Config(
            app,
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
