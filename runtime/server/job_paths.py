"""Jobs over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from ..errors import InputError, TextError
from .fields import parse_json
from .job_store import Job
from .jobs import Jobs


def _jobs(request: Request) -> tuple[Jobs, str]:
    """The jobs, and who asks."""
    state = request.app.state
    return state.jobs, request.scope["state"]["who"] if state.keys else ""


def _shown(job: Job) -> dict[str, Any]:
    files = [{**file, "url": f"/v1/jobs/{job.id}/files/{file['name']}"} for file in job.files]
    body = parse_json(job.body)
    return {
        "id": job.id,
        "object": "job",
        "name": body.get("name", "text"),
        "status": job.status,
        "created": job.created,
        "clips": {"made": job.made, "total": job.total, "doubtful": job.doubtful},
        "seed": body["seed"],
        "error": job.error or None,
        "files": files,
    }


async def submit(request: Request) -> Response:
    jobs, who = _jobs(request)
    with request.app.state.service.uploads.enter(request.scope["state"]["who"]):
        body, text, suffix = await _sent(request)
        job = await run_sync(jobs.submit, who, body, text, suffix)
    return JSONResponse(_shown(job), 202, {"Location": f"/v1/jobs/{job.id}"})


async def _sent(request: Request) -> tuple[dict[str, Any], bytes, str]:
    """-> (a job's fields, its text, the suffix of the text's name)."""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with request.form(max_files=1, max_fields=1) as form:
            file, said = form.get("file"), form.get("request") or "{}"
            if file is None or isinstance(file, str) or not isinstance(said, str):
                raise InputError("a form needs a file, and may have a request: its other fields as JSON")
            body, suffix = parse_json(said, "request"), Path(file.filename or "").suffix.lower()
            text = await file.read()
            body.setdefault("name", (file.filename or "text")[:200] or "text")
        if "input" in body:
            raise InputError("a text is sent as a file or as input, not as both")
        return body, text, suffix
    body = parse_json(await request.body())
    if not isinstance(body.get("input"), str):
        raise TextError("a job needs its text: as input, or as a file in a form")
    try:
        return body, body["input"].encode(), ".txt"
    except UnicodeError:
        raise TextError("input has half a surrogate pair in it: send valid Unicode") from None


async def listed(request: Request) -> Response:
    jobs, who = _jobs(request)
    found = await run_sync(jobs.store.of, who)
    return JSONResponse({"object": "list", "data": [_shown(job) for job in found]})


async def one(request: Request) -> Response:
    jobs, who = _jobs(request)
    return JSONResponse(_shown(await run_sync(jobs.get, who, request.path_params["id"])))


async def cancel(request: Request) -> Response:
    jobs, who = _jobs(request)
    return JSONResponse(_shown(await run_sync(jobs.cancel, who, request.path_params["id"])))


async def remove(request: Request) -> Response:
    jobs, who = _jobs(request)
    number = request.path_params["id"]
    await run_sync(jobs.remove, who, number)
    return JSONResponse({"id": number, "object": "job", "deleted": True})


async def file(request: Request) -> Response:
    jobs, who = _jobs(request)
    path = await run_sync(jobs.file, who, request.path_params["id"], request.path_params["name"])
    return FileResponse(path, filename=path.name)


JOB_ROUTES = [
    Route("/v1/jobs", submit, methods=["POST"]),
    Route("/v1/jobs", listed, methods=["GET"]),
    Route("/v1/jobs/{id}", one, methods=["GET"]),
    Route("/v1/jobs/{id}", remove, methods=["DELETE"]),
    Route("/v1/jobs/{id}/cancel", cancel, methods=["POST"]),
    Route("/v1/jobs/{id}/files/{name}", file, methods=["GET"]),
]
