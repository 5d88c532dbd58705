"""Long texts as jobs: what they give, what becomes of them when they or the server end."""

from __future__ import annotations

import io
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import soundfile
from scheduling import TOKENIZER
from serving import SHORT, Running, Slow, alone, assert_sound, begun, serving

from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.errors import OutputError
from tortoise_rt.longform import Book, Joining, read_document
from tortoise_rt.server.fields import GOOD, Wish
from tortoise_rt.server.jobs import Jobs
from tortoise_rt.text import Tokenizer
from tortoise_rt.voice import load_voice

LENGTH = 60  #: characters of a clip
TEXT = "\n\n".join(
    f"This is paragraph {number}. It says a few words, and then it ends." for number in range(6)
)
QUICK = {
    "voice": "alto",
    "seed": 5,
    "max_mel_tokens": 30,
    "num_autoregressive_samples": 1,
    "decoder": "hifigan",
}


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


@pytest.fixture
def server(jobs: Path) -> Iterator[Running]:
    with serving(jobs=jobs) as running:
        yield running


def submit(server: Running, text: str = TEXT, **fields: Any) -> str:
    answer = server.http.post("/v1/jobs", json={"input": text, **QUICK, "clip_length": LENGTH, **fields})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def shown(server: Running, job: str) -> dict[str, Any]:
    found: dict[str, Any] = server.http.get(f"/v1/jobs/{job}").json()
    return found


def ended(server: Running, job: str) -> dict[str, Any]:
    until = time.monotonic() + 60
    while (now := shown(server, job))["status"] in ("waiting", "running") and time.monotonic() < until:
        time.sleep(0.02)
    return now


def files(server: Running, job: dict[str, Any]) -> dict[str, bytes]:
    return {file["name"]: server.http.get(file["url"]).content for file in job["files"]}


def read_alone(server: Running, tmp_path: Path, text: str = TEXT, **joining: Any) -> dict[str, bytes]:
    """What ``read`` makes of a text, with nothing beside it."""
    (tmp_path / "text.txt").write_text(text)
    settings = server.service.settings(Wish(model=GOOD, settings={k: v for k, v in QUICK.items() if k not in ("voice", "seed")}))  # fmt: skip
    folder = tmp_path / "alone"
    with Book(
        folder, read_document(tmp_path / "text.txt"), FakeEngine(), load_voice("alto"), settings, 5, tokenizer=Tokenizer(TOKENIZER),
        length=LENGTH,
    ) as book:  # fmt: skip
        book.render()
        paths = [file.path for file in book.join(".wav", Joining(**joining))]
    return {path.name: path.read_bytes() for path in paths}


