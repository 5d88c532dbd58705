"""A scheduler whose engines are elsewhere: what it gives is what the engine gives, whenever its process dies."""

from __future__ import annotations

import asyncio
import json
import pickle
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scheduling import TOKENIZER, WAIT, Counting, settings, voice
from serving import SHORT, Slow, alone, assert_sound, begun

from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.config import make_settings
from tortoise_rt.engine import Engine
from tortoise_rt.errors import Cancelled, EngineError, RequestError, TextError
from tortoise_rt.reading import Reader
from tortoise_rt.scheduler import Scheduler
from tortoise_rt.server.answers import status_of
from tortoise_rt.server.app import make_app
from tortoise_rt.server.fields import parse_speech
from tortoise_rt.server.limits import Limits
from tortoise_rt.server.service import Service
from tortoise_rt.serving import elsewhere
from tortoise_rt.serving.elsewhere import (
    Described,
    Gone,
    Message,
    Order,
    RemoteScheduler,
    carry_out,
)
from tortoise_rt.sinks import to_16_bits
from tortoise_rt.text import Tokenizer

FIELDS = {"max_mel_tokens": 40, "voice": "alto", "seed": 7, "response_format": "pcm"}


class Far:
    """Engines in processes of their own, as far as can be told: what goes there and comes back is pickled."""

    def __init__(self, engine: Engine | None = None) -> None:
        self.engine = engine or FakeEngine()
        self.scheduler = Scheduler(self.engine, Tokenizer(TOKENIZER), queue=1000)
        self.lives: list[int] = []  #: messages after which the process of each next order dies
        self.orders = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        info, tokenizer = pickle.loads(pickle.dumps((self.engine.info, self.scheduler.tokenizer)))
        self.near = RemoteScheduler(Described(info), tokenizer, self.send)

    def send(self, order: Order) -> FarAnswer:
        self.orders += 1
        life = self.lives.pop(0) if self.lives else 10**9
        return FarAnswer(self._loop, self.scheduler, pickle.loads(pickle.dumps(order)), life)

    def settled(self) -> bool:
        until = time.monotonic() + 10
        while len(self.scheduler.policy) and time.monotonic() < until:
            time.sleep(0.01)
        return len(self.scheduler.policy) == 0 and self.scheduler.policy.free == self.scheduler.policy.rows

    def close(self) -> None:
        self.near.close()
        self.scheduler.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class FarAnswer:
    def __init__(self, loop: Any, scheduler: Scheduler, order: Order, life: int) -> None:
        self._told: queue.Queue[bytes | None] = queue.Queue()
        self._left = life
        self._task = asyncio.run_coroutine_threadsafe(self._run(scheduler, order), loop)

    async def _run(self, scheduler: Scheduler, order: Order) -> None:
        try:
            async for message in carry_out(scheduler, order):
                if self._left == 0:
                    return
                self._left -= 1
                self._told.put(pickle.dumps(message))
        finally:
            self._told.put(None)

    def __iter__(self) -> Iterator[Message]:
        while (data := self._told.get()) is not None:
            yield pickle.loads(data)
        raise Gone

    def cancel(self) -> None:
        self._task.cancel()


@pytest.fixture
def far() -> Iterator[Far]:
    made = Far()
    yield made
    made.close()


def said(far: Far, text: str = SHORT, **fields: Any) -> bytes:
    """16-bit samples by a service whose engines are far."""
    near = far.near
    service = Service(near.engine, near.tokenizer, Limits(), scheduler=near)
    with service.speech(parse_speech({"input": text, **FIELDS, **fields}, 10_000), "me") as speech:
        return b"".join(to_16_bits(piece.wav) for piece in speech.pieces())


def test_sound_is_that_of_an_engine_that_is_near(far: Far) -> None:
    assert_sound(said(far), alone())
    whole = {"num_autoregressive_samples": 3, "diffusion_iterations": 4, "decoder": "diffusion"}
    assert_sound(said(far, **whole), alone(**whole))
    assert far.near.sent_again == 0 and far.settled()


@pytest.mark.parametrize("lives", [[0], [1], [2], [4], [10**9, 3], [1, 2], [3, 1]])
def test_no_sound_is_lost_or_heard_twice_when_a_process_dies(far: Far, lives: list[int]) -> None:
    far.lives = [*lives]
    assert_sound(said(far, stream_chunk_size=3, first_chunk=2), alone(stream_chunk_size=3, first_chunk=2))
    assert far.near.sent_again == sum(life < 10**9 for life in lives)
    assert far.settled()


def test_whole_clips_and_calls_are_sent_again(far: Far) -> None:
    far.lives = [0, 1]
    handle = far.near.submit("A boat.", voice(far.engine), settings(), 1)
    wanted = far.scheduler.submit("A boat.", voice(far.engine), settings(), 1).result()
    assert np.abs(handle.result(WAIT).wavs[0] - wanted.wavs[0]).max() < 1e-4
    far.lives = [0]
    assert far.near.call(tell_source).result(WAIT) == far.engine.info.source
    assert far.near.sent_again == 3


