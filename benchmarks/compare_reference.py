"""The reference's own classes beside this runtime, in one run, taking turns.

    python benchmarks/compare_reference.py --engine BUNDLE --checkpoints DIR --reference PYTHON [--reference-source DIR]

PYTHON is that of an environment with what tortoise-tts 3.0.0 needs; its unpacked sdist may be named apart. The
checkpoints are those that the bundle was made of: python -m tortoise_rt.export.random_checkpoint makes some of the official size.
What is timed of ours is what a synthesis calls, not a bare graph. It is timed by turns, ``--repeats`` times each, after
one run of both that is not counted. Whole syntheses are run ``--rounds`` times by each, by turns, ours in a process of
its own each time; lengths are forced, so that both draw as many codes. Both use as many threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt import diffusion, make_settings, ranking, vocoder
from tortoise_rt.cli.progress import table
from tortoise_rt.config import DiffusionSettings
from tortoise_rt.engine import Engine
from tortoise_rt.machine import environment, peak_mib
from tortoise_rt.rng import Philox
from tortoise_rt.scheduler import Scheduler
from tortoise_rt.spec import MELS, SAMPLE_RATE, codes_to_frames
from tortoise_rt.tts import choose_engine, choose_tokenizer
from tortoise_rt.voice import VoiceLatents

sys.path.insert(0, str(Path(__file__).parent))
from judge import reference
from judge.forcing import Forced, force_lengths

Row = dict[str, Any]
TEXT = (
    "The harbour was quiet that evening, and nobody on the long stone wall said a word until the boats had come "
    "home and their lamps were out."
)
CODES = 215  #: of a sentence of ten seconds
FRAMES = codes_to_frames(CODES)
ROW = 500  #: codes of a padded row, as CLVP gets them
CONTEXT = 250  #: positions behind which decoding is timed
STEPS, UNCOUNTED = 12, 2
PROMPT = 64  #: positions of the prompt
SAMPLES = 16
IDS = [*range(3, 43)]
LOOP = 4  #: steps of the loop by which a diffusion step is timed

Case = tuple[str, dict[str, Any], Callable[[Engine], Callable[[], Any]], float]


def decode(rows: int) -> Callable[[Engine], Callable[[], Any]]:
    """STEPS on end, of which the first are not counted."""

    def prepare(engine: Engine) -> Callable[[], Any]:
        codes, positions = np.full((rows, 1), 9), np.full((rows, 1), 200)
        cache = engine.new_cache(rows, CONTEXT + STEPS)

        def steps() -> float:
            cache.lengths[:] = CONTEXT
            seconds = []
            for _ in range(STEPS):
                began = time.perf_counter()
                engine.ar_step(cache, codes, positions)
                seconds.append(time.perf_counter() - began)
            return statistics.median(seconds[UNCOUNTED:])

        return steps

    return prepare


def prefill(engine: Engine) -> Callable[[], Any]:
    """One row, whatever the number of samples: they are forked from it."""
    voice, text = np.zeros((1, engine.dims["ar.dim"]), np.float32), np.full((1, PROMPT - 2), 7)
    start = np.array([[engine.dims["ar.start_code"]]])
    return lambda: engine.ar_step(engine.new_cache(1, PROMPT), start, np.zeros((1, 1), np.int64), voice, text)


def rank(engine: Engine) -> Callable[[], Any]:
    codes = np.random.default_rng(0).integers(0, 8192, (SAMPLES, ROW))
    return lambda: ranking.clvp_scores(engine, IDS, codes)


def univnet(engine: Engine) -> Callable[[], Any]:
    rng = np.random.default_rng(0)
    mel = rng.standard_normal((1, MELS, FRAMES), np.float32)
    noise = rng.standard_normal(vocoder.noise_shape(mel), np.float32)
    return lambda: vocoder.univnet(engine, mel, noise)


def hifigan(engine: Engine) -> Callable[[], Any]:
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((1, CODES, engine.dims["hifigan.in_dim"]), np.float32)
    voice = rng.standard_normal((1, engine.dims["hifigan.voice_dim"]), np.float32)
    return lambda: vocoder.hifigan(engine, latents, voice)


def guided_step(engine: Engine) -> Callable[[], Any]:
    """A step of a short sampling loop: conditions, network, guidance and the sampler's rule. None is known before."""
    dim = engine.dims["diffusion.dim"]
    settings = DiffusionSettings(iterations=LOOP)
    rng = np.random.default_rng(0)
    aligned, x = (
        rng.standard_normal((1, FRAMES, dim), np.float32),
        rng.standard_normal((1, MELS, FRAMES), np.float32),
    )
    free = rng.standard_normal(dim, np.float32)

    def steps() -> float:
        engine.memo.clear()
        began = time.perf_counter()
        diffusion.denoise(engine, x, aligned, free, settings, Philox(0))
        return (time.perf_counter() - began) / LOOP

    return steps


