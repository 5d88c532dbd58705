"""Downloads, from servers on this machine that break off, lie, fail and send damaged files."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from hub import CONTENT, NAME, Handler, Server, serving
from test_cli import ok, run

from tortoise_rt import fetch as module
from tortoise_rt.errors import FetchError
from tortoise_rt.fetch import fetch
from tortoise_rt.spec import CHECKPOINT_FILES


def test_a_file_is_downloaded_once(hub: Server, tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    paths = fetch(tmp_path / "new", [NAME], hub.url, lambda *values: said.append(values))
    assert paths == [tmp_path / "new" / NAME] and paths[0].read_bytes() == CONTENT
    assert said[-1] == (NAME, len(CONTENT), len(CONTENT)) and len(said) > 1
    hub.asked.clear()
    assert fetch(tmp_path / "new", [NAME], hub.url) == paths
    assert [method for method, _, _ in hub.asked] == ["HEAD", "HEAD"]  # the hub, its store
    assert [p.name for p in paths[0].parent.iterdir()] == [NAME]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on(hub: Server, tmp_path: Path, ranges: bool) -> None:
    hub.breaks, hub.ranges = 3, ranges
    assert fetch(tmp_path, [NAME], hub.url)[0].read_bytes() == CONTENT
    ranges_asked = [wanted for method, path, wanted in hub.asked if method == "GET" and "/store/" in path]
    assert (
        ranges_asked[0] == ""
        and len(ranges_asked) == 4
        and all(w.startswith("bytes=") for w in ranges_asked[1:])
    )


def test_a_run_that_was_stopped_is_gone_on_with(hub: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:1000])
    assert fetch(tmp_path, [NAME], hub.url)[0].read_bytes() == CONTENT
    assert ("GET", f"/store/{NAME}", "bytes=1000-") in hub.asked
    (tmp_path / NAME).rename(tmp_path / f"{NAME}.part")  # all of it was there
    assert fetch(tmp_path, [NAME], hub.url)[0].read_bytes() == CONTENT
    (tmp_path / NAME).unlink()
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT + b"more")  # of another version
    assert fetch(tmp_path, [NAME], hub.url)[0].read_bytes() == CONTENT


def test_giving_up_keeps_what_is_there(hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 1000)
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:-1])
    hub.breaks = 1000
    with pytest.raises(FetchError, match="it ended early, 5 times in a row.*go on, run the same command"):
        fetch(tmp_path, [NAME], hub.url)
    assert (tmp_path / f"{NAME}.part").read_bytes() == CONTENT[:-1]


def test_damaged_files_are_removed(hub: Server, tmp_path: Path) -> None:
    hub.damaged = True
    with pytest.raises(FetchError, match="is damaged: its SHA-256 is not .*fetch it again"):
        fetch(tmp_path, [NAME], hub.url)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("header", "value", "message"),
    [
        ("X-Linked-Size", str(1 << 50), "says it has 1125899906842624 bytes"),
        ("X-Linked-Size", "-1", "says it has -1 bytes"),
        ("X-Linked-Size", "0", "says it has 0 bytes"),
        ("X-Linked-Size", "1000", "sends more than 1000 bytes"),
        ("Location", "file:///etc/passwd", "only https addresses are|not allowed|answers 302"),
        ("Location", "http://example.invalid/x", "only https addresses are"),
    ],
)
def test_servers_are_not_trusted(hub: Server, tmp_path: Path, header: str, value: str, message: str) -> None:
    hub.says[header] = value
    with pytest.raises(FetchError, match=message):
        fetch(tmp_path, [NAME], hub.url)
    assert not (tmp_path / NAME).exists()


def test_what_is_not_there(hub: Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="the server answers 404"):
        fetch(tmp_path, ["clvp2.pth"], hub.url)
    with pytest.raises(FetchError, match="cannot be reached"):
        fetch(tmp_path, [NAME], "http://127.0.0.1:9")
    with pytest.raises(FetchError, match=r'no file is called "clvp.pth". Did you mean "clvp2.pth"'):
        fetch(tmp_path, ["clvp.pth"], hub.url)
    with pytest.raises(FetchError, match="only https addresses are"):
        fetch(tmp_path, [NAME], "http://example.invalid")
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match="cannot read or write in"):
        fetch(tmp_path / "file", [NAME], hub.url)


def test_the_tokenizer_comes_from_elsewhere_and_is_known(
    hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as other:
        other.files = {"tokenizer.json": b"{}"}
        monkeypatch.setattr(module, "TOKENIZER_URL", f"{other.url}/tokenizer.json")
        with pytest.raises(FetchError, match="is damaged"):
            fetch(tmp_path, ["tokenizer.json"], hub.url)
        monkeypatch.setattr(module, "TOKENIZER_SHA256", hashlib.sha256(b"{}").hexdigest())
        assert fetch(tmp_path, ["tokenizer.json"], hub.url)[0].read_bytes() == b"{}"
        (tmp_path / "tokenizer.json").unlink()
        other.files = {}
        with pytest.raises(FetchError, match=f"{hub.url}/.* answers 404 .*{other.url}/.* answers 404"):
            fetch(tmp_path, ["tokenizer.json"], hub.url)
        other.faults = [503] * 5
        with pytest.raises(
            FetchError, match=f"{hub.url}/.* answers 404 .*{other.url}/.* answers 503 .*5 times"
        ):
            fetch(tmp_path, ["tokenizer.json"], hub.url)
        hub.faults = [503] * 5  # what cannot be reached may yet have a tokenizer of its own
        other.files = {"tokenizer.json": b"{}"}
        with pytest.raises(FetchError, match="answers 503 .*5 times"):
            fetch(tmp_path, ["tokenizer.json"], hub.url)


def test_the_tokenizer_is_the_originals(tokenizer_path: Path) -> None:
    assert hashlib.sha256(tokenizer_path.read_bytes()).hexdigest() == module.TOKENIZER_SHA256


def test_a_hub_may_pass_on_to_another_server(hub: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:1000])
    with serving() as store:
        hub.says["Location"] = f"{store.url}/store/{NAME}"
        assert fetch(tmp_path, [NAME], hub.url)[0].read_bytes() == CONTENT
        assert store.asked == [("HEAD", f"/store/{NAME}", ""), ("GET", f"/store/{NAME}", "bytes=1000-")]


NETWORK_ERRORS = [
    ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
    TimeoutError("timed out"),
    OSError(errno.ETIMEDOUT, "timed out"),
    OSError(errno.EHOSTUNREACH, "no route to host"),
    OSError(errno.ENETUNREACH, "network is unreachable"),
    http.client.IncompleteRead(b"", 1000),
]


@pytest.mark.parametrize("error", NETWORK_ERRORS, ids=repr)
def test_the_network_is_not_the_disk(
    hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Each error hits one read of the content, and is survived; then every read, and is named."""
    read, left = http.client.HTTPResponse.read, [error]

    def broken(answer: Any, amount: int | None = None) -> bytes:
        if amount == module.CHUNK and left:
            raise left.pop()
        return read(answer, amount)

    monkeypatch.setattr(http.client.HTTPResponse, "read", broken)
    assert fetch(tmp_path, [NAME], hub.url)[0].read_bytes() == CONTENT and not left
    (tmp_path / NAME).unlink()
    left += [error] * 5
    with pytest.raises(FetchError, match="broke off: .*5 times in a row"):
        fetch(tmp_path, [NAME], hub.url)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk")
