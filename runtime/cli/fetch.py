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
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def fetch(files: tuple[str, ...], output: Path | None, source: str | None, quiet: bool) -> None:
    """Download TorToiSe's checkpoints (4 GB in all) and its tokenizer, to export an engine from.

    What is there already is kept, and a download that was interrupted goes on. Every file is checked against the
    checksum that the server states. FILE names single ones: hifidecoder.pth, say.

    \b
    tortoise-rt fetch
    tortoise-rt fetch autoregressive.pth hifidecoder.pth tokenizer.json     # the fast decoder alone
    """
    from ..bundle import cache_folder
    from ..fetch import FILES, SOURCE
    from ..fetch import fetch as download

    folder = output or cache_folder() / "checkpoints"
    with Bar(not quiet) as bar:
        paths = download(
            folder,
            files or FILES,
            source or SOURCE,
            lambda name, done, total: bar(f"{name} (MB)", done // 10**6, -(-total // 10**6)),
        )
    if not quiet:
        click.echo(f"{folder}: {len(paths)} files, {sum(p.stat().st_size for p in paths) / 1e6:.1f} MB")
        click.echo(f"Next: tortoise-rt export --checkpoints {folder}")
