"""A server on this machine, in a thread, on an engine that is slow where a test says so."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from scheduling import TOKENIZER, WAIT, Counting

from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.engine import Array, Engine
from tortoise_rt.server.app import make_app
from tortoise_rt.server.jobs import Jobs
from tortoise_rt.server.limits import Keys, Limits
from tortoise_rt.server.run import Server, listen
from tortoise_rt.server.service import Service
from tortoise_rt.sinks import to_16_bits
from tortoise_rt.text import Tokenizer
from tortoise_rt.tts import TextToSpeech
from tortoise_rt.voice import load_voice

SHORT = "Hello there. How are you?"
LONG = " ".join(["The boat came in and went out again."] * 40)
ONE = {"max_mel_tokens": 40, "voice": "alto", "seed": 7}  #: fields of quick requests


class Running:
    """A server that runs."""

    wyoming_port: int

    def __init__(self, service: Service, server: Server, port: int) -> None:
        self.service, self.server, self.port = service, server, port
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=WAIT)

    def speak(self, text: str = SHORT, **fields: Any) -> httpx.Response:
        return self.http.post(
            "/v1/audio/speech", json={"input": text, "response_format": "pcm", **ONE, **fields}
        )

    def settled(self) -> None:
        """Nothing is in flight any more, and no row is held."""
        until = time.monotonic() + 10
        scheduler = self.service.scheduler
        while (self.service.gate.inside or len(scheduler.policy)) and time.monotonic() < until:
            time.sleep(0.01)
        assert self.service.gate.inside == 0 and len(scheduler.policy) == 0
        assert scheduler.policy.free == scheduler.policy.rows


@contextlib.contextmanager
def serving(
    engine: Engine | None = None,
    keys: dict[str, str] | None = None,
    hosts: Any = None,
    origins: Any = (),
    jobs: Path | None = None,
    with_wyoming: bool = False,
    **limits: Any,
) -> Iterator[Running]:
    """A server whose engine is the fake one unless another is given."""
    service = Service(engine or FakeEngine(), Tokenizer(TOKENIZER), Limits(**limits))
    beside = listen("127.0.0.1", 0) if with_wyoming else None
    kept = None if jobs is None else Jobs(service, jobs)
    app = make_app(service, Keys(keys or {}), kept, beside, hosts=hosts, origins=origins)
    server = Server(app, service, WAIT)
    bound = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    running = Running(service, server, bound.getsockname()[1])
    running.wyoming_port = 0 if beside is None else beside.getsockname()[1]
    try:
        until = time.monotonic() + WAIT
        while not service.ready and time.monotonic() < until:
            time.sleep(0.005)
        with running.http:
            yield running
    finally:
        server.should_exit = True
        thread.join(WAIT)
        assert not thread.is_alive()


class Slow(Counting):
    """Takes ``pause`` seconds for each step of decoding, from when it is set."""

    def __init__(self) -> None:
        super().__init__()
        self.pause = 0.0
        self.before = lambda graph, rows: time.sleep(self.pause) if graph == "ar_step" else None


def begun(engine: Slow, steps: int = 3) -> None:
    """Until it decodes."""
    first, until = len(engine.steps), time.monotonic() + 20
    while len(engine.steps) < first + steps:
        assert time.monotonic() < until
        time.sleep(0.005)


def alone(text: str = SHORT, **fields: Any) -> bytes:
    """16-bit samples of the same text, voice, seed and settings as Python has them, with nothing beside it."""
    fields = {**ONE, **fields}
    voice, seed = load_voice(fields.pop("voice"), paths=False), fields.pop("seed")
    assert voice is not None
    tts = TextToSpeech(engine=FakeEngine(), tokenizer_vocab_file=TOKENIZER)
    pieces = tts.tts_stream(text, list(voice.clips), use_deterministic_seed=seed, verbose=False, **fields)
    return to_16_bits(np.concatenate([*pieces]))


def samples(data: bytes) -> Array:
    return np.frombuffer(data, "<i2").astype(np.int32)


def assert_sound(data: bytes, wanted: bytes) -> None:
    """Equal to the last bit but one: requests that run together may differ by rounding."""
    assert len(data) == len(wanted) > 0
    assert np.abs(samples(data) - samples(wanted)).max() <= 1


def error(answer: httpx.Response, status: int) -> str:
    """The message of an error, which says nothing of this machine."""
    assert answer.status_code == status, answer.content[:200]
    told = answer.json()["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert "Traceback" not in told["message"] and "/tmp" not in told["message"]
    return str(told["message"])
