"""Options that several commands share, and what they open."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..engine import Engine

FOLDER = click.Path(path_type=Path)


def apply(options: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """A decorator that adds ``options`` in their order."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


engine_options = apply(
    [
        click.option(
            "--engine", type=FOLDER, metavar="DIR", help="Engine bundle to use. [default: the demo bundle]"
        ),
        click.option(
            "--checkpoints",
            type=FOLDER,
            metavar="DIR",
            help="Folder of checkpoints (autoregressive.pth, ...) to run with PyTorch instead of a bundle.",
        ),
        click.option(
            "--backend",
            default="auto",
            show_default=True,
            metavar="NAME",
            help="auto, onnx or tensorrt (bundles), or torch (checkpoints).",
        ),
        click.option(
            "--device",
            default="auto",
            show_default=True,
            metavar="NAME",
            help="auto, cpu, cuda, cuda:N or mps; several, as cuda:0,cuda:1, share the requests.",
        ),
        click.option(
            "--precision",
            metavar="NAME",
            help="fp32, fp16 or bf16, of checkpoints; a bundle has that of its export. [default: fp32]",
        ),
    ]
)

tokenizer_option = click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="tokenizer.json. [default: the engine's, else that of an installed tortoise-tts package]",
)

text_options = apply(
    [
        tokenizer_option,
        click.option(
            "--basic-cleaners", is_flag=True, help="Only lower-case the text: for models of other languages."
        ),
        click.option(
            "--no-redaction",
            is_flag=True,
            help="Leave words in [brackets] in the sound. Otherwise they are spoken, so that they steer how the rest is said, "
            "and cut out, which takes an engine with an aligner.",
        ),
    ]
)

voices_option = click.option(
    "--voices-dir",
    "voice_dirs",
    type=FOLDER,
    multiple=True,
    metavar="DIR",
    help="Look for voices here first; may be given several times.",
)

verbosity_options = apply(
    [
        click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
        click.option("-v", "--verbose", is_flag=True, help="Print what is chosen and why."),
    ]
)


def set_up_log(quiet: bool, verbose: bool) -> None:
    """Send the package's log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Format())
    log = logging.getLogger("tortoise_rt")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)


class _Format(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"{record.levelname.capitalize()}: " if record.levelno >= logging.WARNING else ""
        return prefix + record.getMessage()


def introduce(engine: Engine, named: bool, does: str) -> None:
    """One line about an engine: that it is the demo engine where none was named, or its own notice.

    ``does``: what it is used for, e.g. "speaks (voice alto)".
    """
    if not named and engine.info.backend != "fake":
        click.echo(
            f"No engine named: the demo engine {does}, {engine.info.notice}. "
            "For TorToiSe itself: tortoise-rt fetch, then export (see README)",
            err=True,
        )
    elif engine.info.notice:
        click.echo(f"Note: {engine.info.notice}", err=True)
