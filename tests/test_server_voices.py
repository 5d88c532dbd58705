"""Voices over HTTP: made of clips, spoken with, deleted; nothing leaves their folder."""

from __future__ import annotations

import io
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import soundfile
from serving import Running, error, serving

from tortoise_rt.errors import VoiceError
from tortoise_rt.server.service import UPLOADS_EACH
from tortoise_rt.voice_store import remove_voice


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORTOISE_RT_VOICES", str(tmp_path / "voices"))
    return tmp_path / "voices"


@pytest.fixture
def server(own: Path) -> Iterator[Running]:
    with serving() as running:
        yield running


def clip(kind: str = "WAV", seconds: float = 1.0, frequency: float = 200.0) -> bytes:
    target = io.BytesIO()
    wave = 0.3 * np.sin(2 * np.pi * frequency * np.arange(int(22050 * seconds)) / 22050)
    soundfile.write(target, wave, 22050, format=kind)
    return target.getvalue()


def create(server: Running, name: str = "emma", **files: bytes) -> httpx.Response:
    sent = [
        ("files", (called.replace("_", "."), content))
        for called, content in (files or {"a_wav": clip()}).items()
    ]
    return server.http.post("/v1/audio/voices", data={"name": name}, files=sent)


def names(server: Running) -> list[str]:
    return [voice["id"] for voice in server.http.get("/v1/audio/voices").json()["data"]]


def test_a_voice_is_made_spoken_with_and_deleted(server: Running, own: Path) -> None:
    assert names(server) == ["alto", "tenor", "random"]
    answer = create(server, a_wav=clip(), b_flac=clip("FLAC", 0.5, 300), c_mp3=clip("MP3", 1, 250))
    assert answer.status_code == 201 and answer.json() == {
        "id": "emma", "name": "emma", "object": "voice", "deletable": True,
    }  # fmt: skip
    assert sorted(path.name for path in (own / "emma").iterdir()) == ["001.wav", "002.flac", "003.mp3"]
    assert "emma" in names(server)
    spoken = server.speak(voice="emma")
    assert spoken.status_code == 200 and spoken.content != server.speak(voice="alto").content
    assert server.speak(voice={"id": "emma"}).content == spoken.content
    assert server.speak(voice="emma:0.7&alto:0.3").status_code == 200
    assert create(server).status_code == 409
    assert server.http.delete("/v1/audio/voices/emma").json()["deleted"] is True
    assert not (own / "emma").exists() and "emma" not in names(server)
    assert server.http.delete("/v1/audio/voices/emma").status_code == 404
    assert server.speak(voice="emma").status_code == 400


@pytest.mark.parametrize(
    "name",
    ["", " ", "..", "../emma", "/etc/emma", "a/b", "a\\b", ".hidden", "_x", "a:b", "a&b", "a" * 61, "random", "x.wav", "a\n", "a\0"],
)  # fmt: skip
def test_names_that_no_voice_may_have(server: Running, own: Path, name: str) -> None:
    before = sorted(own.parent.rglob("*"))
    assert create(server, name).status_code == 400
    answer = server.http.delete(f"/v1/audio/voices/{quote(name, safe='')}")
    assert answer.status_code in (403, 404, 405)
    assert sorted(own.parent.rglob("*")) == before


def test_only_voices_made_here_are_deleted(server: Running) -> None:
    for path in ("alto", "..%2f..%2fetc", "%2e%2e", "random"):
        assert server.http.delete(f"/v1/audio/voices/{path}").status_code in (403, 404, 405)
    assert names(server) == ["alto", "tenor", "random"]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a_wav": b""}, "'a.wav' cannot be read as audio"),
        ({"a_wav": b"not a wav"}, r"^'a.wav' cannot be read as audio \(Error opening 'a.wav':"),
        ({"a_wav": clip(seconds=0.05)}, "0.1 s"),
        ({"a_exe": clip()}, "none of .wav"),
        ({"a_pth": b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR."}, "cannot use 'a.pth'|cannot read"),
        ({"a_wav": clip(), "b_pth": b"x"}, "latent files"),
        ({"a_safetensors": b"\xff" * 100}, "no sound .safetensors|not a sound .safetensors"),
    ],
    ids=["empty", "no audio", "short", "exe", "pickle", "mixed", "safetensors"],
)
def test_clips_that_are_none(
    server: Running,
    own: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, bytes],
    says: str,
) -> None:
    between = tmp_path / "tmp"
    between.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(between))
    answer = create(server, **files)
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400 and re.search(says, message), message
    assert "/tmp" not in message and str(own) not in message
    assert not own.exists() or not [*own.iterdir()]
    assert not [*between.iterdir()]


def test_forms_that_are_none(server: Running) -> None:
    post = server.http.post
    assert (
        "needs a name"
        in post("/v1/audio/voices", files={"files": ("a.wav", clip())}).json()["error"]["message"]
    )
    assert "needs clips" in post("/v1/audio/voices", data={"name": "emma"}, files={"x": ("", b"")}).json()["error"]["message"]  # fmt: skip
    assert post("/v1/audio/voices", json={"name": "emma"}).status_code == 400
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    for body in (b"", b"--x", b"--x\r\n\r\n", b"\0" * 100):
        assert post("/v1/audio/voices", content=body, headers=broken).status_code == 400
    assert (
        post("/v1/audio/voices", content=b"x", headers={"Content-Type": "multipart/form-data"}).status_code
        == 400
    )
    many = [("files", (f"{n}.wav", b"x")) for n in range(51)]
    assert post("/v1/audio/voices", data={"name": "emma"}, files=many).status_code == 400


def test_a_caller_sends_few_bodies_with_files_at_a_time(server: Running) -> None:
    head = "POST /v1/audio/voices HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 9\r\n\r\n"
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(UPLOADS_EACH)]
    for client in slow:
        client.sendall(head.encode())
    until = time.monotonic() + 10
    while server.service.uploads.inside < UPLOADS_EACH and time.monotonic() < until:
        time.sleep(0.01)
    answer = create(server)
    assert (
        f"{UPLOADS_EACH} requests of yours" in error(answer, 429) and int(answer.headers["retry-after"]) >= 1
    )
    assert server.speak().status_code == 200
    for client in slow:
        client.close()
    while server.service.uploads.inside and time.monotonic() < until:
        time.sleep(0.01)
    assert create(server).status_code == 201


def test_uploads_are_bounded(own: Path) -> None:
    with serving(upload_bytes=100_000) as server:
        assert create(server, a_wav=clip(seconds=3)).status_code == 413
        assert create(server, a_wav=clip()).status_code == 201


def test_removing_a_voice(own: Path) -> None:
    (own / "emma").mkdir(parents=True)
    (own / "emma" / "a.wav").write_bytes(clip())
    outside = own.parent / "outside"
    outside.mkdir()
    (own / "link").symlink_to(outside)
    remove_voice("emma")
    remove_voice("link")
    assert outside.is_dir() and not [*own.iterdir()]
    with pytest.raises(VoiceError, match="no voice of your own"):
        remove_voice("emma")
