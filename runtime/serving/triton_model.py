"""The service as a decoupled model of a Triton Inference Server, by its Python backend: a text in, pieces of sound out.

``tortoise-rt triton`` writes the model's folder, whose model.py is a subclass of :class:`Model`. ``execute`` hands each request to
a thread and returns, so requests in flight are drawn side by side, and no answer waits for another.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..cli.options import introduce
from ..errors import Cancelled, InputError, MissingDependency
from ..server.answers import error_object, status_of
from ..server.fields import Wish, parse_json, parse_speech
from ..server.limits import Limits
from ..server.service import Service, Speech
from ..tts import choose_engine, choose_tokenizer
from .triton import ENGINE, KIND_GPU

try:
    import triton_python_backend_utils as pb_utils
except ImportError:
    raise MissingDependency(
        "triton_python_backend_utils is not there: a Triton Inference Server's Python backend brings it, and runs this module"
    ) from None

log = logging.getLogger("tortoise_rt.server")
QUEUE = 256  #: requests in flight
WHO = "triton"


class Model:
    """What the Python backend calls. ``folder``: that of model.py, where a bundle may lie."""

    folder: Path

    def initialize(self, args: Mapping[str, str]) -> None:
        """Opens the engine and says a word. ``args``: as the backend gives them."""
        parameters = json.loads(args["model_config"]).get("parameters", {})
        chosen = {name: value["string_value"] for name, value in parameters.items()}
        bundle = self.folder / ENGINE
        gpu = args["model_instance_kind"] == KIND_GPU
        engine = choose_engine(
            bundle if bundle.is_dir() else None,
            device=f"cuda:{args['model_instance_device_id']}" if gpu else "auto",
        )
        introduce(engine, bundle.is_dir(), "speaks")
        self._service = Service(
            engine,
            choose_tokenizer(engine, None),
            Limits(queue=QUEUE, each=QUEUE, per_minute=10**6),
            rows=int(chosen["rows"]),
            strict=chosen["strict"] == "true",
        )
        self._service.warm_up()
        self._threads: set[threading.Thread] = set()

    def execute(self, requests: Sequence[Any]) -> None:
        """Each is answered by its sender, whenever it is done."""
        self._threads = {thread for thread in self._threads if thread.is_alive()}
        for request in requests:
            sender = request.get_response_sender()
            thread = threading.Thread(target=self._answer, args=(_fields(request), sender), daemon=True)
            self._threads.add(thread)
            thread.start()

    def finalize(self) -> None:
        """Gives up what still speaks."""
        self._service.give_up()
        for thread in self._threads:
            thread.join()
        self._service.close()

    def _answer(self, fields: Mapping[str, Any], sender: Any) -> None:
        try:
            wish = _wish(fields, self._service.limits.text)
            with self._service.speech(wish, WHO) as speech, contextlib.closing(speech.pieces()) as pieces:
                for piece in pieces:
                    if sender.is_cancelled():
                        raise Cancelled("the caller gave the request up")
                    sender.send(_response(speech, piece.wav))
        except Exception as error:  # whatever it is, the caller gets it
            sender.send(pb_utils.InferenceResponse(output_tensors=[], error=_error(error)))
        finally:
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _fields(request: Any) -> dict[str, Any]:
    """Inputs that were given: texts as bytes, the seed as a number."""
    found = {}
    for name in ("text", "voice", "seed", "settings"):
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is not None:
            found[name] = tensor.as_numpy().reshape(-1)[0]
    return found


def _wish(fields: Mapping[str, Any], most_text: int) -> Wish:
    """Raises InputError, which names the field."""
    try:
        texts = {name: value.decode() for name, value in fields.items() if name != "seed"}
    except UnicodeError:
        raise InputError("text, voice and settings must be UTF-8") from None
    body = parse_json(texts.get("settings") or "{}", "settings")
    for name in ("input", "voice", "seed", "response_format", "stream_format", "stream"):
        if name in body:
            raise InputError(
                f"settings must not have {name}: it has an input of its own, or is no matter here"
            )
    body["input"] = texts["text"]
    if texts.get("voice"):
        body["voice"] = texts["voice"]
    if "seed" in fields:
        body["seed"] = int(fields["seed"])
    return parse_speech(body, most_text)


def _response(speech: Speech, wav: np.ndarray) -> Any:
    tensors = [
        pb_utils.Tensor("audio", np.ascontiguousarray(wav, np.float32)),
        pb_utils.Tensor("seed_used", np.array([speech.seed], np.int64)),
    ]
    return pb_utils.InferenceResponse(output_tensors=tensors)


def _error(error: Exception) -> Any:
    kinds = pb_utils.TritonError
    status, _ = status_of(error)
    code = (
        kinds.UNAVAILABLE
        if status in (429, 503)
        else kinds.INVALID_ARG
        if 400 <= status < 499
        else kinds.CANCELLED
        if isinstance(error, Cancelled)
        else kinds.INTERNAL
    )
    return pb_utils.TritonError(error_object(error)["message"], code)
