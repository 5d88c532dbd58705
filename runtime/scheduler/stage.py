"""The autoregressive stage of a request whose samples decode in rows that all requests share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .. import autoregressive
from ..config import ARSettings, Settings
from ..engine import Array, Engine
from ..rng import Randomness
from .rows import Sample
from .turns import TurnEngine


@dataclass(eq=False)
class Draw:
    """The samples that a request waits for."""

    voice: Array
    text: Array
    settings: ARSettings
    rand: Randomness
    progress: autoregressive.Progress
    keeps: bool  #: whether ``latents`` gets those that come with the codes
    codes: Array  #: (samples, limit), padded with stop
    latents: dict[bytes, Array]  #: where they are kept: codes -> (1, codes, dim)
    prompt: autoregressive.Prompt | None = None
    finished: int = 0
    live: Sample | None = None  #: the first sample, where it is heard while it is drawn
    streams: bool = False  #: whether it is
    wanted: int = 0  #: its codes that the request waits for
    taken: int = 0  #: those that it has

    @property
    def ready(self) -> int:
        """Codes of the first sample that are drawn, and whose latents are known."""
        return 0 if self.live is None else min(len(self.live.codes), len(self.live.latents))

    @property
    def has_what_is_wanted(self) -> bool:
        return self.finished > 0 or self.ready >= self.wanted


class SharedStage:
    """The autoregressive stage of one request, as its pipeline calls it."""

    def __init__(
        self, take: Callable[[Draw], None], take_more: Callable[[Draw], None], settings: Settings
    ) -> None:
        """``take`` waits until all samples of a draw are there, ``take_more`` until as much as it wants of the first is."""
        self._take, self._take_more, self._settings = take, take_more, settings
        self._known: dict[bytes, Array] = {}  #: as in Draw
        self._draw: Draw | None = None

    def sample_codes(
        self,
        engine: Engine,
        voice: Array,
        text: Array,
        settings: ARSettings,
        rand: Randomness,
        progress: autoregressive.Progress,
    ) -> Array:
        """As ``autoregressive.sample_codes``, in rows that all requests share."""
        limit = autoregressive.code_limit(settings, engine.dims)
        samples = 1 if settings.greedy else settings.samples  # greedy ones are all the same
        codes = np.full((samples, limit), engine.dims["ar.stop_code"], np.int64)
        # Where HiFi-GAN decodes every sample, latents are kept as they come; else a pass over the best is cheaper.
        # Diffusion makes hundreds of a difference in the last bit, so its latents come from a pass that is the same
        # whoever shares the rows.
        every = settings.samples == self._settings.candidates and settings.kv_positions == "trained"
        keeps = every and self._settings.decoder == "hifigan"
        self._draw = Draw(voice, text, settings, rand, progress, keeps, codes, self._known)
        self._take(self._draw)
        return np.repeat(codes, settings.samples // samples, axis=0)

    def stream_codes(
        self,
        engine: Engine,
        voice: Array,
        text: Array,
        settings: ARSettings,
        rand: Randomness,
        wanted: Callable[[], int],
        progress: autoregressive.Progress,
    ) -> Iterator[tuple[int, Array]]:
        """As ``autoregressive.stream_codes``; the request's thread wakes when as many codes as ``wanted`` are there."""
        limit = autoregressive.code_limit(settings, engine.dims)
        codes = np.full((1, limit), engine.dims["ar.stop_code"], np.int64)
        draw = Draw(voice, text, settings, rand, progress, False, codes, {}, streams=True)
        while True:
            draw.wanted = draw.taken + max(1, wanted())
            self._take_more(draw)
            ended, ready, sample = draw.finished > 0, draw.ready, draw.live
            assert sample is not None  # it was woken for a code of it
            for i in range(draw.taken, ready):
                yield sample.codes[i], sample.latents[i]
            draw.taken = ready
            if ended:
                return

    def code_latents(self, engine: Engine, voice: Array, text: Array, rows: Sequence[Array]) -> list[Array]:
        """As ``autoregressive.code_latents``; what is known from decoding is not computed again."""
        known = self._known
        missing = [row for row in rows if row.tobytes() not in known]
        assert isinstance(engine, TurnEngine)
        in_one_turn = engine.in_one_turn
        prompt = None if self._draw is None else self._draw.prompt
        if missing and prompt is None:
            prompt = in_one_turn(lambda engine: autoregressive.read_prompt(engine, voice, text))
        for row in missing:  # a turn for each: its cache is gone before another request's is there
            compute = functools.partial(
                autoregressive.code_latents, voice=voice, text=text, rows=[row], prompt=prompt
            )
            (known[row.tobytes()],) = in_one_turn(compute)
        if self._draw is not None:
            self._draw.prompt = None
        return [known[row.tobytes()] for row in rows]
