"""``tortoise-rt voices``: what voices there are, what is in them, and their latents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import OutputError
from . import options
from .progress import table

if TYPE_CHECKING:
    import numpy as np

    from ..voice import VoiceLatents


@click.group()
def voices() -> None:
    """List and examine voices, and compute their latents."""


@voices.command("list")
@options.voices_option
def list_voices(voice_dirs: tuple[Path, ...]) -> None:
    """List the voices that can be named: name, kind, clips, seconds, and where they are."""
    from ..voice import find_voices, user_folder

    found = find_voices(voice_dirs)
    if found:
        rows = [("name", "kind", "clips", "seconds", "where")]
        click.echo(table([*rows, *((name, *_contents(path), str(path)) for name, path in found.items())]))
    else:
        click.echo("No voices yet.")
    click.echo(
        f'Your own: one folder of clips each in {user_folder()}. "random" is one more, in engines that have it.'
    )


def _contents(path: Path) -> tuple[str, str, str]:
    """-> kind, clips, seconds of a voice, without decoding its audio."""
    import soundfile

    from ..audio import AUDIO_SUFFIXES
    from ..voice import LATENT_SUFFIXES

    if path.is_file():
        return "latents", "-", "-"
    clips: list[Path] = []
    try:
        files = [f for f in path.iterdir() if not f.name.startswith(".")]
        if any(f.suffix.lower() in LATENT_SUFFIXES for f in files):
            return "latents", "-", "-"
        clips = [f for f in files if f.suffix.lower() in AUDIO_SUFFIXES]
        seconds = sum(soundfile.info(str(f)).duration for f in clips)
    except (OSError, RuntimeError):  # RuntimeError: libsndfile's
        return "unreadable", str(len(clips)), "-"
    return "clips" if clips else "empty", str(len(clips)), f"{seconds:.1f}"


@voices.command()
@click.argument("sources", nargs=-1, required=True, metavar="CLIPS|VOICE...")
@click.option(
    "-o",
    "--output",
    type=options.FOLDER,
    required=True,
    metavar="FILE",
    help=".safetensors, or .pth as TorToiSe reads it.",
)
@options.voices_option
@options.engine_options
def latents(
    sources: tuple[str, ...],
    output: Path,
    voice_dirs: tuple[Path, ...],
    engine: Path | None,
    checkpoints: Path | None,
    backend: str,
    device: str,
    precision: str | None,
) -> None:
    """Compute the latents of clips, folders of clips or named voices (together one voice) and save them.

    Latents belong to the model that made them.
    """
    from ..pipeline import Pipeline
    from ..tts import choose_engine
    from ..voice import LATENT_SUFFIXES

    if output.suffix.lower() not in LATENT_SUFFIXES:
        raise OutputError(f"cannot save {output}: its suffix must be one of {', '.join(LATENT_SUFFIXES)}")
    if not output.parent.is_dir():
        raise OutputError(f"the folder {output.parent} does not exist: create it, or write elsewhere")
    voice = options.pool_clips(sources, voice_dirs)
    opened = choose_engine(engine, checkpoints, backend, device, precision)
    options.introduce(opened, bool(engine or checkpoints), "listens")
    made = Pipeline(opened).voice_latents(voice.clips)
    made.save(output)
    click.echo(f"{output}: latents of {len(voice.clips)} clips")
    click.echo(_describe_latents(made))


@voices.command()
@click.argument("voice")
@options.voices_option
def show(voice: str, voice_dirs: tuple[Path, ...]) -> None:
    """Show what VOICE holds: each clip's length and levels, or the latents' size and norm."""
    from ..spec import CODE_RATE
    from ..voice import load_voice

    loaded = load_voice(voice, voice_dirs)
    if loaded is None:
        click.echo("random: a voice drawn anew from each seed")
        return
    click.echo(loaded.name)
    if loaded.latents is not None:
        click.echo(_describe_latents(loaded.latents))
    rows = [("clip", "seconds", "peak dBFS", "mean dBFS")]
    for number, clip in enumerate(loaded.clips, 1):
        peak, mean = _levels(clip)
        rows.append((str(number), f"{len(clip) / CODE_RATE:.2f}", f"{peak:.1f}", f"{mean:.1f}"))
    if len(rows) > 1:
        click.echo(table(rows))


def _levels(clip: np.ndarray) -> tuple[float, float]:
    """Peak and root mean square of a clip in dB below full scale."""
    import numpy as np

    floor = 1e-6
    peak = max(float(np.abs(clip).max()), floor)
    mean = max(float(np.sqrt(np.mean(np.square(clip, dtype=np.float64)))), floor)
    return 20 * float(np.log10(peak)), 20 * float(np.log10(mean))


def _describe_latents(made: VoiceLatents) -> str:
    import numpy as np

    rows = [("latent", "width", "norm")]
    for name, latent in (("autoregressive", made.auto), ("diffusion", made.diffusion)):
        if latent is not None:
            rows.append((name, str(latent.shape[-1]), f"{float(np.linalg.norm(latent)):.3f}"))
    return table(rows) + f"\nmodel: {made.fingerprint or 'unknown'}"
