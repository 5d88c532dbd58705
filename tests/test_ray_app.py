"""A replica of the Ray application, by itself; what a cluster does with it is ``benchmarks/ray_service.py``'s."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from scheduling import TOKENIZER, Counting, settings, voice

from tortoise_rt.errors import EngineError
from tortoise_rt.serving.elsewhere import Done, Failed, Message, Order
from tortoise_rt.serving.ray_options import EngineOptions

pytest.importorskip("ray.serve", reason="needs pip install 'tortoise-rt[ray]'")

OPTIONS = EngineOptions(None, None, "auto", "auto", None, TOKENIZER, 16, False)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    from tortoise_rt.serving import ray_app

    made = Counting()
    monkeypatch.setattr(ray_app, "choose_engine", lambda *_: made)
    monkeypatch.setattr(ray_app, "set_up_log", lambda quiet: None)
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


def test_how_many_replicas_there_are_is_as_said() -> None:
    from tortoise_rt.serving.ray_app import app

    front = app({"replicas": "2:5", "gpus": 1, "cpus": 2, "rows": 32, "drain": 7})._bound_deployment
    (speaker,) = [arg._bound_deployment for arg in front.init_args if hasattr(arg, "_bound_deployment")]
    scaling = speaker._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 16)
    assert speaker.ray_actor_options == {"num_cpus": 2.0, "num_gpus": 1.0}
    assert speaker._deployment_config.graceful_shutdown_timeout_s == 7
    assert app({"replicas": 3})._bound_deployment.init_args[0]._bound_deployment.num_replicas == 3
