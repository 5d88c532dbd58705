"""What the C side calls, function by function: each takes numbers, writes to the caller's memory, gives (status, message)."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from typing import Any

from .. import __version__
from ..alignment import aligner_of
from ..audio import write_wav as write_file
from ..conditioning import check_latents, resolve
from ..config import Settings as Chosen
from ..errors import EngineError, InputError, MissingDependency, VoiceError
from ..resample import resample
from ..rng import Philox
from ..spec import CODE_RATE
from ..tts import as_clips
from ..voice import Voice, VoiceLatents, find_voices
from . import told, work
from .handles import Handles
from .status import Status, answers
from .structs import (
    Chunk,
    Clip,
    EngineInfo,
    EngineOptions,
    Request,
    decoded,
    fitted,
    floats,
    write_floats,
    write_number,
    write_struct,
    write_text,
)

API_VERSION = 1
MOST_CLIPS = 1000
PATIENCE = 1.0  #: seconds that the end of the process waits for the log to be told
log = logging.getLogger("tortoise_rt")
_engines, _voices = Handles[work.OpenEngine]("engine"), Handles[work.OpenVoice]("voice")
_jobs, _streams = Handles[work.Job]("job"), Handles[work.Stream]("stream")


# --- the library ---


@answers
def start(guest: int, api: int, version: str) -> None:
    """Once, when Python runs; guest: it was started for the library alone, in somebody's process."""
    if (api, version) != (API_VERSION, __version__):
        raise MissingDependency(
            f"the library is tortoise-rt {version} and its environment has {__version__}: "
            "run tortoise-rt capi build there"
        )
    logging.logThreads = False  # a thread of the caller's would be remembered for ever
    if guest:
        sys.stdout = sys.stderr = told.Printed()
        threading.excepthook = lambda failed: log.error("a thread failed: %s", failed.exc_value)
        log.propagate = False
        log.addHandler(logging.NullHandler())


@answers
def set_log(function: int, user: int, level: int) -> None:
    told.tell(function, user, level)


@answers
def write_wav(path: bytes, samples: int, count: int) -> None:
    write_file(decoded(path, "path"), floats(samples, count))


@answers
def close(kind: str, number: int) -> None:
    if kind == "engine":
        _close_engine(number)
    elif kind == "voice":
        _voices.take(number)
    elif kind == "job":
        _jobs.take(number).cancel()
    else:
        _streams.take(number).cancel()


@answers
def close_all() -> None:
    """At the end of the process."""
    told.tell(0, 0, 0, PATIENCE)
    for number in _engines.numbers():
        _close_engine(number)


def _close_engine(number: int) -> None:
    _end(_engines.take(number))
    gc.collect()  # so that the networks' memory is given back now


def _end(engine: work.OpenEngine) -> None:
    _voices.take_of(engine)
    under_way: list[work.Stream | work.Job] = [*_streams.take_of(engine), *_jobs.take_of(engine)]
    for one in under_way:
        one.cancel()
    engine.scheduler.close()
    for one in under_way:
        one.join()


# --- engines ---


@answers
def engine_open(options: int, engine: int) -> None:
    write_number(engine, _engines.add(work.OpenEngine(EngineOptions.read(options))))


@answers
def engine_info(engine: int, info: int) -> None:
    opened = _engines.get(engine)
    network, scheduler = opened.network, opened.scheduler
    about, pools = network.info, [lane.rows for lane in scheduler.lanes if lane.rows]
    diffusion = network.has("diffusion_denoise", "univnet")
    EngineInfo(
        has_diffusion=diffusion,
        has_hifigan=network.has("hifigan"),
        can_rank=network.has("clvp_speech"),
        has_random_voices=network.has("rlg_auto"),
        can_listen=aligner_of(network) is not None,
        autoregressive_width=network.dims["ar.dim"],
        diffusion_width=network.dims["diffusion.voice_dim"] if diffusion else 0,
        rows=sum(lane.policy.rows for lane in scheduler.lanes),
        in_flight=sum(len(lane.policy) for lane in scheduler.lanes),
        steps=sum(pool.steps for pool in pools),
        decoded=sum(pool.used for pool in pools),
        backend=fitted(about.backend, 16),
        device=fitted(about.device, 16),
        default_voice=fitted(str(about.defaults.get("voice", "random")), 64),
        source=fitted(about.source, 256),
        notice=fitted(about.notice, 256),
    ).write(info)


# --- voices ---


@answers
def voice_name(engine: int, index: int, name: int, size: int) -> Status:
    names = sorted(find_voices(_engines.get(engine).voice_folders))
    write_text(names[index] if index < len(names) else "", name, size)
    return Status.OK if index < len(names) else Status.END


@answers
def voice_load(engine: int, name: bytes | None, paths: int, voice: int) -> None:
    opened = _engines.get(engine)
    made = opened.voice if name is None else opened.load_voice(decoded(name, "name"), bool(paths))
    if made is not None and made.latents is not None:
        check_latents(opened.network, made.latents, None)
    write_number(voice, _voices.add(work.OpenVoice(opened, made)))


