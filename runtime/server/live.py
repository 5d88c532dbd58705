"""A WebSocket: text as it comes in, sound as it is made out.

The client says {"type": "start"} with the fields of a request for speech, then {"type": "text", "text": ...} as often as
it has some, and {"type": "end"}; {"type": "cancel"} stops at once. The server says {"type": "started"}, then binary
messages of sound, before a sentence's first {"type": "sentence"}, and {"type": "done"}, {"type": "cancelled"} or
{"type": "error"}. Then the client may start again.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import anyio
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..errors import Cancelled, DeadlineExceeded, InputError, TortoiseError
from ..incoming import IncomingText
from ..spec import SAMPLE_RATE
from .answers import error_object
from .fields import parse_json, parse_live
from .guard import known
from .service import Service, Speech
from .sound import facts, in_thread

IDLE_SECONDS = 300.0  #: in which the client must say something while nothing is spoken
KEY_SECONDS = 10.0  #: in which it must say its key
MOST_MESSAGE = 1 << 20  #: characters
POLICY = 1008  #: WebSocket's code for a message that is against the rules


async def live(socket: WebSocket) -> None:
    """The endpoint."""
    service: Service = socket.app.state.service
    state = socket.scope["state"]
    await socket.accept()
    spoken = False
    try:
        while True:
            start = await _message(socket, KEY_SECONDS if state["who"] is None else IDLE_SECONDS)
            if spoken and start.get("type") in ("text", "end", "cancel"):
                continue  # it was on its way when what it is about had ended
            key = start.pop("key", "")  # said again with each start, or not
            if state["who"] is None:
                state["who"] = known(socket.app.state.keys, str(key))
            if start.pop("type", None) != "start":
                raise InputError('nothing is spoken: begin with {"type": "start"}')
            spoken = True
            await _speak(socket, service, start)
    except WebSocketDisconnect:
        pass
    except TortoiseError as error:
        await _fail(socket, error)
    except TimeoutError:
        await _fail(socket, DeadlineExceeded("nothing was said for too long: connect again"))


async def _fail(socket: WebSocket, error: BaseException) -> None:
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):
        await socket.send_json({"type": "error", "error": error_object(error)})
        await socket.close(POLICY, type(error).__name__)


async def _message(socket: WebSocket, seconds: float | None = IDLE_SECONDS) -> dict[str, Any]:
    """The next message; raises InputError for one that is no JSON object."""
    with anyio.fail_after(seconds):
        message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    text = message.get("text")
    if text is None or len(text) > MOST_MESSAGE:
        raise InputError(f"a message must be JSON as text, of {MOST_MESSAGE} characters at most")
    return parse_json(text, "the message")


async def _speak(socket: WebSocket, service: Service, start: dict[str, Any]) -> None:
    """Say one text."""
    wish = parse_live(start)
    text = IncomingText(service.limits.text)
    with service.speech(wish, socket.scope["state"]["who"], iter(text)) as speech:
        await socket.send_json(
            {
                "type": "started",
                "id": socket.scope["state"]["request_id"],
                "seed": speech.seed,
                "response_format": wish.response_format,
                "sample_rate": SAMPLE_RATE,
            }
        )
        listening = asyncio.create_task(_listen(socket, speech, text))
        error = None
        try:
            end = await _sound(socket, speech)
        finally:
            listening.cancel()  # before the end is told, as the client may start again behind it
            with contextlib.suppress(asyncio.CancelledError):
                error = await listening
            text.end()  # behind it, or the client's own end would seem to come too late
            socket.scope["state"]["log"] |= facts(speech)
        if error is not None:
            raise error
        await socket.send_json(end)


async def _listen(socket: WebSocket, speech: Speech, text: IncomingText) -> BaseException | None:
    """Take text while it is spoken; what is wrong with it, or the client's leaving, gives the speech up."""
    try:
        while True:
            message = await _message(socket, None if text.ended else IDLE_SECONDS)
            kind = message.get("type")
            if kind == "cancel":
                speech.cancel()
            elif text.ended:
                raise InputError(f"the text has ended: {kind!r:.40} comes too late")
            elif kind == "text":
                text.add(message.get("text"))
            elif kind == "end":
                text.end()
            else:
                raise InputError(f"unknown type {kind!r:.40}: text, end or cancel")
    except (WebSocketDisconnect, TortoiseError, TimeoutError) as error:
        speech.cancel(Cancelled("the client has gone"))
        return error


async def _sound(socket: WebSocket, speech: Speech) -> dict[str, Any]:
    """Send the sound; -> the message that tells what became of it."""
    threads: anyio.CapacityLimiter = socket.app.state.threads
    try:
        async with contextlib.aclosing(in_thread(speech, threads)) as pieces:
            async for data, piece in pieces:
                if piece is not None and piece.first:
                    await socket.send_json({"type": "sentence", "number": piece.sentence, "text": piece.text})
                if data:
                    await socket.send_bytes(data)
    except WebSocketDisconnect:
        raise
    except Cancelled:
        return {"type": "cancelled"}
    except Exception as error:
        return {"type": "error", "error": error_object(error)}
    return {
        "type": "done",
        "complete": speech.complete,
        "audio_seconds": round(speech.audio_seconds, 3),
        "first_audio_seconds": round(speech.first or 0, 3),
        "seconds": round(speech.seconds, 3),
    }
