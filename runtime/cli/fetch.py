"""``tortoise-rt fetch``: the official checkpoints."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import FetchError
from .options import FOLDER
from .progress import Bar
from .voices import report


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option(
    "-o",
    "--output",
    type=FOLDER,
    metavar="DIR",
    help="The folder. [default: checkpoints in the cache folder]",
)
@click.option(
    "--source",
    metavar="URL",
    help="Where the files are, a folder's https address: a mirror of your own. [default: that of the original; $HF_ENDPOINT names a mirror of its hub]",
)
@click.option(
    "--aligner",
    is_flag=True,
    help="Get the aligner instead (1.3 GB), which finds words in sound: for text in [brackets], --check and --words.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.pass_context
def fetch(
    ctx: click.Context,
    files: tuple[str, ...],
    output: Path | None,
    source: str | None,
    aligner: bool,
    quiet: bool,
) -> None:
    """Download TorToiSe's checkpoints (4 GB in all) and its tokenizer, to export an engine from; or its voices.

    A download that was interrupted goes on. Every file is checked by the size and the SHA-256 that its server states;
    one that it states no SHA-256 of is named at the end. What is there already is checked too, and never replaced: if
    a file differs, remove it; if the server cannot be reached, it is kept. FILE names single ones, which must be
    there; without, cvvp.pth, hifidecoder.pth and classifier.pth may be missing.

    "voices" in place of files are the clips and latents in the original's package on PyPI (30 MB): they go into your
    voices, where one of the same name is kept. They are recordings of real people: mind their rights.

    \b
    tortoise-rt fetch
    tortoise-rt fetch autoregressive.pth hifidecoder.pth tokenizer.json     # the fast decoder alone
    tortoise-rt fetch voices
    tortoise-rt fetch --aligner     # into the folder wav2vec2 beside them; export takes it along
    """
    if "voices" in files:
        if len(files) > 1 or output is not None:
            raise FetchError('"voices" are fetched alone, and into your own voices: tortoise-rt fetch voices')
        _fetch_voices(ctx, source, quiet)
        return
    from ..fetch import SOURCE, checkpoints_folder, fetch_aligner
    from ..fetch import fetch as download

    if aligner and files:
        raise FetchError(f"--aligner gets the aligner's files alone: leave {', '.join(files)} out")
    folder = output or checkpoints_folder()
    notes: list[str] = []
    with Bar(not quiet) as bar:

        def show(name: str, done: int, total: int) -> None:
            bar(f"{name} (MB)", done // 10**6, -(-total // 10**6))

        if aligner:
            paths = fetch_aligner(folder, source, show, notes.append)
        else:
            paths = download(folder, files, source or SOURCE, show, notes.append)
    if not quiet:
        for note in notes:
            click.echo(f"Note: {note}", err=True)
        click.echo(f"{folder}: {len(paths)} files, {sum(p.stat().st_size for p in paths) / 1e6:.1f} MB")
        click.echo(f"Next: tortoise-rt export --checkpoints {folder}")


def _fetch_voices(ctx: click.Context, source: str | None, quiet: bool) -> None:
    """The package into the cache, its voices from there into the user's."""
    import tempfile

    from ..bundle import cache_folder
    from ..fetch import PACKAGE, PACKAGE_SOURCE
    from ..fetch import fetch as download
    from ..voice_store import import_voices, unpack_voices

    notes: list[str] = []
    with Bar(not quiet) as bar:
        (archive,) = download(
            cache_folder() / "packages",
            [PACKAGE],
            source or PACKAGE_SOURCE,
            lambda name, done, total: bar(f"{name} (MB)", done // 10**6, -(-total // 10**6)),
            notes.append,
        )
    for note in notes:
        click.echo(f"Note: {note}", err=True)
    with tempfile.TemporaryDirectory() as unpacked:
        unpack_voices(archive, Path(unpacked))
        report(ctx, import_voices(unpacked), quiet)
