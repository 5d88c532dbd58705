"""A replica of the Ray application, by itself; what a cluster does with it is ``benchmarks/ray_service.py``'s."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scheduling import TOKENIZER, Counting, settings, voice

from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.errors import EngineError, Refused, TortoiseError
from tortoise_rt.serving.elsewhere import Done, Failed, Gone, Message, Order
from tortoise_rt.serving.ray_options import EngineOptions, parse

pytest.importorskip("ray.serve", reason="needs pip install 'tortoise-rt[ray]'")

OPTIONS = EngineOptions(None, None, "auto", "auto", None, TOKENIZER, 16, False)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    from tortoise_rt.serving import ray_app

    made = Counting()
    monkeypatch.setattr(ray_app, "choose_engine", lambda *_: made)
    monkeypatch.setattr(ray_app, "set_up_log", lambda quiet: None)
    monkeypatch.setattr(ray_app, "ONE_FAILURE", 0.0)
    monkeypatch.setenv("TORTOISE_RT_THREADS", "1")
    yield made


def end(speaker: Any, text: str = "A boat.") -> Message:
    async def last() -> Message:
        order = Order("submit", (text, voice(speaker._service.engine), settings(), 1), {})
        return [message async for message in speaker.say(order)][-1]

    return asyncio.run(last())


def test_a_replica_whose_engine_fails_on_end_is_unhealthy(engine: Counting) -> None:
    from tortoise_rt.serving.ray_app import SICK, Speaker

    speaker = Speaker(OPTIONS, 1)
    assert engine.steps  # it has said a word
    speaker.check_health()
    engine.before = lambda graph, rows: 1 / 0  # type: ignore[assignment,return-value]
    for _ in range(SICK - 1):
        assert isinstance(end(speaker), Failed)
    speaker.check_health()
    engine.before = lambda graph, rows: None
    assert isinstance(end(speaker), Done)  # and all is forgotten
    for _ in range(SICK):
        assert isinstance(end(speaker, "boat " * 500), Failed)  # the caller's fault
    speaker.check_health()
    engine.before = lambda graph, rows: 1 / 0  # type: ignore[assignment,return-value]
    for _ in range(SICK):
        assert isinstance(end(speaker), Failed)
    with pytest.raises(EngineError, match="failed 3 times on end"):
        speaker.check_health()
    speaker._service.close()


def test_what_fails_at_once_is_one_failure(engine: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    from tortoise_rt.serving import ray_app

    monkeypatch.setattr(ray_app, "ONE_FAILURE", 60.0)
    speaker = ray_app.Speaker(OPTIONS, 1)
    engine.before = lambda graph, rows: 1 / 0  # type: ignore[assignment,return-value]
    for _ in range(ray_app.SICK):
        assert isinstance(end(speaker), Failed)
    speaker.check_health()
    speaker._service.close()


class Messages:
    """As Ray gives them."""

    def __init__(self, *told: Any) -> None:
        self._told, self.cancelled = told, 0

    def __iter__(self) -> Iterator[Any]:
        for message in self._told:
            if isinstance(message, Exception):
                raise message
            yield message

    def cancel(self) -> None:
        self.cancelled += 1


def test_what_ray_raises_is_sorted() -> None:
    from ray import exceptions
    from ray.serve.exceptions import DeploymentUnavailableError

    from tortoise_rt.serving.ray_app import _Answer

    def raised(error: Exception) -> BaseException:
        told = iter(_Answer(Messages(1, error)))
        assert next(told) == 1
        with pytest.raises((Gone, TortoiseError)) as caught:
            next(told)
        return caught.value

    for death in (
        exceptions.RayActorError(), exceptions.WorkerCrashedError(), exceptions.NodeDiedError("of no power"),
        exceptions.OutOfMemoryError("of too much"),
    ):  # fmt: skip
        assert isinstance(raised(death), Gone)
    gone = raised(DeploymentUnavailableError(None))
    assert isinstance(gone, Refused) and gone.status == 503 and gone.retry_after
    assert "GetTimeoutError" in str(raised(exceptions.GetTimeoutError("slow")))


class Speakers:
    """A handle of replicas, of which older ones answer first."""

    def __init__(self, *engines: EngineOptions) -> None:
        self.left = list(engines)
        self.describe = self
        self.say = None

    async def remote(self) -> tuple[EngineOptions, Any, None]:
        made = FakeEngine()
        return self.left.pop(0), made.info, None

    def options(self, stream: bool) -> Speakers:
        return self


def test_a_front_waits_for_a_replica_with_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    from tortoise_rt.serving import ray_app

    async def no_time(seconds: float) -> None: ...

    monkeypatch.setattr(ray_app.asyncio, "sleep", no_time)
    monkeypatch.setattr(ray_app, "set_up_log", lambda quiet: None)
    old = dataclasses.replace(OPTIONS, engine=Path("old"))
    speakers = Speakers(old, old, OPTIONS, old)
    front = ray_app.Front(speakers, OPTIONS, parse({}).front)  # type: ignore[arg-type]
    app = asyncio.run(front.__serve_build_asgi_app__())
    assert speakers.left == [old] and app.state.service.ready  # type: ignore[attr-defined]
    app.state.service.close()  # type: ignore[attr-defined]


def test_how_many_replicas_there_are_is_as_said() -> None:
    from tortoise_rt.serving.ray_app import app

    front = app({"replicas": "2:5", "gpus": 1, "cpus": 2, "rows": 32, "drain": 7})._bound_deployment
    (speaker,) = [arg._bound_deployment for arg in front.init_args if hasattr(arg, "_bound_deployment")]
    scaling = speaker._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 16)
    one_pool = {"env_vars": {"MALLOC_ARENA_MAX": "1"}}
    assert speaker.ray_actor_options == {"num_cpus": 2.0, "num_gpus": 1.0, "runtime_env": one_pool}
    assert speaker._deployment_config.graceful_shutdown_timeout_s == 7
    assert app({"replicas": 3})._bound_deployment.init_args[0]._bound_deployment.num_replicas == 3