@answers
def voice_from_clips(engine: int, clips: int, count: int, voice: int) -> None:
    opened = _engines.get(engine)
    if not 1 <= count <= MOST_CLIPS:
        raise VoiceError(f"{count} clips were given; a voice has 1 to {MOST_CLIPS}")
    given = (Clip * count).from_address(clips)
    if empty := [number for number, clip in enumerate(given) if not clip.samples]:
        raise InputError(f"trt_voice_from_clips: clips[{empty[0]}].samples is NULL")
    heard = as_clips([resample(floats(clip.samples, clip.count), clip.rate, CODE_RATE) for clip in given])
    write_number(voice, _voices.add(work.OpenVoice(opened, Voice("clips", clips=heard))))


@answers
def voice_from_latents(
    engine: int, autoregressive: int, auto_count: int, diffusion: int, diffusion_count: int, voice: int
) -> None:
    opened = _engines.get(engine)
    spoken = floats(diffusion, diffusion_count) if diffusion else None
    latents = VoiceLatents(floats(autoregressive, auto_count), spoken)
    check_latents(opened.network, latents, None)
    write_number(voice, _voices.add(work.OpenVoice(opened, latents)))


@answers
def voice_latents(
    voice: int, autoregressive: int, auto_count: int, diffusion: int, diffusion_count: int
) -> None:
    opened = _voices.get(voice)
    if opened.voice is None:
        raise VoiceError("a random voice is another for each seed, so it has no latents of its own")
    given = opened.voice
    settings = Chosen(decoder="diffusion" if diffusion else "hifigan")
    handle = opened.engine.scheduler.call(lambda network: resolve(network, given, settings, Philox(0))[0])
    latents = handle.result()
    _write_latent("autoregressive", latents.auto, autoregressive, auto_count)
    if diffusion:
        if latents.diffusion is None:
            raise EngineError("the voice has no diffusion latent: pass NULL for it")
        _write_latent("diffusion", latents.diffusion, diffusion, diffusion_count)


def _write_latent(name: str, latent: Any, address: int, count: int) -> None:
    if latent.size != count:
        raise InputError(f"the {name} latent has {latent.size} numbers; there is room for {count}")
    write_floats(latent, address)


# --- clips and streams ---


def _voice_of(engine: work.OpenEngine, request: Request) -> work.AnyVoice:
    if not request.voice:
        return engine.voice
    voice = _voices.get(request.voice)
    if voice.engine is not engine:
        raise VoiceError("the voice is another engine's: load it with the one that is to speak")
    return voice.voice


@answers
def submit(engine: int, request: int, job: int) -> None:
    opened, wanted = _engines.get(engine), Request.read(request)
    write_number(job, _jobs.add(work.submit(opened, _voice_of(opened, wanted), wanted)))


@answers
def synthesize(engine: int, request: int, job: int, count: int) -> None:
    """Submit and wait; a job that is done, and how many samples it has. None is left where it fails."""
    opened, wanted = _engines.get(engine), Request.read(request)
    made = work.submit(opened, _voice_of(opened, wanted), wanted, lent=True)
    number = _jobs.add(made)
    try:
        write_number(count, made.audio(0).count)
    except BaseException:
        _jobs.take(number)
        raise
    write_number(job, number)


@answers
def job_wait(job: int, seconds: float) -> Status:
    return _jobs.get(job).wait(seconds)


@answers
def job_count(job: int, index: int, count: int) -> Status:
    """Wait; then how many samples clip number ``index`` has, or END."""
    done = _jobs.get(job)
    if index >= len(done):
        return Status.END
    write_number(count, done.audio(index).count)
    return Status.OK


@answers
def job_copy(job: int, index: int, samples: int, audio: int, closes: int) -> None:
    """A clip of a job that is done: all but where its samples are; closes: the job is closed, too."""
    done = _jobs.take(job) if closes else _jobs.get(job)
    write_floats(done.handle.result().wavs[index], samples)
    write_struct(done.audio(index), audio)


@answers
def job_problems(job: int, index: int, text: int, size: int) -> Status:
    done = _jobs.get(job)
    there = index < len(done)
    write_text(done.problems(index) if there else "", text, size)
    return Status.OK if there else Status.END


@answers
def job_cancel(job: int) -> None:
    _jobs.get(job).cancel()


@answers
def stream_open(engine: int, request: int, lent: int, live: int, stream: int) -> None:
    """lent: for trt_speak(), which closes it; live: the text goes on with stream_feed."""
    opened, wanted = _engines.get(engine), Request.read(request)
    made = work.stream(opened, _voice_of(opened, wanted), wanted, bool(lent), bool(live))
    write_number(stream, _streams.add(made))


@answers
def stream_feed(stream: int, text: bytes, final: int) -> None:
    _streams.get(stream).feed(text, bool(final))


@answers
def stream_next(stream: int, seconds: float, chunk: int) -> Status:
    taken = _streams.get(stream).take(seconds)
    if isinstance(taken, Status):
        return taken
    piece, number = taken
    write_struct(Chunk(piece.wav.ctypes.data, len(piece.wav), number, piece.sentence), chunk)
    return Status.OK


@answers
def stream_cancel(stream: int) -> None:
    _streams.get(stream).cancel()
