"""Downloads, from a server on this machine that breaks off, lies and sends damaged files."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_cli import ok, run

from tortoise_rt import fetch as module
from tortoise_rt.errors import FetchError
from tortoise_rt.fetch import fetch
from tortoise_rt.spec import CHECKPOINT_FILES

NAME = "autoregressive.pth"
CONTENT = bytes(range(256)) * 9000


class Server(ThreadingHTTPServer):
    """Serves ``files``, each from a store it passes on to, as a hub does."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {NAME: CONTENT}
        self.asked: list[tuple[str, str, str]] = []  #: method, path, range
        self.breaks = 0  #: this many downloads end early
        self.damaged = False
        self.ranges = True
        self.says: dict[str, str] = {}  #: headers instead of the true ones

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


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
        if name not in server.files:
            self.send_error(404)
        elif not self.path.startswith("/store/"):
            whole = server.files[name]
            self.send_response(302)
            self.send_header("Location", server.says.get("Location", f"/store/{name}"))
            digest = hashlib.sha256(whole).hexdigest()
            for key, value in (("X-Linked-Size", str(len(whole))), ("X-Linked-Etag", f'"{digest}"')):
                self.send_header(key, server.says.get(key, value))
            self.end_headers()
        else:
            first = int(wanted[6:-1]) if wanted and server.ranges else 0
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            if server.breaks and content:
                server.breaks -= 1
                content = content[: first + (len(content) - first) // 2]
            self.wfile.write(content[first:])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "PAUSE", 0.0)
    running = Server()
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    paths = fetch(tmp_path / "new", [NAME], server.url, lambda *values: said.append(values))
    assert paths == [tmp_path / "new" / NAME] and paths[0].read_bytes() == CONTENT
    assert said[-1] == (NAME, len(CONTENT), len(CONTENT)) and len(said) > 1
    asked = len(server.asked)
    assert fetch(tmp_path / "new", [NAME], server.url) == paths and len(server.asked) == asked
    assert [p.name for p in paths[0].parent.iterdir()] == [NAME]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.breaks, server.ranges = 3, ranges
    assert fetch(tmp_path, [NAME], server.url)[0].read_bytes() == CONTENT
    ranges_asked = [wanted for method, path, wanted in server.asked if method == "GET" and "/store/" in path]
    assert (
        ranges_asked[0] == ""
        and len(ranges_asked) == 4
        and all(w.startswith("bytes=") for w in ranges_asked[1:])
    )


def test_a_run_that_was_stopped_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:1000])
    assert fetch(tmp_path, [NAME], server.url)[0].read_bytes() == CONTENT
    assert ("GET", f"/store/{NAME}", "bytes=1000-") in server.asked
    (tmp_path / NAME).rename(tmp_path / f"{NAME}.part")  # all of it was there
    assert fetch(tmp_path, [NAME], server.url)[0].read_bytes() == CONTENT
    (tmp_path / NAME).unlink()
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT + b"more")  # of another version
    assert fetch(tmp_path, [NAME], server.url)[0].read_bytes() == CONTENT


def test_giving_up_keeps_what_is_there(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 1000)
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:-1])
    server.breaks = 1000
    with pytest.raises(FetchError, match="it ended early, 5 times in a row.*run the same command to go on"):
        fetch(tmp_path, [NAME], server.url)
    assert (tmp_path / f"{NAME}.part").read_bytes() == CONTENT[:-1]


def test_damaged_files_are_removed(server: Server, tmp_path: Path) -> None:
    server.damaged = True
    with pytest.raises(FetchError, match=r"is damaged: its SHA-256 is .*fetch it again"):
        fetch(tmp_path, [NAME], server.url)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("header", "value", "message"),
    [
        ("X-Linked-Size", str(1 << 50), "says it has 1125899906842624 bytes"),
        ("X-Linked-Size", "-1", "says it has -1 bytes"),
        ("X-Linked-Size", "1000", "sends more than 1000 bytes"),
        ("Location", "file:///etc/passwd", "only https addresses are|not allowed|answers 302"),
        ("Location", "http://example.invalid/x", "only https addresses are"),
    ],
)
def test_servers_are_not_trusted(
    server: Server, tmp_path: Path, header: str, value: str, message: str
) -> None:
    server.says[header] = value
    with pytest.raises(FetchError, match=message):
        fetch(tmp_path, [NAME], server.url)
    assert not (tmp_path / NAME).exists()


def test_what_is_not_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="the server answers 404"):
        fetch(tmp_path, ["clvp2.pth"], server.url)
    with pytest.raises(FetchError, match="cannot be reached"):
        fetch(tmp_path, [NAME], "http://127.0.0.1:9")
    with pytest.raises(FetchError, match=r'no file is called "clvp.pth". Did you mean "clvp2.pth"'):
        fetch(tmp_path, ["clvp.pth"], server.url)
    with pytest.raises(FetchError, match="only https addresses are"):
        fetch(tmp_path, [NAME], "http://example.invalid")
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match="cannot write into"):
        fetch(tmp_path / "file", [NAME], server.url)


def test_the_tokenizer_comes_from_elsewhere_and_is_known(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Server()
    other.files = {"tokenizer.json": b"{}"}
    threading.Thread(target=other.serve_forever, daemon=True).start()
    monkeypatch.setattr(module, "TOKENIZER_URL", f"{other.url}/tokenizer.json")
    with pytest.raises(FetchError, match="is damaged"):
        fetch(tmp_path, ["tokenizer.json"], server.url)
    monkeypatch.setattr(module, "TOKENIZER_SHA256", hashlib.sha256(b"{}").hexdigest())
    assert fetch(tmp_path, ["tokenizer.json"], server.url)[0].read_bytes() == b"{}"
    other.shutdown()
    other.server_close()


def test_the_tokenizer_is_the_originals(tokenizer_path: Path) -> None:
    assert hashlib.sha256(tokenizer_path.read_bytes()).hexdigest() == module.TOKENIZER_SHA256


def test_the_command(server: Server, folder: Path) -> None:
    server.files = {name: name.encode() for name in (*CHECKPOINT_FILES.values(), "tokenizer.json")}
    result = ok("fetch", "--source", server.url, "-o", "models")
    assert "models: 10 files" in result.output and "tortoise-rt export --checkpoints models" in result.output
    assert sorted(p.name for p in (folder / "models").iterdir()) == sorted(module.FILES)
    assert ok("fetch", NAME, "--source", server.url, "-o", "models", "-q").output == ""
    failed = run("fetch", "hifi", "--source", server.url)
    assert failed.exit_code == 2 and "hifidecoder.pth" in failed.stderr
