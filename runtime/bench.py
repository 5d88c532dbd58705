"""What an engine takes: the machine's ceilings, each graph against them, whole syntheses, many at once, starting."""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .autoregressive import most_text_ids
from .bundle import MANIFEST
from .config import Settings
from .defaults import default_voice, settings_for
from .engine import Array, Engine
from .errors import TortoiseError
from .machine import peak_mib, reset_peak
from .pipeline import Result
from .scheduler import Scheduler
from .spec import AR_MELS, MELS, VOCODER_NOISE, codes_to_frames
from .tts import choose_tokenizer
from .voice import Voice, VoiceLatents, load_voice

Row = dict[str, Any]
Progress = Callable[[str, int, int], None]

CONTEXT = 200  #: positions behind which decoding is timed
PROMPT = 64  #: positions of a prompt
CODES = 215  #: of ten seconds, for graphs that take a whole clip
TEXTS = (
    "The harbour was quiet that evening, and nobody on the wall said a word.",
    "We walked along the river until the lamps were lit.",
    "Please put the kettle on, and tell me what she said.",
    "There is a letter for you on the kitchen table.",
)
READ_VALUES = 64 << 20  #: float32 read once to measure memory, past any cache
SQUARE = 2048  #: side of the matrices multiplied to measure arithmetic


class BenchError(TortoiseError):
    """An engine that does not do what it must before its time is worth taking."""


