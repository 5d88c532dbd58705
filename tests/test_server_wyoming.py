"""Wyoming's own client against ours."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from serving import SHORT, Running, Slow, begun, serving

pytest.importorskip("wyoming")
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

ALTO = SynthesizeVoice(name="alto")


def talk(server: Running, work: Callable[[AsyncTcpClient], Awaitable[Any]]) -> Any:
    async def connected() -> Any:
        async with AsyncTcpClient("127.0.0.1", server.wyoming_port) as client:
            return await asyncio.wait_for(work(client), 60)

    return asyncio.run(connected())


async def hear(client: AsyncTcpClient, *, streamed: bool = False) -> bytes:
    """The sound up to its end."""
    sound, kinds = b"", []
    while not kinds or kinds[-1] != ("synthesize-stopped" if streamed else "audio-stop"):
        event = await client.read_event()
        assert event is not None and not Error.is_type(event.type), event
        kinds.append(event.type)
        if AudioChunk.is_type(event.type):
            chunk = AudioChunk.from_event(event)
            assert (chunk.rate, chunk.width, chunk.channels) == (24000, 2, 1)
            sound += chunk.audio
    ends = [AudioStop().event().type] + [SynthesizeStopped().event().type] * streamed
    assert kinds[0] == AudioStart(24000, 2, 1).event().type and kinds[-len(ends) :] == ends
    return sound


@pytest.fixture(scope="module")
def server() -> Any:
    with serving(with_wyoming=True) as running:
        yield running


def test_it_describes_itself(server: Running) -> None:
    async def describe(client: AsyncTcpClient) -> Info:
        await client.write_event(Describe().event())
        event = await client.read_event()
        assert event is not None
        return Info.from_event(event)

    (program,) = talk(server, describe).tts
    assert program.supports_synthesize_streaming and program.installed
    assert [voice.name for voice in program.voices] == ["alto", "tenor", "random"]


def test_it_speaks_one_text_after_the_other(server: Running) -> None:
    async def speak(client: AsyncTcpClient) -> list[bytes]:
        sounds = []
        for voice in (ALTO, None, SynthesizeVoice(language="en")):
            await client.write_event(Synthesize(SHORT, voice=voice).event())
            sounds.append(await hear(client))
        return sounds

    assert all(len(sound) > 10_000 for sound in talk(server, speak))


def test_text_that_is_written_is_heard_before_it_ends(server: Running) -> None:
    async def speak(client: AsyncTcpClient) -> bytes:
        await client.write_event(SynthesizeStart(voice=ALTO).event())
        for word in ("Hello ", "there. ", "How "):
            await client.write_event(SynthesizeChunk(word).event())
        event = await client.read_event()
        assert event is not None and AudioStart.is_type(event.type)  # the first sentence is certain
        event = await client.read_event()
        assert event is not None and AudioChunk.is_type(event.type)
        first = AudioChunk.from_event(event).audio
        await client.write_event(SynthesizeChunk("are you?").event())
        await client.write_event(Synthesize(SHORT).event())  # for servers that do not stream
        await client.write_event(SynthesizeStop().event())
        rest, kinds = b"", []
        while not kinds or kinds[-1] != "synthesize-stopped":
            event = await client.read_event()
            assert event is not None
            kinds.append(event.type)
            rest += event.payload or b""
        assert kinds[-2:] == ["audio-stop", "synthesize-stopped"] and kinds.count("audio-stop") == 1
        await client.write_event(Synthesize("Again.").event())
        assert await hear(client)
        return first + rest

    assert len(talk(server, speak)) > 10_000


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (Synthesize(SHORT, voice=SynthesizeVoice(name="nobody")).event(), "unknown voice"),
        (Synthesize("").event(), "nothing to say"),
        (Synthesize("\u200b").event(), "nothing to say"),
        (Synthesize("a" * 20001).event(), "20000 characters"),
        (Synthesize("<speak/>", text_format="ssml").event(), "plain text"),
        (Event("synthesize", {}), "lacks 'text'"),
        (Event("synthesize", {"text": 3}), "must be a string"),
        (Event("synthesize", {"text": "x", "voice": 3}), "not as Wyoming has them"),
        (Event("synthesize", {"text": "x", "voice": {"name": 3}}), "named by a text"),
    ],
)
def test_what_is_wrong_is_said(server: Running, event: Event, says: str) -> None:
    async def speak(client: AsyncTcpClient) -> str:
        await client.write_event(event)
        answer = await client.read_event()
        assert answer is not None
        return Error.from_event(answer).text

    assert says in talk(server, speak)
    server.settled()


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tortoise_rt.server.wyoming.MOST_CONNECTIONS", 1)
    with serving(with_wyoming=True) as server:

        async def second(client: AsyncTcpClient) -> bytes:
            await client.write_event(Describe().event())
            assert await client.read_event()
            with socket.create_connection(("127.0.0.1", server.wyoming_port), timeout=20) as other:
                return await asyncio.to_thread(other.recv, 10)

        assert talk(server, second) == b""


@pytest.mark.parametrize(
    "data",
    [b"\n", b"{}\n", b"[]\n", b"[" * 60_000 + b"\n", b"x" * 100_000, b"\xff\n", b'{"type": "synthesize", "data_length": 9999999999}\n',
     b'{"type": "describe", "data_length": 5}\n12'],
)  # fmt: skip
def test_what_is_no_event_ends_the_connection(
    server: Running, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", server.wyoming_port), timeout=20) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(10) == b""
    assert server.http.get("/healthz").status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_client_that_leaves_frees_its_rows() -> None:
    engine = Slow()
    with serving(engine, with_wyoming=True) as server:
        engine.pause = 0.3  # so that no sound is there whose sending would fail
        with socket.create_connection(("127.0.0.1", server.wyoming_port)) as client:
            data = json.dumps({"text": SHORT * 10}).encode()
            client.sendall(
                json.dumps({"type": "synthesize", "data_length": len(data)}).encode() + b"\n" + data
            )
            begun(engine, 1)
        began = time.monotonic()
        server.settled()
        assert time.monotonic() - began < 2
