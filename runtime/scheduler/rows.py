"""The pool of key/value rows: samples of any requests decode side by side, each at its own position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..autoregressive import FIRST_SEEN, Prompt
from ..config import ARSettings
from ..engine import Array, Engine
from ..errors import EngineError
from ..sampling import NOT_FINITE, NOTHING, Drawing, draw


@dataclass(eq=False)
class Sample:
    """One autoregressive draw on its way."""

    request: int
    number: int  #: of the request's samples
    settings: ARSettings
    uniforms: Array  #: (limit,) float64: draw i uses element i
    keeps: bool  #: whether its latents are kept
    logits: Array | None  #: (vocabulary,) float32, of the next code, unless the engine draws it
    latents: list[Array]  #: (dim,) each, of the codes read and of the next
    seen: Array  #: (vocabulary,) bool: codes that the repetition penalty falls on
    codes: list[int] = field(default_factory=list)  #: drawn so far
    read: int = 0  #: codes read so far

    @classmethod
    def begin(
        cls,
        request: int,
        number: int,
        settings: ARSettings,
        uniforms: Array,
        keeps: bool,
        prompt: Prompt,
        start: int,
    ) -> Sample:
        seen = np.zeros(len(prompt.logits), bool)
        seen[[*FIRST_SEEN, start]] = True
        return cls(request, number, settings, uniforms, keeps, prompt.logits, [prompt.latent], seen)

    def draw(self, start: int, stop: int) -> bool:
        """Draw the next code unless that is done; -> whether it is to be read: not after the last."""
        if len(self.codes) == self.read:
            if self.logits is None or not np.isfinite(self.logits).all():
                raise EngineError(NOT_FINITE)
            self._take(draw(self.logits, self.seen, self.uniforms[self.read], start, self.settings))
        return self.codes[-1] != stop and len(self.codes) < len(self.uniforms)

    def _take(self, code: int) -> None:
        self.codes.append(code)
        self.seen[code] = True

    def step(self, logits: Array | None, latents: Array, drawn: Sequence[int] = ()) -> None:
        """A code was read, then those ``drawn`` meanwhile but the last, with latents (codes, dim) at each.

        ``logits`` of the next code: None where it is drawn, or cannot be.
        """
        for code in drawn:
            self._take(code)
        self.read += max(1, len(drawn))
        self.logits = logits
        if self.keeps:
            self.latents.extend(latents.copy())


class Rows:
    """A fixed pool of ``count`` rows of ``capacity`` positions.

    Samples leave holes, which new ones take; what is left of them is closed before a step, by moving the last rows.
    With ``strict`` every step has the same number of rows, empty ones as well, and attends over as many positions,
    so that what a sample computes has the same shapes whatever is decoded beside it.
    """

    def __init__(self, engine: Engine, count: int, capacity: int, strict: bool = False) -> None:
        self._engine, self._strict, self.count, self.capacity = engine, strict, count, capacity
        # With strict the last row holds no sample: it is as long as can be, which fixes the width of attention.
        self._cache = engine.new_cache(count + strict, capacity)
        self._start, self._stop = engine.dims["ar.start_code"], engine.dims["ar.stop_code"]
        self._slots: list[Sample | None] = []
        self.steps = 0
        self.computed = 0  #: rows of all steps
        self.used = 0  #: those that a sample needed

    @property
    def samples(self) -> list[Sample]:
        """Those in the pool."""
        return [sample for sample in self._slots if sample is not None]

    def add(self, sample: Sample, prompt: Prompt) -> None:
        """A sample into a free row, its prompt copied."""
        place = self._slots.index(None) if None in self._slots else len(self._slots)
        self._engine.put_rows(self._cache, [place], prompt.cache, [0])
        self._slots[place : place + 1] = [sample]

    def draw(self) -> tuple[list[Sample], list[tuple[Sample, Exception]]]:
        """A code for every sample that has none to read; -> those that are done and those that failed, which leave."""
        done: list[Sample] = []
        failed: list[tuple[Sample, Exception]] = []
        for sample in self.samples:
            try:
                if not sample.draw(self._start, self._stop):
                    done.append(sample)
            except Exception as error:
                failed.append((sample, error))
        self.discard([*done, *(sample for sample, _ in failed)])
        return done, failed

    def discard(self, samples: Sequence[Sample]) -> None:
        """Take samples out."""
        gone = {id(sample) for sample in samples}
        self._slots = [None if id(sample) in gone else sample for sample in self._slots]

    def close_holes(self) -> list[tuple[Sample, BaseException]]:
        """Move the last samples into the holes; -> those that could not be moved, which have left the pool."""
        failed: list[tuple[Sample, BaseException]] = []
        while None in self._slots:
            sample = self._slots.pop()
            if sample is None:
                continue
            place = self._slots.index(None)
            try:
                self._engine.put_rows(self._cache, [place], self._cache, [len(self._slots)])
                self._slots[place] = sample
            except BaseException as error:
                failed.append((sample, error))
        return failed

    def step(self, most: int = 1) -> None:
        """Every sample reads its next code, which gives the logits and the latent of the one after. No holes.

        An engine that draws ahead does so, up to ``most`` codes of each sample.
        """
        samples = self.samples
        used, before = len(samples), sum(sample.read for sample in samples)
        rows = used if self._engine.steps_some_rows and not self._strict else self._cache.rows
        codes = np.full((rows, 1), self._stop, np.int64)
        positions = np.ones((rows, 1), np.int64)
        for row, sample in enumerate(samples):
            codes[row] = sample.codes[sample.read]
            positions[row] += sample.read + (sample.settings.kv_positions == "upstream")
        cache = self._engine.first_rows(self._cache, rows)
        cache.lengths[used:] = 0  # of rows that hold no sample
        if self._strict:
            cache.lengths[-1] = self.capacity - 1
        if self._engine.draws_ahead:
            drawings = [
                Drawing(sample.seen, sample.uniforms[len(sample.codes) :][:most], sample.settings)
                for sample in samples
            ]
            nobody = [None] * (rows - used)
            drawn, latents = self._engine.ar_draw(cache, codes, positions, [*drawings, *nobody])
            for sample, row, at in zip(samples, drawn.tolist(), latents, strict=False):
                own = [code for code in row if code != NOTHING]
                sample.step(None, at[: max(1, len(own))], own)
        else:
            logits, latents = self._engine.ar_step(cache, codes, positions)
            for sample, of_row, at in zip(samples, logits, latents, strict=False):
                sample.step(of_row, at)
        steps = latents.shape[1]
        self.steps += steps
        self.computed += rows * steps
        self.used += sum(sample.read for sample in samples) - before
