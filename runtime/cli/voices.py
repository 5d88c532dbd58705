"""``tortoise-rt voices``: what voices there are, and adding to them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options
from .progress import table
from .voice_latents import blend, latents
from .voice_show import show

if TYPE_CHECKING:
    from ..voice_store import Imported

force_option = click.option("--force", is_flag=True, help="Replace voices of the same name.")


@click.group()
def voices() -> None:
    """List, add, examine and blend voices, and compute their latents.

    \b
    tortoise-rt voices add emma recordings/emma/
    tortoise-rt voices latents emma -o emma.safetensors
    tortoise-rt voices blend emma:0.7 tom:0.3 -o both.safetensors
    """


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
        f'Your own are in {user_folder()}: "tortoise-rt voices add" puts them there. "random" is one more, in engines '
        "that have it."
    )


def _contents(path: Path) -> tuple[str, str, str]:
    """-> kind, clips, seconds of a voice, without decoding its audio."""
    import soundfile

    from ..errors import VoiceError
    from ..latents import LATENT_SUFFIXES
    from ..voice import files_in

    files: list[Path] = []
    try:
        files = files_in(path)
        if any(f.suffix.lower() in LATENT_SUFFIXES for f in files):
            return "latents", "-", "-"
        seconds = sum(soundfile.info(str(f)).duration for f in files)
    except (VoiceError, RuntimeError):  # RuntimeError: libsndfile's
        return "unreadable", str(len(files)), "-"
    return "clips" if files else "empty", str(len(files)), f"{seconds:.1f}"


@voices.command()
@click.argument("name")
@click.argument("sources", nargs=-1, required=True, metavar="CLIPS|LATENTS...")
@force_option
def add(name: str, sources: tuple[str, ...], force: bool) -> None:
    """Copy clips, folders of them or one file of latents into your voices, under NAME.

    They are read first: damaged files, clips of less than 0.1 s and the like are refused, and nothing is written.

    \b
    tortoise-rt voices add emma recordings/emma/
    tortoise-rt voices add tom tom_1.wav tom_2.mp3
    """
    from ..voice_store import add_voice

    click.echo(f'{add_voice(name, sources, force=force)}: speak with --voice "{name}"')


@voices.command("import")
@click.argument("folder", type=options.FOLDER)
@force_option
@click.pass_context
def import_(ctx: click.Context, folder: Path, force: bool) -> None:
    """Add every voice of a FOLDER of voices, as TorToiSe's own: one folder of clips or one latent file each.

    One line says what became of each. A voice that you have already is kept, but with --force. Exits with 1 when
    one could not be imported.
    """
    from ..voice_store import import_voices

    report(ctx, import_voices(folder, force=force))


def report(ctx: click.Context, imported: Iterable[Imported], quiet: bool = False) -> None:
    """A line for each voice as it comes, with ``quiet`` for those that failed, and an exit code of 1 where one did."""
    failed = False
    for one in imported:
        if one.failed or not quiet:
            click.echo(f"{one.name}: {one.outcome}", err=one.failed)
        failed |= one.failed
    if failed:
        ctx.exit(1)


for command in (latents, blend, show):
    voices.add_command(command)
