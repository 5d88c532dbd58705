"""Whole sentences and streams on a device, with random weights that never stop by themselves: 10 s of sound each."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from tortoise_rt.config import Settings, make_settings
from tortoise_rt.engine import Engine
from tortoise_rt.pipeline import Pipeline
from tortoise_rt.scheduler import Scheduler
from tortoise_rt.voice import VoiceLatents

CODES = 215  #: 10 s
TEXT = [*range(20, 80)]  #: token ids
Row = dict[str, Any]


def random_voice(engine: Engine) -> VoiceLatents:
    """A voice of noise."""
    rng = np.random.default_rng(0)
    sizes = engine.dims["ar.dim"], engine.dims["diffusion.voice_dim"]
    return VoiceLatents(*(0.3 * rng.standard_normal((1, size)).astype(np.float32) for size in sizes))


def sentences(engine: Engine, samples: int = 96, steps: int = 80) -> Iterator[Row]:
    """The preset "fast", then the same with one sample by HiFi-GAN; the last of two runs each."""
    whole = dict(num_autoregressive_samples=samples, diffusion_iterations=steps, batch_rows=samples)
    one = dict(num_autoregressive_samples=1, decoder="hifigan")
    for name, arguments in (("fast", whole), ("one sample, hifigan", one)):
        settings = make_settings(preset="fast", max_mel_tokens=CODES, **arguments)
        pipeline, voice = Pipeline(engine), random_voice(engine)
        for _ in range(2):
            start = time.perf_counter()
            result = pipeline.synthesize(TEXT, voice, settings, seed=1)
            total = time.perf_counter() - start
        yield {
            "kind": "sentence",
            "settings": name,
            "samples": settings.ar.samples,
            "audio_s": round(result.audio_seconds, 3),
            "total_s": total,
            "real_time_factor": total / result.audio_seconds,
            "stages_s": result.seconds,
            "ok": all(np.isfinite(wav).all() for wav in result.wavs),
        }


def streams(engine: Engine, together: tuple[int, ...] = (1, 8, 64, 256)) -> Iterator[Row]:
    """Streams at once through the scheduler; the last of some rounds: one to begin, one to record."""
    settings = make_settings(decoder="hifigan", num_autoregressive_samples=1, max_mel_tokens=CODES, top_k=50)
    for count in together:
        with Scheduler(engine, rows=count, kv_budget=96 << 30, queue=max(64, count)) as scheduler:
            for _ in range(3 if count < 256 else 2):
                row = _round(scheduler, settings, count)
        yield row


def _round(scheduler: Scheduler, settings: Settings, count: int) -> Row:
    voice = random_voice(scheduler.engine)
    firsts, sounds, gaps = [0.0] * count, [0.0] * count, [0.0] * count

    def listen(number: int) -> None:
        handle = scheduler.stream(TEXT, voice, settings, seed=number)
        for _ in handle:
            pass
        pace = handle.result()
        firsts[number], sounds[number], gaps[number] = pace.first, pace.sound, pace.gap

    threads = [threading.Thread(target=listen, args=(number,)) for number in range(count)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = time.perf_counter() - start
    return {
        "kind": "streams",
        "together": count,
        "first_sound_s": float(np.median(firsts)),
        "worst_first_sound_s": max(firsts),
        "longest_gap_s": max(gaps),
        "total_s": total,
        "times_real_time": sum(sounds) / total,
        "real_time_factor": total / sum(sounds) if sum(sounds) else None,
        "ok": min(sounds) > 0,
    }