def tell_source(engine: Engine) -> str:
    return engine.info.source


def test_a_random_voice_is_that_of_the_seed(far: Far) -> None:
    chosen = make_settings(num_autoregressive_samples=1, max_mel_tokens=30, decoder="hifigan")
    wavs = []
    for scheduler in (far.near, far.scheduler):
        pieces = Reader(scheduler, None, chosen, 5).read(SHORT)
        wavs.append(np.concatenate([piece.wav for piece in pieces]))
    assert len(wavs[0]) == len(wavs[1]) and np.abs(wavs[0] - wavs[1]).max() < 1e-4


def test_errors_are_those_of_the_engine(far: Far) -> None:
    with pytest.raises(TextError, match="tokens"):
        far.near.submit("boat " * 500, voice(far.engine), settings(), 1).result(WAIT)
    with pytest.raises(EngineError, match="in another process"):
        far.near.engine.new_cache(1, 10)
    assert far.near.sent_again == 0


def test_what_is_none_of_ours_stays_none_of_ours() -> None:
    engine = Counting()
    engine.before = lambda graph, rows: 1 / 0  # type: ignore[assignment]
    far = Far(engine)
    try:
        with pytest.raises(EngineError) as caught:
            far.near.submit("A boat.", voice(engine), settings(), 1).result(WAIT)
        assert status_of(caught.value)[0] == 500
    finally:
        far.close()


def test_an_order_that_takes_processes_down_is_given_up(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "PAUSE", 0.001)
    far.lives = [0] * elsewhere.TRIES
    with pytest.raises(RequestError, match="5 processes with an engine have died"):
        said(far)
    assert far.orders == elsewhere.TRIES
    assert_sound(said(far), alone())  # the next one is carried out


def test_a_process_that_ends_in_good_order_has_died_as_well() -> None:
    engine = Slow()
    far = Far(engine)
    try:
        engine.pause = 0.02
        handle = far.near.submit("How are you today, my dear?", voice(engine), settings(), 1)
        begun(engine)
        ending, far.scheduler = far.scheduler, Scheduler(engine, Tokenizer(TOKENIZER))
        ending.close()
        engine.pause = 0
        wanted = far.scheduler.submit("How are you today, my dear?", voice(engine), settings(), 1).result()
        assert np.abs(handle.result(WAIT).wavs[0] - wanted.wavs[0]).max() < 1e-4
        assert far.near.sent_again == 1
    finally:
        far.close()


def test_who_leaves_frees_the_rows_there() -> None:
    engine = Slow()
    far = Far(engine)
    try:
        engine.pause = 0.05
        handle = far.near.submit("How are you today, my dear?", voice(engine), settings(), 1)
        begun(engine)
        handle.cancel()
        with pytest.raises(Cancelled):
            handle.result(WAIT)
        assert far.settled()
        last = far.near.submit("How are you today, my dear?", voice(engine), settings(), 1)
        far.near.close()
        with pytest.raises(Cancelled):
            last.result(WAIT)
        with pytest.raises(RequestError, match="closed"):
            far.near.submit("A boat.", voice(engine), settings(), 1)
        assert far.settled()
    finally:
        far.close()


@pytest.mark.parametrize("first", [0, 1])
def test_a_task_that_is_cancelled_gives_its_speech_up(first: int, caplog: pytest.LogCaptureFixture) -> None:
    """As Ray's proxy ends a request whose client has left: before the first sound, or behind it."""
    engine = Slow()
    far = Far(engine)
    service = Service(far.near.engine, far.near.tokenizer, Limits(), scheduler=far.near)
    body = json.dumps({"input": "The boat came in and went out again. " * 9, **FIELDS, "max_mel_tokens": 500})
    scope = {"type": "http", "method": "POST", "path": "/v1/audio/speech", "headers": [], "query_string": b""}

    async def leave() -> None:
        app, sent = make_app(service), list[Any]()
        asked = [{"type": "http.request", "body": body.encode(), "more_body": False}]

        async def receive() -> Any:
            return asked.pop() if asked else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        async with app.router.lifespan_context(app):
            task = asyncio.create_task(app({**scope, "app": app}, receive, send))
            while len(sent) <= first * 2 and (first or not engine.steps):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert service.gate.inside == 0 and await asyncio.to_thread(far.settled)

    try:
        engine.pause = 0.02
        with caplog.at_level("INFO", "tortoise_rt.server"):
            asyncio.run(asyncio.wait_for(leave(), WAIT))
        (record,) = [record for record in caplog.records if hasattr(record, "facts")]
        assert record.facts["outcome"] == "Cancelled"
        assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    finally:
        far.close()
