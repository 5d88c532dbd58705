"""A hub of files on this machine that breaks off, lies, fails and sends damaged files, as a test says."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAME = "autoregressive.pth"
CONTENT = bytes(range(256)) * 9000


class Server(ThreadingHTTPServer):
    """Serves ``files``, each from a store it passes on to, as a hub does; answers to its own name alone."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {NAME: CONTENT}
        self.asked: list[tuple[str, str, str]] = []  #: method, path, range
        self.breaks = 0  #: this many downloads end early
        self.damaged = False
        self.ranges = True
        self.states_size = True
        self.faults: list[int | bytes] = []  #: what the next requests are answered with: a status, raw bytes
        self.says: dict[str, str] = {}  #: headers instead of the true ones

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up on purpose here."""

    def methods(self, method: str) -> int:
        """How often the hub, not its store, was asked."""
        return sum(how == method and "/store/" not in path for how, path, _ in self.asked)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        content = self.server.files.get(self.path.removeprefix("/store/"), b"")
        self.answer(bytes(len(content)) if self.server.damaged else content)

    def answer(self, content: bytes) -> None:
        server, name = self.server, self.path.rpartition("/")[2]
        wanted = self.headers["Range"] or ""
        server.asked.append((self.command, self.path, wanted))
        if self.headers["Host"] != f"127.0.0.1:{server.server_port}":
            self.send_error(421)
        elif server.faults:
            fault = server.faults.pop(0)
            if isinstance(fault, bytes):
                self.wfile.write(fault)
            else:
                self.send_error(fault)
        elif name not in server.files:
            self.send_error(404)
        elif not self.path.startswith("/store/"):
            whole = server.files[name]
            self.send_response(302)
            self.send_header("Location", server.says.get("Location", f"/store/{name}"))
            stated = {"X-Linked-Etag": f'"{hashlib.sha256(whole).hexdigest()}"'}
            if server.states_size:
                stated["X-Linked-Size"] = str(len(whole))
            for key, value in {**stated, **server.says}.items():
                if value and key != "Location":
                    self.send_header(key, value)
            self.end_headers()
        else:
            self.store(name, content, wanted)

    def store(self, name: str, content: bytes, wanted: str) -> None:
        server, size = self.server, len(self.server.files[name])
        first = int(wanted[6:-1]) if wanted and server.ranges else 0
        if first >= size:
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        if server.states_size or self.command == "GET":
            self.send_header("Content-Length", str(size - first))
        self.end_headers()
        if server.breaks and content:
            server.breaks -= 1
            content = content[: first + (size - first) // 2]
        self.wfile.write(content[first:])


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    running = Server()
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()
