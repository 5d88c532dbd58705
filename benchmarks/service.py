"""A server under load, on this machine: is each result that of the same request alone, and what do callers wait?

    python benchmarks/service.py [--minutes 2] [--share 0.7] [--strict] [--engine BUNDLE] [--seed 1] [-o results.jsonl]

Starts ``tortoise-rt serve``, asks for each of a set of requests (voices, blends, lengths, settings) with nothing beside it,
measures how many a closed loop of callers gets through, and then sends that share of it as they come (Poisson), half of
them as streams. A tenth of the callers leave early and one in twenty is hostile: bad JSON, bodies too large, readers that do
not read, tricks with paths, broken Unicode. In the end nothing may be in flight, no memory lost, and every whole result must
be the one alone: its samples within 1/1000 of full scale, with --strict its bytes. Exits with 1 where that is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tortoise_rt.machine import environment

SENTENCES = Path(__file__).parent / "sentences"
CALLERS = 8  #: of the closed loop
LOOP_SECONDS = 20.0
NEAR = 33  #: of 32767
LEAVING, HOSTILE = 0.10, 0.05
GROWTH = 1.25  #: of memory over the load, at most
PERCENTILES = (50, 90, 95, 99)


@dataclass
class Ask:
    """A request, and what it gives alone."""

    body: dict[str, Any]
    sound: bytes = b""


@dataclass
class Seen:
    """What was seen under load."""

    counts: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)  #: seconds to the first sound of streams
    total: dict[bool, list[float]] = field(default_factory=lambda: defaultdict(list))  #: streamed -> seconds
    audio: float = 0.0
    worst: int = 0  #: difference of a sample
    equal: int = 0  #: results of the same bytes
    faults: list[str] = field(default_factory=list)


def asks(rng: random.Random, count: int) -> list[Ask]:
    """Requests of one to six sentences."""
    lines = [
        line
        for name in ("everyday", "harvard")
        for line in (SENTENCES / f"{name}.txt").read_text("utf-8").splitlines()
    ]
    settings: list[dict[str, Any]] = [
        {},
        {},
        {"temperature": 0.6},
        {"top_k": 20, "pause": 0.1},
        {"split": False},
    ]
    found = []
    for number in range(count):
        sentences = rng.sample(lines, rng.choice((1, 1, 2, 3, 6)))
        extra = rng.choice(settings)
        if "split" in extra:
            sentences = sentences[:1]
        voice = rng.choice(("alto", "tenor", "alto:0.5&tenor:0.5"))
        found.append(
            Ask(
                {
                    "input": " ".join(sentences),
                    "voice": voice,
                    "seed": number,
                    "response_format": "pcm",
                    **extra,
                }
            )
        )
    return found


@contextlib.contextmanager
def server(arguments: list[str]) -> Iterator[str]:
    """-> its address."""
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+") as log:
        command = [
            sys.executable,
            "-m",
            "tortoise_rt",
            "serve",
            "--port",
            "0",
            "--per-minute",
            "1000000",
            *arguments,
        ]
        process = subprocess.Popen(command, stderr=log)
        try:
            while not (found := re.search(r"Listening on (\S+)", Path(log.name).read_text())):
                if process.poll() is not None:
                    raise SystemExit(Path(log.name).read_text())
                time.sleep(0.1)
            while httpx.get(f"{found[1]}/readyz").status_code != 200:
                time.sleep(0.1)
            yield found[1]
            errors = [line for line in Path(log.name).read_text().splitlines() if '"level": "error"' in line]
            if errors:
                print("\n".join(errors[:5]), file=sys.stderr)
        finally:
            process.terminate()
            process.wait(60)


class Load:
    """The callers."""

    def __init__(self, url: str, given: list[Ask], rng: random.Random, strict: bool) -> None:
        self._asks, self._rng, self._strict = given, rng, strict
        self._host, self._port = httpx.URL(url).host, httpx.URL(url).port
        self._http = httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=None))
        self.seen = Seen()

    async def speak(self, ask: Ask, stream: bool) -> tuple[int, bytes, float, float]:
        """-> (status, sound, seconds to the first, seconds in all)."""
        began, first, sound = time.perf_counter(), 0.0, b""
        async with self._http.stream(
            "POST", "/v1/audio/speech", json={**ask.body, "stream": stream}
        ) as answer:
            async for data in answer.aiter_raw():
                first = first or time.perf_counter() - began
                sound += data
            return answer.status_code, sound, first, time.perf_counter() - began

    async def alone(self) -> list[float]:
        """Learn what each request gives; -> seconds to the first sound."""
        firsts = []
        for ask in self._asks:
            status, ask.sound, first, _ = await self.speak(ask, True)
            assert status == 200, ask.sound
            firsts.append(first)
        return firsts

    async def capacity(self) -> float:
        """Requests a second that callers who ask again at once get through."""
        end, done = time.perf_counter() + LOOP_SECONDS, 0

        async def caller() -> None:
            nonlocal done
            while time.perf_counter() < end:
                await self.speak(self._rng.choice(self._asks), True)
                done += 1

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return done / (time.perf_counter() - began)

    async def run(self, seconds: float, rate: float) -> None:
        """Callers who come ``rate`` times a second, whatever becomes of the others."""
        end, tasks = time.perf_counter() + seconds, set[asyncio.Task[None]]()
        while time.perf_counter() < end:
            await asyncio.sleep(self._rng.expovariate(rate))
            kind = self._rng.random()
            act = (
                self._hostile if kind < HOSTILE else self._leave if kind < HOSTILE + LEAVING else self._whole
            )
            task = asyncio.create_task(self._counted(act))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def _counted(self, act: Any) -> None:
        name = act.__name__.strip("_")
        try:
            self.seen.counts[f"{name}: {await act()}"] += 1
        except Exception as error:
            self.seen.counts[f"{name}: {type(error).__name__}"] += 1
            self.seen.faults.append(f"{name}: {error!r}")

    async def _whole(self) -> str:
        ask, stream = self._rng.choice(self._asks), self._rng.random() < 0.5
        status, sound, first, total = await self.speak(ask, stream)
        if status != 200:
            if status != 429:
                self.seen.faults.append(f"{status}: {sound[:200]!r}")
            return str(status)
        if stream:
            self.seen.first.append(first)
        self.seen.total[stream].append(total)
        self.seen.audio += len(sound) / 48000
        self._compare(ask, sound)
        return "200"

    def _compare(self, ask: Ask, sound: bytes) -> None:
        seen = self.seen
        seen.equal += sound == ask.sound
        if len(sound) != len(ask.sound):
            seen.faults.append(f"{len(sound)} bytes instead of {len(ask.sound)} of {ask.body}")
            return
        one, other = (np.frombuffer(data, "<i2").astype(np.int32) for data in (sound, ask.sound))
        off = int(np.abs(one - other).max(initial=0))
        seen.worst = max(seen.worst, off)
        if off > (0 if self._strict else NEAR):
            seen.faults.append(f"a sample is off by {off} in {ask.body}")

    async def _leave(self) -> str:
        """Hang up at some moment, before the first sound or behind it."""
        ask = self._rng.choice(self._asks)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.speak(ask, self._rng.random() < 0.5), self._rng.uniform(0.01, 2.0))
        return "left"

    async def _hostile(self) -> str:
        act = self._rng.choice([self._nonsense, self._huge, self._deaf, self._slow, self._path])
        return f"{act.__name__.strip('_')}: {await act()}"

    async def _nonsense(self) -> str:
        body = self._rng.choice(
            [b"{", b"[" * 50_000, b'{"input": "\\ud800"}', b"\xff" * 100, b'{"input": "Hi.", "voice": "../../etc"}',
             '{"input": "\u202e\u0000\U0001f4a9 \u0301\u0301"}'.encode(), b'{"input": "Hi.", "temperature": 1e400}', b'{"k": []}']
        )  # fmt: skip
        answer = await self._http.post("/v1/audio/speech", content=body)
        return self._expect(answer.status_code, 400)

    async def _huge(self) -> str:
        async def body() -> Any:
            for _ in range(64):
                yield b"x" * 65536

        try:
            answer = await self._http.post("/v1/audio/speech", content=body())
        except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            return "cut off"
        return self._expect(answer.status_code, 413)

    async def _path(self) -> str:
        path = self._rng.choice(
            ["/v1/audio/voices/..%2f..%2fetc", "/v1/audio/voices/%00", "//v1", "/v1/%ff", "/" + "a" * 5000]
        )
        answer = await self._http.request(self._rng.choice(["GET", "DELETE", "PUT"]), path)
        return self._expect(answer.status_code, 403, 404, 405)

    async def _deaf(self) -> str:
        """Ask for much, and read none of it for a while."""
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=1024)
        body = json.dumps({**self._rng.choice(self._asks).body, "timeout": 20}).encode()
        writer.write(
            b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
            + body
        )
        await asyncio.sleep(self._rng.uniform(1, 10))
        writer.close()
        return "left"

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
            self.seen.faults.append(f"a hostile request was answered with {status}")
        return str(status)

    async def metrics(self) -> dict[str, float]:
        """Name -> value, of those without labels."""
        text = (await self._http.get("/metrics")).text
        return {name: float(value) for name, value in re.findall(r"^([a-z_]+) (\S+)$", text, re.MULTILINE)}

    async def settled(self) -> dict[str, float]:
        """The metrics once nothing is in flight, or after half a minute."""
        for _ in range(60):
            found = await self.metrics()
            if found["tortoise_rt_in_flight"] == found["tortoise_rt_calls_in_flight"] == 0:
                break
            await asyncio.sleep(0.5)
        return found


async def measure(url: str, options: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(options.seed)
    load = Load(url, asks(rng, options.requests), rng, options.strict)
    quiet = await load.alone()
    capacity = await load.capacity()
    rate = options.share * capacity
    before = await load.settled()
    print(
        f"alone: first sound {spread(quiet)}; {capacity:.2f} requests/s at most, {rate:.2f} are sent",
        flush=True,
    )
    began = time.perf_counter()
    await load.run(60 * options.minutes, rate)
    took = time.perf_counter() - began
    after, seen = await load.settled(), load.seen
    for name in ("tortoise_rt_in_flight", "tortoise_rt_calls_in_flight", "tortoise_rt_rows_used"):
        if after[name]:
            seen.faults.append(f"{name} is {after[name]:g} in the end")
    memory = [found["process_resident_memory_bytes"] for found in (before, after)]
    if memory[1] > GROWTH * memory[0]:
        seen.faults.append(f"memory grew from {memory[0] / 2**20:.0f} to {memory[1] / 2**20:.0f} MiB")
    if after["process_open_fds"] > before["process_open_fds"] + 10:
        seen.faults.append(
            f"open files grew from {before['process_open_fds']:g} to {after['process_open_fds']:g}"
        )
    whole = sum(map(len, seen.total.values()))
    return {
        "minutes": round(took / 60, 2),
        "strict": options.strict,
        "capacity_per_s": round(capacity, 3),
        "rate_per_s": round(rate, 3),
        "whole_results": whole,
        "same_bytes": seen.equal,
        "worst_sample": seen.worst,
        "audio_s_per_s": round(seen.audio / took, 3),
        "first_alone_s": percentiles(quiet),
        "first_loaded_s": percentiles(seen.first),
        "total_stream_s": percentiles(seen.total[True]),
        "total_whole_s": percentiles(seen.total[False]),
        "memory_mib": [round(value / 2**20) for value in memory],
        "open_files": [before["process_open_fds"], after["process_open_fds"]],
        "outcomes": dict(sorted(seen.counts.items())),
        "faults": seen.faults[:20],
        "fault_count": len(seen.faults),
    }


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 3) for p in PERCENTILES} if values else {}


def spread(values: list[float]) -> str:
    return ", ".join(f"{name} {value:.2f} s" for name, value in percentiles(values).items())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--share", type=float, default=0.7, help="of the capacity that is sent")
    parser.add_argument("--requests", type=int, default=24, help="different ones")
    parser.add_argument("--strict", action="store_true", help="a strict server: results are the same bytes")
    parser.add_argument("--engine", type=Path, help="a bundle; the demo otherwise")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="add the result to this file, as a line of JSON")
    options = parser.parse_args()
    arguments = ["--strict"] * options.strict + (["--engine", str(options.engine)] if options.engine else [])
    with server(arguments) as url:
        result = asyncio.run(measure(url, options))
    print(json.dumps(result, indent=1))
    if options.output is not None:
        with options.output.open("a") as file:
            file.write(json.dumps({"benchmark": "service", **result, "environment": environment()}) + "\n")
    print("FAILED" if result["faults"] else "every result was the one alone, and nothing was left behind")
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
