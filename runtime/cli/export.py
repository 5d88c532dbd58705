"""``tortoise-rt export``: checkpoints to an engine bundle."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import MissingDependency, OutputError
from .options import FOLDER
from .progress import Bar, table

if TYPE_CHECKING:
    from tortoise_rt.export.parity import GraphParity

BUILD_PACKAGES = ("torch", "onnx", "onnxruntime")


@click.command()
@click.option(
    "--checkpoints",
    type=FOLDER,
    required=True,
    metavar="DIR",
    help="Folder with autoregressive.pth and the others, and tokenizer.json.",
)
@click.option(
    "--tokenizer",
    type=FOLDER,
    metavar="FILE",
    help="The model's tokenizer.json. [default: beside the checkpoints, else that of an installed tortoise-tts package]",
)
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    metavar="NAME",
    help="What the bundle runs on: cpu; cuda (ONNX Runtime on an NVIDIA GPU); tensorrt, on the GPU that it is exported "
    "on; tensorrt-rtx, for which no GPU need be there.",
)
@click.option(
    "-o", "--output", type=FOLDER, metavar="DIR", help="The bundle's folder. [default: in the cache folder]"
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    metavar="NAME",
    help="fp32; int8 or int4: weights of the transformers in blocks of eight or four bits, smaller and faster to decode; "
    "int8row: their products in eight bits; auto: for each graph the fastest of these on this machine that stays near "
    "fp32 on speech of the model's own. It takes minutes more, and says what it chose and why. For GPUs: fp32 or fp16, "
    "with TensorRT also bf16, and int8 or fp8: fp16 with the weights of decoding in eight bits.",
)
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    metavar="N.N",
    help="tensorrt-rtx: build for GPUs of this compute capability, as 8.9; may be given again. [default: 8.0 and newer, all it can]",
)
@click.option(
    "--workspace",
    type=click.IntRange(min=16),
    metavar="MIB",
    help="Most memory that a layer may take while TensorRT looks for the fastest way. [default: 4096]",
)
@click.option("--force", is_flag=True, help="Replace a bundle that is already there.")
@click.option(
    "--name", metavar="NAME", help="The model's name in the bundle. [default: the checkpoint folder's]"
)
@click.option("--no-check", is_flag=True, help="Skip the comparison of every graph with PyTorch.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.pass_context
def export(
    ctx: click.Context,
    checkpoints: Path,
    tokenizer: Path | None,
    target: str,
    output: Path | None,
    precision: str,
    capabilities: tuple[str, ...],
    workspace: int | None,
    force: bool,
    name: str | None,
    no_check: bool,
    quiet: bool,
) -> None:
    """Turn checkpoints into an engine bundle: one folder that runs without PyTorch.

    Exits with 1 when a graph does not compute what PyTorch does; nothing is then written.

    \b
    tortoise-rt export --checkpoints models/ -o bundle
    tortoise-rt say --engine bundle "Hello there."
    """
    try:
        from tortoise_rt.export.bundle import default_output, export_bundle
        from tortoise_rt.export.kernels import can_compile
        from tortoise_rt.export.parity import ExportError
        from tortoise_rt.export.targets import find_target
        from tortoise_rt.export.tensorrt import WORKSPACE_MIB
    except ImportError as error:
        raise missing_build_package(error, "exporting") from error

    find_target(target, precision, capabilities)
    tokenizer = find_tokenizer(checkpoints, tokenizer)
    if tokenizer is None:
        click.echo(
            f"Warning: there is no tokenizer.json in {checkpoints}, so the bundle will have none: "
            "say will need --tokenizer FILE, or name the file here",
            err=True,
        )
    if output is None:
        output = default_output(checkpoints, target, precision)
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make the cache folder {output.parent} ({error}): name one with -o"
            ) from error
    try:
        with Bar(not quiet) as bar:
            bundle, report = export_bundle(
                checkpoints,
                output,
                name=name,
                force=force,
                check=not no_check,
                tokenizer=tokenizer,
                target=target,
                precision=precision,
                compute_capabilities=capabilities,
                workspace_mib=workspace or WORKSPACE_MIB,
                progress=bar,
            )
    except ExportError as error:
        if failed := error.report:
            click.echo(parity_table(failed))
        click.echo(f"Error: {error}", err=True)
        ctx.exit(1)
    if quiet:
        return
    if tuning := bundle.manifest.get("tuning"):
        click.echo(tuning_table(tuning))
    click.echo(parity_table(report) if report else "Not compared: --no-check was given.")
    if bundle.manifest["target"].get("library") and bundle.manifest["target"]["driver"] is None:
        click.echo("That was before plans were built from them. On the GPU: tortoise-rt verify --engine DIR")
    if bundle.manifest["target"].get("library") and not can_compile():
        click.echo(
            "Without Triton no kernels were compiled: the host will take part in every code and every diffusion step "
            "(pip install 'tortoise-rt[kernels]', and export again)"
        )
    click.echo(f"{bundle.folder}: {len(bundle.graphs)} graphs, {megabytes(bundle.manifest['files']):.1f} MB")
    click.echo(f'Next: tortoise-rt say --engine {bundle.folder} "Hello there."')


def find_tokenizer(checkpoints: Path, chosen: Path | None) -> Path | None:
    """The tokenizer.json that goes into the bundle; TextError when one is named that is none."""
    from ..text import Tokenizer, find_reference_tokenizer

    if chosen is not None:
        return Tokenizer(chosen).path
    beside = checkpoints / "tokenizer.json"
    return beside if beside.is_file() else find_reference_tokenizer()


def missing_build_package(error: ImportError, purpose: str) -> Exception:
    """What to raise for an ImportError: MissingDependency when a build package is not there, else the error."""
    package = (error.name or "").partition(".")[0]
    if package not in BUILD_PACKAGES:
        return error
    extra = "cpu" if package == "onnxruntime" else "export"
    return MissingDependency(
        f"{purpose} needs {package}, which is not installed: pip install 'tortoise-rt[{extra}]'"
    )


def parity_table(report: Iterable[GraphParity]) -> str:
    """The largest error of each graph beside its bound."""
    rows = [("graph", "precision", "error", "bound", "ok")]
    rows += [
        (p.graph, p.precision, f"{p.error:.1e}", f"{p.bound:g}", "yes" if p.ok else "NO") for p in report
    ]
    return table(rows)


def tuning_table(tuning: Iterable[dict[str, Any]]) -> str:
    """What each form of each graph takes and how far it is from fp32; a star is before what was chosen."""
    rows = [("graph", "precision", "ms", "error", "bound", "")]
    rows += [
        (
            t["graph"],
            t["precision"],
            f"{t['milliseconds']:.1f}",
            f"{t['error']:.1e}",
            f"{t['bound']:g}",
            "chosen" if t["chosen"] else "" if t["error"] <= t["bound"] else "too far off",
        )
        for t in tuning
    ]
    return table(rows)


def megabytes(files: dict[str, dict[str, int]]) -> float:
    """Size of a manifest's files."""
    return sum(file["bytes"] for file in files.values()) / 1e6
