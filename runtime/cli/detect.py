"""``tortoise-rt detect``: did TorToiSe make these clips?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..errors import AudioError, SettingsError
from . import options
from .progress import Bar

CAUTION = (
    "This is how much a clip is like those of the one TorToiSe model that the detector was trained on. A high number "
    "can be wrong; a low one proves nothing: other programs, other TorToiSe models, and clips that were cut, "
    "mixed or compressed pass."
)


@click.command()
@click.argument("clips", nargs=-1, required=True, metavar="CLIP|FOLDER...")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of {clip, probability, error}.")
@click.option(
    "--threshold",
    type=float,
    metavar="P",
    help="Exit with 1 when a clip's probability is at least P (0 to 1).",
)
@click.option("-q", "--quiet", is_flag=True, help="Print the probabilities and errors only.")
@options.engine_options
@click.pass_context
def detect(
    ctx: click.Context,
    clips: tuple[str, ...],
    as_json: bool,
    threshold: float | None,
    quiet: bool,
    engine: Path | None,
    checkpoints: Path | None,
    backend: str,
    device: str,
    precision: str | None,
) -> None:
    """Print the probability that each CLIP, or each clip in a FOLDER and below it, came from TorToiSe.

    The first 9 seconds of a clip are heard. The detector recognises the output of the one model that it was trained
    on, and is wrong at times both ways: do not accuse anyone by it, and do not trust a clip because of it.

    \b
    Exit codes: 0 all were heard, whatever was found; 1 one reached --threshold; 2 one could not be heard, or the
    command was wrong.

    \b
    tortoise-rt detect clip.wav
    tortoise-rt detect --threshold 0.9 --json incoming/ > found.json
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise SettingsError(f"threshold is {threshold:g}; it must be at least 0 and at most 1")
    from ..audio import load_audio
    from ..detect import MAX_SAMPLES, find_clips
    from ..detect import detect as probability
    from ..spec import SAMPLE_RATE
    from ..tts import choose_engine

    paths = find_clips(clips)
    opened = choose_engine(engine, checkpoints, backend, device, precision)
    opened.require("detector")
    if not as_json and not quiet:
        options.introduce(opened, bool(engine or checkpoints), "listens")
    found: list[dict[str, Any]] = []
    with Bar(not quiet) as bar:
        for number, path in enumerate(paths):
            bar("listening", number, len(paths))
            one: dict[str, Any] = {"clip": str(path), "probability": None, "error": None}
            try:
                one["probability"] = probability(opened, load_audio(path, SAMPLE_RATE)[:MAX_SAMPLES])
            except AudioError as error:  # of one of many: the others are heard all the same
                one["error"] = str(error)
            found.append(one)
    heard = [one["probability"] for one in found if one["error"] is None]
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        for one in found:
            if one["error"] is None:
                click.echo(f"{one['probability']:.4f}  {one['clip']}")
        if heard and not quiet:
            click.echo(f"Note: {CAUTION}", err=True)
    for one in found:
        if one["error"] is not None:
            click.echo(f"Error: {one['error']}", err=True)
    if len(heard) < len(found):
        ctx.exit(2)
    if threshold is not None and any(one >= threshold for one in heard):
        ctx.exit(1)
