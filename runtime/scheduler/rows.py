"""The pool of key/value rows: samples of any requests decode side by side, each at its own position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..autoregressive import FIRST_SEEN, codes_to_decode
from ..config import ARSettings
from ..engine import Array, Engine, KVCache
from ..sampling import draw


@dataclass(frozen=True)
class Prompt:
    """Voice, text and start code, read once: what all samples of a request go on from."""

    cache: KVCache  #: one row
    logits: Array  #: (vocabulary,) of the first code
    latent: Array  #: (dim,) of the first code


@dataclass(eq=False)
class Sample:
    """One autoregressive draw on its way.

    Where a decoder is named, the latents it needs are kept: those of the codes drawn, then, while the sample keeps
    its row, those of the silence that the decoder is to hear behind them.
    """

    request: int
    number: int  #: of the request's samples
    settings: ARSettings
    uniforms: Array  #: (limit,) float64: draw i uses element i
    decoder: str | None
    logits: Array  #: (vocabulary,) float32, of the next code
    latents: list[Array]  #: (dim,) each, of the codes read and of the next
    seen: Array  #: (vocabulary,) bool: codes that the repetition penalty falls on
    codes: list[int] = field(default_factory=list)  #: drawn so far
    read: int = 0  #: codes read so far
    forced: Array | None = None  #: what is decoded, once all is drawn

    @classmethod
    def begin(
        cls,
        request: int,
        number: int,
        settings: ARSettings,
        uniforms: Array,
        decoder: str | None,
        prompt: Prompt,
        start: int,
    ) -> Sample:
        seen = np.zeros(len(prompt.logits), bool)
        seen[[*FIRST_SEEN, start]] = True
        return cls(request, number, settings, uniforms, decoder, prompt.logits, [prompt.latent], seen)

    @property
    def next(self) -> int:
        """The code to be read."""
        return int((self.codes if self.forced is None else self.forced)[self.read])

    def draw(self, start: int, stop: int) -> bool:
        """Draw the next code unless that is done; -> whether there is one to be read."""
        if self.forced is None:
            if len(self.codes) > self.read:
                return True
            u = self.uniforms[len(self.codes)]
            code = draw(self.logits, self.seen, u, start, self.settings)
            self.codes.append(code)
            self.seen[code] = True
            if code != stop and len(self.codes) < len(self.uniforms):
                return True
            if self.decoder is None:
                return False
            drawn = np.full(len(self.uniforms), stop, np.int64)
            drawn[: len(self.codes)] = self.codes
            self.forced = codes_to_decode(drawn, stop, self.decoder)
        return len(self.latents) < len(self.forced)

    def kept_latents(self) -> tuple[Array, Array] | None:
        """Once done: the codes (codes,) to be decoded and their latents (1, codes, dim), where they were kept.

        None as well where the end of the row was mended after the network had read it as drawn.
        """
        if self.forced is None:
            return None
        as_drawn = min(self.read, len(self.codes) - 1, len(self.forced))
        if not np.array_equal(self.forced[:as_drawn], self.codes[:as_drawn]):
            return None
        return self.forced, np.stack(self.latents[: len(self.forced)])[None]


class Rows:
    """A fixed pool of ``count`` rows of ``capacity`` positions; its samples fill the first ones, without holes.

    With ``strict`` every step computes all rows, empty ones as well, so that matrix products have the same number of
    rows whatever is decoded beside a sample.
    """

    def __init__(self, engine: Engine, count: int, capacity: int, strict: bool = False) -> None:
        self._engine, self._strict, self.count, self.capacity = engine, strict, count, capacity
        self._cache = engine.new_cache(count, capacity)
        self._start, self._stop = engine.dims["ar.start_code"], engine.dims["ar.stop_code"]
        self.samples: list[Sample] = []
        self.steps = 0
        self.computed = 0  #: rows of all steps
        self.used = 0  #: those that a sample needed

    def add(self, sample: Sample, prompt: Prompt) -> None:
        """A sample into a free row, its prompt copied."""
        self._engine.put_rows(self._cache, [len(self.samples)], prompt.cache, [0])
        self.samples.append(sample)

    def draw(self) -> list[Sample]:
        """A code for every sample that has none to read; -> those that are done, which leave the pool."""
        done = [sample for sample in self.samples if not sample.draw(self._start, self._stop)]
        self.remove(lambda sample: any(sample is other for other in done))
        return done

    def remove(self, chosen: Callable[[Sample], bool]) -> None:
        """Take samples out; the last ones move into the holes."""
        for row in reversed([i for i, sample in enumerate(self.samples) if chosen(sample)]):
            last = len(self.samples) - 1
            if row != last:
                self._engine.put_rows(self._cache, [row], self._cache, [last])
                self.samples[row] = self.samples[last]
            self.samples.pop()

    def step(self) -> None:
        """Every sample reads its next code, which gives the logits and the latent of the one after."""
        used = len(self.samples)
        rows = self.count if self._strict else used
        codes = np.full((rows, 1), self._stop, np.int64)
        positions = np.ones((rows, 1), np.int64)
        for row, sample in enumerate(self.samples):
            codes[row] = sample.next
            positions[row] += sample.read + (sample.settings.kv_positions == "upstream")
        cache = self._engine.first_rows(self._cache, rows)
        cache.lengths[used:] = 0  # of rows that hold no sample
        logits, latents = self._engine.ar_step(cache, codes, positions)
        for row, sample in enumerate(self.samples):
            sample.read += 1
            sample.logits = logits[row]
            if sample.decoder is not None:
                sample.latents.append(latents[row, 0].copy())
        self.steps += 1
        self.computed += rows
        self.used += used
