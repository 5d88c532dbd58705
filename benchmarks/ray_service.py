"""The service on a local Ray, two replicas, while these are killed and replaced: is each answer that of a plain server?

    pip install -e '.[cpu,serve,ray,dev]'
    python benchmarks/ray_service.py [--requests 24] [--strict] [--engine BUNDLE] [-o results.jsonl]

Asks ``tortoise-rt serve`` for each of a set of requests, then the same of the application on Ray: one after the other; all at
once, while a replica is killed when a third of them is done (SIGKILL), and when two thirds are (SIGTERM); by a WebSocket; with a voice made of clips; without
end, while all replicas and the front are replaced by new ones, and while one replica becomes two. Every answer must be the plain server's: its samples within
1/1000 of full scale, with --strict its bytes. In the end the front itself is killed, and what that costs is told. Exits
with 1 where an answer is lost or another. Nothing but this machine's loopback is talked to.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile
from ray_cluster import PATIENCE, Cluster, plain

from tortoise_rt.machine import environment
from tortoise_rt.voices import folder as shipped_voices

SENTENCES = Path(__file__).parent / "sentences" / "everyday.txt"
NEAR = 33  #: of 32767
ROLLING = 12.0  #: seconds of requests, at least, while all is replaced
CALLERS = 4

Body = dict[str, Any]


def asks(count: int) -> list[Body]:
    lines = SENTENCES.read_text("utf-8").splitlines()
    return [
        {
            "input": " ".join(lines[(number + i) % len(lines)] for i in range(1 + number % 3)),
            "voice": ("alto", "tenor", "alto:0.6&tenor:0.4")[number % 3],
            "seed": number,
            "response_format": "pcm",
            "stream": number % 4 != 0,
        }
        for number in range(count)
    ]


class Checks:
    """What was seen, and what was wrong."""

    def __init__(self, strict: bool) -> None:
        self._most = 0 if strict else NEAR
        self.faults: list[str] = []
        self.worst = self.equal = self.compared = 0

    def same(self, what: str, got: bytes, wanted: bytes) -> None:
        self.compared += 1
        self.equal += got == wanted
        if len(got) != len(wanted):
            self.faults.append(f"{what}: {len(got)} bytes instead of {len(wanted)}")
            return
        one, other = (np.frombuffer(data, "<i2").astype(np.int32) for data in (got, wanted))
        off = int(np.abs(one - other).max(initial=0))
        self.worst = max(self.worst, off)
        if off > self._most:
            self.faults.append(f"{what}: a sample is off by {off}")


async def ask(http: httpx.AsyncClient, body: Body) -> bytes:
    answer = await http.post("/v1/audio/speech", json=body)
    if answer.status_code != 200:
        raise RuntimeError(f"{answer.status_code}: {answer.text[:200]}")
    return answer.content


def client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=httpx.Limits(max_connections=None))


async def one_by_one(http: httpx.AsyncClient, wanted: list[tuple[Body, bytes]], checks: Checks) -> Body:
    for body, sound in wanted:
        checks.same("one by one", await ask(http, body), sound)
    return {"requests": len(wanted)}


async def killed(
    http: httpx.AsyncClient, cluster: Cluster, wanted: list[tuple[Body, bytes]], checks: Checks
) -> Body:
    """All at once, and a replica dies when a third is done, and another at two thirds."""
    done, kills, dead = 0, list[int](), list[int]()
    third = len(wanted) // 3

    async def one(body: Body, sound: bytes) -> None:
        nonlocal done
        checks.same("while a replica is killed", await ask(http, body), sound)
        done += 1

    async def kill(behind: int, by: signal.Signals) -> None:
        while done < behind:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(cluster.until_there_are, 1, "Speaker", dead)
        pid = next(pid for pid in cluster.replicas("Speaker") if pid not in dead)
        os.kill(pid, by)
        dead.append(pid)
        kills.append(len(wanted) - done)

    tasks = [asyncio.create_task(one(*each)) for each in wanted]
    await kill(third, signal.SIGKILL)
    await kill(2 * third, signal.SIGTERM)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    lost = [repr(end) for end in ends if end is not None]
    checks.faults += [f"lost while a replica was killed: {end}" for end in lost]
    again = await metric(http, "tortoise_rt_sent_again")
    back = await asyncio.to_thread(cluster.until_there_are, 2, "Speaker", dead)
    return {"requests": len(wanted), "unanswered_at_kills": kills, "lost": len(lost), "sentences_sent_again": again,
            "both_back_after_s": round(back, 1)}  # fmt: skip


async def metric(http: httpx.AsyncClient, name: str) -> float:
    text = (await http.get("/metrics")).text
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else float("nan")


async def live(url: str, wanted: list[tuple[Body, bytes]], checks: Checks) -> Body:
    """By a WebSocket, the text in parts."""
    import websockets

    for body, sound in wanted:
        start = {name: value for name, value in body.items() if name not in ("input", "stream")}
        async with websockets.connect(url.replace("http", "ws") + "/v1/audio/speech/live") as socket:
            await socket.send(json.dumps({"type": "start", **start}))
            for word in body["input"].split(" "):
                await socket.send(json.dumps({"type": "text", "text": word + " "}))
            await socket.send(json.dumps({"type": "end"}))
            got, told = b"", {}
            while told.get("type") not in ("done", "error"):
                message = await asyncio.wait_for(socket.recv(), PATIENCE)
                if isinstance(message, bytes):
                    got += message
                else:
                    told = json.loads(message)
        checks.same("by a WebSocket", got, sound)
    return {"texts": len(wanted)}


async def own_voice(http: httpx.AsyncClient, checks: Checks) -> Body:
    """A voice made of clips by one request is heard in all the next, whichever replica says them."""
    clip, rate = soundfile.read(next((shipped_voices() / "alto").glob("*.flac")))
    file = io.BytesIO()
    soundfile.write(file, clip, rate, format="FLAC")
    made = await http.post(
        "/v1/audio/voices", data={"name": "made"}, files={"files": ("a.flac", file.getvalue())}
    )
    if made.status_code != 201:
        checks.faults.append(f"a voice could not be made: {made.text[:200]}")
        return {}
    body = {"input": "Hello there.", "voice": "made", "seed": 3, "response_format": "pcm"}
    first, *others = await asyncio.gather(*(ask(http, body) for _ in range(8)))
    for other in others:
        checks.same("with a voice of one's own", other, first)
    gone = await http.delete("/v1/audio/voices/made")
    return {"requests": 8, "deleted": gone.status_code == 200}


async def leaving(http: httpx.AsyncClient, checks: Checks) -> Body:
    """Clients who leave take their places with them, at a replica and in the queue before it."""
    body = {"input": "The boat came in and went out again. " * 100, "response_format": "pcm"}

    async def leave() -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ask(http, body), 2)

    await asyncio.gather(*(leave() for _ in range(8)))
    began = time.monotonic()
    while (left := await metric(http, "tortoise_rt_in_flight")) and time.monotonic() < began + 20:
        await asyncio.sleep(0.1)
    if left:
        checks.faults.append(f"{left:g} requests go on whose clients have left")
    return {"left": 8, "places_free_after_s": round(time.monotonic() - began, 1)}


async def replaced(
    http: httpx.AsyncClient, cluster: Cluster, wanted: list[tuple[Body, bytes]], checks: Checks
) -> Body:
    """Callers ask without end while every replica and the front are replaced."""
    ended = asyncio.Event()
    counts, longest = Counter[str](), 0.0
    before = {name: set(cluster.replicas(name)) for name in ("Speaker", "Front")}

    async def caller(number: int) -> None:
        nonlocal longest
        while not ended.is_set():
            body, sound = wanted[number % len(wanted)]
            number += CALLERS
            began = time.monotonic()
            try:
                checks.same("while all is replaced", await ask(http, body), sound)
                counts["answered"] += 1
            except Exception as error:
                counts["lost"] += 1
                checks.faults.append(f"lost while all was replaced: {error!r}")
            longest = max(longest, time.monotonic() - began)

    callers = [asyncio.create_task(caller(number)) for number in range(CALLERS)]
    await asyncio.sleep(1)
    began = time.monotonic()
    await asyncio.to_thread(cluster.deploy, rows=15, queue=255)
    took = time.monotonic() - began
    await asyncio.sleep(max(0, ROLLING - took))
    ended.set()
    await asyncio.gather(*callers)
    for name, old in before.items():
        if old & set(cluster.replicas(name)):
            checks.faults.append(f"some of {name} was not replaced")
    return {**counts, "replaced_within_s": round(took, 1), "longest_answer_s": round(longest, 1)}


async def scaled(
    http: httpx.AsyncClient, cluster: Cluster, wanted: list[tuple[Body, bytes]], checks: Checks
) -> Body:
    """From one replica there come to be two while more is asked than one should have."""
    await asyncio.to_thread(cluster.anew, replicas="1:2", rows=2)
    if (count := len(cluster.replicas("Speaker"))) != 1:
        checks.faults.append(f"there are {count} replicas before any is asked")
    ended, began = asyncio.Event(), time.monotonic()

    async def caller(number: int) -> None:
        while not ended.is_set():
            body, sound = wanted[number % len(wanted)]
            checks.same("while one replica became two", await ask(http, body), sound)
            number += CALLERS

    callers = [asyncio.create_task(caller(number)) for number in range(CALLERS)]
    try:
        await asyncio.to_thread(cluster.until_there_are, 2, "Speaker")
    except RuntimeError as error:
        checks.faults.append(str(error))
    took = time.monotonic() - began
    ended.set()
    await asyncio.gather(*callers)
    return {"two_after_s": round(took, 1)}


async def front_killed(http: httpx.AsyncClient, cluster: Cluster, wanted: list[tuple[Body, bytes]]) -> Body:
    """Not a fault: requests are the front's."""
    tasks = [asyncio.create_task(ask(http, body)) for body, _ in wanted]
    await asyncio.sleep(1)
    (pid,) = cluster.replicas("Front")
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if (await http.get("/readyz")).status_code == 200:
                break
        await asyncio.sleep(0.1)
    lost = sum(isinstance(end, BaseException) for end in ends)
    return {"requests": len(ends), "lost": lost, "ready_again_after_s": round(time.monotonic() - began, 1)}


