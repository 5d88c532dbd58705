"""Text and voice -> mel codes and their latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .config import ARSettings
from .engine import Array, Engine, KVCache
from .errors import EngineError, SettingsError, TextError
from .rng import Randomness
from .sampling import NOT_FINITE, NOTHING, Drawing, draw
from .spec import CALM_RUN, CALM_TOKEN, MAX_TEXT_IDS, STOP_TEXT, TAIL_TOKENS, Dims

DEFAULT_MAX_MEL_TOKENS = 500
ROWS = 16  #: samples decoded side by side where nothing else is said
FIRST_SEEN = (
    1,
)  #: with the start code: what the reference penalises from the first, its placeholder for the prefix
Progress = Callable[[int, int], None]


def text_row(ids: Sequence[int], dims: Dims) -> Array:
    """(1, len + 3) int64: start, ids, stop, stop. Raises TextError for no ids or too many."""
    limit = most_text_ids(dims)
    if not len(ids):
        raise TextError("there is nothing to say: the text is empty once cleaned")
    if len(ids) > limit:
        raise TextError(f"text is {len(ids)} tokens; the limit is {limit}: split it into sentences")
    return np.array([[dims["ar.start_text"], *ids, STOP_TEXT, STOP_TEXT]], np.int64)


def most_text_ids(dims: Dims) -> int:
    """Tokens that a clip's text may have."""
    return min(MAX_TEXT_IDS, dims["ar.text_positions"] - 3)


def code_limit(settings: ARSettings, dims: Dims) -> int:
    """Codes per sample: ``max_mel_tokens``, by default 500 or as many as the position table holds."""
    room = dims["ar.mel_positions"] - (settings.kv_positions == "upstream")
    if settings.max_mel_tokens is None:
        return min(DEFAULT_MAX_MEL_TOKENS, room)
    if settings.max_mel_tokens > room:
        raise SettingsError(
            f"max_mel_tokens is {settings.max_mel_tokens}; this model has positions for {room}"
        )
    return settings.max_mel_tokens


@dataclass(frozen=True)
class Prompt:
    """Voice, text and start code, read once: what all samples of a request go on from."""

    cache: KVCache  #: one row, full
    logits: Array  #: (vocabulary,) of the first code
    latent: Array  #: (dim,) of the first code


def read_prompt(engine: Engine, voice: Array, text: Array) -> Prompt:
    """Voice (1, dim), text (1, text) and the start code, read into a cache of their own."""
    cache = engine.new_cache(1, 1 + text.shape[1] + 1)
    start = np.array([[engine.dims["ar.start_code"]]], np.int64)
    logits, latents = engine.ar_step(cache, start, np.zeros((1, 1), np.int64), voice, text)
    return Prompt(cache, logits[0], latents[0, 0])


def sample_codes(
    engine: Engine,
    voice: Array,
    text: Array,
    settings: ARSettings,
    rand: Randomness,
    progress: Progress = lambda done, total: None,
) -> Array:
    """Draws ``settings.samples`` samples -> (samples, code_limit) int64, padded with the stop code.

    Greedy samples are all the same, so one is decoded.
    """
    if settings.greedy and settings.samples > 1:
        once = replace(settings, samples=1)
        return np.repeat(sample_codes(engine, voice, text, once, rand, progress), settings.samples, axis=0)
    limit = code_limit(settings, engine.dims)
    prompt = read_prompt(engine, voice, text)
    codes = np.full((settings.samples, limit), engine.dims["ar.stop_code"], np.int64)
    together = settings.batch_rows or ROWS
    for first in range(0, settings.samples, together):
        samples = range(first, min(first + together, settings.samples))
        rows = engine.take_rows(prompt.cache, [0] * len(samples), prompt.cache.capacity + limit)
        uniforms = np.stack([rand.uniforms(sample, limit) for sample in samples])
        codes[samples.start : samples.stop] = _decode(
            engine,
            rows,
            np.repeat(prompt.logits[None], len(samples), axis=0),
            uniforms,
            settings,
            progress,
            first,
        )
    return codes


def _decode(
    engine: Engine,
    cache: KVCache,
    logits: Array,
    uniforms: Array,
    settings: ARSettings,
    progress: Progress,
    finished_before: int,
) -> Array:
    """Decodes all rows of ``cache`` to their ends -> (rows, limit) codes, padded with stop."""
    start, stop = engine.dims["ar.start_code"], engine.dims["ar.stop_code"]
    first_position = 2 if settings.kv_positions == "upstream" else 1
    total, limit = uniforms.shape
    codes = np.full((total, limit), stop, np.int64)
    seen = np.zeros((total, engine.dims["ar.mel_codes"]), bool)
    seen[:, [*FIRST_SEEN, start]] = True
    live = np.arange(total)  # rows that have not stopped
    held = live.copy()  # rows of the cache; a superset of live
    drawn = np.array([[draw(logits[row], seen[row], uniforms[row, 0], start, settings)] for row in live])
    step = 0  # codes drawn so far
    while True:
        codes[held, step : step + drawn.shape[1]] = np.where(drawn == NOTHING, stop, drawn)
        step += drawn.shape[1]
        live = live[(codes[live, :step] != stop).all(axis=1)]
        progress(finished_before + total - len(live), settings.samples)
        if len(live) == 0 or step == limit:
            break
        if len(live) <= len(held) // 2:  # copying rows out costs less than carrying the dead ones along
            cache = engine.take_rows(cache, np.searchsorted(held, live).tolist())
            held = live
        seen[live[:, None], codes[live, step - drawn.shape[1] : step]] = True
        drawings = [
            Drawing(seen[row], uniforms[row, step:], settings) if alive else None
            for row, alive in zip(held, np.isin(held, live), strict=True)
        ]
        positions = np.full((len(held), 1), step - 1 + first_position, np.int64)
        drawn, _ = read_and_draw(engine, cache, codes[held, step - 1, None], positions, drawings)
    progress(finished_before + total, settings.samples)
    return codes


