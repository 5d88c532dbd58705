"""What is said to the Ray application: options of ``tortoise-rt serve`` by their names, and how many replicas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..cli import options, service_options
from ..config import check_number
from ..errors import SettingsError, suggest
from ..server.limits import MOST_QUEUED, Keys, Limits
from ..voice import check_folders

#: options of ``tortoise-rt serve`` that are not for Ray -> what is
ELSEWHERE: Mapping[str, str] = {
    "host": "Ray's proxy listens: serve start --http-host",
    "port": "Ray's proxy listens: serve start --http-port",
    "jobs": "jobs are kept by one process: have a tortoise-rt serve --jobs for them",
    "wyoming": "Ray passes on HTTP alone: have a tortoise-rt serve --wyoming for it",
    "quiet": "Ray keeps the log: see its logging_config",
}
MOST_REPLICAS = 1000
LIMITS = ("queue", "per_key", "per_minute", "max_text", "max_upload", "timeout")


@dataclass(frozen=True)
class EngineOptions:
    """What each replica opens."""

    engine: Path | None
    checkpoints: Path | None
    backend: str
    device: str
    precision: str | None
    tokenizer: Path | None
    rows: int
    strict: bool

    @property
    def at_once(self) -> int:
        """Sentences that it can draw side by side, one sample of each."""
        return self.rows * len(self.device.split(","))


@dataclass(frozen=True)
class FrontOptions:
    """What is let in."""

    limits: Limits
    keys: Keys | None
    origins: tuple[str, ...]
    voice_dirs: tuple[Path, ...]


@dataclass(frozen=True)
class RayOptions:
    """All of it."""

    engine: EngineOptions
    front: FrontOptions
    replicas: tuple[int, int]  #: at least, at most
    cpus: float  #: of each
    gpus: float
    drain: float  #: seconds


@click.command(add_help_option=False)
@service_options.keys_option
@service_options.limit_options
@service_options.scheduler_options
@service_options.origins_option
@options.engine_options
@options.tokenizer_option
@options.voices_option
@click.option("--replicas", default="1")
@click.option("--cpus", type=float, default=1.0)
@click.option("--gpus", type=float, default=0.0)
def _command(**_: Any) -> None:
    """Never run: it reads options."""


def parse(given: Mapping[str, Any]) -> RayOptions:
    """``given`` as Ray has it: of a command line (``name=value``, all texts) or of a YAML file. Raises SettingsError."""
    try:
        context = _command.make_context("serve run", [*_arguments(given)])
    except click.UsageError as error:
        raise SettingsError(error.format_message()) from None
    found = dict(context.params)
    drain, replicas = found.pop("drain"), _range(found.pop("replicas"))
    cpus, gpus = (check_number(name, found.pop(name), 0, 1024) for name in ("cpus", "gpus"))
    limiting = {name: found.pop(name) for name in LIMITS}
    keys, origins = service_options.keys_of(found.pop("api_keys")), found.pop("origins")
    service_options.check_origins(origins)
    folders = tuple(check_folders(found.pop("voice_dirs")))
    check_number("rows", found["rows"], 1, 1024, integer=True)
    engine = EngineOptions(**found)
    at_most = min(MOST_QUEUED, max(Limits.queue, 2 * replicas[1] * engine.at_once))
    for name in ("queue", "per_key"):  # so that one caller can have all replicas busy
        if limiting[name] is None:
            limiting[name] = at_most
    limits = service_options.limits_of(**limiting, drain=drain)
    return RayOptions(engine, FrontOptions(limits, keys, origins, folders), replicas, cpus, gpus, drain)


def _arguments(given: Mapping[str, Any]) -> Iterator[str]:
    known = {param.opts[0].lstrip("-"): param for param in _command.params}
    for key, value in given.items():
        name = str(key).replace("_", "-")
        if name in ELSEWHERE:
            raise SettingsError(f"{name} is not for Ray: {ELSEWHERE[name]}")
        if name not in known:
            raise SettingsError(f"unknown option {name[:80]!r}. {suggest(name[:80], known)}")
        if getattr(known[name], "is_flag", False):
            if str(value).lower() not in ("true", "false"):
                raise SettingsError(f"{name} is {str(value)[:40]!r}; it must be true or false")
            if str(value).lower() == "true":
                yield f"--{name}"
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            yield f"--{name}={one}"


def _range(text: str) -> tuple[int, int]:
    """ "3" or "1:8" -> at least, at most."""
    low, _, high = text.partition(":")
    try:
        found = int(low), int(high or low)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1] <= MOST_REPLICAS:
        raise SettingsError(
            f"replicas is {text[:40]!r}; it must be a number from 1 to {MOST_REPLICAS}, or two of them as 1:8: "
            "how many there are at least and at most"
        )
    return found
