"""``tortoise-rt serve``: speech over HTTP."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import MissingDependency, SettingsError
from . import options

KEYS_VARIABLE = "TORTOISE_RT_API_KEYS"


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on. Any but a loopback one lets other machines in: have keys then.",
)
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="0 is a free one, which is printed.",
)
@click.option(
    "--api-keys",
    type=click.Path(path_type=Path),
    envvar=KEYS_VARIABLE,
    metavar="FILE",
    help=f"Who may ask: a name and a key on each line. [default: ${KEYS_VARIABLE}, else anyone who can connect]",
)
@click.option(
    "--wyoming",
    "wyoming_port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Speak Wyoming as well, Home Assistant's protocol, on this port of --host. It knows no keys.",
)
@click.option(
    "--queue", type=int, metavar="N", help="Requests in flight; more are told to wait. [default: 32]"
)
@click.option("--per-key", type=int, metavar="N", help="Of them, of one key (or address). [default: 16]")
@click.option("--per-minute", type=int, metavar="N", help="Requests of one key (or address). [default: 600]")
@click.option("--max-text", type=int, metavar="N", help="Characters of a request. [default: 20000]")
@click.option("--max-upload", type=int, metavar="MB", help="Of a voice's clips together. [default: 64]")
@click.option(
    "--timeout",
    type=float,
    metavar="S",
    help="Seconds that a request may take, beside twice those of its sound. [default: 600]",
)
@click.option(
    "--drain",
    type=float,
    default=120.0,
    show_default=True,
    metavar="S",
    help="Seconds that what speaks has to finish in when the server is stopped.",
)
@click.option(
    "--rows",
    type=int,
    default=16,
    show_default=True,
    metavar="N",
    help="Samples that are drawn side by side.",
)
@click.option("--strict", is_flag=True, help="Sound is the same to the bit whatever else is asked; slower.")
@click.option(
    "--allow-origin",
    "origins",
    multiple=True,
    metavar="URL",
    help="Let pages of another site use the server, as https://example.org; may be given several times.",
)
@click.option(
    "--jobs",
    "jobs_folder",
    type=options.FOLDER,
    metavar="DIR",
    help="Take long texts as jobs, which are kept there, and go on when the server is started again.",
)
@options.engine_options
@options.tokenizer_option
@options.voices_option
@click.option("-q", "--quiet", is_flag=True, help="Log warnings and errors only.")
def serve(
    host: str,
    port: int,
    api_keys: Path | None,
    wyoming_port: int | None,
    queue: int | None,
    per_key: int | None,
    per_minute: int | None,
    max_text: int | None,
    max_upload: int | None,
    timeout: float | None,
    drain: float,
    rows: int,
    strict: bool,
    origins: tuple[str, ...],
    jobs_folder: Path | None,
    engine: Path | None,
    checkpoints: Path | None,
    backend: str,
    device: str,
    precision: str | None,
    tokenizer: Path | None,
    voice_dirs: tuple[Path, ...],
    quiet: bool,
) -> None:
    """Speak for others: OpenAI's API for speech over HTTP, a WebSocket for text that is still being written, a page.

    \b
    tortoise-rt serve
    curl http://127.0.0.1:8000/v1/audio/speech -H 'Content-Type: application/json' \\
        -d '{"input": "Hello there.", "voice": "alto"}' -o hello.mp3

    It listens on this machine alone unless --host says otherwise, logs lines of JSON to standard error, and when it is
    stopped (SIGTERM, Ctrl-C) lets what speaks finish. What it understands is at /openapi.json.
    """
    try:
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401

        if wyoming_port is not None:
            import wyoming  # noqa: F401
    except ImportError as error:
        raise MissingDependency(f"{error.name} is not installed: pip install 'tortoise-rt[serve]'") from None

    from ..config import check_number
    from ..server.app import make_app
    from ..server.guard import is_loopback
    from ..server.jobs import Jobs
    from ..server.limits import Keys, Limits
    from ..server.logs import set_up_log
    from ..server.run import Server, listen
    from ..server.service import Service
    from ..tts import choose_engine, choose_tokenizer
    from ..voice import check_folders

    check_number("drain", drain, 0, 86_400)
    if max_upload is not None:
        max_upload <<= 20
    given = {
        "queue": queue, "each": per_key, "per_minute": per_minute, "text": max_text, "upload_bytes": max_upload,
        "timeout": timeout,
    }  # fmt: skip
    limits = Limits(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    keys = None if api_keys is None else Keys.read(api_keys)
    for origin in origins:
        if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
            raise SettingsError(f"the origin {origin} must be a scheme and a host, as https://example.org")
    folders = check_folders(voice_dirs)
    bound = listen(host, port)
    beside = None if wyoming_port is None else listen(host, wyoming_port)
    local = is_loopback(host)
    opened = choose_engine(engine, checkpoints, backend, device, precision)
    options.introduce(opened, bool(engine or checkpoints), "speaks")
    service = Service(
        opened, choose_tokenizer(opened, tokenizer), limits, rows=rows, strict=strict, voice_dirs=folders
    )
    jobs = None if jobs_folder is None else Jobs(service, jobs_folder)
    set_up_log(quiet)
    hosts = {"localhost", "127.0.0.1", "::1", host.lower()} if local else None
    app = make_app(service, keys, jobs, beside, origins=origins, hosts=hosts)
    address = f"[{host}]" if ":" in host else host
    click.echo(f"Listening on http://{address}:{bound.getsockname()[1]}", err=True)
    if beside is not None:
        click.echo(f"Listening on tcp://{address}:{beside.getsockname()[1]} (Wyoming)", err=True)
    if not local and (keys is None or beside is not None):
        what = (
            "use it: name keys with --api-keys" if keys is None else "speak by Wyoming, which knows no keys"
        )
        click.echo(f"Warning: whoever reaches this machine may {what}", err=True)
    server = Server(app, service, drain)
    server.run([bound])
    if server.failed:
        click.get_current_context().exit(2)
