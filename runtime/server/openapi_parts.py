"""What the OpenAPI document is made of."""

from __future__ import annotations

from typing import Any

from ..voice_store import MAX_NAME

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


def nullable(schema: Schema) -> Schema:
    """A field that is null is left out; the text is not."""
    if "oneOf" in schema:
        return {**schema, "oneOf": [*schema["oneOf"], {"type": "null"}]}
    if "maxLength" in schema and "minLength" in schema:
        return schema
    kind = {**schema, "type": [schema["type"], "null"]}
    return {**kind, "enum": [*schema["enum"], None]} if "enum" in schema else kind


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def answer(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def failures(*statuses: int) -> Schema:
    return {str(status): answer(_MEANINGS.get(status, "It failed."), ref("Error")) for status in statuses}


def list_of(name: str) -> Schema:
    items = {"type": "array", "items": ref(name)}
    return {
        "type": "object",
        "required": ["data"],
        "properties": {"object": {"const": "list"}, "data": items},
    }


def getting(name: str, summary: str, schema: Schema, *errors: int) -> Schema:
    answers = {"200": answer(summary, schema), **failures(401, 403, *errors)}
    return {"operationId": name, "summary": summary, "responses": answers}


def probing(name: str, summary: str, *errors: int) -> Schema:
    answers = {str(status): answer(summary, STATUS) for status in (200, *errors)}
    return {
        "operationId": name,
        "summary": summary,
        "security": [],
        "responses": {**answers, **failures(403)},
    }
