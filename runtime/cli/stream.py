"""``tortoise-rt say --stream``: sound while it is made."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OutputError, TextError

if TYPE_CHECKING:
    from ..engine import Engine
    from ..reading import Reader
    from ..sinks import Sink

READ_BYTES = 4096
BROKEN_PIPE = 141  #: exit code of programs whose reader has gone: 128 + SIGPIPE


def arriving_text() -> Iterator[str]:
    """Standard input as it comes."""
    if sys.stdin is None:
        raise TextError("standard input is closed: give the text, or a pipe that has it")
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        while data := os.read(sys.stdin.fileno(), READ_BYTES):
            yield decoder.decode(data)
        yield decoder.decode(b"", final=True)
    except UnicodeError as error:
        raise TextError(f"standard input is not valid UTF-8 ({error}): convert it") from None


def stream_options(function: Any) -> Any:
    """Options of ``say`` that are about streams."""
    for option in (
        click.option(
            "--stream",
            is_flag=True,
            help="Give sound while it is made, sentence by sentence, for texts of any length: play it, or with -o FILE "
            "or -o - write it. By hifigan and one sample unless a setting says otherwise. TEXT - is read as it comes.",
        ),
        click.option("--raw", is_flag=True, help="With -o -: 16-bit samples at 24 kHz without a wav header."),
        click.option(
            "--chunk",
            type=int,
            metavar="N",
            help="Of a stream: codes (46 ms each) that a piece waits for; 0 is a sentence. [default: as many as there is "
            "sound in hand for]",
        ),
        click.option(
            "--first-chunk",
            type=int,
            metavar="N",
            help="Of a stream: codes that the first piece waits for. [default: 8, or --chunk]",
        ),
        click.option(
            "--pause", type=float, metavar="S", help="Of a stream: seconds between sentences. [default: 0.25]"
        ),
    ):
        function = option(function)
    return function


def write_stream(
    text: str | Iterator[str],
    reader: Reader,
    sink: Sink,
    output: Path | None,
    *,
    as_json: bool,
    quiet: bool,
    seed: int,
) -> None:
    """Read ``text`` into ``sink``, which is where ``output`` says, and report."""
    try:
        with sink:
            pieces = reader.read(text)
            try:
                for piece in pieces:
                    sink.write(piece.wav)
                    if piece.first and not quiet and sys.stderr.isatty():
                        click.echo(f"{piece.sentence + 1}: {piece.text}", err=True)
            finally:
                pieces.close()
    except BrokenPipeError:
        click.echo("Whoever read the sound has gone: stopped.", err=True)
        sys.exit(BROKEN_PIPE)
    pace = reader.pace
    name = "played" if output is None else "standard output" if str(output) == "-" else str(output)
    if as_json:
        made = {"output": name, "seed": seed, "complete": reader.complete, "first_s": round(pace.first, 3),
                "audio_seconds": round(pace.sound, 3), "seconds": round(pace.spent, 3),
                "real_time_factor": round(pace.factor, 3), "longest_gap_s": round(pace.gap, 3)}  # fmt: skip
        click.echo(json.dumps(made), err=str(output) == "-")
    elif not quiet:
        click.echo(f"{name}: {pace.report()}, seed {seed}", err=str(output) == "-")


def check_stream_options(stream: bool, output: Path | None, raw: bool, **values: float | None) -> None:
    """Raise an OutputError for options of a stream where none is asked for, or of a pipe where there is none."""
    if raw and str(output) != "-":
        raise OutputError("--raw is for standard output: -o -")
    for name, value in values.items():
        if value is not None and not stream:
            raise OutputError(f"--{name.replace('_', '-')} is for a stream: add --stream")


def stream_settings(engine: Engine, preset: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by which a stream is quick, where neither a preset nor a setting says otherwise."""
    if settings.get("k") not in (1, None):
        raise OutputError("a stream is one clip: leave --candidates out")
    chosen = dict(settings)
    if preset is None and engine.has("hifigan"):
        chosen["decoder"] = chosen.get("decoder") or "hifigan"
    if preset is None and chosen.get("decoder") == "hifigan":
        chosen["num_autoregressive_samples"] = chosen.get("num_autoregressive_samples") or 1
    return chosen
