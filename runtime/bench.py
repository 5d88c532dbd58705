"""What an engine takes: whole syntheses, streams, many at once, starting; each graph is timed in ``bench_graphs``."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .autoregressive import most_text_ids
from .config import Settings
from .defaults import default_voice, settings_for
from .engine import Engine
from .errors import TortoiseError
from .machine import peak_mib, reset_peak
from .pipeline import Result
from .scheduler import Scheduler
from .tts import choose_tokenizer
from .voice import Voice, VoiceLatents, load_voice

Row = dict[str, Any]
Progress = Callable[[str, int, int], None]

TEXTS = (
    "The harbour was quiet that evening, and nobody on the wall said a word.",
    "We walked along the river until the lamps were lit.",
    "Please put the kettle on, and tell me what she said.",
    "There is a letter for you on the kitchen table.",
)


class BenchError(TortoiseError):
    """An engine that does not do what it must before its time is worth taking."""


def verify(engine: Engine, settings: Settings, seed: int = 1) -> Row:
    """The same request twice, alone and among others: raises BenchError unless all give the same codes and sound."""
    voice = _voice(engine)
    with Scheduler(engine, choose_tokenizer(engine, None)) as scheduler:
        first = scheduler.submit(TEXTS[1], voice, settings, seed).result()
        handles = [scheduler.submit(TEXTS[1], voice, settings, s) for s in (seed, seed + 1, seed + 2)]
        again = handles[0].result()
        for handle in handles:
            handle.result()
    if not np.array_equal(first.codes, again.codes):
        raise BenchError("the same request gave other codes among others than alone")
    if not np.isfinite(first.wavs[0]).all() or not first.wavs[0].any():
        raise BenchError("the sound is silence or no numbers at all")
    worst = float(np.abs(first.wavs[0] - again.wavs[0]).max())
    if worst > 1e-3:
        raise BenchError(f"the same request gave sound that differs by {worst:.1e}")
    return {"kind": "verify", "codes": "equal", "sound_differs": worst}


# --- whole syntheses ---


def bench_settings(engine: Engine, preset: str, codes: int | None, **arguments: Any) -> Settings:
    """A preset's settings, of at most ``codes`` codes."""
    if codes is not None:
        arguments["max_mel_tokens"] = codes
    return settings_for(engine, preset, **arguments)


def time_synthesis(engine: Engine, preset: str, settings: Settings, text: str = TEXTS[0]) -> Row:
    """One request, once, graphs loaded before; of memory, the most that is held meanwhile."""
    voice = _voice(engine)
    load_graphs(engine, settings)
    reset_peak()
    with Scheduler(engine, choose_tokenizer(engine, None)) as scheduler:
        began = time.perf_counter()
        result = scheduler.submit(text, voice, settings, 1).result()
        seconds = time.perf_counter() - began
    return {
        "kind": "synthesis", "preset": preset, "samples": settings.ar.samples, "decoder": settings.decoder,
        "steps": settings.diffusion.iterations, "codes": _spoken(result), "seconds": round(seconds, 3),
        "audio_s": round(result.audio_seconds, 2), "real_time_factor": round(seconds / result.audio_seconds, 3),
        "stages": {stage: round(spent, 3) for stage, spent in result.seconds.items()}, "peak_rss_mib": peak_mib(),
    }  # fmt: skip


def time_stream(engine: Engine, settings: Settings, text: str = TEXTS[0]) -> Row:
    """A stream by HiFi-GAN: when its first sound comes, and how it keeps up."""
    voice = _voice(engine)
    load_graphs(engine, settings)
    with Scheduler(engine, choose_tokenizer(engine, None)) as scheduler:
        for _ in scheduler.stream(text[:20], voice, settings, 1):
            pass  # the pool of rows is made
        handle = scheduler.stream(text, voice, settings, 1)
        pieces = [len(piece) for piece in handle]
        pace = handle.result()
    return {
        "kind": "stream", "first_s": round(pace.first, 3), "audio_s": round(pace.sound, 2), "pieces": len(pieces),
        "seconds": round(pace.spent, 3), "real_time_factor": round(pace.factor, 3), "longest_gap_s": round(pace.gap, 3),
    }  # fmt: skip


