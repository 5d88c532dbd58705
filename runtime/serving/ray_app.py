"""The service on Ray Serve: replicas with an engine each, and a front with all of HTTP that passes requests on to them.

    serve run tortoise_rt.serving.ray_app:app engine=my-engine gpus=1 replicas=1:8

Options are those of ``tortoise-rt serve`` (``ray_options.py``). The front holds what callers see: keys, limits, voices, text
that is still being written. Replicas get one sentence at a time, with its voice, so they share no folder.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from ..errors import EngineError, MissingDependency, Refused, TortoiseError

try:
    from ray import serve
    from ray.exceptions import (
        NodeDiedError,
        ObjectLostError,
        OutOfMemoryError,
        RayActorError,
        RayError,
        WorkerCrashedError,
    )
    from ray.serve.exceptions import DeploymentUnavailableError
    from ray.serve.handle import DeploymentHandle
except ImportError as error:
    raise MissingDependency(f"{error.name} is not installed: pip install 'tortoise-rt[serve,ray]'") from None

from prometheus_client import Gauge
from starlette.types import ASGIApp

from ..engine import EngineInfo
from ..server.app import make_app
from ..server.limits import MOST_QUEUED, Limits
from ..server.logs import set_up_log
from ..server.service import Service
from ..text import Tokenizer
from ..tts import choose_engine, choose_tokenizer
from .elsewhere import Described, Done, Failed, Gone, Message, Order, RemoteScheduler, carry_out
from .ray_options import EngineOptions, FrontOptions, parse

log = logging.getLogger("tortoise_rt.server")
#: of memory, for all threads of a process (see ``server.memory``); before Ray has begun its own
ONE_POOL = {"runtime_env": {"env_vars": {"MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", "1")}}}
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
MOST_CONNECTIONS = 1000  #: of the front
SICK = 3  #: failures of an engine on end after which its replica is replaced
ONE_FAILURE = (
    1.0  #: seconds in which failures are one: a step that fails fails all requests that are decoded in it
)
DEAD = (RayActorError, ObjectLostError, OutOfMemoryError, NodeDiedError, WorkerCrashedError)
RETRY = 10  #: seconds after which a caller may try again where no replica can be started


class Speaker:
    """A replica: an engine and its scheduler."""

    def __init__(self, options: EngineOptions, threads: int) -> None:
        set_up_log(quiet=True)
        os.environ.setdefault("TORTOISE_RT_THREADS", str(threads))
        engine = choose_engine(
            options.engine, options.checkpoints, options.backend, options.device, options.precision
        )
        tokenizer = choose_tokenizer(engine, options.tokenizer)
        limits = Limits(queue=min(MOST_QUEUED, options.at_once))  # the front's are the callers'
        self._service = Service(engine, tokenizer, limits, rows=options.rows, strict=options.strict)
        self._service.warm_up()
        self._options = options
        self._failures = 0  #: since the engine last did what it was asked
        self._failed = -math.inf  #: when the last was counted

    async def describe(self) -> tuple[EngineOptions, EngineInfo, Tokenizer | None]:
        return self._options, self._service.engine.info, self._service.tokenizer

    async def say(self, order: Order) -> AsyncGenerator[Message, None]:
        async for message in carry_out(self._service.scheduler, order):
            if isinstance(message, Failed):
                if _engine_failed(message) and time.monotonic() - self._failed > ONE_FAILURE:
                    self._failures += 1
                    self._failed = time.monotonic()
            elif isinstance(message, Done):
                self._failures = 0
            yield message

    def check_health(self) -> None:
        """Called by Ray, which replaces the replica where it raises."""
        if self._failures >= SICK:
            raise EngineError(f"the engine has failed {self._failures} times on end")


def _engine_failed(message: Failed) -> bool:
    """Whether it was not for the request."""
    error = message.cause if isinstance(message.error, EngineError) and message.cause else message.error
    return not isinstance(error, TortoiseError)


class _Answer:
    """Messages of a replica."""

    def __init__(self, messages: Any) -> None:
        self._messages = messages
        self.cancel = messages.cancel

    def __iter__(self) -> Iterator[Message]:
        try:
            yield from self._messages
        except DEAD as error:
            raise Gone from error
        except DeploymentUnavailableError as error:
            raise Refused("no engine is there", 503, retry_after=RETRY) from error
        except RayError as error:
            raise EngineError(f"Ray could not carry a request out ({type(error).__name__})") from error


class Front:
    """All that callers see, without an engine."""

    def __init__(self, speakers: DeploymentHandle, engine: EngineOptions, options: FrontOptions) -> None:
        self._speakers, self._engine, self._options = speakers, engine, options

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Ray at the start. Waits until a replica tells what it is, one with its options: older ones may be there."""
        while True:
            engine, info, tokenizer = await self._speakers.describe.remote()
            if engine == self._engine:
                break
            await asyncio.sleep(1)
        say = self._speakers.options(stream=True).say
        scheduler = RemoteScheduler(Described(info), tokenizer, lambda order: _Answer(say.remote(order)))
        limits, keys = self._options.limits, self._options.keys
        service = Service(
            scheduler.engine, tokenizer, limits, voice_dirs=self._options.voice_dirs, scheduler=scheduler
        )
        again = Gauge(
            "tortoise_rt_sent_again", "Orders whose replica died.", registry=service.metrics.registry
        )
        again.set_function(lambda: scheduler.sent_again)
        service.ready = True  # replicas have said a word before they are given any
        set_up_log(quiet=False)
        # Without keys it is for this machine alone, whatever Ray's proxy listens on.
        hosts = None if keys else LOOPBACK
        return make_app(service, keys, origins=self._options.origins, hosts=hosts, local=not keys)


def app(args: dict[str, Any]) -> serve.Application:
    """What ``serve run`` and Ray's configuration files name, and ``serve.run(app({"engine": "my-engine"}))`` in Python.

    Raises SettingsError for options that are not known, out of range or not for Ray.
    """
    options = parse(args)
    least, most = options.replicas
    at_once = options.engine.at_once
    how_many: dict[str, Any] = {"num_replicas": least}
    if most > least:
        busy = max(
            1, at_once // 2
        )  #: sentences at a replica, on average, beyond which there should be one more
        scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": busy}
        how_many = {"autoscaling_config": scaling}
    ends = {"graceful_shutdown_timeout_s": options.drain, "graceful_shutdown_wait_loop_s": 0.5}
    speaker = serve.deployment(
        Speaker,
        name="Speaker",
        max_ongoing_requests=at_once,  # more wait at the front, for whichever replica is free first
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus, **ONE_POOL},
        **how_many,
        **ends,
    )
    front = serve.deployment(
        serve.ingress()(Front),
        name="Front",
        max_ongoing_requests=MOST_CONNECTIONS,
        ray_actor_options={"num_cpus": 0, **ONE_POOL},
        **ends,
    )
    speakers = speaker.bind(options.engine, max(1, round(options.cpus)))
    return front.bind(speakers, options.engine, options.front)