async def measure(options: argparse.Namespace, checks: Checks) -> Body:
    bodies = asks(options.requests)
    with plain(options) as url:
        async with client(url) as http:
            wanted = [(body, await ask(http, body)) for body in bodies]
    cluster = await asyncio.to_thread(Cluster, options)
    found: Body = {}
    try:
        async with client(cluster.url) as http:
            steps: list[tuple[str, Any]] = [
                ("one_by_one", lambda: one_by_one(http, wanted, checks)),
                ("killed", lambda: killed(http, cluster, wanted * 2, checks)),
                ("live", lambda: live(cluster.url, wanted[:4], checks)),
                ("own_voice", lambda: own_voice(http, checks)),
                ("replaced", lambda: replaced(http, cluster, wanted, checks)),
                ("scaled", lambda: scaled(http, cluster, wanted, checks)),
                ("leaving", lambda: leaving(http, checks)),
                ("front_killed", lambda: front_killed(http, cluster, wanted)),
            ]
            for name, step in steps:
                found[name] = await step()
                print(f"{name}: {found[name]}", flush=True)
    finally:
        await asyncio.to_thread(cluster.close)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--engine", type=Path)
    parser.add_argument("--log", action="store_true", help="Show what replicas log.")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    try:
        import ray
    except ImportError:
        sys.exit("ray is not installed: pip install -e '.[cpu,serve,ray,dev]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    checks = Checks(options.strict)
    with tempfile.TemporaryDirectory() as voices:
        os.environ["TORTOISE_RT_VOICES"] = voices
        found = asyncio.run(measure(options, checks))
    line = {
        "benchmark": "ray_service", "strict": options.strict, "ray": ray.__version__, **found,
        "compared": checks.compared, "equal_to_the_byte": checks.equal, "worst_difference": checks.worst,
        "faults": checks.faults, "environment": environment(),
    }  # fmt: skip
    print(
        f"{checks.compared} compared, {checks.equal} equal to the byte, at most {checks.worst} of 32767 off"
    )
    if options.output is not None:
        with options.output.open("a") as file:
            file.write(json.dumps(line) + "\n")
    for fault in checks.faults[:20]:
        print(f"FAULT {fault}", file=sys.stderr)
    return 1 if checks.faults else 0


if __name__ == "__main__":
    sys.exit(main())
