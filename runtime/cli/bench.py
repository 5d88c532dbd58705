"""``tortoise-rt bench``: what an engine takes on this machine."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import PRESETS
from ..errors import MissingDependency, OutputError, SettingsError, suggest
from .options import FOLDER
from .progress import Bar, table

if TYPE_CHECKING:
    from ..engine import Engine

Row = dict[str, Any]
PLOTS = (".png", ".svg", ".pdf")
MOST_CLIENTS = 64
RANDOM_CODES = 215  #: of a sample of random weights, ten seconds
PARTS = ("graphs", "presets", "stream", "load", "texts", "start")
TEXT_SIZES = (20, 80, 200)  #: tokens


def _numbers(ctx: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    try:
        numbers = [int(number) for number in value.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1 or max(numbers) > MOST_CLIENTS:
        raise click.BadParameter(
            f"{value!r} must be whole numbers from 1 to {MOST_CLIENTS}, with commas between"
        )
    return numbers


@click.command()
@click.option(
    "--engine", type=FOLDER, metavar="DIR", help="Bundle to measure. [default: random weights, see --random]"
)
@click.option(
    "--random",
    "size",
    type=click.Choice(["official", "tiny"]),
    default="official",
    show_default=True,
    help="Without --engine: random weights of this size, made and exported once (official: 4 GB in the cache "
    "folder, two minutes, 8 GB of disk meanwhile; needs the extra export). They speak noise, of --codes codes.",
)
@click.option("--precision", metavar="NAME", help="Of random weights, as of export. [default: fp32]")
@click.option(
    "--only", type=click.Choice(PARTS), multiple=True, help="What to measure; may be given several times."
)
@click.option(
    "--presets",
    default="ultra_fast,turbo",
    show_default=True,
    metavar="LIST",
    help=f"Whole syntheses to time: of {', '.join(PRESETS)}.",
)
@click.option(
    "--samples", type=click.IntRange(1), metavar="N", help="Samples to draw. [default: the preset's]"
)
@click.option(
    "--codes",
    type=click.IntRange(1),
    metavar="N",
    help=f"Most codes of a sample. [default: {RANDOM_CODES} of random weights, else as the model ends]",
)
@click.option(
    "--clients",
    default="1,2,4,8",
    show_default=True,
    callback=_numbers,
    metavar="LIST",
    help="Requests at a time.",
)
@click.option(
    "--repeats", type=click.IntRange(1), default=5, show_default=True, metavar="N", help="Runs of each graph."
)
@click.option("-o", "--output", type=FOLDER, metavar="FILE", help="Append JSON lines to this file.")
@click.option(
    "--plot", type=FOLDER, metavar="FILE", help="Draw the figures: .png or .svg; needs the extra bench."
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def bench(
    engine: Path | None,
    size: str,
    precision: str | None,
    only: tuple[str, ...],
    presets: str,
    samples: int | None,
    codes: int | None,
    clients: list[int],
    repeats: int,
    output: Path | None,
    plot: Path | None,
    quiet: bool,
) -> None:
    """Verify an engine, then time it: each graph against the machine's ceilings, presets (once each), a stream, many
    requests at once, texts of several lengths, starting.

    \b
    tortoise-rt bench --engine my-engine -o bench.jsonl --plot bench.png
    tortoise-rt bench --only graphs --precision auto
    """
    from ..bench import verify
    from ..bench_graphs import ceilings
    from ..machine import environment
    from ..tts import choose_engine

    names = [name for name in presets.split(",") if name]
    for name in names:
        if name not in PRESETS:
            raise SettingsError(f"there is no preset {name!r}. Available: {', '.join(PRESETS)}")
    if engine is not None and precision is not None:
        raise SettingsError("--precision is of random weights: leave it out, or leave --engine out")
    check_precision(precision)
    for path in (output, plot):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise OutputError(f"cannot write {path}: give the name of a file in a folder that exists")
    if plot is not None:
        if plot.suffix.lower() not in PLOTS:
            raise OutputError(f"cannot draw {plot}: its suffix must be one of {', '.join(PLOTS)}")
        require_plots()
    with Bar(not quiet) as bar:
        opened = choose_engine(engine or random_engine(size, precision or "fp32", bar))
        if engine is None and codes is None:
            codes = min(RANDOM_CODES, opened.dims["ar.mel_positions"] - 1)
        limits = ceilings()
        precisions = sorted(set(opened.info.precision.values()))
        rows: list[Row] = [
            {
                **environment(),
                "engine": Path(opened.info.source).name,
                "notice": opened.info.notice,
                "precisions": precisions,
            },
            limits,
        ]
        rows.append(verify(opened, short_settings(opened)))
        if not quiet:
            click.echo(
                f"{opened.info.source}: {rows[0]['device']}, {limits['gflops']:g} GFLOP/s float32, "
                f"{limits['gb_per_second']:g} GB/s read. The same request alone and among others: equal codes, "
                f"sound within {rows[-1]['sound_differs']:.1e}"
            )
        rows += measure(opened, only or PARTS, names, samples, codes, clients, repeats, limits, bar, quiet)
    if output is not None:
        with output.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    if plot is not None:
        from ..bench_plot import draw

        draw(rows, plot)


def check_precision(name: str | None) -> None:
    """Raise a SettingsError for a precision that export does not know, where it is installed."""
    if name is None:
        return
    from .export import missing_build_package

    try:
        from tortoise_rt.export.targets import TARGETS
    except ImportError as error:
        raise missing_build_package(error, "making random weights (or name an --engine)") from error
    known = TARGETS["cpu"].precisions
    if name not in known:
        raise SettingsError(f"no precision is called {name!r}. {suggest(name, known)}")


def short_settings(engine: Engine) -> Any:
    """Of a request that is quickly done, by the decoder that the engine prefers."""
    from ..bench import bench_settings

    return bench_settings(engine, "turbo", 20, num_autoregressive_samples=1, diffusion_iterations=2)


def measure(
    engine: Engine,
    parts: Sequence[str],
    presets: Sequence[str],
    samples: int | None,
    codes: int | None,
    clients: Sequence[int],
    repeats: int,
    limits: Row,
    bar: Bar,
    quiet: bool,
) -> list[Row]:
    """All rows, each part's table printed when it is there."""
    from .. import bench as bench_of
    from .. import bench_graphs

    rows: list[Row] = []

    def show(found: list[Row]) -> None:
        rows.extend(found)
        if not quiet and found:
            click.echo("\n" + report(found))

    if "graphs" in parts:
        found, cases = [], list(bench_graphs.graph_cases(engine))
        for done, case in enumerate(cases):
            bar(f"{case.graph}, {case.what}", done, len(cases))
            found.append(bench_graphs.time_graph(engine, case, repeats, limits))
        show(found)
        show(bench_graphs.precision_errors(engine))
    if "presets" in parts:
        found = []
        for done, preset in enumerate(presets):
            bar(f"preset {preset}", done, len(presets))
            settings = bench_of.bench_settings(engine, preset, codes, num_autoregressive_samples=samples)
            found.append(bench_of.time_synthesis(engine, preset, settings))
        show(found)
    settings = bench_of.bench_settings(
        engine, "turbo", codes and min(codes, 60), num_autoregressive_samples=1,
        decoder="hifigan" if engine.has("hifigan") else None,
    )  # fmt: skip
    if "stream" in parts and engine.has("hifigan"):
        bar("a stream", 0, 1)
        show([bench_of.time_stream(engine, settings)])
    if "texts" in parts:
        bar("texts", 0, 1)
        show(list(bench_of.time_texts(engine, settings, TEXT_SIZES)))
    if "load" in parts:
        found = []
        for done, count in enumerate(clients):
            bar(f"{count} at a time", done, len(clients))
            found.append(bench_of.time_load(engine, settings, count, 2 * max(clients)))
        show(found)
    if "start" in parts and engine.info.backend == "onnx":
        bar("a fresh process", 0, 1)
        show([bench_of.time_start(engine)])
    return rows


