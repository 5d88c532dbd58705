"""Streams through the C library, live text, and the log: what is told while something goes on. Called from this process."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from capi import Library, alone, long_request, steps, until

from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.capi import structs
from tortoise_rt.capi.status import Status

NULL = None
by = ctypes.byref
TEXT = "One sentence. And another one. A third."
chunk_fn = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(structs.Chunk), ctypes.c_void_p)


@pytest.fixture
def engine(lib: Library) -> Iterator[ctypes.c_void_p]:
    opened = lib.open()
    yield opened
    lib.call("engine_close", opened)


def heard(chunk: structs.Chunk) -> np.ndarray:
    return np.frombuffer(ctypes.string_at(chunk.samples, 4 * chunk.count), np.float32)


def streamed(
    lib: Library, engine: ctypes.c_void_p, request: structs.Request, stop: int = 0
) -> list[tuple[int, int, np.ndarray]]:
    """(sequence, sentence, samples) of the pieces, until number ``stop`` says no."""
    pieces: list[tuple[int, int, np.ndarray]] = []

    @chunk_fn
    def take(chunk: object, user: int) -> int:
        assert user == 77
        pieces.append((chunk[0].sequence, chunk[0].sentence, heard(chunk[0])))  # type: ignore[index]
        return len(pieces) != stop

    lib.ok("speak", engine, by(request), take, ctypes.c_void_p(77))
    return pieces


def test_pieces_joined_are_the_clip(lib: Library, engine: ctypes.c_void_p) -> None:
    pieces = streamed(lib, engine, lib.request("Hello there.", chunk=8, split=0))
    assert [number for number, _, _ in pieces] == list(range(len(pieces))) and len(pieces) > 2
    whole = np.frombuffer(alone(1), np.float32)
    assert np.abs(np.concatenate([wav for _, _, wav in pieces]) - whole).max() <= 1e-5


def test_sentences(lib: Library, engine: ctypes.c_void_p) -> None:
    """Each is said with the next seed; between them is as much silence as is asked for."""
    voice, latents = (
        ctypes.c_void_p(),
        np.random.default_rng(1).standard_normal(FakeEngine().dims["ar.dim"], np.float32),
    )
    size = ctypes.c_size_t(len(latents))
    lib.ok("voice_from_latents", engine, ctypes.c_void_p(latents.ctypes.data), size, NULL, size, by(voice))
    pieces = streamed(lib, engine, lib.request(TEXT, pause=0.5, voice=voice.value))
    assert sorted({sentence for _, sentence, _ in pieces}) == [0, 1, 2]
    second = np.concatenate([wav for _, sentence, wav in pieces if sentence == 1])
    request = lib.request("And another one.", seed=2, voice=voice.value)
    clip = np.frombuffer(lib.clip(engine, request), np.float32)
    assert not second[:12000].any()
    assert np.abs(second[12000:] - clip).max() <= 1e-5


def test_a_callback_stops(lib: Library, engine: ctypes.c_void_p) -> None:
    assert len(streamed(lib, engine, lib.request(TEXT, chunk=4), stop=2)) == 2
    until(lambda: steps(lib, engine)[1] == 0)


def test_pieces_outlive_the_engine(lib: Library, engine: ctypes.c_void_p) -> None:
    """Within the callback that has them, whoever closes what meanwhile."""
    heard_before_and_after: list[bytes] = []

    @chunk_fn
    def take(chunk: object, user: int) -> int:
        first = heard(chunk[0]).tobytes()  # type: ignore[index]
        lib.ok("engine_close", engine)
        others = [np.full(chunk[0].count, 7, np.float32) for _ in range(8)]  # type: ignore[index]
        heard_before_and_after.extend([first, heard(chunk[0]).tobytes()])  # type: ignore[index]
        return len(others)

    assert "given up" in lib.fails(
        Status.CANCELLED, "speak", engine, by(lib.request(TEXT, chunk=40)), take, NULL
    )
    assert len(heard_before_and_after) == 2 and len(set(heard_before_and_after)) == 1


def test_pieces_are_taken(lib: Library, engine: ctypes.c_void_p) -> None:
    stream, chunk, got = ctypes.c_void_p(), structs.Chunk(), []
    lib.ok("stream_open", engine, by(lib.request(TEXT, chunk=8)), by(stream))
    while (status := lib.call("stream_next", stream, 0.001, by(chunk))) != Status.END:
        if status == Status.OK:
            got.append(heard(chunk))
        else:
            assert status == Status.PENDING and chunk.samples is None
    lib.fails(Status.END, "stream_next", stream, -1.0, by(chunk))
    lib.ok("stream_close", stream)
    assert np.array_equal(
        np.concatenate(got),
        np.concatenate([w for _, _, w in streamed(lib, engine, lib.request(TEXT, chunk=8))]),
    )


def test_a_stream_is_given_up_from_another_thread(lib: Library, engine: ctypes.c_void_p) -> None:
    stream, chunk = ctypes.c_void_p(), structs.Chunk()
    lib.ok("stream_open", engine, by(long_request(lib, text=TEXT)), by(stream))
    threading.Timer(0.05, lambda: lib.ok("stream_cancel", stream)).start()
    assert "given up" in lib.fails(Status.CANCELLED, "stream_next", stream, -1.0, by(chunk))
    until(lambda: steps(lib, engine)[1] == 0)
    lib.ok("stream_close", stream)


def test_what_a_reading_fails_with(lib: Library, engine: ctypes.c_void_p) -> None:
    stream, chunk = ctypes.c_void_p(), structs.Chunk()
    lib.ok("stream_open", engine, by(lib.request("  ")), by(stream))
    for _ in range(2):
        assert "nothing to say" in lib.fails(Status.TEXT, "stream_next", stream, -1.0, by(chunk))
    lib.ok("stream_close", stream)


# --- text that is still being written ---


def taken(lib: Library, stream: ctypes.c_void_p) -> np.ndarray:
    """All that is left of a stream, which is closed."""
    chunk, got = structs.Chunk(), []
    while (status := lib.call("stream_next", stream, 20.0, by(chunk))) == Status.OK:
        got.append(heard(chunk))
    assert status == Status.END, lib.error
    lib.ok("stream_close", stream)
    return np.concatenate(got)


@pytest.mark.parametrize("beginning", [None, "One sent"])
def test_live_text(lib: Library, engine: ctypes.c_void_p, beginning: str | None) -> None:
    """Fed byte by byte, also within characters: what is said is what the whole text gives."""
    text = "One sentence. And \u2018another\u2019 one. A third."
    whole = np.concatenate([wav for _, _, wav in streamed(lib, engine, lib.request(text, chunk=8))])
    stream, chunk, rest = ctypes.c_void_p(), structs.Chunk(), text.encode()
    request = lib.request(beginning or "", chunk=8)
    if beginning is None:
        request.text = None
    lib.ok("stream_open_live", engine, by(request), by(stream))
    for byte in rest[len(beginning or "") :]:
        lib.ok("stream_feed", stream, bytes([byte]))
    lib.ok("stream_finish", stream)
    assert "the text has ended" in lib.fails(Status.ARGUMENT, "stream_feed", stream, b"More.")
    lib.fails(Status.ARGUMENT, "stream_finish", stream)
    assert np.array_equal(taken(lib, stream), whole)
    lib.fails(Status.CLOSED, "stream_next", stream, 0.0, by(chunk))


def test_a_sentence_is_heard_before_the_text_ends(lib: Library, engine: ctypes.c_void_p) -> None:
    stream, chunk = ctypes.c_void_p(), structs.Chunk()
    lib.ok("stream_open_live", engine, by(lib.request("Hello there. And", chunk=250)), by(stream))
    lib.ok("stream_next", stream, 20.0, by(chunk))
    assert heard(chunk).tobytes() == alone(1)
    assert lib.call("stream_next", stream, 0.05, by(chunk)) == Status.PENDING
    lib.ok("stream_feed", stream, b" good night.")
    lib.ok("stream_finish", stream)
    assert len(taken(lib, stream))


def test_live_text_that_goes_wrong(lib: Library, engine: ctypes.c_void_p) -> None:
    stream, chunk = ctypes.c_void_p(), structs.Chunk()
    lib.ok("stream_open", engine, by(lib.request()), by(stream))
    assert "trt_stream_open_live()" in lib.fails(Status.ARGUMENT, "stream_feed", stream, b"More.")
    lib.ok("stream_close", stream)
    refused = lib.request(b"\xff")
    lib.fails(Status.TEXT, "stream_open_live", engine, by(refused), by(stream))
    lib.ok("stream_open_live", engine, by(lib.request("One")), by(stream))
    lib.fails(Status.TEXT, "stream_feed", stream, b" \xff")
    lib.ok("stream_feed", stream, b" \xe2\x80")
    lib.fails(Status.TEXT, "stream_finish", stream)  # within a character
    lib.ok("stream_feed", stream, b"\x98 sentence. Two.")
    lib.ok("stream_next", stream, 20.0, by(chunk))
    lib.ok("stream_cancel", stream)
    lib.fails(Status.CANCELLED, "stream_feed", stream, b"More.")
    lib.ok("stream_close", stream)
    lib.ok("stream_open_live", engine, by(lib.request("  ")), by(stream))
    lib.ok("stream_finish", stream)
    problem = lib.fails(Status.TEXT, "stream_next", stream, 20.0, by(chunk))
    assert lib.fails(Status.TEXT, "stream_feed", stream, b"More.") == problem
    lib.ok("stream_close", stream)
    lib.ok("stream_open_live", engine, by(lib.request("Waits")), by(stream))
    lib.ok("engine_close", engine)  # with a text that would never go on
    until(lambda: not [t for t in threading.enumerate() if t.name in ("text", "stream")])


# --- the log ---


def test_the_log(lib: Library, engine: ctypes.c_void_p) -> None:
    told: list[tuple[int, str, int]] = []

    @ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    def tell(level: int, message: bytes, user: int) -> None:
        told.append((level, message.decode(), user))

    lib.ok("set_log", tell, ctypes.c_void_p(5), 20)
    lib.ok("engine_close", lib.open(backend=None, engine=None, tokenizer=None))
    lib.ok("set_log", NULL, NULL, 0)
    assert told[0][0] == 20 and told[0][1].startswith("engine: onnx on cpu from ") and told[0][2] == 5
    count = len(told)
    lib.ok("engine_close", lib.open(backend=None, engine=None, tokenizer=None))
    assert len(told) == count


def test_the_logs_function_may_call_what_it_likes(lib: Library, engine: ctypes.c_void_p) -> None:
    """Also what waits for threads that log, closing the engine, and setting another function."""
    found: list[int] = []

    @ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    def tell(level: int, message: bytes, user: int) -> None:
        if b"did not stop" in message and not found:
            found.append(lib.call("speak", engine, by(request), go_on, NULL))  # which logs the same
            found.append(lib.call("engine_close", engine))
            found.append(lib.call("set_log", NULL, NULL, 0))

    go_on = chunk_fn(lambda chunk, user: 1)
    request = lib.request(settings=lib.settings(max_mel_tokens=2))
    lib.ok("set_log", tell, NULL, 30)
    lib.ok("speak", engine, by(request), go_on, NULL)
    until(lambda: len(found) == 3)
    assert found == [Status.OK] * 3


def test_messages_belong_to_their_thread(lib: Library) -> None:
    lib.fails(Status.ARGUMENT, "job_poll", NULL)
    others: list[str] = []
    thread = threading.Thread(target=lambda: others.append(lib.error))
    thread.start()
    thread.join()
    assert others == [""] and lib.error == "trt_job_wait: job is NULL"
