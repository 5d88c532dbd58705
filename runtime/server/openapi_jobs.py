"""Jobs in the OpenAPI document."""

from __future__ import annotations

from .job_fields import JOB
from .openapi_parts import DELETED, Schema, answer, failures, getting, list_of, nullable, ref

JOB_SHOWN: Schema = {
    "type": "object",
    "required": ["id", "object", "name", "status", "created", "clips", "seed", "error", "files"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "job"},
        "name": {"type": "string"},
        "status": {"enum": ["waiting", "running", "done", "failed", "cancelled"]},
        "created": {"type": "number"},
        "clips": {"type": "object"},
        "seed": {"type": "integer"},
        "error": {"type": ["string", "null"]},
        "files": {"type": "array", "items": {"type": "object"}},
    },
}
_ID: Schema = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
}
_JOB_FORM: Schema = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "A .txt, .md or .epub file."},
        "request": {"type": "string", "description": "The other fields, as JSON."},
    },
}
_JOB_BODY: Schema = {
    "type": "object",
    "required": ["input"],
    "additionalProperties": False,
    "properties": {name: nullable(schema) for name, schema in JOB.items()},
}
_EXAMPLES: Schema = {
    "story": {
        "value": {
            "input": "Once upon a time there was a boat.\n\nIt went out, and it came back.",
            "voice": "alto",
            "subtitles": "srt",
        }
    }
}
JOB_PATHS: Schema = {
    "/v1/jobs": {
        "get": getting("jobs", "Your jobs, the latest first.", list_of("Job")),
        "post": {
            "operationId": "create_job",
            "summary": "Have a long text read.",
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": _JOB_BODY, "examples": _EXAMPLES},
                    "multipart/form-data": {"schema": _JOB_FORM},
                },
            },
            "responses": {
                "202": answer("It waits, or runs.", ref("Job")),
                **failures(400, 401, 403, 408, 409, 413, 422, 429, 501),
            },
        },
    },
    "/v1/jobs/{id}": {
        "get": {**getting("job", "How far a job is.", ref("Job"), 404), "parameters": [_ID]},
        "delete": {
            **getting("delete_job", "Forget a job, with its files.", DELETED, 404),
            "parameters": [_ID],
        },
    },
    "/v1/jobs/{id}/cancel": {
        "post": {**getting("cancel_job", "Give a job up.", ref("Job"), 404), "parameters": [_ID]}
    },
    "/v1/jobs/{id}/files/{name}": {
        "get": {
            "operationId": "job_file",
            "summary": "A file of a job that is done.",
            "parameters": [
                _ID,
                {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}},
            ],
            "responses": {
                "200": {
                    "description": "The file.",
                    "content": {
                        media: {}
                        for media in (
                            "audio/x-wav",
                            "audio/flac",
                            "audio/ogg",
                            "audio/mpeg",
                            "text/vtt",
                            "application/x-subrip",
                        )
                    },
                },
                **failures(401, 403, 404),
            },
        }
    },
}
