"""The OpenAPI document, from the same tables by which requests are checked."""

from __future__ import annotations

from collections.abc import Mapping

from .._version import __version__
from .fields import MODELS, SPEECH
from .openapi_jobs import JOB_PATHS, JOB_SHOWN
from .openapi_parts import (
    DELETED,
    ERROR,
    MODEL,
    NAME,
    VOICE,
    Schema,
    answer,
    failures,
    getting,
    list_of,
    nullable,
    probing,
    ref,
)
from .service import Service

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
                            "application/json": {"schema": ref("Speech"), "examples": EXAMPLES},
                        },
                    },
                    "responses": {
                        "200": {"description": "Sound, or events with it.", "content": _SOUND},
                        **failures(*wrong, 422, 429, 499, 503, 504),
                    },
                }
            },
            "/v1/audio/voices": {
                "get": getting("voices", "The voices that there are.", list_of("Voice")),
                "post": {
                    "operationId": "create_voice",
                    "summary": "Make a voice of clips: 3 to 5 of about 10 s, one speaker, no music.",
                    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}},
                    "responses": {
                        "201": answer("The voice.", ref("Voice")),
                        **failures(*wrong, 409, 429, 507),
                    },
                },
            },
            "/v1/audio/voices/{name}": {
                "delete": {
                    "operationId": "delete_voice",
                    "summary": "Remove a voice that was made here.",
                    "parameters": [_NAMED],
                    "responses": {"200": answer("It is gone.", DELETED), **failures(401, 403, 404)},
                }
            },
            "/v1/models": {"get": getting("models", "The models' names.", list_of("Model"))},
            "/v1/models/{name}": {
                "get": {
                    **getting("model", "One model.", ref("Model"), 404),
                    "parameters": [{**_NAMED, "schema": {"type": "string", "enum": [*MODELS]}}],
                }
            },
            **jobs,
            "/healthz": {"get": probing("healthz", "Whether the process lives.")},
            "/readyz": {"get": probing("readyz", "Whether it takes requests: warm, and not stopping.", 503)},
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Counters for Prometheus.",
                    "responses": {
                        "200": {
                            "description": "Text.",
                            "content": {"text/plain": {"schema": {"type": "string"}}},
                        },
                        **failures(401, 403),
                    },
                }
            },
        },
    }


def _limited(service: Service) -> Mapping[str, Schema]:
    """The fields of speech, with what this server takes at most."""
    text = {**SPEECH["input"], "maxLength": service.limits.text}
    return {name: nullable(schema) for name, schema in {**SPEECH, "input": text}.items()}


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