def test_the_disk_is_not_the_network(hub: Server, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").symlink_to("/dev/full")
    with pytest.raises(FetchError, match="cannot read or write in .*No space left"):
        fetch(tmp_path, [NAME], hub.url)
    assert hub.methods("GET") == 1


@pytest.mark.parametrize("fault", [429, 500, 503, b"", b"nonsense\r\n\r\n"])
def test_servers_that_fail_are_asked_again(hub: Server, tmp_path: Path, fault: int | bytes) -> None:
    hub.faults = [fault] * 4
    assert fetch(tmp_path, [NAME], hub.url)[0].read_bytes() == CONTENT
    assert hub.methods("HEAD") == 5
    (tmp_path / NAME).unlink()
    hub.faults = [fault] * 5
    with pytest.raises(FetchError, match="(answers|cannot be reached).*5 times in a row"):
        fetch(tmp_path, [NAME], hub.url)


@pytest.mark.parametrize("fault", [429, 503, b"nonsense\r\n\r\n"])
def test_downloads_that_fail_are_tried_again(
    hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int | bytes
) -> None:
    answer, left = Handler.do_GET, [fault]

    def failing(handler: Handler) -> None:
        hub.faults += [left.pop()] if left else []
        answer(handler)

    monkeypatch.setattr(Handler, "do_GET", failing)
    assert fetch(tmp_path, [NAME], hub.url)[0].read_bytes() == CONTENT and not left


def test_servers_that_refuse_are_not_asked_again(hub: Server, tmp_path: Path) -> None:
    hub.faults = [403]
    with pytest.raises(FetchError, match="answers 403"):
        fetch(tmp_path, [NAME], hub.url)
    assert hub.methods("HEAD") == 1


def test_silence_is_not_the_disks(tmp_path: Path, hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(FetchError, match="cannot be reached: .*timed out.*5 times in a row"),
    ):
        fetch(tmp_path, [NAME], f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("content", [b"junk", bytes(len(CONTENT))])
def test_a_file_that_differs_is_an_error_and_stays(hub: Server, tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    problem = "4 bytes, it should have 2304000" if content == b"junk" else "its SHA-256 is not"
    with pytest.raises(FetchError, match=f"{NAME} differs from .*{problem}.*Remove it"):
        fetch(tmp_path, [NAME], hub.url)
    assert (tmp_path / NAME).read_bytes() == content


def test_a_file_is_hashed_once(hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    checksum = module.file_sha256
    monkeypatch.setattr(module, "file_sha256", lambda path: hashed.append(path) or checksum(path))
    for _ in range(2):
        fetch(tmp_path, [NAME], hub.url)
    assert len(hashed) == 1
    (tmp_path / NAME).write_bytes(bytes(len(CONTENT)))
    with pytest.raises(FetchError, match="its SHA-256 is not"):
        fetch(tmp_path, [NAME], hub.url)


def test_what_is_there_is_kept_when_it_cannot_be_compared(hub: Server, tmp_path: Path) -> None:
    notes: list[str] = []
    names = [NAME, "clvp2.pth", "cvvp.pth"]
    for name in names:
        (tmp_path / name).write_bytes(b"mine")
    hub.faults = [503]
    assert len(fetch(tmp_path, names, hub.url, note=notes.append)) == 3
    assert len(hub.asked) == 1  # those after it are not waited for
    assert len(notes) == 1 and f"{NAME} and all else that is there already is kept unchecked" in notes[0]
    fetch(tmp_path, names[1:], hub.url, note=notes.append)  # the server has none of them
    assert [note.partition(":")[0] for note in notes[1:]] == [
        f"{name} is kept unchecked" for name in names[1:]
    ]
    assert all((tmp_path / name).read_bytes() == b"mine" for name in names)


def test_what_cannot_be_checked_is_not_taken(hub: Server, tmp_path: Path) -> None:
    hub.states_size, hub.says["X-Linked-Etag"] = False, ""
    with pytest.raises(FetchError, match="neither a size nor a SHA-256"):
        fetch(tmp_path, [NAME], hub.url)
    assert hub.methods("GET") == 0 and not list(tmp_path.iterdir())


def test_a_size_is_enough_and_that_is_said(hub: Server, tmp_path: Path) -> None:
    notes: list[str] = []
    hub.says["X-Linked-Etag"] = ""
    hub.breaks = 1
    for _ in range(2):  # downloaded, then compared
        assert fetch(tmp_path, [NAME], hub.url, note=notes.append)[0].read_bytes() == CONTENT
    assert len(notes) == 2 and all(f"{NAME} is checked by its size alone" in note for note in notes)


def test_a_checksum_is_enough(hub: Server, tmp_path: Path) -> None:
    notes: list[str] = []
    hub.states_size = False
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)  # all of it: the server has no more, and says 416
    assert fetch(tmp_path, [NAME], hub.url, note=notes.append)[0].read_bytes() == CONTENT
    assert [wanted for method, path, wanted in hub.asked if method == "GET" and "/store/" in path] == [
        f"bytes={len(CONTENT)}-",
        "",
    ]
    (tmp_path / NAME).unlink()
    hub.breaks = 1
    assert fetch(tmp_path, [NAME], hub.url, note=notes.append)[0].read_bytes() == CONTENT
    assert not notes


def test_a_hubs_own_checksum_comes_first(hub: Server, tmp_path: Path) -> None:
    hub.says["ETag"] = f'"{"0" * 64}"'
    assert fetch(tmp_path, [NAME], hub.url)[0].read_bytes() == CONTENT
    (tmp_path / NAME).unlink()
    with serving() as front:  # passes on to the hub, under a tag of its own
        front.says |= {"Location": f"{hub.url}/{NAME}", "X-Linked-Etag": "", "ETag": f'"{"0" * 64}"'}
        assert fetch(tmp_path, [NAME], front.url)[0].read_bytes() == CONTENT


def test_one_run_at_a_time(hub: Server, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    number = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(number, fcntl.LOCK_EX)
    with pytest.raises(FetchError, match="another process is downloading into"):
        fetch(tmp_path, [NAME], hub.url)
    os.close(number)
    fetch(tmp_path, [NAME], hub.url)
    fetch(tmp_path, [NAME], hub.url)  # the first one's lock is gone


def test_a_folder_that_cannot_be_locked_will_do(
    hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int, how: int) -> None:
        raise OSError(errno.EBADF, "as NFS does")

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", refuse)
    assert fetch(tmp_path, [NAME], hub.url)[0].read_bytes() == CONTENT


def test_optional_files_may_be_missing(hub: Server, tmp_path: Path) -> None:
    notes: list[str] = []
    hub.files = {name: name.encode() for name in module.FILES if name not in module.OPTIONAL}
    paths = fetch(tmp_path, source=hub.url, note=notes.append)
    assert [path.name for path in paths] == list(hub.files)
    assert [note.partition(",")[0] for note in notes] == ["cvvp.pth", "hifidecoder.pth", "classifier.pth"]
    with pytest.raises(FetchError, match="answers 404"):
        fetch(tmp_path, ["cvvp.pth"], hub.url)
    hub.faults = [404]
    (tmp_path / NAME).unlink()
    with pytest.raises(FetchError, match=f"{NAME}: the server answers 404"):
        fetch(tmp_path, source=hub.url)


def test_a_mirror_of_the_hub(hub: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/")
    hub.files = {name: name.encode() for name in ("vocab.json", "config.json", "pytorch_model.bin", NAME)}
    ok("fetch", NAME, "-o", "models")
    ok("fetch", "--aligner", "-o", "models")
    asked = {path for method, path, _ in hub.asked if method == "HEAD" and "/store/" not in path}
    assert f"/Manmay/tortoise-tts/resolve/main/{NAME}" in asked and len(asked) == 4
    assert "/jbetker/tacotron-symbols/resolve/main/vocab.json" in asked
    monkeypatch.setenv("HF_ENDPOINT", "ftp://mirror")
    assert "only https addresses are" in run("fetch", "cvvp.pth", "-o", "models").stderr


def test_the_command(hub: Server, folder: Path) -> None:
    hub.files = {name: name.encode() for name in (*CHECKPOINT_FILES.values(), "tokenizer.json")}
    result = ok("fetch", "--source", hub.url, "-o", "models")
    assert "models: 10 files" in result.output and "tortoise-rt export --checkpoints models" in result.output
    assert sorted(p.name for p in (folder / "models").iterdir()) == sorted(module.FILES)
    assert ok("fetch", NAME, "--source", hub.url, "-o", "models", "-q").output == ""
    del hub.files["cvvp.pth"]
    hub.says["X-Linked-Etag"] = ""
    (folder / "models" / "cvvp.pth").unlink()
    result = ok("fetch", "--source", hub.url, "-o", "models")
    assert "Note: cvvp.pth, which is optional, is missing" in result.stderr and "9 files" in result.output
    assert f"Note: {NAME} is checked by its size alone" in result.stderr
    assert ok("fetch", "--source", hub.url, "-o", "models", "-q").output == ""
    failed = run("fetch", "hifi", "--source", hub.url)
    assert failed.exit_code == 2 and "hifidecoder.pth" in failed.stderr