def random_engine(size: str, precision: str, bar: Bar) -> Path:
    """A bundle of random weights in the cache folder, made where it is not there yet."""
    from ..bundle import MANIFEST, cache_folder, demo_folder
    from .export import missing_build_package

    folder = cache_folder() / "bench" / f"random-{size}-{precision}"
    if (folder / MANIFEST).exists():
        return folder
    try:
        from tortoise_rt.export.bundle import export_bundle
        from tortoise_rt.export.random_checkpoint import write_checkpoints
    except ImportError as error:
        raise missing_build_package(error, "making random weights (or name an --engine)") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as checkpoints:
        bar("random weights", 0, 1)
        write_checkpoints(Path(checkpoints), size, stop_bias=NEVER)
        shutil.copy(demo_folder() / "tokenizer.json", checkpoints)
        export_bundle(
            checkpoints, folder, name=f"random-{size}", check=False, record_source=False,
            precision=precision, progress=bar,
        )  # fmt: skip
    return folder


NEVER = -1e4  #: added to the stop code's logit: samples go on to the limit of codes


def require_plots() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingDependency("--plot needs matplotlib: pip install 'tortoise-rt[bench]'") from None


def report(rows: Sequence[Row]) -> str:
    """A table of rows of one kind."""
    columns = {
        "graph": ("graph", "what", "precision", "error", "ms", "ms_least", "ms_most", "gflops", "share_of_arithmetic",
                  "gb_per_second", "share_of_memory"),
        "error": ("graph", "precision", "error"),
        "synthesis": ("preset", "samples", "steps", "decoder", "audio_s", "seconds", "real_time_factor", "peak_rss_mib"),
        "stream": ("first_s", "audio_s", "seconds", "real_time_factor", "longest_gap_s"),
        "texts": ("tokens", "seconds", "audio_s", "audio_per_second"),
        "load": ("clients", "requests", "audio_per_second", "p50_s", "p90_s"),
        "start": ("open_s", "all_graphs_s", "peak_rss_mib", "bundle_mb"),
    }[rows[0]["kind"]]  # fmt: skip
    heads = [column.replace("_", " ").removesuffix(" s") for column in columns]
    lines = [heads] + [[str(row.get(column, "")) for column in columns] for row in rows]
    if rows[0]["kind"] == "synthesis":
        lines[0].append("stages, s")
        for line, row in zip(lines[1:], rows, strict=True):
            line.append(
                ", ".join(f"{stage} {seconds:g}" for stage, seconds in row["stages"].items() if seconds)
            )
    return table(lines)
