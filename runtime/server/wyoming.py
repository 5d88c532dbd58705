"""Wyoming, Home Assistant's protocol: describe, synthesize, and synthesis of text that is still being written."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import anyio
from anyio.to_thread import run_sync
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, Eventable, async_read_event, async_write_event
from wyoming.info import Attribution, Describe, Info, TtsProgram, TtsVoice
from wyoming.ping import Ping, Pong
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

from .._version import __version__
from ..errors import Cancelled, InputError, TextError
from ..incoming import IncomingText
from ..spec import SAMPLE_RATE
from . import voices
from .answers import error_object
from .fields import Wish
from .service import Service, Speech
from .sound import facts, in_thread

log = logging.getLogger("tortoise_rt.server")
MOST_CONNECTIONS = 64
MOST_EVENT = 1 << 20  #: bytes of an event
IDLE_SECONDS = 600.0  #: in which a client must say something
STALL_SECONDS = 60.0  #: in which it must take what is sent
LANGUAGES = ["en"]
SOUND = {"rate": SAMPLE_RATE, "width": 2, "channels": 1}


@contextlib.asynccontextmanager
async def serve_wyoming(
    service: Service, threads: anyio.CapacityLimiter, bound: socket.socket
) -> AsyncIterator[None]:
    """Listens while it lasts."""
    open_now: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(open_now) >= MOST_CONNECTIONS:
            writer.close()
            return
        open_now.add(task)
        try:
            await _Connection(service, threads, reader, writer).run()
        except asyncio.CancelledError:
            pass
        finally:
            open_now.discard(task)
            writer.close()

    server = await asyncio.start_server(connected, sock=bound)
    try:
        yield
    finally:
        server.close()
        for task in [*open_now]:
            task.cancel()
        if open_now:
            await asyncio.wait(open_now)


class _Bounded:
    """A reader that takes no event of more than MOST_EVENT bytes."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def readline(self) -> bytes:
        return await self._reader.readline()

    async def readexactly(self, count: int) -> bytes:
        if count > MOST_EVENT:
            raise InputError(f"an event has {count} bytes; the limit is {MOST_EVENT}")
        return await self._reader.readexactly(count)


class _Connection:
    """A client. Speaks one text at a time, and goes on listening meanwhile."""

    def __init__(
        self,
        service: Service,
        threads: anyio.CapacityLimiter,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._service, self._threads = service, threads
        self._reader, self._writer = reader, writer
        peer = writer.get_extra_info("peername")
        self._who = str(peer[0]) if peer else "local"
        self._lock = asyncio.Lock()
        self._text: IncomingText | None = None  #: of a text that is still being written
        self._speech: Speech | None = None
        self._speaking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until the client leaves, or says what cannot be understood."""
        try:
            while (event := await self._next()) is not None:
                try:
                    await self._answer(event)
                except (InputError, KeyError, TypeError, AttributeError) as error:
                    if isinstance(error, KeyError):
                        error = InputError(f"a {event.type} lacks {error}")
                    elif not isinstance(error, InputError):
                        error = InputError(f"the data of this {event.type} are not as Wyoming has them")
                    await self._fail(error)
                    break
        except OSError:
            pass
        finally:
            await self._stop()

    async def _next(self) -> Event | None:
        """The next event; None at the end, or where it cannot be read."""
        limit = None if self._speaking is not None and not self._speaking.done() else IDLE_SECONDS
        try:
            with anyio.fail_after(limit):
                return await async_read_event(_Bounded(self._reader))  # type: ignore[arg-type]
        except (InputError, EOFError, RecursionError, KeyError, TypeError, AttributeError):
            return None

    async def _answer(self, event: Event) -> None:
        if Describe.is_type(event.type):
            await self._send(await run_sync(_info, self._service))
        elif Ping.is_type(event.type):
            await self._send(Pong(text=Ping.from_event(event).text))
        elif SynthesizeStart.is_type(event.type):
            start = SynthesizeStart.from_event(event)
            await self._begin(
                IncomingText(self._service.limits.text), start.voice, start.text_format, streamed=True
            )
        elif SynthesizeChunk.is_type(event.type):
            if self._text is not None:
                self._text.add(SynthesizeChunk.from_event(event).text)
        elif SynthesizeStop.is_type(event.type):
            if self._text is not None:
                self._text.end()
                self._text = None
        elif (
            Synthesize.is_type(event.type) and self._text is None
        ):  # within a stream it is for servers that have none
            whole = Synthesize.from_event(event)
            text = IncomingText(self._service.limits.text)
            text.add(whole.text)
            text.end()
            await self._begin(text, whole.voice, whole.text_format, streamed=False)

    async def _begin(
        self, text: IncomingText, voice: SynthesizeVoice | None, text_format: Any, *, streamed: bool
    ) -> None:
        """Speak, once what is spoken has ended."""
        if text_format is not None and getattr(text_format, "value", text_format) != "text":
            raise TextError(f"the text is {text_format!s:.40}; plain text is spoken: send that")
        name = None if voice is None else voice.name
        if name is not None and not isinstance(name, str):
            raise InputError(f"a voice is named by a text, not by {name!r:.40}")
        if self._speaking is not None:
            await self._speaking
        self._text = text if streamed else None
        self._speaking = asyncio.create_task(
            self._speak(text, Wish(voice=name, response_format="pcm"), streamed)
        )

    async def _speak(self, text: IncomingText, wish: Wish, streamed: bool) -> None:
        try:
            with self._service.speech(wish, self._who, iter(text)) as speech:
                self._speech = speech
                try:
                    async with contextlib.aclosing(in_thread(speech, self._threads)) as pieces:
                        async for data, piece in pieces:
                            if piece is not None and speech.samples == len(piece.wav):
                                await self._send(AudioStart(**SOUND))
                            if data:
                                await self._send(AudioChunk(audio=data, **SOUND))
                    await self._send(AudioStop())
                    if streamed:
                        await self._send(SynthesizeStopped())
                finally:
                    log.info("wyoming", extra={"facts": {"who": self._who, **facts(speech)}})
        except (Cancelled, OSError):
            self._writer.close()  # the client has gone, or the server stops
        except Exception as error:
            await self._fail(error)
        finally:
            text.end()
            if self._text is text:
                self._text = None

    async def _stop(self) -> None:
        if self._speech is not None:
            self._speech.cancel()
        if self._text is not None:
            self._text.end()
        if self._speaking is not None:
            await self._speaking

    async def _fail(self, error: Exception) -> None:
        told = error_object(error)
        with contextlib.suppress(OSError):
            await self._send(Error(text=told["message"], code=told["code"]))

    async def _send(self, event: Eventable) -> None:
        async with self._lock:
            with anyio.fail_after(STALL_SECONDS):
                await async_write_event(event.event(), self._writer)


def _info(service: Service) -> Info:
    by = Attribution("tortoise-rt", "https://pypi.org/project/tortoise-rt/")
    common: dict[str, Any] = {"attribution": by, "installed": True, "version": __version__}
    found = [
        TtsVoice(name=voice["id"], description=voice["name"], languages=LANGUAGES, **common)
        for voice in voices.listed(service)
    ]
    program = TtsProgram(
        name="tortoise-rt",
        description="TorToiSe text-to-speech",
        voices=found,
        supports_synthesize_streaming=True,
        **common,
    )
    return Info(tts=[program])
