"""The command ``tortoise-rt``. Commands import what they need when they run, so that ``--help`` is quick."""

from __future__ import annotations

import contextlib
import signal
import sys

import click

from .._version import __version__
from ..errors import TortoiseError
from .bench import bench
from .capi import capi
from .detect import detect
from .doctor import doctor
from .export import export
from .fetch import fetch
from .read import read
from .replay import replay
from .say import say
from .serve import serve
from .triton import triton
from .verify import verify
from .voices import voices

DEBUG_VARIABLE = "TORTOISE_RT_DEBUG"


class Failure(click.ClickException):
    """An error that the user can do something about: one line, exit code 2."""

    exit_code = 2


def _terminate(number: int, frame: object) -> None:
    """Leave by an exception, so that unfinished files are removed."""
    sys.exit(128 + number)


class Commands(click.Group):
    """Turns errors raised on purpose into one line, and an interruption into exit code 130."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            with contextlib.suppress(ValueError):  # only the main thread takes signals
                signal.signal(signal.SIGTERM, _terminate)
            return super().invoke(ctx)
        except TortoiseError as error:
            if ctx.params["debug"]:
                raise
            raise Failure(" ".join(str(error).split())) from error
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            ctx.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tortoise-rt")
@click.option(
    "--debug", is_flag=True, envvar=DEBUG_VARIABLE, help=f"Show tracebacks (or set {DEBUG_VARIABLE}=1)."
)
def main(debug: bool) -> None:
    """Speech from text with TorToiSe models, on compiled engines.

    Start with: tortoise-rt say "Hello there." -o hello.wav
    """


for command in (say, read, serve, fetch, export, verify, voices, detect, replay, bench, capi, triton, doctor):
    main.add_command(command)
