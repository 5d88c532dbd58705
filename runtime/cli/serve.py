"""``tortoise-rt serve``: speech over HTTP."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import MissingDependency
from . import options, service_options


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
@service_options.keys_option
@click.option(
    "--wyoming",
    "wyoming_port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Speak Wyoming as well, Home Assistant's protocol, on this port of --host. It knows no keys.",
)
@service_options.limit_options
@service_options.scheduler_options
@service_options.origins_option
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

    from ..server.app import make_app
    from ..server.guard import is_loopback
    from ..server.jobs import Jobs
    from ..server.logs import set_up_log
    from ..server.memory import keep_memory_together
    from ..server.run import Server, listen
    from ..server.service import Service
    from ..tts import choose_engine, choose_tokenizer
    from ..voice import check_folders

    keep_memory_together()
    limits = service_options.limits_of(queue, per_key, per_minute, max_text, max_upload, timeout, drain)
    keys = service_options.keys_of(api_keys)
    service_options.check_origins(origins)
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
