"""What is said through the C library: clips, voices, streams, cancelling, the log. Called from this process."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from capi import TOKENIZER, Audio, Library

from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.capi import embedded, structs
from tortoise_rt.capi.status import Status
from tortoise_rt.defaults import settings_for
from tortoise_rt.pipeline import Pipeline
from tortoise_rt.text import Tokenizer
from tortoise_rt.voice import VoiceLatents

NULL = None
by = ctypes.byref


@pytest.fixture
def engine(lib: Library) -> Iterator[ctypes.c_void_p]:
    opened = lib.open()
    yield opened
    lib.call("engine_close", opened)


# --- clips ---


def alone(seed: int, voice: VoiceLatents | None = None, **settings: object) -> bytes:
    """The same by the pipeline, without a scheduler."""
    engine = FakeEngine()
    chosen = settings_for(
        engine, decoder="hifigan", num_autoregressive_samples=1, max_mel_tokens=40, **settings
    )
    return (
        Pipeline(engine, Tokenizer(TOKENIZER))
        .synthesize("Hello there.", voice, chosen, seed)
        .wavs[0]
        .tobytes()
    )


def test_a_clip_is_that_of_python(lib: Library, engine: ctypes.c_void_p) -> None:
    assert lib.clip(engine, lib.request(seed=5)) == alone(5)
    assert lib.clip(engine, lib.request(seed=6)) == alone(6) != alone(5)
    warm = lib.request(seed=5, settings=lib.settings(temperature=1.5, top_k=0))
    assert lib.clip(engine, warm) == alone(5, temperature=1.5, top_k=0) != alone(5)


def test_a_seed_of_its_own(lib: Library, engine: ctypes.c_void_p) -> None:
    first, second = Audio(), Audio()
    for audio in (first, second):
        lib.ok("synthesize", engine, by(lib.request(seed=-1)), by(audio))
    assert first.seed != second.seed
    seed = first.seed
    assert lib.samples(first) == lib.clip(engine, lib.request(seed=seed)) != lib.samples(second)


def test_voices(lib: Library, engine: ctypes.c_void_p, tmp_path: Path) -> None:
    info, name, names = (
        structs.EngineInfo(struct_size=ctypes.sizeof(structs.EngineInfo)),
        ctypes.create_string_buffer(64),
        [],
    )
    lib.ok("engine_get_info", engine, by(info))
    while lib.call("voice_name", engine, len(names), name, ctypes.c_size_t(64)) == Status.OK:
        names.append(name.value.decode())
    assert {"alto", "tenor"} <= set(names) and name.value == b""
    lib.ok("voice_name", engine, names.index("alto"), name, ctypes.c_size_t(3))
    assert name.value == b"al"

    rng = np.random.default_rng(1)
    auto = rng.standard_normal(info.autoregressive_width, np.float32)
    spoken = rng.standard_normal(info.diffusion_width, np.float32)
    given, clips, random = (ctypes.c_void_p() for _ in range(3))
    sizes = ctypes.c_size_t(len(auto)), ctypes.c_size_t(len(spoken))
    at = [ctypes.c_void_p(a.ctypes.data) for a in (auto, spoken)]
    lib.ok("voice_from_latents", engine, at[0], sizes[0], at[1], sizes[1], by(given))
    assert lib.clip(engine, lib.request(voice=given.value)) == alone(1, VoiceLatents(auto))
    lib.fails(
        Status.VOICE, "voice_from_latents", engine, at[0], ctypes.c_size_t(3), NULL, sizes[1], by(random)
    )

    heard = (0.1 * rng.standard_normal(44100)).astype(np.float32)
    clip = structs.Clip(heard.ctypes.data, len(heard), 44100)
    lib.ok("voice_from_clips", engine, by(clip), ctypes.c_size_t(1), by(clips))
    lib.ok("voice_latents", clips, at[0], sizes[0], at[1], sizes[1])
    assert lib.clip(engine, lib.request(voice=clips.value)) == alone(1, VoiceLatents(auto))
    assert "there is room for 3" in lib.fails(
        Status.ARGUMENT, "voice_latents", clips, at[0], ctypes.c_size_t(3), NULL, sizes[1]
    )
    lib.ok("voice_load", engine, b"random", 0, by(random))
    assert "another for each seed" in lib.fails(
        Status.VOICE, "voice_latents", random, at[0], sizes[0], NULL, sizes[1]
    )
    short = structs.Clip(heard.ctypes.data, 10, 22050)
    lib.fails(Status.AUDIO, "voice_from_clips", engine, by(short), ctypes.c_size_t(1), by(random))
    lib.fails(Status.VOICE, "voice_from_clips", engine, by(short), ctypes.c_size_t(0), by(random))


def test_a_job(lib: Library, engine: ctypes.c_void_p) -> None:
    job, audio = ctypes.c_void_p(), Audio()
    lib.ok("submit", engine, by(lib.request(seed=3)), by(job))
    lib.ok("job_wait", job, -1.0)
    lib.ok("job_poll", job)
    for _ in range(2):  # a copy each time
        lib.ok("job_audio", job, by(audio))
        assert lib.samples(audio) == alone(3) and audio.seed == 3
    lib.ok("job_cancel", job)  # too late
    lib.ok("job_poll", job)
    lib.ok("job_close", job)


def long_request(lib: Library, **values: object) -> structs.Request:
    """Thousands of steps."""
    return lib.request(settings=lib.settings(num_autoregressive_samples=400, max_mel_tokens=250), **values)


def steps(lib: Library, engine: ctypes.c_void_p) -> tuple[int, int]:
    """-> decoding steps and requests in flight."""
    info = structs.EngineInfo(struct_size=ctypes.sizeof(structs.EngineInfo))
    lib.ok("engine_get_info", engine, by(info))
    return info.steps, info.in_flight


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def slow_down(engine: ctypes.c_void_p, seconds: float) -> None:
    """Let each of an engine's steps take as long."""
    network = embedded._engines.get(engine.value or 0).network
    step = network._ar_step

    def slow(*arguments: object) -> object:
        time.sleep(seconds)
        return step(*arguments)  # type: ignore[arg-type]

    network._ar_step = slow  # type: ignore[method-assign, assignment]


