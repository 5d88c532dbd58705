"""The OpenAPI document, from the same tables by which requests are checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._version import __version__
from ..voice_store import MAX_NAME
from .fields import JOB, MODELS, SPEECH
from .service import Service

Schema = dict[str, Any]
NAME: Schema = {"type": "string", "minLength": 1, "maxLength": MAX_NAME}
ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
VOICE: Schema = {
    "type": "object",
    "required": ["id", "name", "object", "deletable"],
    "properties": {
        "id": {"type": "string"},
        "name": {"type": "string"},
        "object": {"const": "voice"},
        "deletable": {"type": "boolean"},
    },
}
MODEL: Schema = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
        "root": {"type": "string"},
    },
}
DELETED: Schema = {"type": "object", "properties": {"id": {"type": "string"}, "deleted": {"const": True}}}
STATUS: Schema = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}
EXAMPLES = {
    "plain": {"value": {"model": "tts-1", "input": "Hello there.", "voice": "alto"}},
    "settings": {
        "value": {
            "model": "tortoise",
            "input": "Hello there. How are you today?",
            "voice": "tenor",
            "response_format": "wav",
            "seed": 7,
            "temperature": 0.6,
        }
    },
    "events": {
        "value": {"input": "Hello there.", "voice": "alto", "response_format": "pcm", "stream_format": "sse"}
    },
}
_MEANINGS = {
    400: "A field is wrong; the message says which and how.",
    401: "No key, or one that is none.",
    403: "Not allowed from there.",
    404: "There is none of this name.",
    408: "The body did not come in time.",
    409: "There is one of this name.",
    413: "The body is too large.",
    422: "The engine cannot do this.",
    429: "Too much is in flight; Retry-After says for how long to wait.",
    499: "The request was given up.",
    503: "The server is stopping.",
    504: "Not done within the time.",
}


def document(service: Service, with_jobs: bool = False) -> Schema:
    """Version 3.1."""
    jobs = JOB_PATHS if with_jobs else {}
    speech = {
        "type": "object",
        "required": ["input"],
        "additionalProperties": False,
        "properties": _limited(service),
    }
    wrong = (400, 401, 403, 408, 413)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tortoise-rt",
            "version": __version__,
            "description": "Speech from text, by OpenAI's API and with fields of our own. Text that is still being written "
            "is spoken over a WebSocket, /v1/audio/speech/live.",
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": ERROR, "Voice": VOICE, "Model": MODEL, "Speech": speech, "Job": JOB_SHOWN},
        },
        "security": [{"key": []}],
        "paths": {
            "/v1/audio/speech": {
                "post": {
                    "operationId": "speech",
                    "summary": "Say a text; the sound is sent as it is made.",
                    "requestBody": {
                        "required": True,
                        "content": {
                            "application/json": {"schema": _ref("Speech"), "examples": EXAMPLES},
                        },
                    },
                    "responses": {
                        "200": {"description": "Sound, or events with it.", "content": _SOUND},
                        **_errors(*wrong, 422, 429, 499, 503, 504),
                    },
                }
            },
            "/v1/audio/voices": {
                "get": _get("voices", "The voices that there are.", _list("Voice")),
                "post": {
                    "operationId": "create_voice",
                    "summary": "Make a voice of clips: 3 to 5 of about 10 s, one speaker, no music.",
                    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}},
                    "responses": {"201": _json("The voice.", _ref("Voice")), **_errors(*wrong, 409, 507)},
                },
            },
            "/v1/audio/voices/{name}": {
                "delete": {
                    "operationId": "delete_voice",
                    "summary": "Remove a voice that was made here.",
                    "parameters": [_NAMED],
                    "responses": {"200": _json("It is gone.", DELETED), **_errors(401, 403, 404)},
                }
            },
            "/v1/models": {"get": _get("models", "The models' names.", _list("Model"))},
            "/v1/models/{name}": {
                "get": {
                    **_get("model", "One model.", _ref("Model"), 404),
                    "parameters": [{**_NAMED, "schema": {"type": "string", "enum": [*MODELS]}}],
                }
            },
            **jobs,
            "/healthz": {"get": _open("healthz", "Whether the process lives.")},
            "/readyz": {"get": _open("readyz", "Whether it takes requests: warm, and not stopping.", 503)},
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Counters for Prometheus.",
                    "responses": {
                        "200": {
                            "description": "Text.",
                            "content": {"text/plain": {"schema": {"type": "string"}}},
                        },
                        **_errors(401, 403),
                    },
                }
            },
        },
    }


def _limited(service: Service) -> Mapping[str, Schema]:
    """The fields of speech, with what this server takes at most."""
    text = {**SPEECH["input"], "maxLength": service.limits.text}
    return {name: _nullable(schema) for name, schema in {**SPEECH, "input": text}.items()}


def _nullable(schema: Schema) -> Schema:
    """A field that is null is left out; the text is not."""
    if "oneOf" in schema:
        return {**schema, "oneOf": [*schema["oneOf"], {"type": "null"}]}
    if "maxLength" in schema and "minLength" in schema:
        return schema
    kind = {**schema, "type": [schema["type"], "null"]}
    return {**kind, "enum": [*schema["enum"], None]} if "enum" in schema else kind


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _errors(*statuses: int) -> Schema:
    return {str(status): _json(_MEANINGS.get(status, "It failed."), _ref("Error")) for status in statuses}


def _list(name: str) -> Schema:
    items = {"type": "array", "items": _ref(name)}
    return {
        "type": "object",
        "required": ["data"],
        "properties": {"object": {"const": "list"}, "data": items},
    }


def _get(name: str, summary: str, schema: Schema, *errors: int) -> Schema:
    answers = {"200": _json(summary, schema), **_errors(401, 403, *errors)}
    return {"operationId": name, "summary": summary, "responses": answers}


def _open(name: str, summary: str, *errors: int) -> Schema:
    answers = {str(status): _json(summary, STATUS) for status in (200, *errors)}
    return {"operationId": name, "summary": summary, "security": [], "responses": {**answers, **_errors(403)}}


_FORM: Schema = {
    "type": "object",
    "required": ["name", "files"],
    "properties": {
        "name": {**NAME, "description": "What the voice is called."},
        "files": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string", "format": "binary"},
            "description": "Clips (wav, flac, ogg, opus, mp3, aiff), or one file of latents (safetensors, pth).",
        },
    },
}
_NAMED: Schema = {"name": "name", "in": "path", "required": True, "schema": NAME}
_SOUND: Schema = {
    media: {"schema": {"type": "string", "format": "binary"}}
    for media in ("audio/mpeg", "audio/ogg", "audio/flac", "audio/wav", "audio/pcm")
} | {"text/event-stream": {}}  # events of JSON, which 3.1 cannot describe

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
    "properties": {name: _nullable(schema) for name, schema in JOB.items()},
}
JOB_PATHS: Schema = {
    "/v1/jobs": {
        "get": _get("jobs", "Your jobs, the latest first.", _list("Job")),
        "post": {
            "operationId": "create_job",
            "summary": "Have a long text read.",
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": _JOB_BODY},
                    "multipart/form-data": {"schema": _JOB_FORM},
                },
            },
            "responses": {
                "202": _json("It waits, or runs.", _ref("Job")),
                **_errors(400, 401, 403, 408, 409, 413, 422, 501),
            },
        },
    },
    "/v1/jobs/{id}": {
        "get": {**_get("job", "How far a job is.", _ref("Job"), 404), "parameters": [_ID]},
        "delete": {**_get("delete_job", "Forget a job, with its files.", DELETED, 404), "parameters": [_ID]},
    },
    "/v1/jobs/{id}/cancel": {
        "post": {**_get("cancel_job", "Give a job up.", _ref("Job"), 404), "parameters": [_ID]}
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
                **_errors(401, 403, 404),
            },
        }
    },
}
