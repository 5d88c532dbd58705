"""The HTTP side: paths, and what they answer."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route, WebSocketRoute

from .._version import __version__
from ..errors import InputError, Refused, TortoiseError
from . import voices
from .answers import answer_error
from .fields import MODELS, parse_json, parse_speech
from .guard import Guard
from .job_paths import JOB_ROUTES
from .jobs import Jobs
from .limits import Keys
from .live import live
from .metrics import CONTENT_TYPE
from .openapi import document
from .service import Service
from .sound import SoundResponse

PAGE = Path(__file__).with_name("page.html")
#: the page is one file, and has sound of its own making alone
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; media-src blob:; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def speech(request: Request) -> Response:
    service: Service = request.app.state.service
    body = parse_json(await request.body())
    wish = parse_speech(body, service.limits.text)
    who = request.scope["state"]["who"]
    return SoundResponse(service, service.speech(wish, who), request.app.state.threads)


async def list_models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_model(name) for name in MODELS]})


async def one_model(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in MODELS:
        raise Refused(f"there is no model {name[:80]!r}: there are {', '.join(MODELS)}", 404)
    return JSONResponse(_model(name))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tortoise-rt", "root": MODELS[name]}


async def list_voices(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": await run_sync(voices.listed, request.app.state.service)})


async def create_voice(request: Request) -> Response:
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise InputError("a voice is sent as multipart/form-data: a field name, and its clips as files")
    with request.app.state.service.uploads.enter(request.scope["state"]["who"]):
        async with request.form(max_files=voices.MOST_FILES, max_fields=20) as form:
            name = form.get("name")
            if not isinstance(name, str):
                raise InputError("a voice needs a name: the form's field name")
            files = [part for _, part in form.multi_items() if not isinstance(part, str)]
            made = await run_sync(voices.create, name, files)
    return JSONResponse(made, 201)


async def delete_voice(request: Request) -> Response:
    name = request.path_params["name"]
    await run_sync(voices.delete, request.app.state.service, name)
    return JSONResponse({"id": name, "object": "voice", "deleted": True})


async def healthz(request: Request) -> Response:
    return JSONResponse({"status": "ok", "version": __version__})


async def readyz(request: Request) -> Response:
    service: Service = request.app.state.service
    state = "stopping" if service.gate.closed else "ready" if service.ready else "warming up"
    return JSONResponse({"status": state}, 200 if state == "ready" else 503)


async def metrics(request: Request) -> Response:
    return Response(request.app.state.service.metrics.text(), headers={"content-type": CONTENT_TYPE})


async def openapi(request: Request) -> Response:
    state = request.app.state
    return JSONResponse(document(state.service, with_jobs=state.jobs is not None))


async def page(request: Request) -> Response:
    return FileResponse(PAGE, headers={"content-security-policy": PAGE_POLICY, "cache-control": "no-cache"})


ROUTES = [
    Route("/v1/audio/speech", speech, methods=["POST"]),
    WebSocketRoute("/v1/audio/speech/live", live),
    Route("/v1/audio/voices", list_voices, methods=["GET"]),
    Route("/v1/audio/voices", create_voice, methods=["POST"]),
    Route("/v1/audio/voices/{name}", delete_voice, methods=["DELETE"]),
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/{name}", one_model, methods=["GET"]),
    Route("/healthz", healthz, methods=["GET"]),
    Route("/readyz", readyz, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
    Route("/openapi.json", openapi, methods=["GET"]),
    Route("/", page, methods=["GET"]),
]


def make_app(
    service: Service,
    keys: Keys | None = None,
    jobs: Jobs | None = None,
    wyoming: socket.socket | None = None,
    *,
    origins: Collection[str] = (),
    hosts: Collection[str] | None = None,
    local: bool = False,
) -> Starlette:
    """The ASGI application. ``origins``: of other sites whose pages may use it; ``hosts``: names that it may be called by;
    ``local``: only from this machine, whatever it listens on; ``wyoming``: a socket that listens, for Wyoming beside it.
    """
    keys = keys or Keys({})

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.threads = anyio.CapacityLimiter(service.limits.queue + 8)
        async with contextlib.AsyncExitStack() as held:
            if wyoming is not None:
                from .wyoming import serve_wyoming

                await held.enter_async_context(serve_wyoming(service, app.state.threads, wyoming))
            yield
            service.give_up()
        if jobs is not None:
            await run_sync(jobs.close)
        await run_sync(service.close)

    guards = [
        Middleware(Guard, service=service, keys=keys, origins=frozenset(origins), hosts=hosts, local=local)
    ]
    if origins:
        allowed = Middleware(
            CORSMiddleware,
            allow_origins=[*origins],
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-seed", "x-request-id", "x-first-audio-seconds", "retry-after"],
        )
        guards.insert(0, allowed)
    paths = ROUTES if jobs is None else [*ROUTES, *JOB_ROUTES]
    app = Starlette(routes=paths, middleware=guards, lifespan=lifespan)
    for kind in (HTTPException, TortoiseError):
        app.add_exception_handler(kind, answer_error)
    app.router.redirect_slashes = False
    app.state.service, app.state.keys, app.state.jobs = service, keys, jobs
    return app
