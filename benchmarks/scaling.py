"""How cost grows: time against text length, samples and codes, with the fitted exponents and a plot.

    python benchmarks/scaling.py --engine BUNDLE [-o results.jsonl] [--plot scaling.png]

Any weights will do, as lengths are forced. The exponent is the slope of a line through the logarithms over the upper half
of the sizes, where what is fixed no longer counts: about 1 where cost is proportional, up to 2 where attention is most of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt import make_settings
from tortoise_rt.cli.bench import require_plots
from tortoise_rt.cli.progress import table
from tortoise_rt.engine import Engine
from tortoise_rt.machine import environment
from tortoise_rt.scheduler import Scheduler
from tortoise_rt.tts import choose_engine
from tortoise_rt.voice import VoiceLatents

sys.path.insert(0, str(Path(__file__).parent))
from judge.forcing import Forced, force_lengths

Row = dict[str, Any]
TEXT_SIZES = (20, 40, 80, 160, 260, 390)
SAMPLE_SIZES = (1, 4, 16, 64, 128, 256)
CODE_SIZES = (10, 30, 80, 160, 300, 500)
FEW_CODES = 16  #: where something else grows
FEW_IDS = 30


Times = dict[str, float]


def run(engine: Engine, ids: int, samples: int, codes: int, decoder: str) -> Times:
    """Seconds of the stages of one request."""
    settings = make_settings(
        num_autoregressive_samples=samples, max_mel_tokens=codes, decoder=decoder, diffusion_iterations=2,
    )  # fmt: skip
    spoken = engine.dims.get("diffusion.voice_dim")
    voice = VoiceLatents(
        np.zeros((1, engine.dims["ar.dim"]), np.float32),
        None if spoken is None else np.zeros((1, spoken), np.float32),
    )
    text = np.random.default_rng(1).integers(3, 200, ids).tolist()
    with Scheduler(engine) as scheduler:
        result = scheduler.submit(text, voice, settings, Forced(np.full(samples, codes))).result()
    return result.seconds


def sweeps(engine: Engine) -> Iterator[tuple[tuple[int, ...], Callable[[int], Times], dict[str, list[str]]]]:
    """Sizes, the times of the stages at one of them, and what these are called: a name for some stages together."""
    fast = "hifigan" if engine.has("hifigan") else "diffusion"
    yield TEXT_SIZES, lambda n: run(engine, n, 1, 1, fast), {"text tokens": ["sampling"]}
    drawn = {"samples, drawn": ["sampling"], "samples, ranked": ["ranking"]}
    yield SAMPLE_SIZES, lambda n: run(engine, FEW_IDS, n, FEW_CODES, fast), drawn
    if engine.has("hifigan"):
        stages = {"codes, drawn": ["sampling"], "codes, HiFi-GAN": ["vocoder"]}
        yield CODE_SIZES, lambda n: run(engine, FEW_IDS, 1, n, "hifigan"), stages
    if engine.has("diffusion_denoise", "univnet"):
        stages = {"codes, 2 guided diffusion steps": ["diffusion"], "codes, UnivNet": ["vocoder"]}
        yield CODE_SIZES, lambda n: run(engine, FEW_IDS, 1, n, "diffusion"), stages


def measure(engine: Engine, repeats: int) -> Iterator[Row]:
    force_lengths()
    for sizes, times_at, names in sweeps(engine):
        times_at(sizes[0])  # loads graphs
        found = [[times_at(size) for _ in range(repeats)] for size in sizes]
        for what, stages in names.items():
            seconds = [[sum(times[stage] for stage in stages) for times in of_size] for of_size in found]
            row = {
                "kind": "scaling", "what": what, "sizes": sizes, "exponent": exponent(sizes, seconds),
                "seconds": [[round(value, 4) for value in of_size] for of_size in seconds],
            }  # fmt: skip
            print(f"{what}: {row['exponent']}, {min(seconds[0]):.3f} to {min(seconds[-1]):.3f} s", flush=True)
            yield row


def exponent(sizes: Sequence[int], seconds: Sequence[Sequence[float]]) -> float:
    """The slope over the upper half of the sizes, of the least times: what else the machine does only adds to a time."""
    half = len(sizes) // 2
    least = [min(of_size) for of_size in seconds[half:]]
    return round(float(np.polyfit(np.log(sizes[half:]), np.log(least), 1)[0]), 2)


def round_steps(limits: tuple[float, float]) -> list[float]:
    """1, 2 and 5 times the powers of ten within an axis."""
    steps = (factor * 10.0**power for power in range(-3, 4) for factor in (1, 2, 5))
    return [step for step in steps if limits[0] <= step <= limits[1]]


def draw(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.5))
    sizes = {"text tokens": TEXT_SIZES, "samples": SAMPLE_SIZES, "codes": CODE_SIZES}
    for axis, grows in zip(axes, sizes, strict=True):
        for row in rows:
            if row["what"].startswith(grows):
                least = [min(found) or float("nan") for found in row["seconds"]]  # one sample is not ranked
                label = f"{row['what']} (exponent {row['exponent']:g})"
                axis.loglog(row["sizes"], least, "o-", label=label)
        axis.set_xlabel(grows)
        axis.set_ylabel("seconds")
        axis.grid(True, alpha=0.3)
        axis.set_xticks(sizes[grows], [str(size) for size in sizes[grows]])
        axis.minorticks_off()
        axis.set_yticks(round_steps(axis.get_ylim()))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", type=Path, required=True, help="a bundle")
    parser.add_argument("--repeats", type=int, default=3, help="of each size, the least of which counts")
    parser.add_argument("-o", "--output", type=Path, help="append JSON lines to this file")
    parser.add_argument("--plot", type=Path, help="draw it: .png or .svg")
    options = parser.parse_args()
    if options.plot:
        require_plots()
    engine = choose_engine(options.engine)
    rows = list(measure(engine, options.repeats))
    lines = [("", "exponent")]
    lines += [(row["what"], f"{row['exponent']:g}") for row in rows]
    print(table(lines))
    if options.output:
        about = {
            **environment(),
            "benchmark": "scaling",
            "engine": engine.info.notice,
            "precision": sorted(set(engine.info.precision.values())),
        }
        with options.output.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in [about, *rows])
    if options.plot:
        draw(rows, options.plot)


if __name__ == "__main__":
    main()
