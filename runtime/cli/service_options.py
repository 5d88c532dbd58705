"""Options of whatever serves, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import SettingsError
from .options import apply

if TYPE_CHECKING:
    from ..server.limits import Keys, Limits

KEYS_VARIABLE = "TORTOISE_RT_API_KEYS"

keys_option = click.option(
    "--api-keys",
    type=click.Path(path_type=Path),
    envvar=KEYS_VARIABLE,
    metavar="FILE",
    help=f"Who may ask: a name and a key on each line. [default: ${KEYS_VARIABLE}, else anyone who can connect]",
)

limit_options = apply(
    [
        click.option(
            "--queue", type=int, metavar="N", help="Requests in flight; more are told to wait. [default: 32]"
        ),
        click.option(
            "--per-key", type=int, metavar="N", help="Of them, of one key (or address). [default: 16]"
        ),
        click.option(
            "--per-minute", type=int, metavar="N", help="Requests of one key (or address). [default: 600]"
        ),
        click.option("--max-text", type=int, metavar="N", help="Characters of a request. [default: 20000]"),
        click.option(
            "--max-upload", type=int, metavar="MB", help="Of a voice's clips together. [default: 64]"
        ),
        click.option(
            "--timeout",
            type=float,
            metavar="S",
            help="Seconds that a request may take, beside twice those of its sound. [default: 600]",
        ),
        click.option(
            "--drain",
            type=float,
            default=120.0,
            show_default=True,
            metavar="S",
            help="Seconds that what speaks has to finish in when the server is stopped.",
        ),
    ]
)

scheduler_options = apply(
    [
        click.option(
            "--rows",
            type=int,
            default=16,
            show_default=True,
            metavar="N",
            help="Samples that are drawn side by side.",
        ),
        click.option(
            "--strict", is_flag=True, help="Sound is the same to the bit whatever else is asked; slower."
        ),
    ]
)

origins_option = click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="URL",
    help="Let pages of another site use the server, as https://example.org; may be given several times.",
)


def limits_of(
    queue: int | None,
    per_key: int | None,
    per_minute: int | None,
    max_text: int | None,
    max_upload: int | None,
    timeout: float | None,
    drain: float,
) -> Limits:
    """What the limits' options say; raises SettingsError for values out of range, ``drain`` included."""
    from ..config import check_number
    from ..server.limits import Limits

    check_number("drain", drain, 0, 86_400)
    if max_upload is not None:
        max_upload <<= 20
    given: dict[str, Any] = {
        "queue": queue, "each": per_key, "per_minute": per_minute, "text": max_text, "upload_bytes": max_upload,
        "timeout": timeout,
    }  # fmt: skip
    return Limits(**{name: value for name, value in given.items() if value is not None})


def keys_of(path: Path | None) -> Keys | None:
    """The keys in a file; None without one."""
    from ..server.limits import Keys

    return None if path is None else Keys.read(path)


def check_origins(origins: Sequence[str]) -> None:
    for origin in origins:
        if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
            raise SettingsError(f"the origin {origin} must be a scheme and a host, as https://example.org")