#: what is timed: name -> (the reference's job, its arguments, ours, the least ratio that is wanted)
CASES: dict[str, Case] = {
    "decode, 1 row": ("decode", {"rows": 1, "context": CONTEXT, "steps": STEPS}, decode(1), 4.5),
    "decode, 16 rows": ("decode", {"rows": 16, "context": CONTEXT, "steps": STEPS}, decode(16), 3.3),
    "prompt of 64, 1 sample": ("prefill", {"rows": 1, "positions": PROMPT}, prefill, 3),
    "prompt of 64, 16 samples": ("prefill", {"rows": 16, "positions": PROMPT}, prefill, 3),
    "CLVP, 16 rows of 500": (
        "clvp",
        {"rows": SAMPLES, "codes": ROW, "ids": IDS},
        rank,
        3,
    ),
    f"guided diffusion step, {FRAMES} frames": (
        "diffusion_step",
        {"frames": FRAMES, "guided": True},
        guided_step,
        4,
    ),
    f"UnivNet, {FRAMES} frames": (
        "univnet",
        {"frames": FRAMES},
        univnet,
        2.8,
    ),
    f"HiFi-GAN, {CODES} codes": (
        "hifigan",
        {"codes": CODES},
        hifigan,
        1.3,
    ),
}
#: preset -> what the reference runs beside it, and the least ratio that is wanted
PRESETS: dict[str, tuple[dict[str, Any], float]] = {
    "ultra_fast": ({"diffusion_iterations": 30, "cond_free": False}, 4),
    "turbo": ({"diffusion_iterations": 30, "cond_free": False}, 8),
}


def compare(engine: Engine, beside: reference.Reference, repeats: int, wanted: str) -> Iterator[Row]:
    for name, (job, arguments, prepare, least) in CASES.items():
        if wanted not in name:
            continue
        run = prepare(engine)
        theirs: list[float] = []
        ours: list[float] = []
        for _ in range(repeats + 1):
            asked = {**arguments} if "steps" in arguments else {**arguments, "repeats": 1}
            theirs.append(
                statistics.median(beside.ask(job, **asked)["seconds"][UNCOUNTED * ("steps" in asked) :])
            )
            began = time.perf_counter()
            own = run()
            ours.append(own if isinstance(own, float) else time.perf_counter() - began)
        theirs, ours = theirs[1:], ours[1:]
        ratio = statistics.median(theirs) / statistics.median(ours)
        row = {
            "kind": "graph", "what": name, "reference_s": [round(s, 5) for s in theirs],
            "ours_s": [round(s, 5) for s in ours], "ratio": round(ratio, 2), "wanted": least,
        }  # fmt: skip
        print(line(row), flush=True)
        yield row


def whole(options: argparse.Namespace, presets: list[str]) -> Iterator[Row]:
    """A sentence of ten seconds and SAMPLES samples, by both."""
    if not presets:
        return
    command = [sys.executable, __file__, "--engine", str(options.engine), "--ours"]
    theirs: list[Row] = []
    ours: dict[str, list[Row]] = {preset: [] for preset in presets}
    (arguments,) = {
        json.dumps(PRESETS[preset][0]) for preset in presets
    }  # the reference runs the same beside all
    with reference.chosen(options) as beside:
        for _ in range(options.rounds):
            for preset in presets:
                done = subprocess.run([*command, preset], check=True, stdout=subprocess.PIPE, text=True)
                ours[preset].append(json.loads(done.stdout))
            latents = [np.zeros((1, 1024)).tolist(), np.zeros((1, 2048)).tolist()]
            theirs.append(
                beside.ask(
                    "tts",
                    text=TEXT,
                    lengths=[CODES] * SAMPLES,
                    batch=SAMPLES,
                    voice=latents,
                    **json.loads(arguments),
                )
            )
    for preset in presets:
        middle = [statistics.median(row["seconds"] for row in rows) for rows in (theirs, ours[preset])]
        row = {
            "kind": "whole", "what": f"{preset}, {SAMPLES} samples",
            "reference_s": [round(found["seconds"], 2) for found in theirs],
            "ours_s": [found["seconds"] for found in ours[preset]],
            "ratio": round(middle[0] / middle[1], 2), "wanted": PRESETS[preset][1],
            "audio_s": [round(theirs[0]["audio_s"], 2), ours[preset][0]["audio_s"]], "stages": ours[preset][-1]["stages"],
            "peak_mib": [max(f["peak_rss_mib"] for f in found) for found in (theirs, ours[preset])],
        }  # fmt: skip
        print(line(row), flush=True)
        yield row


