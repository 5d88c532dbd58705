"""First sound, real-time factor and gaps of a stream, beside the reference's in one run.

    python benchmarks/streaming.py [--engine BUNDLE] [-o results.jsonl]
        [--checkpoints DIR --reference PYTHON --reference-source DIR] [--memory 10 600]

A sentence of ten seconds (lengths are forced, so that any weights will do) by HiFi-GAN, in pieces that grow and in pieces of
fixed sizes; then the cost of the pieces of a long stream. Gaps are counted as a listener hears them who starts with the
first piece. Graphs are loaded and one short stream is made before. Last, the peak memory of readings of so many seconds each,
each in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt import make_settings
from tortoise_rt.cli.progress import table
from tortoise_rt.defaults import default_voice, settings_for
from tortoise_rt.engine import Engine
from tortoise_rt.errors import TortoiseError
from tortoise_rt.machine import environment, peak_mib
from tortoise_rt.reading import Reader
from tortoise_rt.scheduler import Scheduler
from tortoise_rt.spec import SAMPLE_RATE
from tortoise_rt.streaming import Chunks, Pace, StreamDecoder
from tortoise_rt.tts import choose_engine, choose_tokenizer
from tortoise_rt.voice import VoiceLatents, load_voice

sys.path.insert(0, str(Path(__file__).parent))
from judge import reference
from judge.forcing import Forced, force_lengths

Row = dict[str, Any]
TEXT = "The harbour was quiet that evening, and nobody on the long stone wall said a word until the boats had come home."
IDS = [*range(3, 63)]  #: as many tokens as that text has
CODES = 215  #: ten seconds
SIZES = (8, 16, 40)  #: of fixed pieces
SENTENCES = Path(__file__).parent / "sentences" / "everyday.txt"
TURNS = 11  #: of pieces that are compared
MOST_GROWN = 0.10  #: of the time of a piece, from the 5th to the 50th


def streams(engine: Engine, repeats: int) -> Iterator[Row]:
    settings = make_settings(num_autoregressive_samples=1, decoder="hifigan")
    voice = VoiceLatents(np.zeros((1, engine.dims["ar.dim"]), np.float32))
    ways = {"growing from 8": Chunks()} | {f"of {size}": Chunks(size, size) for size in SIZES}
    with Scheduler(engine) as scheduler:
        list(scheduler.stream(IDS, voice, settings, Forced(np.array([20]))))
        found: dict[str, list[Pace]] = {how: [] for how in ways}
        pieces: dict[str, int] = {}
        for _ in range(repeats):
            for how, chunks in ways.items():
                handle = scheduler.stream(IDS, voice, settings, Forced(np.array([CODES])), chunks=chunks)
                pieces[how] = len(list(handle))
                found[how].append(handle.result())
    for how, paces in found.items():
        yield {
            "kind": "stream", "how": f"ours, pieces {how}", "pieces": pieces[how], "audio_s": round(paces[0].sound, 2),
            "first_s": [round(pace.first, 3) for pace in paces], "factor": [round(pace.factor, 3) for pace in paces],
            "longest_gap_s": [round(pace.gap, 3) for pace in paces], "peak_rss_mib": peak_mib(),
        }  # fmt: skip


def beside(worker: reference.Reference, repeats: int) -> Row:
    paces = []
    for _ in range(repeats):
        answer = worker.ask("stream", text=TEXT, length=CODES, voice=np.zeros((1, 1024)).tolist())
        pace = Pace()
        for came, seconds in zip(answer["came"], answer["audio_s"], strict=True):
            pace.add(came, seconds)
        paces.append(pace)
    return {
        "kind": "stream", "how": "the reference, its pieces of 40", "pieces": len(answer["came"]),
        "audio_s": round(paces[0].sound, 2), "first_s": [round(pace.first, 3) for pace in paces],
        "factor": [round(pace.factor, 3) for pace in paces], "longest_gap_s": [round(pace.gap, 3) for pace in paces],
        "peak_rss_mib": answer["peak_rss_mib"],
    }  # fmt: skip


def long_stream(engine: Engine, size: int = 16) -> Row:
    """What the vocoder takes for the 5th piece of a stream and for the 50th, and those behind them, by turns."""
    latents = np.random.default_rng(0).standard_normal((size, engine.dims["hifigan.in_dim"]), np.float32)

    def piece(decoder: StreamDecoder) -> tuple[float, int]:
        before, began = decoder.decoded, time.perf_counter()
        decoder.feed(latents)
        decoder.take()
        return time.perf_counter() - began, decoder.decoded - before

    voice = np.zeros((1, engine.dims["hifigan.voice_dim"]), np.float32)
    young, old = StreamDecoder(engine, voice), StreamDecoder(engine, voice)
    for decoder, pieces in ((old, 49), (young, 4)):
        for _ in range(pieces):
            piece(decoder)
    found = [(piece(young), piece(old)) for _ in range(TURNS)]
    early, late = (statistics.median(seconds for seconds, _ in column) for column in zip(*found, strict=True))
    return {
        "kind": "pieces", "codes": size, "turns": TURNS, "frames_of_the_5th": found[0][0][1],
        "frames_of_the_50th": found[0][1][1], "early_s": round(early, 4), "late_s": round(late, 4),
        "grown": round(late / early - 1, 3),
    }  # fmt: skip


def read_aloud(engine: Engine, seconds: float) -> Row:
    """Peak memory of a reading of at least so many seconds, from a text that never ends."""
    settings = settings_for(engine, num_autoregressive_samples=1, decoder="hifigan", max_mel_tokens=CODES)
    text = (f"{sentence} " for sentence in itertools.cycle(SENTENCES.read_text("utf-8").split("\n")[:-1]))
    try:
        voice: Any = load_voice(default_voice(engine))
    except TortoiseError:  # random weights have no voice of their own
        voice = VoiceLatents(np.zeros((1, engine.dims["ar.dim"]), np.float32))
    with Scheduler(engine, choose_tokenizer(engine, None)) as scheduler:
        reader = Reader(scheduler, voice, settings, 0)
        with contextlib.closing(reader.read(text)) as pieces:
            piece = next(piece for piece in pieces if reader.pace.sound >= seconds)
        pace = reader.pace
    return {
        "kind": "memory", "audio_s": round(pace.sound, 1), "sentences": piece.sentence + 1, "peak_rss_mib": peak_mib(),
        "factor": round(pace.factor, 3), "longest_gap_s": round(pace.gap, 3),
    }  # fmt: skip


def memory(engine: Path | None, lengths: list[float]) -> Iterator[Row]:
    """:func:`read_aloud` for each of ``lengths``, in processes of their own."""
    for seconds in lengths:
        command = [sys.executable, __file__, "--read-aloud", str(seconds)]
        command += [] if engine is None else ["--engine", str(engine)]
        made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        yield json.loads(made.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", type=Path, help="a bundle [default: the demo]")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, help="append JSON lines to this file")
    parser.add_argument("--memory", type=float, nargs="*", default=[10, 600], help="seconds of sound each")
    parser.add_argument("--read-aloud", type=float, help="only this, in this process; prints JSON")
    reference.add_options(parser)
    options = parser.parse_args()
    engine = choose_engine(options.engine)
    if options.read_aloud:
        print(json.dumps(read_aloud(engine, options.read_aloud)))
        return
    rows: list[Row] = []
    worker = reference.chosen(options)
    if worker is not None:
        with worker:
            rows.append(beside(worker, max(1, options.repeats - 1)))
    rows.append(long_stream(engine))
    force_lengths()
    rows += streams(engine, options.repeats)
    rows += memory(options.engine, options.memory)
    lines = [("", "first sound s", "real-time factor", "longest gap s")]
    for row in rows:
        if row["kind"] == "stream":
            middle = (f"{statistics.median(row[key]):.2f}" for key in ("first_s", "factor", "longest_gap_s"))
            lines.append((row["how"], *middle))
    print(table(lines))
    for row in rows:
        if row["kind"] == "pieces":
            print(
                f"pieces of {row['codes']} codes: {1000 * row['early_s']:.0f} ms from the 5th on, "
                f"{1000 * row['late_s']:.0f} ms from the 50th; {row['frames_of_the_5th']} and {row['frames_of_the_50th']} frames"
                + (
                    f" MISSED: {row['grown']:.0%} more, where 10 % may be"
                    if row["grown"] > MOST_GROWN
                    else ""
                )
            )
        if row["kind"] == "memory":
            print(f"{row['audio_s']:.0f} s of sound: {row['peak_rss_mib']} MiB at most")
    if options.output:
        about = {**environment(), "benchmark": "streaming", "engine": engine.info.notice, "rate": SAMPLE_RATE,
                 "precision": dict(engine.info.precision)}  # fmt: skip
        with options.output.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in [about, *rows])


if __name__ == "__main__":
    main()
