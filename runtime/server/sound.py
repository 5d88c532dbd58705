"""A request that speaks, as an answer over HTTP: it begins with the first sound, so that errors before it have a status."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from typing import Any

import anyio
import numpy as np
from anyio.to_thread import run_sync
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..errors import Cancelled
from ..reading import Piece
from ..sinks import synthetic_comment
from .answers import error_object
from .encoding import FORMATS, Encoder, encode
from .service import Service, Speech

log = logging.getLogger("tortoise_rt.server")
LAST_SECONDS = 1.0  #: in which what is there when the time is over must be taken


async def in_thread(
    speech: Speech, limiter: anyio.CapacityLimiter
) -> AsyncGenerator[tuple[bytes, Piece | None], None]:
    """What ``encoded`` gives, each taken by a thread. Whoever cancels the task that waits for it gives the speech up."""
    made, executing = encoded(speech), threading.Lock()  # a thread may work on when nobody waits any more

    def take() -> tuple[bytes, Piece | None] | None:
        with executing:
            return next(made, None)

    def close() -> None:
        with executing:
            made.close()

    try:
        while (item := await run_sync(take, limiter=limiter)) is not None:
            yield item
    except asyncio.CancelledError:
        speech.cancel(Cancelled("the client has gone"))
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await run_sync(close, limiter=limiter)


def encoded(speech: Speech) -> Generator[tuple[bytes, Piece | None], None, None]:
    """(bytes, the piece of sound that they end with), and the rest of the format."""
    encoder = Encoder(speech.wish.response_format, comment(speech))
    with contextlib.closing(speech.pieces()) as pieces:
        for piece in pieces:
            yield encoder.feed(piece.wav), piece
    yield encoder.finish(), None


def whole(speech: Speech) -> bytes:
    """A file with its length."""
    with contextlib.closing(speech.pieces()) as pieces:
        wavs = [piece.wav for piece in pieces]
    return encode(speech.wish.response_format, np.concatenate(wavs), comment(speech))


def comment(speech: Speech) -> str:
    """What the file says of itself."""
    return synthetic_comment(True, f"seed {speech.seed}")


@contextlib.asynccontextmanager
async def watched(receive: Callable[[], Awaitable[Any]], speech: Speech) -> AsyncIterator[None]:
    """While it lasts, the request is given up as soon as its client has gone."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        speech.cancel(Cancelled("the client has gone"))

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


class SoundResponse(Response):
    """Speech, as audio or as events. Holds the request's place while it lasts."""

    def __init__(
        self,
        service: Service,
        speaking: contextlib.AbstractContextManager[Speech],
        limiter: anyio.CapacityLimiter,
    ) -> None:
        self._service, self._speaking, self._limiter = service, speaking, limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._speaking as speech:
            try:
                async with watched(receive, speech):
                    if speech.wish.sse or speech.wish.stream:
                        await self._stream(speech, scope, receive, send)
                    else:
                        body = await run_sync(whole, speech, limiter=self._limiter)
                        await Response(body, headers=_headers(speech))(scope, receive, send)
            finally:
                scope["state"]["log"] |= facts(speech)

    async def _stream(self, speech: Speech, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(in_thread(speech, self._limiter)) as pieces:
            first = await anext(pieces)  # raises what has a status of its own
            headers = _headers(speech)
            if speech.wish.sse:
                headers |= {"content-type": "text/event-stream", "cache-control": "no-cache"}
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": 200, "headers": raw})
            event = _event if speech.wish.sse else bytes
            try:
                await _body(speech, send, event(first[0]) if first[0] else b"")
                async for data, _ in pieces:
                    if data:
                        await _body(speech, send, event(data))
            except (OSError, asyncio.CancelledError):
                raise
            except Exception as error:
                if not isinstance(error, Cancelled):
                    log.warning("a request failed while it was heard: %s", error)
                if not speech.wish.sse:
                    return  # without an end, so that the client knows
                await _body(speech, send, _json_event({"type": "error", "error": error_object(error)}))
            else:
                if speech.wish.sse:
                    await _body(speech, send, _json_event(_done(speech)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _body(speech: Speech, send: Send, data: bytes) -> None:
    """Send a part of the answer, if its client takes it within the request's time."""
    if not data:
        return
    left = max(0.0, speech.limit - speech.seconds) + LAST_SECONDS
    try:
        with anyio.fail_after(left):  # not asyncio.wait_for, which up to Python 3.11 may lose a cancellation
            await send({"type": "http.response.body", "body": data, "more_body": True})
    except TimeoutError:
        raise ConnectionAbortedError("the client takes nothing, and its time is over") from None


def _headers(speech: Speech) -> dict[str, str]:
    return {
        "content-type": FORMATS[speech.wish.response_format].media_type,
        "x-seed": str(speech.seed),
        "x-first-audio-seconds": f"{speech.first or 0:.3f}",
    }


def _event(data: bytes) -> bytes:
    return _json_event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})


def _done(speech: Speech) -> dict[str, Any]:
    """The last event; tokens are characters and codes of about 46 ms, as there is nothing to be paid."""
    spoken, heard = len(speech.wish.text), round(speech.audio_seconds / 0.0464)
    usage = {"input_tokens": spoken, "output_tokens": heard, "total_tokens": spoken + heard}
    return {"type": "speech.audio.done", "usage": usage, "seed": speech.seed, "complete": speech.complete}


def _json_event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def facts(speech: Speech) -> dict[str, Any]:
    """For the log. Not what was said: that is nobody's business."""
    return {
        "characters": len(speech.wish.text),
        "format": speech.wish.response_format,
        "seed": speech.seed,
        "audio_seconds": round(speech.audio_seconds, 2),
        "first_audio_seconds": None if speech.first is None else round(speech.first, 3),
        "outcome": speech.outcome,
        "complete": speech.complete,
    }
