"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ..scheduler import AnyScheduler, Scheduler

if TYPE_CHECKING:
    from .service import Speech

SECONDS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120, 300, 600)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """A registry of its own, so that a process may hold several services."""

    def __init__(self, scheduler: AnyScheduler, in_flight: Callable[[], int]) -> None:
        self._scheduler, self._in_flight = scheduler, in_flight
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, processor time, open files
        self._speeches = Counter(
            "tortoise_rt_speeches",
            "Requests for speech that have ended.",
            ["outcome"],
            registry=self.registry,
        )
        self._audio = Counter("tortoise_rt_audio_seconds", "Sound given.", registry=self.registry)
        self._first = Histogram(
            "tortoise_rt_first_audio_seconds", "To the first sound.", registry=self.registry, buckets=SECONDS
        )
        self._total = Histogram(
            "tortoise_rt_speech_seconds",
            "To the end of speech that was done.",
            registry=self.registry,
            buckets=SECONDS,
        )
        self.requests = Counter(
            "tortoise_rt_http_requests", "Answers by status.", ["method", "status"], registry=self.registry
        )
        self.registry.register(self)

    def note(self, speech: Speech) -> None:
        """A request for speech has ended."""
        self._speeches.labels(speech.outcome).inc()
        self._audio.inc(speech.audio_seconds)
        if speech.first is not None:
            self._first.observe(speech.first)
        if speech.outcome == "done":
            self._total.observe(speech.seconds)

    def collect(self) -> Iterator[Metric]:
        """What is so at this moment."""
        yield GaugeMetricFamily("tortoise_rt_in_flight", "Requests for speech in flight.", self._in_flight())
        if not isinstance(self._scheduler, Scheduler):  # engines elsewhere
            return
        policies = [lane.policy for lane in self._scheduler.lanes]
        rows, free = sum(policy.rows for policy in policies), sum(policy.free for policy in policies)
        yield GaugeMetricFamily(
            "tortoise_rt_calls_in_flight", "Sentences and other work begun.", sum(map(len, policies))
        )
        yield GaugeMetricFamily("tortoise_rt_rows", "Samples that can be drawn side by side.", rows)
        yield GaugeMetricFamily("tortoise_rt_rows_used", "Samples that are drawn.", rows - free)
        codes = CounterMetricFamily(
            "tortoise_rt_codes", "Codes drawn; its rate is codes per second.", labels=["engine"]
        )
        for number, lane in enumerate(self._scheduler.lanes):  # each begins at 0 when its engine has failed
            codes.add_metric([str(number)], lane.rows.used if lane.rows else 0)
        yield codes

    def text(self) -> bytes:
        return generate_latest(self.registry)
