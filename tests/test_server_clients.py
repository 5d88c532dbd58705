"""Clients of speech over HTTP that leave, do not read, are too many or out of time; and what fails before them."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from serving import LONG, ONE, Slow, alone, assert_sound, begun, error, serving

from tortoise_rt.scheduler import Priority
from tortoise_rt.server.sound import _body


def test_a_client_that_leaves_frees_its_rows_at_once() -> None:
    engine = Slow()
    with serving(engine) as server:
        engine.pause = 0.02
        body = json.dumps({"input": LONG, "response_format": "pcm", **ONE, "max_mel_tokens": 500})
        head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as early:  # before the first sound
            early.sendall((head + body).encode())
            begun(engine)
        began = time.monotonic()
        server.settled()
        assert time.monotonic() - began < 2
        with socket.create_connection(("127.0.0.1", server.port)) as late:  # while it is heard
            late.sendall((head + body).encode())
            assert late.recv(100).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        server.settled()
        assert time.monotonic() - began < 2
        engine.pause = 0
        assert 'tortoise_rt_speeches_total{outcome="Cancelled"} 2.0' in server.http.get("/metrics").text
        assert_sound(server.speak().content, alone())


def test_a_client_that_leaves_before_its_request_is_there_is_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", "tortoise_rt.server"), serving() as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            time.sleep(0.2)
        until = time.monotonic() + 10
        while (
            not (told := [r.facts for r in caplog.records if hasattr(r, "facts")])
            and time.monotonic() < until
        ):
            time.sleep(0.01)
    assert told[0]["status"] == 499 and not [r for r in caplog.records if r.levelname == "ERROR"]


@pytest.mark.parametrize("fields", [{"timeout": 2}, {}], ids=["its time is over", "it stalls"])
def test_a_client_that_does_not_read_stops_the_work_and_is_left(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    monkeypatch.setattr("tortoise_rt.server.guard.STALL_SECONDS", 60.0 if fields else 1.5)
    engine = Slow()
    with serving(engine) as server, socket.socket() as deaf:
        text = " ".join([LONG] * 10)
        body = json.dumps({"input": text, "response_format": "pcm", **ONE, "max_mel_tokens": 500, **fields})
        head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", server.port))
        began = time.monotonic()
        deaf.sendall((head + body).encode())
        begun(engine)
        made = 0
        while len(engine.runs) > made:  # until what nobody takes is not made
            made = len(engine.runs)
            time.sleep(0.3)
        assert server.service.gate.inside == 1
        server.settled()
        assert time.monotonic() - began < 5
        assert_sound(server.speak().content, alone())


def test_whoever_takes_nothing_of_a_whole_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tortoise_rt.server.run.HEAD_SECONDS", 0.3)
    with serving() as server, socket.socket() as deaf:
        body = json.dumps({"input": LONG, "stream": False, "response_format": "wav", **ONE})
        head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", server.port))
        deaf.sendall((head + body).encode())
        until = time.monotonic() + 30
        waiting = lambda: [  # noqa: E731
            found
            for found in server.server.server_state.connections
            if found.transport.get_write_buffer_size()
        ]
        while not waiting():
            assert time.monotonic() < until
            time.sleep(0.01)
        server.settled()  # all of it was made
        until = time.monotonic() + 3
        while waiting():
            assert time.monotonic() < until
            time.sleep(0.01)


@pytest.mark.parametrize(("stream", "priority"), [(True, Priority.STREAM), (False, Priority.NORMAL)])
def test_who_waits_for_all_of_it_comes_behind_who_listens(stream: bool, priority: Priority) -> None:
    engine, seen = Slow(), set[int]()
    with serving(engine) as server:
        policy = server.service.scheduler.policy
        engine.before = lambda graph, rows: seen.update(
            entry.priority for entry in [*policy._entries.values()]
        )
        assert server.speak(stream=stream).status_code == 200
    assert priority in seen and seen <= {priority, Priority.NORMAL}


def test_too_many_are_told_to_wait() -> None:
    engine = Slow()
    with serving(engine, queue=2) as server:
        engine.pause = 0.05
        threads = [
            threading.Thread(target=server.speak, args=(LONG,), kwargs={"timeout": 1.0, "stream": False})
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        begun(engine)
        answer = server.speak()
        assert "2 requests are in flight" in error(answer, 429) and int(answer.headers["retry-after"]) >= 1
        for thread in threads:
            thread.join()
        engine.pause = 0
        assert server.speak().status_code == 200


def test_a_request_ends_at_its_time() -> None:
    engine = Slow()
    with serving(engine) as server:
        engine.pause = 0.1
        began = time.monotonic()
        assert "within its 1 s" in error(server.speak(LONG, timeout=1, stream=False), 504)
        assert time.monotonic() - began < 3
        server.settled()


def test_what_fails_while_it_is_heard_is_no_whole_answer() -> None:
    engine = Slow()
    with serving(engine) as server:
        calls = 0

        def fail(graph: str, rows: int) -> None:
            nonlocal calls
            calls += graph.startswith("hifigan")
            if calls > 3:
                raise RuntimeError("out of memory, at /tmp/secret")

        engine.before = fail
        with pytest.raises(httpx.RemoteProtocolError):
            server.speak(LONG)
        calls = 0
        events = server.speak(LONG, stream_format="sse").text
        assert '"type": "error"' in events and "the server failed" in events and "secret" not in events
        calls = 4
        assert "the server failed" in error(server.speak(), 500)
        server.settled()


def test_no_cancellation_is_lost() -> None:
    """That comes as the client takes a part of the answer."""

    async def leave() -> None:
        taken = asyncio.get_running_loop().create_future()

        async def send(message: Any) -> None:
            await taken

        speech: Any = SimpleNamespace(limit=10.0, seconds=0.0)
        task = asyncio.create_task(_body(speech, send, b"sound"))
        for _ in range(3):
            await asyncio.sleep(0)
        taken.set_result(None)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