def test_cancelled_within_a_step(lib: Library, engine: ctypes.c_void_p) -> None:
    slow_down(engine, 0.05)
    job, audio, found = ctypes.c_void_p(), Audio(), []
    lib.ok("submit", engine, by(long_request(lib)), by(job))
    until(lambda: steps(lib, engine)[0] > 2)
    assert lib.call("job_poll", job) == lib.call("job_wait", job, 0.01) == Status.PENDING
    waiting = threading.Thread(target=lambda: found.append(lib.call("job_wait", job, -1.0)))
    waiting.start()
    before, _ = steps(lib, engine)
    lib.ok("job_cancel", job)
    waiting.join(20)
    assert found == [Status.CANCELLED]
    until(lambda: steps(lib, engine)[1] == 0)
    assert steps(lib, engine)[0] - before <= 2  # the one under way, and one that ended before the call
    assert "cancelled" in lib.fails(Status.CANCELLED, "job_audio", job, by(audio))


def test_a_timeout_and_a_full_queue(lib: Library) -> None:
    engine = lib.open(queue=1)
    job, audio = ctypes.c_void_p(), Audio()
    lib.fails(Status.TIMEOUT, "synthesize", engine, by(long_request(lib, timeout=0.05)), by(audio))
    until(lambda: steps(lib, engine)[1] == 0)
    lib.ok("submit", engine, by(long_request(lib)), by(job))
    assert "1 requests are in flight" in lib.fails(
        Status.BUSY, "synthesize", engine, by(lib.request()), by(audio)
    )
    lib.ok("engine_close", engine)


def test_closing_an_engine_ends_what_waits(lib: Library) -> None:
    engine, found = lib.open(), []

    def speak() -> None:
        found.append(lib.call("synthesize", engine, by(long_request(lib)), by(Audio())))

    threads = [threading.Thread(target=speak) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: steps(lib, engine)[0] > 3)
    lib.ok("engine_close", engine)
    for thread in threads:
        thread.join(20)
    assert len(found) == 3 and set(found) <= {Status.CANCELLED, Status.CLOSED}


# --- streams ---

TEXT = "One sentence. And another one. A third."
chunk_fn = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(structs.Chunk), ctypes.c_void_p)


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


# --- the rest ---


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


def test_messages_belong_to_their_thread(lib: Library) -> None:
    lib.fails(Status.ARGUMENT, "job_poll", NULL)
    others: list[str] = []
    thread = threading.Thread(target=lambda: others.append(lib.error))
    thread.start()
    thread.join()
    assert others == [""] and lib.error == "trt_job_wait: job is NULL"