def read_and_draw(
    engine: Engine, cache: KVCache, codes: Array, positions: Array, drawings: Sequence[Drawing | None]
) -> tuple[Array, Array]:
    """Every row reads a code and draws the next, and so on for as many as the engine draws by itself; else one.

    -> as ``Engine.ar_draw``. Raises EngineError where there is nothing to draw from.
    """
    if engine.draws_ahead:
        drawn, latents = engine.ar_draw(cache, codes, positions, drawings)
    else:
        logits, latents = engine.ar_step(cache, codes, positions)
        start = engine.dims["ar.start_code"]
        rows = zip(logits, np.isfinite(logits).all(axis=1), drawings, strict=True)
        drawn = np.array(
            [
                [draw(row, d.seen, d.uniforms[0], start, d.settings) if d and finite else NOTHING]
                for row, finite, d in rows
            ]
        )
    for row, drawing in zip(drawn, drawings, strict=True):
        own = row[row != NOTHING]
        early = drawing is not None and len(own) < min(len(row), len(drawing.uniforms))
        if early and not (own == engine.dims["ar.stop_code"]).any():
            raise EngineError(NOT_FINITE)
    return drawn, latents


def stream_codes(
    engine: Engine,
    voice: Array,
    text: Array,
    settings: ARSettings,
    rand: Randomness,
    wanted: Callable[[], int] = lambda: 1,
    progress: Progress = lambda done, total: None,
) -> Iterator[tuple[int, Array]]:
    """Draws sample 0; yields each code, its stop or the last included, with its latent (dim,), as it is drawn.

    ``wanted`` says how many the caller waits for: of use to a stage that is woken for them.
    """
    start, stop = engine.dims["ar.start_code"], engine.dims["ar.stop_code"]
    first_position = 2 if settings.kv_positions == "upstream" else 1
    limit = code_limit(settings, engine.dims)
    prompt = read_prompt(engine, voice, text)
    cache = engine.take_rows(prompt.cache, [0], prompt.cache.capacity + limit)
    uniforms = rand.uniforms(0, limit)
    seen = np.zeros(engine.dims["ar.mel_codes"], bool)
    seen[[*FIRST_SEEN, start]] = True
    code, latent = draw(prompt.logits, seen, uniforms[0], start, settings), prompt.latent
    yield code, latent
    step = 1  # codes drawn so far
    while code != stop and step < limit:
        seen[code] = True
        drawing = Drawing(seen, uniforms[step : step + max(1, wanted())], settings)
        position = np.array([[step - 1 + first_position]])
        drawn, latents = read_and_draw(engine, cache, np.array([[code]]), position, [drawing])
        for code, latent in zip(drawn[drawn != NOTHING].tolist(), latents[0], strict=False):
            seen[code] = True
            step += 1
            yield code, latent
    progress(1, 1)


def fix_codes(codes: Array, stop: int) -> Array:
    """(samples, codes) padded with stop -> the same, every row that stopped ending as the training data does.

    From the stop on all is silence, but for the last three codes of the row. Rows without a stop stay as they are.
    """
    fixed = codes.copy()
    for row in fixed:
        stops = np.flatnonzero(row == stop)
        if len(stops):
            row[stops[0] :] = CALM_TOKEN
            tail = TAIL_TOKENS[-len(row) :]
            row[-len(tail) :] = tail
    return fixed


def spoken_length(codes: Array) -> int:
    """Codes (codes,) of a row worth decoding: up to CALM_RUN codes of silence, or all."""
    run = 0
    for i, code in enumerate(codes):
        run = run + 1 if code == CALM_TOKEN else 0
        if run > CALM_RUN:
            return i
    return len(codes)


def stopped_length(codes: Array, stop: int) -> int:
    """Codes (codes,) of a row as drawn up to its stop, which counts, or all."""
    stops = np.flatnonzero(codes == stop)
    return int(stops[0]) + 1 if len(stops) else len(codes)


def codes_to_decode(drawn: Array, stop: int, decoder: str) -> Array:
    """Codes (codes,) as drawn, padded with stop -> those that ``decoder`` gets latents of.

    HiFi-GAN learned on codes as drawn, without the silence behind them; diffusion on rows that are fixed up.
    """
    if decoder == "hifigan":
        return drawn[: stopped_length(drawn, stop)]
    fixed = fix_codes(drawn[None], stop)[0]
    return fixed[: spoken_length(fixed)]


def code_latents(
    engine: Engine, voice: Array, text: Array, rows: Sequence[Array], prompt: Prompt | None = None
) -> list[Array]:
    """The latents (1, codes, dim) of each row of codes (codes,), at the trained positions.

    Latent j is what the network knows before it reads code j, so a row's last code is never read. ``prompt`` is
    that of voice and text, where it is known. One row at a time, so that memory does not grow with their number.
    """
    prompt = prompt or read_prompt(engine, voice, text)
    return [_row_latents(engine, prompt, row) for row in rows]


def _row_latents(engine: Engine, prompt: Prompt, codes: Array) -> Array:
    first = prompt.latent[None, None]
    if len(codes) == 1:
        return first
    cache = engine.take_rows(prompt.cache, [0], prompt.cache.capacity + len(codes) - 1)
    _, latents = engine.ar_step(cache, codes[None, :-1], np.arange(1, len(codes))[None])
    return np.concatenate([first, latents], axis=1)
