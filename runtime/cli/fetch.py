"""``tortoise-rt fetch``: the official checkpoints."""

from __future__ import annotations

from pathlib import Path

import click

from .options import FOLDER
from .progress import Bar


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
    help="Where the files are, a folder's https address: a mirror of your own. [default: that of the original]",
)
@click.option(
    "--aligner",
    is_flag=True,
    help="Get the aligner instead (1.3 GB), which finds words in sound: for text in [brackets], --check and --words.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def fetch(
    files: tuple[str, ...], output: Path | None, source: str | None, aligner: bool, quiet: bool
) -> None:
    """Download TorToiSe's checkpoints (4 GB in all) and its tokenizer, to export an engine from.

    A download that was interrupted goes on. Every file is checked by the size and the SHA-256 that its server states;
    one that it states no SHA-256 of is named at the end. What is there already is checked too, and never replaced: if
    a file differs, remove it; if the server cannot be reached, it is kept. FILE names single ones, which must be
    there; without, cvvp.pth, hifidecoder.pth and classifier.pth may be missing.

    \b
    tortoise-rt fetch
    tortoise-rt fetch autoregressive.pth hifidecoder.pth tokenizer.json     # the fast decoder alone
    tortoise-rt fetch --aligner     # into the folder wav2vec2 beside them; export takes it along
    """
    from ..bundle import cache_folder
    from ..errors import FetchError
    from ..fetch import SOURCE, fetch_aligner
    from ..fetch import fetch as download

    if aligner and files:
        raise FetchError(f"--aligner gets the aligner's files alone: leave {', '.join(files)} out")
    folder = output or cache_folder() / "checkpoints"
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
