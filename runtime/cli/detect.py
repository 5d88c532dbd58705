"""``tortoise-rt detect``: did TorToiSe make these clips?"""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..errors import SettingsError
from . import options


@click.command()
@click.argument("clips", nargs=-1, required=True, metavar="CLIP...")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of {clip, probability}.")
@click.option(
    "--threshold",
    type=float,
    metavar="P",
    help="Exit with 1 when a clip's probability is at least P (0 to 1).",
)
@options.engine_options
@click.pass_context
def detect(
    ctx: click.Context,
    clips: tuple[str, ...],
    as_json: bool,
    threshold: float | None,
    engine: Path | None,
    checkpoints: Path | None,
    backend: str,
    device: str,
    precision: str | None,
) -> None:
    """Print the probability that each CLIP came from TorToiSe. The first 9 seconds of a clip are heard.

    Exits with 0 whatever it finds, unless --threshold is given.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise SettingsError(f"threshold is {threshold:g}; it must be at least 0 and at most 1")
    from ..audio import load_audio
    from ..detect import MAX_SAMPLES
    from ..detect import detect as probability
    from ..spec import SAMPLE_RATE
    from ..tts import choose_engine

    wavs = [load_audio(clip, SAMPLE_RATE)[:MAX_SAMPLES] for clip in clips]
    opened = choose_engine(engine, checkpoints, backend, device, precision)
    opened.require("detector")
    if not as_json:
        options.introduce(opened, bool(engine or checkpoints), "listens")
    found = [
        {"clip": clip, "probability": probability(opened, wav)} for clip, wav in zip(clips, wavs, strict=True)
    ]
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        for one in found:
            click.echo(f"{one['probability']:.4f}  {one['clip']}")
    if threshold is not None and any(one["probability"] >= threshold for one in found):  # type: ignore[operator]
        ctx.exit(1)
