"""``tortoise-rt verify``: is a bundle whole, and does it compute what its checkpoints do?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .export import missing_build_package, parity_table
from .options import FOLDER
from .progress import Bar

if TYPE_CHECKING:
    from ..bundle import Bundle


@click.command()
@click.option("--engine", type=FOLDER, metavar="DIR", help="The bundle. [default: the demo bundle]")
@click.option(
    "--checkpoints",
    type=FOLDER,
    metavar="DIR",
    help="What it was exported from. [default: the folder that its manifest names]",
)
@click.pass_context
def verify(ctx: click.Context, engine: Path | None, checkpoints: Path | None) -> None:
    """Check every file of a bundle by its checksum, and every graph against PyTorch where that is possible.

    Exits with 0 when the checksums are right and no comparison fails ("Not compared: ..." says why there was none),
    with 1 when a graph is out of its bound, with 2 when a file is damaged.
    """
    from ..bundle import demo_folder, read_bundle, verify_files

    bundle = read_bundle(engine or demo_folder(), verify=False)
    verify_files(bundle, remember=False)
    click.echo(f"{bundle.folder}: {len(bundle.manifest['files'])} files match their checksums")
    if checkpoints is None and not _source(bundle):
        click.echo("Not compared: the checkpoints are not here (name them with --checkpoints)")
    elif not _compare(bundle, checkpoints or bundle.source_folder, named=checkpoints is not None):
        ctx.exit(1)


def _source(bundle: Bundle) -> bool:
    """Whether the checkpoints that the manifest names are on this machine."""
    folder = bundle.manifest["model"].get("folder")
    return bool(folder) and Path(folder).is_dir()


def _compare(bundle: Bundle, folder: Path, named: bool) -> bool:
    """Print each graph's parity with its module; -> whether all are within their bounds.

    Without PyTorch that is an error if the user ``named`` the checkpoints, else only said.
    """
    from ..backends import open_engine

    try:
        from tortoise_rt.export.checkpoints import Checkpoints
        from tortoise_rt.export.parity import ExportError, check_graphs, require_parity
    except ImportError as error:
        missing = missing_build_package(error, "comparing with PyTorch")
        if named or missing is error:
            raise missing from error
        click.echo(f"Not compared: {missing}")
        return True
    report = []
    with Bar() as bar:
        for parity in check_graphs(open_engine(bundle.folder), Checkpoints(folder)):
            report.append(parity)
            bar("comparing with PyTorch", len(report), len(bundle.graphs))
    if not report:
        click.echo("Not compared: the bundle has no graphs")
        return True
    click.echo(parity_table(report))
    try:
        require_parity(report)
    except ExportError as error:
        click.echo(f"Error: {error}", err=True)
        return False
    click.echo(f"{len(report)} graphs agree with PyTorch on the checkpoints in {folder}")
    return True