def time_texts(engine: Engine, settings: Settings, sizes: Sequence[int]) -> Iterator[Row]:
    """One request for each number of tokens of the text."""
    voice = _voice(engine)
    load_graphs(engine, settings)
    rng = np.random.default_rng(0)
    for size in sizes:
        ids = rng.integers(3, 200, min(size, most_text_ids(engine.dims))).tolist()
        with Scheduler(engine) as scheduler:
            began = time.perf_counter()
            result = scheduler.submit(ids, voice, settings, 1).result()
            seconds = time.perf_counter() - began
        yield {
            "kind": "texts", "tokens": len(ids), "seconds": round(seconds, 3), "audio_s": round(result.audio_seconds, 2),
            "audio_per_second": round(result.audio_seconds / seconds, 3),
        }  # fmt: skip


def load_graphs(engine: Engine, settings: Settings) -> None:
    """Load what a synthesis with these settings runs, where graphs are loaded when they are first used."""
    if engine.info.backend != "onnx":
        return
    other = {"hifigan"} if settings.decoder == "diffusion" else {"univnet", *_DIFFUSION}
    for graph in sorted(engine.info.graphs - other - {"detector"}):
        engine.session(graph)  # type: ignore[attr-defined]


_DIFFUSION = ("diffusion_voice", "diffusion_align", "diffusion_condition", "diffusion_denoise")


def _spoken(result: Result) -> int:
    """Codes drawn, of all samples."""
    return int((result.codes != result.stop_code).sum())


def time_load(
    engine: Engine,
    settings: Settings,
    clients: int,
    requests: int,
    texts: Sequence[str] = TEXTS,
    strict: bool = False,
) -> Row:
    """``clients`` at a time, each of which asks for the next sentence when it has got the last; one request before loads."""
    voice = _voice(engine)
    numbers, lock = iter(range(requests)), threading.Lock()
    latencies: list[float] = []
    audio: list[float] = []
    failures: list[BaseException] = []

    def client(scheduler: Scheduler) -> None:
        try:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                began = time.perf_counter()
                text = texts[number % len(texts)]
                result = scheduler.submit(text, voice, settings, number).result()
                latencies.append(time.perf_counter() - began)
                audio.append(result.audio_seconds)
        except BaseException as error:
            failures.append(error)

    with Scheduler(engine, choose_tokenizer(engine, None), strict=strict) as scheduler:
        scheduler.submit(texts[0], voice, settings, 0).result()
        threads = [threading.Thread(target=client, args=(scheduler,)) for _ in range(clients)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
    if failures:
        raise failures[0]
    p50, p90, p99 = np.percentile(latencies, [50, 90, 99])
    return {
        "kind": "load", "clients": clients, "requests": requests, "strict": strict, "samples": settings.ar.samples,
        "decoder": settings.decoder, "audio_s": round(sum(audio), 2), "seconds": round(seconds, 2),
        "audio_per_second": round(sum(audio) / seconds, 3), "p50_s": round(float(p50), 3), "p90_s": round(float(p90), 3),
        "p99_s": round(float(p99), 3),
    }  # fmt: skip


_START = """
import json, sys, time
began = time.perf_counter()
from tortoise_rt import open_engine
engine = open_engine(sys.argv[1])
opened = time.perf_counter() - began
for graph in sorted(engine.info.graphs):
    engine.session(graph)
loaded = time.perf_counter() - began
from tortoise_rt.machine import peak_mib
print(json.dumps([opened, loaded, peak_mib()]))
"""


def time_start(engine: Engine) -> Row:
    """A fresh process: until the engine is open, until all its graphs are loaded, and its memory then."""
    done = subprocess.run(
        [sys.executable, "-c", _START, engine.info.source], check=True, capture_output=True, text=True
    )
    opened, loaded, peak = json.loads(done.stdout)
    return {
        "kind": "start", "open_s": round(opened, 3), "all_graphs_s": round(loaded, 3), "peak_rss_mib": peak,
        "bundle_mb": round(sum(path.stat().st_size for path in Path(engine.info.source).iterdir()) / 1e6, 1),
    }  # fmt: skip


def _voice(engine: Engine) -> Voice | VoiceLatents | None:
    """The engine's own voice; latents of zeros where it has none and can make none."""
    name = default_voice(engine)
    if name != "random" or engine.has("rlg_auto"):
        return load_voice(name, paths=False)
    spoken = engine.dims.get("diffusion.voice_dim")
    return VoiceLatents(
        np.zeros((1, engine.dims["ar.dim"]), np.float32),
        None if spoken is None else np.zeros((1, spoken), np.float32),
    )
