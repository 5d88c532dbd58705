"""The server on Ray Serve: as many replicas as there is to say, each with an engine of its own.

    serve run tortoise_rt.server.ray_app:build engine=/models/my-bundle most=4 gpus=1

Replicas are added while more than ``each`` requests are in flight for one, and taken away when there are fewer; one is asked
only when it has said its first word. Answers are streamed. What a replica that ends has not yet begun, another one says.
Voices made by callers are in a folder ($TORTOISE_RT_VOICES) that all replicas must share; jobs are for a single server.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from starlette.types import ASGIApp

from ..errors import SettingsError, suggest
from ..tts import choose_engine, choose_tokenizer
from .app import make_app
from .limits import Keys, Limits
from .service import Service

DRAIN_SECONDS = 120
#: argument -> its default
ARGUMENTS: Mapping[str, Any] = {
    "engine": "",  #: a bundle; the demo otherwise
    "backend": "auto",
    "device": "auto",
    "api_keys": "",  #: a file, as of ``tortoise-rt serve``
    "voices_dir": "",
    "strict": "no",
    "fewest": "1",  #: replicas
    "most": "1",
    "each": "16",  #: requests of one replica at a time
    "cpus": "1",  #: of one replica
    "gpus": "0",
}


def build(arguments: Mapping[str, str]) -> serve.Application:
    """The application, for ``serve run`` and ``serve.run``."""
    for name in arguments:
        if name not in ARGUMENTS:
            raise SettingsError(f"unknown argument {name!r}. {suggest(name, ARGUMENTS)}")
    given = {**ARGUMENTS, **arguments}
    each = int(given["each"])

    def app() -> ASGIApp:
        """In the replica, before it is asked anything."""
        engine = choose_engine(given["engine"] or None, backend=given["backend"], device=given["device"])
        folders = [Path(given["voices_dir"])] if given["voices_dir"] else []
        limits = Limits(queue=each, each=each)
        service = Service(
            engine,
            choose_tokenizer(engine, None),
            limits,
            strict=given["strict"] == "yes",
            voice_dirs=folders,
        )
        service.warm_up()
        return make_app(service, Keys.read(Path(given["api_keys"])) if given["api_keys"] else None)

    deployment = serve.deployment(
        name="tortoise-rt",
        max_ongoing_requests=each,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        ray_actor_options={"num_cpus": float(given["cpus"]), "num_gpus": float(given["gpus"])},
        autoscaling_config={
            "min_replicas": int(given["fewest"]),
            "max_replicas": int(given["most"]),
            "target_ongoing_requests": max(1, each // 2),
        },
    )
    return deployment(serve.ingress(app)(type("Replica", (), {}))).bind()