def assert_same_wavs(found: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    assert found.keys() == wanted.keys()
    for name, content in wanted.items():
        waves = [
            soundfile.read(io.BytesIO(data), dtype="int16")[0].tobytes() for data in (found[name], content)
        ]
        assert_sound(*waves)


def test_a_job_is_a_reading(server: Running, tmp_path: Path) -> None:
    job = ended(server, submit(server, name="story", subtitles="srt", temperature=None))
    assert job["status"] == "done" and job["error"] is None and job["name"] == "story" and job["seed"] == 5
    assert job["clips"]["made"] == job["clips"]["total"] >= 6
    made = files(server, job)
    assert b"paragraph 3" in made.pop("combined.srt")
    assert_same_wavs(made, read_alone(server, tmp_path))
    assert [j["id"] for j in server.http.get("/v1/jobs").json()["data"]] == [job["id"]]


def test_a_file_is_read_by_its_kind(server: Running) -> None:
    pytest.importorskip("markdown_it")
    text = "# One\n\nHello there.\n\n# Two\n\nHow are you?"
    request = json.dumps({**QUICK, "by_chapter": True, "format": "ogg"})
    answer = server.http.post(
        "/v1/jobs", data={"request": request}, files={"file": ("story.md", text.encode())}
    )
    job = ended(server, answer.json()["id"])
    assert job["name"] == "story.md" and [file["name"] for file in job["files"]] == [
        "chapter_01.ogg",
        "chapter_02.ogg",
    ]
    assert all(content[:4] == b"OggS" for content in files(server, job).values())


def test_what_is_wrong_is_said_and_leaves_nothing(server: Running, jobs: Path) -> None:
    def error(**fields: Any) -> str:
        answer = server.http.post("/v1/jobs", json=fields)
        assert answer.status_code == 400, answer.text
        message = str(answer.json()["error"]["message"])
        assert str(jobs) not in message
        return message

    assert "needs its text" in error()
    assert "empty" in error(input=" \n ")
    assert "unknown voice" in error(input=TEXT, voice="nobody")
    assert "unknown field 'response_format'" in error(input=TEXT, response_format="mp3")
    assert "unknown format" in error(input=TEXT, format="aac")
    assert "temperature is 0" in error(input=TEXT, temperature=0)
    assert (
        "surrogate"
        in server.http.post("/v1/jobs", content=b'{"input": "\\ud800"}').json()["error"]["message"]
    )
    post = server.http.post
    for name, content in (("a.exe", b"x"), ("a.txt", b"\xff\xfe\x00"), ("a.epub", b"no zip"), ("a.txt", b"")):
        assert post("/v1/jobs", files={"file": (name, content)}).status_code == 400, name
    assert post("/v1/jobs", data={"request": "{}"}, files={"x": ("a", b"b")}).status_code == 400
    assert [path.name for path in jobs.iterdir() if path.is_dir()] == []
    for path in ("/v1/jobs/none", "/v1/jobs/../jobs.sqlite", "/v1/jobs/none/files/x"):
        assert server.http.get(path).status_code == 404
    done = ended(server, submit(server, "Hello."))
    for name in ("manifest.json", "..%2ftext.txt", "../text.txt", "%2e%2e"):
        assert server.http.get(f"/v1/jobs/{done['id']}/files/{name}").status_code == 404


def test_jobs_stand_behind_speech_and_are_cancelled_at_once(jobs: Path) -> None:
    engine = Slow()
    with serving(engine, jobs=jobs) as server:
        engine.pause = 0.01
        first, second = submit(server), submit(server)
        begun(engine)
        assert shown(server, first)["status"] == "running" and shown(server, second)["status"] == "waiting"
        assert_sound(server.speak().content, alone())
        engine.pause = 0.1
        assert server.http.post(f"/v1/jobs/{second}/cancel").json()["status"] == "cancelled"
        began = time.monotonic()
        assert server.http.post(f"/v1/jobs/{first}/cancel").json()["status"] == "cancelled"
        server.settled()
        assert time.monotonic() - began < 2
        engine.pause = 0
        third = submit(server, name=None)
        assert ended(server, third)["status"] == "done" and shown(server, third)["name"] == "text"
        assert shown(server, first)["status"] == shown(server, second)["status"] == "cancelled"
        assert server.http.delete(f"/v1/jobs/{first}").json()["deleted"]
        assert server.http.get(f"/v1/jobs/{first}").status_code == 404 and not (jobs / first).exists()
        engine.pause = 0.1
        running = submit(server)
        begun(engine)
        assert server.http.delete(f"/v1/jobs/{running}").status_code == 200 and not (jobs / running).exists()


def test_a_restart_goes_on(jobs: Path, tmp_path: Path) -> None:
    engine = Slow()
    with serving(engine, jobs=jobs) as server:
        engine.pause = 0.01
        job, waiting = submit(server), submit(server, "Hello.")
        while shown(server, job)["clips"]["made"] < 2:
            time.sleep(0.01)
    state = (
        sqlite3.connect(jobs / "jobs.sqlite").execute("SELECT status FROM jobs ORDER BY created").fetchall()
    )
    assert state == [("waiting",), ("waiting",)]
    # As a process that was killed leaves it: running in the base, a folder of a job that was not yet taken.
    with sqlite3.connect(jobs / "jobs.sqlite") as base:
        base.execute("UPDATE jobs SET status = 'running' WHERE id = ?", (job,))
    (jobs / "0123456789abcdef").mkdir()
    (jobs / "photographs").mkdir()  # of whoever named a folder that is not empty
    clips = {
        path.name: path.stat().st_mtime_ns for path in (jobs / job / "book" / "clips").glob("[0-9]*.wav")
    }
    assert len(clips) >= 2
    with serving(jobs=jobs) as server:
        assert_same_wavs(files(server, ended(server, job)), read_alone(server, tmp_path))
        assert ended(server, waiting)["status"] == "done"
        again = {
            path.name: path.stat().st_mtime_ns for path in (jobs / job / "book" / "clips").glob("[0-9]*.wav")
        }
        assert again | clips == again  # none was made twice
        assert not (jobs / "0123456789abcdef").exists() and (jobs / "photographs").exists()


def test_a_job_that_fails_says_why(jobs: Path) -> None:
    engine = Slow()
    with serving(engine, jobs=jobs) as server:

        def fail(graph: str, rows: int) -> None:
            raise RuntimeError("at /tmp/secret")

        engine.before = fail
        job = ended(server, submit(server))
        assert job["status"] == "failed" and job["files"] == []
        engine.before = lambda graph, rows: None
        assert ended(server, submit(server))["status"] == "done"


def test_jobs_are_their_owners(jobs: Path) -> None:
    with serving(keys={"anna": "a" * 16, "ben": "b" * 16}, jobs=jobs) as server:
        anna, ben = ({"Authorization": f"Bearer {letter * 16}"} for letter in "ab")

        def ask(method: str, path: str, key: dict[str, str], **options: Any) -> httpx.Response:
            return server.http.request(method, path, headers=key, **options)

        job = ask("POST", "/v1/jobs", anna, json={"input": SHORT, **QUICK}).json()["id"]
        assert ask("GET", f"/v1/jobs/{job}", anna).status_code == 200
        assert ask("GET", "/v1/jobs", ben).json()["data"] == []
        for method, path in (
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/cancel"),
            ("GET", "/files/combined.wav"),
        ):
            assert ask(method, f"/v1/jobs/{job}{path}", ben).status_code == 404


def test_a_folder_is_one_servers(server: Running, jobs: Path) -> None:
    with pytest.raises(OutputError, match="another server"):
        Jobs(server.service, jobs)


def test_without_a_folder_there_are_no_jobs() -> None:
    with serving() as server:
        assert server.http.get("/v1/jobs").status_code == 404
        assert "/v1/jobs" not in server.http.get("/openapi.json").json()["paths"]
