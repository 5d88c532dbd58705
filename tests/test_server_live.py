"""A WebSocket: live text in, sound out."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
from serving import ONE, SHORT, Running, Slow, alone, assert_sound, begun, error, serving
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tortoise_rt.incoming import IncomingText

START = {"type": "start", "response_format": "pcm", **ONE}


def open_to(server: Running, **options: Any) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{server.port}/v1/audio/speech/live", **options)


def tell(socket: ClientConnection, *messages: Any) -> None:
    for message in messages:
        socket.send(json.dumps(message))


def text(part: str) -> dict[str, str]:
    return {"type": "text", "text": part}


def hear(socket: ClientConnection) -> tuple[bytes, list[dict[str, Any]]]:
    """Sound and messages until a text is done with."""
    sound, messages = b"", []
    while not messages or messages[-1]["type"] in ("started", "sentence"):
        message = socket.recv(timeout=60)
        if isinstance(message, bytes):
            sound += message
        else:
            messages.append(json.loads(message))
    return sound, messages


def test_text_that_arrives_is_said_as_if_it_were_there(server: Running) -> None:
    with open_to(server) as socket:
        tell(socket, START, *(text(letter) for letter in SHORT), {"type": "end"})
        sound, messages = hear(socket)
        assert_sound(sound, alone())
        assert [message["type"] for message in messages] == ["started", "sentence", "sentence", "done"]
        assert messages[0]["seed"] == 7 and messages[0]["sample_rate"] == 24000
        assert [message["text"] for message in messages[1:3]] == ["Hello there.", "How are you?"]
        assert messages[-1]["audio_seconds"] == pytest.approx(len(sound) / 48000, abs=1e-3)
        tell(
            socket, {**START, "seed": 8}, text(SHORT), {"type": "end"}
        )  # the next text on the same connection
        assert_sound(hear(socket)[0], alone(seed=8))


def test_a_sentence_is_heard_before_the_text_ends(server: Running) -> None:
    with open_to(server) as socket:
        tell(socket, START, text("Hello there. How"))
        messages = [socket.recv(timeout=30) for _ in range(3)]
        assert json.loads(messages[1])["text"] == "Hello there." and isinstance(messages[2], bytes)
        tell(socket, text(" are you?"), {"type": "end"})
        assert hear(socket)[1][-1]["type"] == "done"


def test_cancelling_frees_rows_and_the_connection_goes_on() -> None:
    engine = Slow()
    with serving(engine) as server, open_to(server) as socket:
        engine.pause = 0.05
        tell(socket, START, text(SHORT * 10))
        begun(engine)
        began = time.monotonic()
        tell(socket, {"type": "cancel"})
        assert hear(socket)[1][-1] == {"type": "cancelled"}
        server.settled()
        assert time.monotonic() - began < 2
        engine.pause = 0
        tell(socket, START, text(SHORT), {"type": "end"})
        assert_sound(hear(socket)[0], alone())


def test_a_client_that_leaves_frees_its_rows() -> None:
    engine = Slow()
    with serving(engine) as server:
        engine.pause = 0.05
        for start in (START, {**START, "decoder": "diffusion"}):
            with open_to(server) as socket:
                tell(socket, start, text(SHORT * 10))
                json.loads(socket.recv(timeout=30))
                time.sleep(0.2)
                assert server.service.gate.inside == 1
            began = time.monotonic()
            server.settled()
            assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (["{"], "no JSON"),
        (["[]"], "must be a JSON object"),
        ([json.dumps(text("Hello."))], "begin with"),
        ([json.dumps({**START, "temprature": 1})], "Did you mean"),
        ([json.dumps({**START, "input": "Hello."})], "unknown field 'input'"),
        ([json.dumps(START), json.dumps({"type": "text", "text": 3})], "text must be a string"),
        ([json.dumps(START), '{"type": "text", "text": "\\ud800"}'], "surrogate"),
        ([json.dumps(START), json.dumps({"type": "noise"})], "unknown type 'noise'"),
        ([json.dumps(START), json.dumps(text("a" * 20001))], "more than 20000 characters"),
        ([b"\0"], "JSON as text"),
    ],
)
def test_what_is_wrong_is_said(server: Running, messages: list[Any], says: str) -> None:
    with open_to(server) as socket:
        for message in messages:
            socket.send(message)
        told: list[Any] = []
        with pytest.raises(ConnectionClosed):
            while True:
                told.append(socket.recv(timeout=30))
    error = json.loads(told[-1])
    assert error["type"] == "error" and says in error["error"]["message"]
    server.settled()


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{**START, "voice": "nobody"}, text(SHORT), {"type": "end"}], "unknown voice"),
        ([START, {"type": "end"}], "nothing to say"),
        ([{**START, "timeout": 1}, text("Hello")], "within its 1 s"),
    ],
)
def test_a_text_that_fails_leaves_the_connection(server: Running, messages: list[Any], says: str) -> None:
    with open_to(server) as socket:
        tell(socket, *messages)
        assert says in hear(socket)[1][-1]["error"]["message"]
        tell(socket, START, text(SHORT), {"type": "end"})
        assert hear(socket)[1][-1]["type"] == "done"


def test_keys_and_pages_of_other_sites() -> None:
    with serving(keys={"anna": "a" * 16}) as server:
        with open_to(server) as socket:  # as browsers do, which send no headers
            for _ in range(2):
                tell(socket, {**START, "key": "a" * 16}, text(SHORT), {"type": "end"})
                assert hear(socket)[1][-1]["type"] == "done"
        with open_to(server, additional_headers={"Authorization": "Bearer " + "a" * 16}) as socket:
            tell(socket, START, text(SHORT), {"type": "end"})
            assert hear(socket)[1][-1]["type"] == "done"
        with open_to(server) as socket:
            tell(socket, {**START, "key": "b" * 16})
            assert "a key is needed" in hear(socket)[1][-1]["error"]["message"]
        for headers in ({"Authorization": "Bearer wrong"}, {"Origin": "https://evil.example"}):
            with pytest.raises(InvalidStatus):
                open_to(server, additional_headers=headers)


def test_who_says_no_key_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tortoise_rt.server.live.KEY_SECONDS", 0.1)
    with serving(keys={"anna": "a" * 16}) as server, open_to(server) as socket:
        assert "nothing was said" in hear(socket)[1][-1]["error"]["message"]
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=10)


def test_places_are_counted() -> None:
    with contextlib.ExitStack() as held:
        server = held.enter_context(serving(keys={who: who * 16 for who in "abc"}, queue=2, each=1))

        def holds(who: str) -> ClientConnection:
            """Begins to write a text."""
            socket = held.enter_context(open_to(server))
            tell(socket, {**START, "key": who * 16}, text("Hello"))
            return socket

        def refused(who: str) -> str:
            server.http.headers["Authorization"] = f"Bearer {who * 16}"
            answer = server.speak()
            assert int(answer.headers["retry-after"]) >= 1
            return error(answer, 429)

        json.loads(holds("a").recv(timeout=30))
        assert "1 requests of yours are in flight" in refused("a")
        json.loads(holds("b").recv(timeout=30))
        assert "2 requests are in flight" in refused("c")
        assert "2 requests are in flight" in hear(holds("c"))[1][-1]["error"]["message"]


def test_parts_without_a_letter_are_not_kept() -> None:
    text = IncomingText(1)
    for part in ("", "a", ""):
        text.add(part)
    text.end()
    assert [*text] == ["a"]
