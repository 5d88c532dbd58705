"""Whole sentences and streams on a device, with random weights that never stop by themselves: 10 s of sound each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tortoise_rt.config import Settings, make_settings
from tortoise_rt.engine import Engine
from tortoise_rt.pipeline import Pipeline, Result
from tortoise_rt.scheduler import Scheduler
from tortoise_rt.voice import VoiceLatents

CODES = 215  #: 10 s
FEWER = 24  #: codes that another length lacks
TOGETHER = (1, 8, 64, 256)  #: streams
SHARE = 0.9  #: of what is free, for a cache: the rest is for what is computed
TEXT = [*range(20, 80)]  #: token ids
Row = dict[str, Any]


def random_voice(engine: Engine) -> VoiceLatents:
    """A voice of noise."""
    rng = np.random.default_rng(0)
    sizes = engine.dims["ar.dim"], engine.dims["diffusion.voice_dim"]
    return VoiceLatents(*(0.3 * rng.standard_normal((1, size)).astype(np.float32) for size in sizes))


def sentences(engine: Engine, samples: int = 96, steps: int = 80) -> Iterator[Row]:
    """The preset "fast", then the same with one sample by HiFi-GAN; the last of two runs each.

    Beside it the first run, and behind both the first of another length, whose shapes were not seen yet.
    """
    whole = dict(num_autoregressive_samples=samples, diffusion_iterations=steps, batch_rows=samples)
    one = dict(num_autoregressive_samples=1, decoder="hifigan")
    pipeline, voice = Pipeline(engine), random_voice(engine)

    def run(codes: int, **arguments: Any) -> tuple[float, Result]:
        settings = make_settings(preset="fast", max_mel_tokens=codes, **arguments)
        start = time.perf_counter()
        result = pipeline.synthesize(TEXT, voice, settings, seed=1)
        return time.perf_counter() - start, result

    for name, arguments in (("fast", whole), ("one sample, hifigan", one)):
        first, _ = run(CODES, **arguments)
        total, result = run(CODES, **arguments)
        first_of_length, shorter = run(CODES - FEWER, **arguments)
        yield {
            "kind": "sentence",
            "settings": name,
            "samples": arguments["num_autoregressive_samples"],
            "audio_s": round(result.audio_seconds, 3),
            "total_s": total,
            "real_time_factor": total / result.audio_seconds,
            "stages_s": result.seconds,
            "first_run_s": first,
            "first_of_length_s": first_of_length,
            "first_of_length_audio_s": round(shorter.audio_seconds, 3),
            "ok": all(np.isfinite(wav).all() for made in (result, shorter) for wav in made.wavs),
        }


def streams(
    engine: Engine, together: Sequence[int] = TOGETHER, room: Callable[[], int | None] = lambda: None
) -> Iterator[Row]:
    """Streams at once through the scheduler; the last of some rounds: one to begin, one to record. Beside it the first.

    room: bytes that are free, where that is known; what would take more is a row that is a skip.
    """
    settings = make_settings(decoder="hifigan", num_autoregressive_samples=1, max_mel_tokens=CODES, top_k=50)
    each = (1 + engine.dims["ar.text_positions"] + engine.dims["ar.mel_positions"]) * engine.position_bytes()
    for count in together:
        free = room()
        if free is not None and count * each > SHARE * free:
            reason = f"their cache takes {count * each / 2**30:.1f} GiB, of {free / 2**30:.1f} that are free"
            yield {"kind": "skip", "what": f"{count} streams at once", "reason": reason}
            continue
        with Scheduler(engine, rows=count, kv_budget=96 << 30, queue=max(64, count)) as scheduler:
            rounds = [_round(scheduler, settings, count) for _ in range(3 if count < 256 else 2)]
        first = {"first_round_s": rounds[0]["total_s"], "first_round_sound_s": rounds[0]["first_sound_s"]}
        yield rounds[-1] | first


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
