"""``tortoise-rt serve`` as a process: what it says when it cannot start, and how it ends."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from tortoise_rt.cli import main

LONG = "The boat came in and went out again. " * 3


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["serve", *arguments])
    assert done.exit_code == 2 and "Traceback" not in done.output
    return done.output


def test_what_it_cannot_do_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "queue is 0" in refused("--queue", "0")
    assert "timeout is 0" in refused("--timeout", "0")
    assert "does not exist" in refused("--voices-dir", "none")
    assert "cannot read the keys in none" in refused("--api-keys", "none")
    assert "must be a scheme and a host" in refused("--allow-origin", "example.org")
    assert "cannot listen on nowhere.invalid" in refused("--host", "nowhere.invalid")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "Address already in use" in refused("--port", str(taken.getsockname()[1]))
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'tortoise-rt[serve]'" in refused()


class Process:
    """A server as people start it."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "tortoise_rt", "serve", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for(r"Listening on (\S+)")
        self.wait_for(r'"event": "ready"()')

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    def wait_for(self, pattern: str) -> str:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for line in [*self.lines]:
                if found := re.search(pattern, line):
                    return found[1]
            time.sleep(0.02)
        raise AssertionError(self.lines)

    def end(self) -> int:
        code = self.process.wait(60)
        self._reader.join(60)
        return code


@pytest.fixture
def process(folder: Path) -> Iterator[Process]:
    pytest.importorskip("onnxruntime")
    running = Process()
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def test_it_speaks_and_ends_when_it_has_spoken(process: Process) -> None:
    assert process.url.startswith("http://127.0.0.1:")
    with pytest.raises(ConnectionRefusedError):  # any other address, and be it of this machine
        socket.create_connection(("127.0.0.2", httpx.URL(process.url).port or 0))
    body = {"input": LONG, "response_format": "pcm", "seed": 3}
    with httpx.stream("POST", f"{process.url}/v1/audio/speech", json=body, timeout=60) as answer:
        sound = answer.iter_raw()
        first = next(sound)
        process.process.send_signal(signal.SIGTERM)
        process.wait_for(r'"event": "stopping"()')
        assert httpx.get(f"{process.url}/readyz").json() == {"status": "stopping"}
        length = len(first) + sum(map(len, sound))
    assert length > 48000
    assert process.end() == 0
    told = [json.loads(line) for line in process.lines if line.startswith("{")]
    (speech,) = [line for line in told if line["event"] == "request" and line["path"] == "/v1/audio/speech"]
    assert speech["outcome"] == "done" and speech["audio_seconds"] == pytest.approx(length / 48000, abs=0.01)
    assert not [line for line in told if line["level"] == "error"]


def test_a_second_signal_ends_it_at_once(process: Process) -> None:
    body = {"input": LONG * 20, "response_format": "pcm", "stream": False}
    failed: list[object] = []

    def ask() -> None:
        try:
            failed.append(httpx.post(f"{process.url}/v1/audio/speech", json=body, timeout=60).status_code)
        except httpx.HTTPError as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.5)
    process.process.send_signal(signal.SIGINT)
    process.wait_for(r'"event": "stopping"()')
    began = time.monotonic()
    process.process.send_signal(signal.SIGINT)
    assert process.end() == 0 and time.monotonic() - began < 8
    thread.join()
    assert failed != [200]


def test_a_killed_server_goes_on_with_its_jobs(folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    text = "\n\n".join(f"This is the paragraph with the number {number}." for number in range(5))
    body = {"input": text, "voice": "alto", "seed": 3, "clip_length": 40, "subtitles": "srt"}
    running = Process("--jobs", "jobs")
    job = httpx.post(f"{running.url}/v1/jobs", json=body).json()["id"]
    speaking = threading.Thread(
        target=lambda: pytest.raises(
            httpx.HTTPError, httpx.post, f"{running.url}/v1/audio/speech", json={"input": LONG * 20}
        )
    )
    speaking.start()
    until = time.monotonic() + 60
    while len([*Path("jobs", job, "book", "clips").glob("[0-9]*.wav")]) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    running.process.kill()
    running.end()
    speaking.join()
    assert len([*Path("jobs", job, "book", "clips").glob("[0-9]*.wav")]) < 5
    again = Process("--jobs", "jobs")
    try:
        while (found := httpx.get(f"{again.url}/v1/jobs/{job}").json())["status"] in ("waiting", "running"):
            assert time.monotonic() < until
            time.sleep(0.1)
        files = {file["name"]: httpx.get(again.url + file["url"]).content for file in found["files"]}
    finally:
        again.process.kill()
        again.end()
    Path("text.txt").write_text(text)
    arguments = [
        "--voice",
        "alto",
        "--seed",
        "3",
        "--clip-length",
        "40",
        "--subtitles",
        "srt",
        "-o",
        "read",
        "-q",
    ]
    assert CliRunner().invoke(main, ["read", "text.txt", *arguments]).exit_code == 0
    assert files.keys() == {"combined.wav", "combined.srt"}
    assert files["combined.srt"] == Path("read/combined.srt").read_bytes()
    waves = [
        soundfile.read(io.BytesIO(data))[0]
        for data in (files["combined.wav"], Path("read/combined.wav").read_bytes())
    ]
    assert (
        len(waves[0]) == len(waves[1]) and np.abs(waves[0] - waves[1]).max() < 1e-3
    )  # the rows' number moves last bits
