"""``tortoise-rt voices latents`` and ``blend``: voices to files of latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import OutputError, SettingsError
from . import options
from .voice_show import describe_latents

latents_options = options.apply(
    [
        click.option(
            "-o",
            "--output",
            type=options.FOLDER,
            required=True,
            metavar="FILE",
            help=".safetensors, or .pth as TorToiSe reads it (which cannot say what model it is of).",
        ),
        options.voices_option,
        options.engine_options,
    ]
)


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="VOICE|CLIPS|FILE|random...")
@click.option("--seed", type=int, metavar="N", help="Of a random voice. [default: a fresh one, printed]")
@latents_options
def latents(
    sources: tuple[str, ...],
    seed: int | None,
    output: Path,
    voice_dirs: tuple[Path, ...],
    **opening: Any,
) -> None:
    """Save the latents of a voice: of clips, folders of clips or named voices (together one voice), or a random one.

    Latents belong to the model that made them. A file of latents is converted, without any engine.

    \b
    tortoise-rt voices latents emma -o emma.safetensors
    tortoise-rt voices latents one.wav two.wav -o both.pth
    tortoise-rt voices latents pat.pth -o pat.safetensors
    tortoise-rt voices latents random --seed 7 -o stranger.safetensors
    """
    _save(sources, seed, output, voice_dirs, opening)


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="VOICE[:WEIGHT]...")
@latents_options
def blend(
    sources: tuple[str, ...],
    output: Path,
    voice_dirs: tuple[Path, ...],
    **opening: Any,
) -> None:
    """Save the latents of a blend of voices: of clips, of latents, or of both.

    With weights, or where latents are among them, each voice's latents are averaged by weight; only the ratios of the
    weights count. Clips alone, without weights, are pooled as one voice's, as TorToiSe does.

    \b
    tortoise-rt voices blend emma:0.7 tom.safetensors:0.3 -o both.safetensors
    tortoise-rt say --voice 'emma:0.7&tom.safetensors:0.3' "The same, without a file."
    """
    _save(sources, None, output, voice_dirs, opening)


def _save(
    sources: tuple[str, ...],
    seed: int | None,
    output: Path,
    voice_dirs: tuple[Path, ...],
    opening: dict[str, Any],
) -> None:
    from ..conditioning import random_latents, voice_latents
    from ..latents import LATENT_SUFFIXES
    from ..pipeline import check_seed
    from ..rng import Philox, fresh_seed
    from ..tts import choose_engine
    from ..voice import load_voices

    if output.suffix.lower() not in LATENT_SUFFIXES:
        raise OutputError(f"cannot save {output}: its suffix must be one of {', '.join(LATENT_SUFFIXES)}")
    if not output.parent.is_dir():
        raise OutputError(f"the folder {output.parent} does not exist: create it, or write elsewhere")
    voice = load_voices(sources, voice_dirs)
    if voice is not None and seed is not None:
        raise SettingsError(f"seed {seed} has no effect: latents of clips are the same for every seed")
    if voice is not None and voice.latents is not None:
        made, what = voice.latents, f"latents of {voice.name}"
    else:
        seed = fresh_seed() if seed is None else check_seed(seed)
        opened = choose_engine(**opening)
        options.introduce(
            opened,
            bool(opening["engine"] or opening["checkpoints"]),
            "listens" if voice else "invents a voice",
        )
        if voice is None:
            made, what = random_latents(opened, Philox(seed)), f"latents of a random voice, seed {seed}"
        else:
            made = voice_latents(opened, voice)
            what = f"latents of {voice.made_of if voice.clips else voice.name}"
    made.save(output)
    click.echo(f"{output}: {what}")
    click.echo(describe_latents(made))
