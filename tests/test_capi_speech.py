"""Clips that are said through the C library: voices, jobs, candidates, checking, cancelling. Called from this process."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capi import TOKENIZER, Library, alone, long_request, slow_down, steps, until

from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.capi import embedded, structs
from tortoise_rt.capi.status import Status
from tortoise_rt.capi.structs import Audio
from tortoise_rt.checking import retried
from tortoise_rt.conditioning import one_voice
from tortoise_rt.defaults import settings_for
from tortoise_rt.pipeline import Pipeline, Result
from tortoise_rt.text import Tokenizer
from tortoise_rt.voice import VoiceLatents

NULL = None
by = ctypes.byref


@pytest.fixture
def engine(lib: Library) -> Iterator[ctypes.c_void_p]:
    opened = lib.open()
    yield opened
    lib.call("engine_close", opened)


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
        lib.ok("job_audio", job, ctypes.c_size_t(0), by(audio))
        assert lib.samples(audio) == alone(3)
        assert (audio.seed, audio.tries, audio.problems) == (3, 1, -1)
    lib.ok("job_cancel", job)  # too late
    lib.ok("job_poll", job)
    lib.ok("job_close", job)


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
    assert "cancelled" in lib.fails(Status.CANCELLED, "job_audio", job, ctypes.c_size_t(0), by(audio))


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
    assert found == [Status.CANCELLED] * 3


# --- several clips, and checked ones ---


def test_candidates(lib: Library, engine: ctypes.c_void_p) -> None:
    """The best of the samples, best first; a call that gives one clip says so before it draws."""
    fake, audio, job = FakeEngine(), Audio(), ctypes.c_void_p()
    several = {"num_autoregressive_samples": 4, "k": 3}
    chosen = settings_for(fake, decoder="hifigan", max_mel_tokens=40, **several)
    wanted = Pipeline(fake, Tokenizer(TOKENIZER)).synthesize("Hello there.", None, chosen, 1).wavs
    request = lib.request(settings=lib.settings(**several))
    lib.ok("submit", engine, by(request), by(job))
    for index, wav in enumerate(wanted):
        lib.ok("job_audio", job, ctypes.c_size_t(index), by(audio))
        assert audio.seed == 1 and lib.samples(audio) == wav.tobytes()
    assert len({wav.tobytes() for wav in wanted}) == 3
    lib.fails(Status.END, "job_audio", job, ctypes.c_size_t(3), by(audio))
    assert audio.samples is None and audio.count == 0
    for name, *arguments in [("synthesize", by(audio)), ("stream_open", by(job))]:
        assert "k is 3, and only jobs" in lib.fails(Status.SETTINGS, name, engine, by(request), *arguments)


CHECKED = {"check": 1, "max_retries": 2, "num_autoregressive_samples": 2, "max_mel_tokens": 20}


def tries(text: str, seed: int, k: int = 1) -> Result:
    """What Python makes of a checked text."""
    fake = FakeEngine()
    chosen = settings_for(fake, decoder="hifigan", **{**CHECKED, "check": True, "k": k})
    voice, pipeline = one_voice(fake, None, chosen, seed), Pipeline(fake, Tokenizer(TOKENIZER))
    return retried(lambda again: pipeline.synthesize(text, voice, chosen, again), seed, 2)


def test_checked_clips(lib: Library, engine: ctypes.c_void_p) -> None:
    """On noise, where no clip is good: the best of three tries are what Python keeps."""
    audio, job, said = Audio(), ctypes.c_void_p(), ctypes.create_string_buffer(200)
    wanted = tries("Hello.", 3, k=2)
    assert wanted.tries == (3, 4, 5) and len(wanted.drawn) == 2
    lib.ok("submit", engine, by(lib.request("Hello.", lib.settings(**CHECKED, k=2), seed=3)), by(job))
    for index, (drawn, report) in enumerate(zip(wanted.drawn, wanted.reports, strict=True)):
        lib.ok("job_audio", job, ctypes.c_size_t(index), by(audio))
        assert (audio.seed, audio.tries, audio.problems) == (drawn.seed, 3, len(report.problems))
        assert lib.samples(audio) == wanted.wavs[index].tobytes() and report.problems
        lib.ok("job_problems", job, ctypes.c_size_t(index), said, ctypes.c_size_t(200))
        assert said.value.decode() == "; ".join(report.problems)
    lib.fails(Status.END, "job_problems", job, ctypes.c_size_t(2), said, ctypes.c_size_t(200))
    assert said.value == b""
    lib.ok("synthesize", engine, by(lib.request("Hello.", lib.settings(**CHECKED), seed=3)), by(audio))
    assert (audio.seed, audio.tries) == (tries("Hello.", 3).seed, 3) and lib.samples(audio)
    refused = lib.request(settings=lib.settings(check=1))
    nan = lib.request(settings=lib.settings(**CHECKED), timeout=float("nan"))
    assert "not nan" in lib.fails(Status.SETTINGS, "submit", engine, by(nan), by(job))
    assert "heard before" in lib.fails(Status.SETTINGS, "stream_open", engine, by(refused), by(job))


def test_checking_ends_early(lib: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """By cancelling, within a try or between two; by its time, for all tries together; by closing the engine."""
    engine, audio, job = lib.open(queue=1), Audio(), ctypes.c_void_p()
    scheduler = embedded._engines.get(engine.value or 0).scheduler
    slow_down(engine, 0.01)
    endless = lib.settings(**{**CHECKED, "max_retries": 100})
    lib.ok("submit", engine, by(lib.request(settings=endless)), by(job))
    until(lambda: steps(lib, engine)[0] > 30)  # the second try: each has 20 steps
    assert lib.call("job_poll", job) == Status.PENDING
    before, _ = steps(lib, engine)
    lib.ok("job_cancel", job)
    lib.fails(Status.CANCELLED, "job_wait", job, -1.0)
    assert steps(lib, engine)[0] - before <= 2

    submit = scheduler.submit

    def submit_too_late(*arguments: Any, **options: Any) -> Any:
        until(lambda: job.value is not None)
        lib.ok("job_cancel", job)
        return submit(*arguments, **options)

    with monkeypatch.context() as patch:  # cancelled before the try's own handle is there
        patch.setattr(scheduler, "submit", submit_too_late)
        lib.ok("submit", engine, by(lib.request(settings=endless)), by(job))
        lib.fails(Status.CANCELLED, "job_wait", job, 20.0)
    until(lambda: steps(lib, engine)[1] == 0)

    before, began = steps(lib, engine)[0], time.monotonic()
    lib.fails(Status.TIMEOUT, "synthesize", engine, by(lib.request(settings=endless, timeout=0.5)), by(audio))
    assert time.monotonic() - began < 5 and steps(lib, engine)[0] > before + 20
    lib.ok("submit", engine, by(lib.request(settings=endless)), by(job))
    handle = embedded._jobs.get(job.value or 0).handle
    lib.ok("engine_close", engine)
    assert handle.wait(0) and len(scheduler.policy) == 0
    lib.fails(Status.CLOSED, "job_poll", job)