def say(engine: Engine, preset: str) -> Row:
    """Ours of :func:`whole`, loading apart."""
    force_lengths()
    settings = make_settings(preset, num_autoregressive_samples=SAMPLES, decoder="diffusion")
    voice = VoiceLatents(
        np.zeros((1, engine.dims["ar.dim"]), np.float32),
        np.zeros((1, engine.dims["diffusion.voice_dim"]), np.float32),
    )
    for name in ("ar_step", "clvp_text", "clvp_speech", "diffusion_align", "diffusion_condition", "univnet"):
        engine.session(name)  # type: ignore[attr-defined]
    engine.session("diffusion_denoise")  # type: ignore[attr-defined]
    with Scheduler(engine, choose_tokenizer(engine, None)) as scheduler:
        began = time.perf_counter()
        result = scheduler.submit(TEXT, voice, settings, Forced(np.full(SAMPLES, CODES))).result()
        seconds = time.perf_counter() - began
    return {
        "seconds": round(seconds, 2), "audio_s": round(len(result.wavs[0]) / SAMPLE_RATE, 2),
        "stages": {stage: round(spent, 2) for stage, spent in result.seconds.items()},
        "peak_rss_mib": peak_mib(),
    }  # fmt: skip


def line(row: Row) -> str:
    theirs, ours = (statistics.median(row[key]) for key in ("reference_s", "ours_s"))
    met = "" if row["ratio"] >= row["wanted"] else "  MISSED"
    return f"{row['what']}: {theirs:.3f} s, ours {ours:.3f} s, {row['ratio']:.1f}x of {row['wanted']}x{met}"


def report(rows: list[Row]) -> str:
    lines = [("", "reference s", "ours s", "ratio", "wanted")]
    for row in rows:
        theirs, ours = (statistics.median(row[key]) for key in ("reference_s", "ours_s"))
        lines.append((row["what"], f"{theirs:.3f}", f"{ours:.3f}", f"{row['ratio']:.1f}", f"{row['wanted']}"))
    return table(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", type=Path, required=True, help="a bundle of the checkpoints")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="of whole syntheses")
    parser.add_argument("--only", default="", help="graphs whose name has this in it; - for none")
    parser.add_argument("--presets", default="ultra_fast,turbo", help="whole syntheses; empty for none")
    parser.add_argument("--ours", metavar="PRESET", help="a whole synthesis of ours alone, as JSON")
    parser.add_argument("-o", "--output", type=Path, help="append JSON lines to this file")
    reference.add_options(parser)
    options = parser.parse_args()
    engine = choose_engine(options.engine)
    if options.ours:
        print(json.dumps(say(engine, options.ours)))
        return
    beside = reference.chosen(options)
    if beside is None:
        parser.error("--reference is needed")
    rows: list[Row] = []
    with beside:
        rows += compare(engine, beside, options.repeats, options.only)
    del engine
    rows += whole(options, [name for name in options.presets.split(",") if name])
    print(report(rows))
    if options.output:
        about = {**environment(), "benchmark": "compare_reference", "precision": precisions(options.engine)}
        with options.output.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in [about, *rows])


def precisions(engine: Path) -> dict[str, str]:
    """Of each graph that is not fp32."""
    found: dict[str, str] = json.loads((engine / "manifest.json").read_text())["precision"]
    return {graph: precision for graph, precision in found.items() if precision != "fp32"}


if __name__ == "__main__":
    main()