def ceilings(repeats: int = 5) -> Row:
    """What this machine reaches in NumPy, on as many threads as its library takes: GB/s read and GFLOP/s in float32."""
    rng = np.random.default_rng(0)
    square = rng.standard_normal((SQUARE, SQUARE), np.float32)
    wide, narrow = np.ones((1024, READ_VALUES // 1024), np.float32), np.ones((1, 1024), np.float32)
    product = min(_seconds(lambda: square @ square, repeats))
    read = min(_seconds(lambda: narrow @ wide, repeats))
    return {
        "kind": "ceilings",
        "gflops": round(2 * SQUARE**3 / product / 1e9, 1),
        "gb_per_second": round(4 * READ_VALUES / read / 1e9, 1),
    }


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


# --- graphs ---


@dataclass(frozen=True)
class Case:
    """A graph at one size."""

    graph: str
    what: str
    prepare: Callable[[Engine], Callable[[], Any]]  #: -> what is timed
    rows: int
    steps: int  #: rows times steps in time
    pairs: int  #: pairs of steps that attention compares
    held: int = 0  #: positions of the cache that are read, of all rows together


def graph_cases(engine: Engine, codes: int = CODES) -> Iterator[Case]:
    """What is worth timing of what the engine has."""
    frames, dims = codes_to_frames(codes), engine.dims
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    if engine.has("ar_step"):
        held = min(CONTEXT, dims["ar.mel_positions"] - 2)
        for rows in (1, 4, 16):
            yield Case(
                "ar_step",
                f"decode, {rows} rows",
                functools.partial(decode_step, rows=rows, held=held),
                rows,
                rows,
                rows * held,
                rows * held,
            )
        yield Case("ar_step", f"prompt of {PROMPT}", _prompt, 1, PROMPT, PROMPT**2 // 2)
    plain: list[tuple[str, int, int, dict[str, Array]]] = []
    if engine.has("clvp_speech"):
        plain.append(("clvp_speech", 4, 500, {"codes": rng.integers(0, dims["clvp.codes"], (4, 500))}))
    if engine.has("cvvp_speech"):
        plain.append(("cvvp_speech", 4, 500, {"codes": rng.integers(0, dims["cvvp.codes"], (4, 500))}))
    if engine.has("diffusion_denoise"):
        dim, timestep = dims["diffusion.dim"], np.full(2, 2000, np.float32)
        condition = {"aligned": normal(2, frames, dim), "timestep": timestep}
        plain.append(("diffusion_condition", 2, frames, condition))
        x = {"x": normal(2, MELS, frames), "condition": normal(2, frames, dim), "timestep": timestep}
        plain.append(("diffusion_denoise", 2, frames, x))
    if engine.has("univnet"):
        mel = {"mel": normal(1, MELS, frames), "noise": normal(1, VOCODER_NOISE, frames)}
        plain.append(("univnet", 1, frames, mel))
    if engine.has("hifigan"):
        latents = normal(1, dims["hifigan.in_dim"], frames)
        plain.append(
            (
                "hifigan",
                1,
                frames,
                {
                    "latents": latents,
                    "voice": normal(1, dims["hifigan.voice_dim"]),
                    "wanted": np.array([0, frames]),
                },
            )
        )
    if engine.has("ar_voice"):
        plain.append(("ar_voice", 1, 517, {"mel": normal(1, AR_MELS, 517)}))
    for graph, rows, steps, inputs in plain:
        run = lambda e, graph=graph, inputs=inputs: lambda: e.run(graph, **inputs)  # noqa: E731
        yield Case(graph, f"{rows} x {steps}", run, rows, rows * steps, rows * steps**2)


def time_graph(engine: Engine, case: Case, repeats: int, limits: Row) -> Row:
    """Median and range of a case, and what share of the machine's ceilings that is."""
    seconds = _seconds(case.prepare(engine), repeats)
    middle = statistics.median(seconds)
    row: Row = {
        "kind": "graph", "graph": case.graph, "what": case.what,
        "precision": engine.info.precision.get(case.graph, "fp32"),
        "ms": round(1e3 * middle, 3), "ms_least": round(1e3 * min(seconds), 3), "ms_most": round(1e3 * max(seconds), 3),
    }  # fmt: skip
    error = _precision_error(engine, case.graph)
    if error is not None:
        row["error"] = error
    properties, weights = _properties(engine, case.graph)
    if properties:
        work = int(properties.get("multiply_adds", 0)) * case.steps
        work += int(properties.get("multiply_adds_of_rows", 0)) * case.rows
        work += int(properties.get("multiply_adds_of_pairs", 0)) * case.pairs
        read = weights + (case.held and case.held * engine.position_bytes())
        row["gflops"] = round(2 * work / middle / 1e9, 1)
        if row["precision"] == "fp32":  # what products of fewer bits could reach was not measured
            row["share_of_arithmetic"] = round(row["gflops"] / limits["gflops"], 3)
        row["gb_per_second"] = round(read / middle / 1e9, 2)  # weights, and the keys and values held
        row["share_of_memory"] = round(row["gb_per_second"] / limits["gb_per_second"], 3)
    return row


def precision_errors(engine: Engine) -> list[Row]:
    """Of each graph in fewer bits: what they cost, by the measure that ``export`` took."""
    errors = {graph: _precision_error(engine, graph) for graph in engine.info.graphs}
    return [
        {"kind": "error", "graph": graph, "precision": engine.info.precision[graph], "error": error}
        for graph, error in errors.items()
        if error is not None
    ]


def _properties(engine: Engine, graph: str) -> tuple[dict[str, str], int]:
    """What the exporter noted about a graph, and the bytes of its weights; nothing where there is no bundle."""
    if engine.info.backend != "onnx":
        return {}, 0
    data = Path(engine.info.source) / f"{graph}.data"
    found = engine.session(graph).get_modelmeta().custom_metadata_map  # type: ignore[attr-defined]
    return dict(found), data.stat().st_size if data.exists() else 0


def _precision_error(engine: Engine, graph: str) -> float | None:
    """What ``export`` measured of a graph in fewer bits, on speech or else against its module; None where it did not."""
    if engine.info.backend != "onnx" or engine.info.precision.get(graph, "fp32") == "fp32":
        return None
    manifest = json.loads((Path(engine.info.source) / MANIFEST).read_text("utf-8"))
    for trial in manifest.get("tuning", ()):
        if trial["graph"] == graph and trial["chosen"]:
            return float(trial["error"])
    found = manifest.get("parity", {}).get(graph)
    return None if found is None else float(f"{found['error']:.3g}")


def decode_step(engine: Engine, rows: int, held: int) -> Callable[[], None]:
    """One code for each of ``rows``, behind ``held`` positions, again and again."""
    cache = engine.new_cache(rows, held + 1)
    codes, positions = np.full((rows, 1), 1), np.full((rows, 1), held)

    def step() -> None:
        cache.lengths[:] = held  # of zeros, which take as long
        engine.ar_step(cache, codes, positions)

    return step


def _prompt(engine: Engine) -> Callable[[], Any]:
    voice, text = np.zeros((1, engine.dims["ar.dim"]), np.float32), np.full((1, PROMPT - 2), 1)
    code, position = np.full((1, 1), 1), np.zeros((1, 1), np.int64)
    return lambda: engine.ar_step(engine.new_cache(1, PROMPT), code, position, voice, text)


def _seconds(run: Callable[[], Any], repeats: int) -> list[float]:
    """Of each of ``repeats`` runs, after one that is not counted."""
    run()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return seconds


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
