"""Requests to a scheduler, and what they must give; engines that count and fail."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt import diffusion, vocoder
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.config import Settings, make_settings
from tortoise_rt.engine import Array, Engine, KVCache
from tortoise_rt.pipeline import Pipeline, Result
from tortoise_rt.reading import PAUSE, Reader
from tortoise_rt.rng import Philox
from tortoise_rt.scheduler import Handle, Scheduler
from tortoise_rt.streaming import Chunks
from tortoise_rt.text import Tokenizer
from tortoise_rt.voice import VoiceLatents

TOKENIZER = Path(__file__).parent / "data" / "tokenizer.json"
BOUND = 1e-4  #: of the range of latents, mels and wavs
WAIT = 120.0  #: seconds after which a test has hung
ONE = dict(num_autoregressive_samples=1, max_mel_tokens=60)  #: settings of a stream
QUICK = dict(num_autoregressive_samples=1, max_mel_tokens=24)  #: and of short clips
TEXTS = ("Hello there.", "A boat.", "How are you today, my dear?", "One, two, three.")
STORY = "The boat came in. Who was on it? Nobody knew.\n\nThe harbour was quiet that evening; we went home."


def settings(**arguments: Any) -> Settings:
    return make_settings(
        **{
            "num_autoregressive_samples": 3, "diffusion_iterations": 4, "max_mel_tokens": 24, "decoder": "hifigan",
            **arguments,
        }
    )  # fmt: skip


def voice(engine: Engine, seed: int = 0) -> VoiceLatents:
    rng = np.random.default_rng(seed)
    sizes = (engine.dims["ar.dim"], engine.dims["diffusion.voice_dim"])
    auto, diffusion = (0.3 * rng.standard_normal((1, size), np.float32) for size in sizes)
    return VoiceLatents(auto, diffusion)


def scheduler(engine: Engine, **options: Any) -> Scheduler:
    return Scheduler(engine, Tokenizer(TOKENIZER), **options)


def submit(made: Scheduler, text: str = TEXTS[0], seed: int = 1, **arguments: Any) -> Handle[Result]:
    options = {key: arguments.pop(key) for key in ("priority", "timeout") if key in arguments}
    return made.submit(text, voice(made.engine), settings(**arguments), seed, **options)


def reader(
    made: Scheduler, seed: int = 7, pause: float = PAUSE, split: bool = True, chunks: Chunks | None = None,
    **arguments: Any,
) -> Reader:  # fmt: skip
    """Who says texts sentence by sentence, in short clips."""
    chosen = settings(**{**QUICK, **arguments})
    return Reader(made, voice(made.engine), chosen, seed, chunks=chunks, pause=pause, split=split)


def alone(engine: Engine, text: str = TEXTS[0], seed: int = 1, **arguments: Any) -> Result:
    pipeline = Pipeline(engine, Tokenizer(TOKENIZER))
    return pipeline.synthesize(text, voice(engine), settings(**arguments), seed)


def settle(made: Scheduler) -> None:
    """Until nothing is in flight; then no row may be held, in the policy or in the pool."""
    until = time.monotonic() + 10
    while any(len(lane.policy) or lane.loop.thread for lane in made.lanes) and time.monotonic() < until:
        time.sleep(0.01)
    for lane in made.lanes:
        assert lane.policy.free == lane.policy.rows and len(lane.policy) == 0
        assert lane.rows is None or not lane.rows.samples


WORST: dict[str, float] = {}  #: what was compared -> the largest difference so far, as a share of the range


def assert_near(one: Array, other: Array, bound: float, name: str) -> None:
    """Equal within a share of the range."""
    assert one.shape == other.shape
    share = np.abs(one - other).max(initial=0) / max(1e-3, np.ptp(other) if other.size else 0)
    WORST[name] = max(WORST.get(name, 0.0), float(share))
    assert share <= bound, name


def assert_same(engine: Engine, one: Result, seed: int, **arguments: Any) -> None:
    """The result is that of the request alone: codes and choice equal, the rest near, each stage's from equal inputs."""
    other = alone(engine, seed=seed, **arguments)
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(one.chosen, other.chosen)
    for a, b in zip(one.latents, other.latents, strict=True):
        assert_near(a, b, BOUND, "latents")
    for i, (a, b) in enumerate(zip(one.mels, other.mels, strict=True)):
        chosen = settings(**{k: v for k, v in arguments.items() if k != "text"}).diffusion
        expected = diffusion.latents_to_mel(
            engine, one.latents[i], one.voice.diffusion, chosen, Philox(seed), i
        )
        assert_near(a, expected, BOUND, "mels from equal latents")
        assert_near(a, b, BOUND, "mels")
    for i, wav in enumerate(one.wavs):
        if one.mels:
            noise = Philox(seed).vocoder_noise(i, vocoder.noise_shape(one.mels[i]))
            expected = vocoder.univnet(engine, one.mels[i], noise)[0]
        else:
            expected = vocoder.hifigan(engine, one.latents[i], one.voice.auto)[0]
        assert_near(wav, expected, BOUND, "wavs")


class Counting(FakeEngine):
    """Counts what it is asked, and fails or waits where a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[int, int, int]] = []  #: rows, text ids, codes
        self.runs: list[tuple[str, int]] = []  #: graph, rows
        self.before: Callable[[str, int], None] = lambda graph, rows: None

    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        self.steps.append((cache.rows, inputs["text_ids"].shape[1], inputs["codes"].shape[1]))
        self.before("ar_step", cache.rows)
        return super()._ar_step(cache, inputs)

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        rows = len(next(iter(inputs.values())))
        self.runs.append((graph, rows))
        self.before(graph, rows)
        return super()._run(graph, inputs)
