"""The callers of ``benchmarks/service.py``: those that listen, those that leave early, and hostile ones."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import itertools
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile

SENTENCES = Path(__file__).parent / "sentences"
VOICES = ("alto", "tenor", "alto:0.5&tenor:0.5")
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"temperature": 0.6},
    {"top_k": 20, "pause": 0.1},
    {"split": False},
)
PCM = {"response_format": "pcm"}
#: how an answer may be had: as it is made, or whole
STREAMS: tuple[dict[str, Any], ...] = (PCM, {**PCM, "stream_format": "sse"})
WHOLE: tuple[dict[str, Any], ...] = tuple(
    {"response_format": name, "stream": False} for name in ("pcm", "wav", "flac")
)
NEAR = 33  #: of 32767: how far a sample may be from that of the request alone
LEAVING, HOSTILE = 0.10, 0.05
SIP = 0.2  #: seconds that a slow reader waits between two pieces
NONSENSE = (
    b"{", b"[" * 50_000, b'{"input": "\\ud800"}', b"\xff" * 100, b'{"input": "Hi.", "voice": "../../etc"}',
    '{"input": "\u202e\u0000\U0001f4a9 \u0301\u0301"}'.encode(), b'{"input": "Hi.", "temperature": 1e400}', b'{"k": []}',
    b'{"input": "Hi.", "voice": "alto&../../etc"}', b'{"input": "Hi.", "seed": ' + b"9" * 5000 + b"}",
)  # fmt: skip
PATHS = (
    "/v1/audio/voices/..%2f..%2fetc", "/v1/audio/voices/%00", "//etc/passwd", "/v1/%ff", "/" + "a" * 5000, "/../../etc/passwd",
    "http://elsewhere.example/", "/v1/jobs/../../etc", "*", "/v1/audio/voices/alto/../../../etc/passwd", "\\..\\..\\etc",
)  # fmt: skip
NAMES = ("../../../tmp/owned", "/etc/owned", "\u202eowned", "a\0b", "..", "owned.wav", "a" * 5000)


@dataclass
class Ask:
    """A request, and its samples alone."""

    body: dict[str, Any]
    sound: bytes = b""


@dataclass
class Heard:
    """An answer."""

    status: int
    samples: bytes  #: 16 bits; of an error its body
    first: float  #: seconds to the first of it
    total: float  #: seconds


@dataclass
class Seen:
    """What was seen under load."""

    counts: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)  #: seconds to the first sound of streams
    streams: list[float] = field(default_factory=list)  #: seconds to their end
    whole: list[float] = field(default_factory=list)  #: seconds that answers with a length took
    audio: float = 0.0  #: seconds
    worst: int = 0  #: difference of a sample
    equal: int = 0  #: results of the same samples
    faults: list[str] = field(default_factory=list)


def asks(rng: random.Random, count: int) -> list[Ask]:
    """Requests of one to six sentences, no two alike."""
    lines = [
        line
        for name in ("everyday", "harvard")
        for line in (SENTENCES / f"{name}.txt").read_text("utf-8").splitlines()
    ]
    found = []
    for number in range(count):
        extra = rng.choice(SETTINGS)
        sentences = rng.sample(lines, 1 if "split" in extra else rng.choice((1, 1, 2, 3, 6)))
        found.append(
            Ask({"input": " ".join(sentences), "voice": rng.choice(VOICES), "seed": number, **extra})
        )
    return found


class Callers:
    """All that ask a server at ``url``; ``strict``: whether what it says is the same to the bit whatever else is asked."""

    def __init__(self, url: str, given: list[Ask], rng: random.Random, strict: bool) -> None:
        self._asks, self._rng, self._most = given, rng, 0 if strict else NEAR
        self._host, self._port = httpx.URL(url).host, httpx.URL(url).port
        self.http = httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=None))
        self.seen = Seen()
        self._received = 0  #: bytes of sound

    async def speak(self, ask: Ask, form: dict[str, Any], sip: float = 0.0) -> Heard:
        """Ask, and hear it to the end, ``sip`` seconds between pieces."""
        began, first, data = time.perf_counter(), 0.0, bytearray()
        async with self.http.stream("POST", "/v1/audio/speech", json={**ask.body, **form}) as answer:
            async for piece in answer.aiter_raw():
                first = first or time.perf_counter() - began
                data += piece
                self._received += len(piece)
                await asyncio.sleep(sip)
            total = time.perf_counter() - began
        samples = bytes(data)
        if answer.status_code == 200:
            samples = decoded(samples, form)
        elif answer.status_code == 429 and "retry-after" not in answer.headers:
            self.seen.faults.append("429 without Retry-After")
        return Heard(answer.status_code, samples, first, total)

    async def learn(self) -> None:
        """What each request gives with nothing beside it."""
        for ask in self._asks:
            heard = await self.speak(ask, PCM)
            if heard.status != 200:
                raise SystemExit(f"{ask.body} alone: {heard.samples[:500]!r}")
            ask.sound = heard.samples
        if len({ask.sound for ask in self._asks}) < len(self._asks):
            raise SystemExit("two requests sound the same: mixed results would not be seen")

    async def alone(self, passes: int) -> list[float]:
        """See that each gives it again; -> seconds to the first sound."""
        firsts = []
        for _ in range(passes):
            for ask in self._asks:
                heard = await self.speak(ask, PCM)
                self._compare(ask, heard.samples)
                firsts.append(heard.first)
        return firsts

    async def rate(self, callers: int, ramp: float, seconds: float) -> float:
        """Requests a second that so many callers get through who ask again at once: by the sound that they get, from ``ramp`` on."""
        turns = itertools.cycle(self._rng.sample(self._asks, len(self._asks)))

        async def caller() -> None:
            while True:
                await self.speak(next(turns), PCM)

        tasks = [asyncio.create_task(caller()) for _ in range(callers)]
        await asyncio.sleep(ramp)
        before, began = self._received, time.perf_counter()
        await asyncio.sleep(seconds)
        rate = (self._received - before) / (time.perf_counter() - began)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return rate / float(np.mean([len(ask.sound) for ask in self._asks]))

    async def run(self, seconds: float, rate: float) -> None:
        """Callers who come ``rate`` times a second, whatever becomes of the others; hostile ones beside them."""
        end, tasks = time.perf_counter() + seconds, set[asyncio.Task[None]]()
        while time.perf_counter() < end:
            await asyncio.sleep(self._rng.expovariate(rate / (1 - HOSTILE)))
            kind = self._rng.random()
            act = (
                self._hostile if kind < HOSTILE else self._leave if kind < HOSTILE + LEAVING else self._listen
            )
            task = asyncio.create_task(self._counted(act))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def _counted(self, act: Callable[[], Awaitable[str]]) -> None:
        name = act.__name__.strip("_")
        try:
            self.seen.counts[f"{name}: {await act()}"] += 1
        except Exception as error:
            self.seen.counts[f"{name}: {type(error).__name__}"] += 1
            self.seen.faults.append(f"{name}: {error!r}")

    def _form(self) -> dict[str, Any]:
        return self._rng.choice(self._rng.choice((STREAMS, WHOLE)))

    async def _listen(self) -> str:
        ask, form = self._rng.choice(self._asks), self._form()
        heard = await self.speak(ask, form)
        if heard.status == 200:
            if form in STREAMS:
                self.seen.first.append(heard.first)
                self.seen.streams.append(heard.total)
            else:
                self.seen.whole.append(heard.total)
            self.seen.audio += len(heard.samples) / 48000
            self._compare(ask, heard.samples)
        else:
            self._expect(heard.status, 429)
        return str(heard.status)

    def _compare(self, ask: Ask, sound: bytes) -> None:
        seen = self.seen
        seen.equal += sound == ask.sound
        if len(sound) != len(ask.sound):
            seen.faults.append(f"{len(sound)} bytes instead of {len(ask.sound)} of {ask.body}")
            return
        one, other = (np.frombuffer(data, "<i2").astype(np.int32) for data in (sound, ask.sound))
        off = int(np.abs(one - other).max(initial=0))
        seen.worst = max(seen.worst, off)
        if off > self._most:
            seen.faults.append(f"a sample is off by {off} in {ask.body}")

    async def _leave(self) -> str:
        """Hang up at some moment, before the first sound or behind it."""
        asked = self.speak(self._rng.choice(self._asks), self._form())
        try:
            await asyncio.wait_for(asked, self._rng.uniform(0.01, 2.0))
        except asyncio.TimeoutError:
            return "left"
        return "was done before"

    async def _hostile(self) -> str:
        act = self._rng.choice(
            [self._nonsense, self._huge, self._deaf, self._sip, self._slow, self._path, self._upload]
        )
        return f"{act.__name__.strip('_')}: {await act()}"

    async def _nonsense(self) -> str:
        answer = await self.http.post("/v1/audio/speech", content=self._rng.choice(NONSENSE))
        return self._expect(answer.status_code, 400)

    async def _huge(self) -> str:
        async def body() -> Any:
            for _ in range(64):
                yield b"x" * 65536

        try:
            answer = await self.http.post("/v1/audio/speech", content=body())
        except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            return "cut off"
        return self._expect(answer.status_code, 413)

    async def _path(self) -> str:
        """What no client of good manners would send."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        method, path = self._rng.choice(("GET", "DELETE", "PUT", "BREW")), self._rng.choice(PATHS)
        origin = self._rng.choice(("", "Origin: http://[\r\n", "Origin: null\r\n"))
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{origin}\r\n".encode()
        )
        line = await reader.readline()
        writer.close()
        return self._expect(int(line.split()[1]), 400, 403, 404, 405)

    async def _upload(self) -> str:
        """A voice whose name and file lead elsewhere."""
        files = {"files": (self._rng.choice(NAMES), self._rng.randbytes(20_000), "audio/wav")}
        answer = await self.http.post("/v1/audio/voices", data={"name": self._rng.choice(NAMES)}, files=files)
        return self._expect(answer.status_code, 400, 429)

    async def _deaf(self) -> str:
        """Ask for much, and read none of it for a while."""
        loop, body = asyncio.get_running_loop(), json.dumps({**self._rng.choice(self._asks).body, **PCM})
        head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        with contextlib.closing(socket.socket()) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            await loop.sock_connect(deaf, (self._host, self._port))
            await loop.sock_sendall(deaf, (head + body).encode())
            await asyncio.sleep(self._rng.uniform(1, 10))
        return "left"

    async def _sip(self) -> str:
        """Read a little at a time; what is heard must be right nevertheless."""
        ask = self._rng.choice(self._asks)
        heard = await self.speak(ask, PCM, SIP)
        if self._expect(heard.status, 200, 429) == "200":
            self._compare(ask, heard.samples)
        return str(heard.status)

    async def _slow(self) -> str:
        """Send a request letter by letter, and never all of it."""
        _, writer = await asyncio.open_connection(self._host, self._port)
        for letter in b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{":
            writer.write(bytes([letter]))
            await asyncio.sleep(0.05)
        writer.close()
        return "left"

    def _expect(self, status: int, *wanted: int) -> str:
        if status not in wanted:
            self.seen.faults.append(f"{status} was answered instead of {wanted}")
        return str(status)


def decoded(data: bytes, form: dict[str, Any]) -> bytes:
    """An answer in one of STREAMS or WHOLE -> 16-bit samples."""
    if form.get("stream_format") == "sse":
        events = [json.loads(line[6:]) for line in data.split(b"\n\n") if line]
        if events[-1]["type"] != "speech.audio.done":
            raise ValueError(f"the events end with {events[-1]}")
        return b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    if form["response_format"] == "pcm":
        return data
    samples, _ = soundfile.read(io.BytesIO(data), dtype="int16")
    return bytes(samples.tobytes())
