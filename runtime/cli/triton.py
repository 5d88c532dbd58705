"""``tortoise-rt triton``: a model repository for a Triton Inference Server."""

from __future__ import annotations

from pathlib import Path

import click

from . import options, service_options


@click.command()
@click.option(
    "-o",
    "--output",
    type=options.FOLDER,
    required=True,
    metavar="DIR",
    help="The repository: a folder that is made, or that has other models.",
)
@click.option(
    "--name", default="tortoise", show_default=True, metavar="NAME", help="What the model is called."
)
@click.option(
    "--engine",
    type=options.FOLDER,
    metavar="DIR",
    help="Engine bundle, which is copied into it. [default: the demo bundle of the package]",
)
@click.option("--gpu", is_flag=True, help="An instance on each GPU, for a bundle made for them.")
@service_options.scheduler_options
def triton(output: Path, name: str, engine: Path | None, gpu: bool, rows: int, strict: bool) -> None:
    """Write a model repository for a Triton Inference Server: its Python backend, a decoupled model.

    \b
    tortoise-rt triton -o models --engine my-engine
    tritonserver --model-repository models

    A text comes in, with a voice, a seed and settings if there are any, and pieces of sound come out as they are made. The server's
    Python must have tortoise-rt[cpu,serve], for GPUs [gpu,serve]. No Triton server has run it yet: what it computes was tested with a stand-in.
    """
    from ..serving.triton import write_repository

    target = write_repository(output, name, engine, gpu=gpu, rows=rows, strict=strict)
    click.echo(target)
    click.echo(f"Next: tritonserver --model-repository {output.absolute()}")
