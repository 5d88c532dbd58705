"""A stream is the clip in pieces: exactly, at a constant cost, and as early as can be."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scheduling import ONE, TEXTS, TOKENIZER, WAIT, Counting, scheduler, settings, voice

from tortoise_rt import vocoder
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.engine import Array, Engine
from tortoise_rt.errors import SettingsError
from tortoise_rt.pipeline import Pipeline
from tortoise_rt.spec import HOP, codes_to_frames
from tortoise_rt.streaming import CODE_SECONDS, FRAMES_STEP, MOST_CODES, Chunks, Pace, StreamDecoder
from tortoise_rt.text import Tokenizer
from tortoise_rt.tts import chunks_of

BOUND = 1e-5


def in_pieces(decoder: StreamDecoder, latents: Array, sizes: Iterator[int]) -> list[Array]:
    pieces, given = [], 0
    while given < latents.shape[1]:
        part = latents[0, given : given + next(sizes)]
        decoder.feed(part)
        given += len(part)
        pieces.append(decoder.take(ended=given == latents.shape[1]))
    return pieces


def sizes_of(kind: int | str, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield int(rng.integers(1, 50)) if kind == "random" else int(kind)


@pytest.mark.parametrize(
    ("codes", "kind"),
    [(codes, kind) for codes in (1, 2, 3, 5, 13, 60, 211) for kind in (1, 2, 7, 40, "random")] + [(500, 40)],
)
def test_pieces_are_the_clip(engine: Engine, codes: int, kind: int | str) -> None:
    rng = np.random.default_rng(codes)
    latents = 3 * rng.standard_normal((1, codes, engine.dims["hifigan.in_dim"]), np.float32)
    spoken = rng.standard_normal((1, engine.dims["hifigan.voice_dim"]), np.float32)
    whole = vocoder.hifigan(engine, latents, spoken)[0]
    pieces = in_pieces(StreamDecoder(engine, spoken), latents, sizes_of(kind, rng))
    joined = np.concatenate(pieces)
    assert joined.shape == whole.shape == (codes_to_frames(codes) * HOP,)
    assert np.abs(joined - whole).max() <= BOUND < whole.std()


def test_codes_decide_frames_as_soon_as_they_can() -> None:
    rng = np.random.default_rng(0)
    for codes in (2, 3, 9, 40):
        latents = rng.standard_normal((1, codes, 4), np.float32)
        for known in range(1, codes):
            changed = latents.copy()
            changed[:, known:] += 1
            differs = (vocoder.upsample_latents(changed) != vocoder.upsample_latents(latents)).any(
                axis=(0, 1)
            )
            assert vocoder.certain_frames(known) == np.argmax(differs)


@pytest.mark.parametrize("codes", [1, 4, 37])
def test_parts_of_upsampled_latents(codes: int) -> None:
    rng = np.random.default_rng(codes)
    latents = rng.standard_normal((2, codes, 3), np.float32)
    whole = vocoder.upsample_latents(latents)
    for _ in range(50):
        start, stop = sorted(rng.choice(whole.shape[2] + 1, 2, replace=False))
        seen = vocoder.codes_seen(codes, range(start, stop))
        part = vocoder.upsample_part(
            latents[:, seen.start : seen.stop], seen.start, codes, range(start, stop)
        )
        np.testing.assert_array_equal(part, whole[:, :, start:stop])


# --- cost and memory ---


class CountingFrames(FakeEngine):
    def __init__(self) -> None:
        super().__init__()
        self.frames: list[int] = []

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        if graph == "hifigan":
            self.frames.append(inputs["latents"].shape[2])
        return super()._run(graph, inputs)


@pytest.mark.parametrize("size", [1, 7, 40])
def test_every_piece_costs_the_same(size: int) -> None:
    engine = CountingFrames()
    decoder = StreamDecoder(engine, np.zeros((1, engine.dims["hifigan.voice_dim"]), np.float32))
    latents = np.zeros((1, 60 * size, engine.dims["hifigan.in_dim"]), np.float32)
    in_pieces(decoder, latents, iter([size] * 60))
    assert (
        abs(engine.frames[-5] - engine.frames[-20]) <= FRAMES_STEP
    )  # a piece of codes is no whole number of them
    most = codes_to_frames(size) + FRAMES_STEP + 2 * vocoder.HIFIGAN_HALO
    assert max(engine.frames[:-1]) <= most and decoder.decoded == sum(engine.frames)


def test_memory_does_not_grow_with_the_stream() -> None:
    engine = FakeEngine()
    decoder = StreamDecoder(engine, np.zeros((1, engine.dims["hifigan.voice_dim"]), np.float32))
    latents = np.zeros((20, engine.dims["hifigan.in_dim"]), np.float32)

    def run(pieces: int) -> int:
        tracemalloc.reset_peak()
        for _ in range(pieces):
            decoder.feed(latents)
            decoder.take()
        return tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        run(2)
        ten_seconds, ten_minutes = run(11), run(650)
    finally:
        tracemalloc.stop()
    assert ten_minutes < ten_seconds + 100_000  # what 650 pieces of sound hold is 50 MB


# --- the pipeline's streams ---


def say(pieces: Any) -> tuple[Array, Pace]:
    found = []
    while True:
        try:
            found.append(next(pieces))
        except StopIteration as end:
            return np.concatenate(found), end.value


@pytest.mark.parametrize("chunks", [Chunks(), Chunks(1, 1), Chunks(7, 7), Chunks(500)])
def test_a_stream_is_the_clip(engine: Engine, chunks: Chunks) -> None:
    pipeline = Pipeline(engine, Tokenizer(TOKENIZER))
    wanted = pipeline.synthesize(TEXTS[0], voice(engine), settings(**ONE), 5)
    alone, pace = say(pipeline.stream(TEXTS[0], voice(engine), settings(**ONE), 5, chunks))
    assert np.abs(alone - wanted.wavs[0]).max() <= BOUND
    assert pace.complete == wanted.complete and pace.sound == pytest.approx(wanted.audio_seconds)
    with scheduler(engine, rows=2) as made:
        handle = made.stream(TEXTS[0], voice(engine), settings(**ONE), 5, chunks=chunks)
        other = made.submit(TEXTS[1], voice(engine), settings(**ONE), 6)
        shared = np.concatenate(list(handle))
        assert np.abs(shared - wanted.wavs[0]).max() <= BOUND
        assert handle.result().complete == wanted.complete
        other.result(WAIT)
        assert made.policy.free == 2 and len(made.policy) == 0


def test_upstream_positions_are_heard_as_they_are_drawn(engine: Engine) -> None:
    """Latents then are those of the shifted positions, as in the reference's stream."""
    pipeline = Pipeline(engine, Tokenizer(TOKENIZER))
    chosen = settings(**ONE, kv_positions="upstream")
    one, _ = say(pipeline.stream(TEXTS[0], voice(engine), chosen, 5))
    with scheduler(engine) as made:
        shared = np.concatenate(list(made.stream(TEXTS[0], voice(engine), chosen, 5)))
    assert one.shape == shared.shape and np.abs(one - shared).max() <= BOUND


def test_the_first_piece_comes_before_the_last_code() -> None:
    engine = Counting()
    with scheduler(engine) as made:
        engine.before = lambda graph, rows: time.sleep(0.005)
        handle = made.stream(TEXTS[2], voice(engine), settings(**ONE), 2, chunks=Chunks(8, 8))
        pieces = iter(handle)
        next(pieces)
        steps = len(engine.steps)
        rest = list(pieces)
    assert 8 <= steps < len(engine.steps) and rest


def test_pieces_grow_with_the_sound_in_hand() -> None:
    chunks = Chunks()
    assert chunks.size(0, CODE_SECONDS / 2, 30) == 8
    assert 8 < chunks.size(0.5, CODE_SECONDS / 2, 30) < chunks.size(1.0, CODE_SECONDS / 2, 30) < 60
    assert chunks.size(100, CODE_SECONDS / 2, 30) == chunks.size(100, CODE_SECONDS / 2, 60) == 60
    assert chunks.size(100, CODE_SECONDS / 2, 8) == 16  # by degrees
    # Too slow to keep up: each piece brings half a second of silence, so sizes approach those that do.
    size = 8
    for _ in range(20):
        made, heard = chunks.size(size * CODE_SECONDS, 1.4 * CODE_SECONDS, size), size * CODE_SECONDS
        assert made * 1.4 * CODE_SECONDS - heard <= 0.5 + 1e-9
        size = made
    assert 0.85 * 0.5 / (0.4 * CODE_SECONDS) < size <= 0.5 / (0.4 * CODE_SECONDS)
    assert replace(chunks, first=60).size(0, 2 * CODE_SECONDS, 60) == 8  # the first is a size of its own
    assert Chunks(200).size(100, CODE_SECONDS / 2, 200) == 60 and Chunks(3).size(0, CODE_SECONDS / 2, 3) == 3
    assert chunks.size(3, 1.01 * CODE_SECONDS, 60) == 60 and chunks.size(0, 9 * CODE_SECONDS, 60) == 8
    assert Chunks(5, 6).size(100, 0.001, 1) == 6
    for wrong, name in ((Chunks, "first_chunk"), (lambda n: Chunks(8, n), "stream_chunk_size")):
        with pytest.raises(SettingsError, match=f"{name} is 0"):
            wrong(0)
    with pytest.raises(SettingsError, match="overlap_wav_len is -1"):
        Chunks(overlap=-1)


def test_sizes_of_pieces() -> None:
    assert chunks_of(None) == Chunks(8) and chunks_of(None, 3) == Chunks(3)
    assert chunks_of(20) == Chunks(20, 20) and chunks_of(20, 4) == Chunks(4, 20)
    assert chunks_of(0).first == chunks_of(0).then == MOST_CODES
    assert chunks_of(None, None, 1024) == Chunks(60, 40, 1024)  # the original's
    assert chunks_of(100, None, 256) == Chunks(100, 100, 256)
    with pytest.raises(SettingsError, match="first_chunk is 0"):
        chunks_of(None, 0)


@pytest.mark.parametrize("size, overlap", [(10, 256), (1, 1024), (40, 1)])
def test_the_originals_cross_fade(engine: Engine, size: int, overlap: int) -> None:
    """Each piece but the first fades from the last rendering's end, where that one's edge was heard."""
    pipeline, first = Pipeline(engine, Tokenizer(TOKENIZER)), 12
    chosen = settings(num_autoregressive_samples=1, max_mel_tokens=35)
    wanted = pipeline.synthesize(TEXTS[2], voice(engine), chosen, 5)
    (latents,) = wanted.latents
    faded, _ = say(pipeline.stream(TEXTS[2], voice(engine), chosen, 5, Chunks(first, size, overlap)))
    codes = latents.shape[1]
    ends = [*range(first, codes, size), codes]
    renderings = [vocoder.hifigan(engine, latents[:, :end], wanted.voice.auto)[0] for end in ends]
    joined = renderings[0]
    for wav in renderings[1:]:
        share = np.linspace(0, 1, overlap)
        seam = len(joined) - overlap
        joined = np.concatenate(
            [joined[:seam], joined[seam:] * (1 - share) + wav[seam : len(joined)] * share, wav[len(joined) :]]
        )
    assert len(ends) > 1 and faded.shape == (len(joined) - overlap,)
    assert np.abs(faded - joined[:-overlap]).max() <= BOUND


def test_pace() -> None:
    pace = Pace()
    pace.add(1.0, 0.5)
    pace.add(1.2, 0.5)
    assert pace.first == 1.0 and pace.gap == 0 and pace.in_hand(1.5) == pytest.approx(0.5)
    pace.add(2.4, 1.0)  # all was heard at 2.0
    assert pace.gap == pytest.approx(0.4) and pace.in_hand(2.4) == pytest.approx(1.0)
    assert pace.factor == pytest.approx(1.2) and "longest gap 0.40 s" in pace.report()
    pace.rest(2.5, 3.0)  # nobody took the sound, or there was no text, while the listener had some
    pace.add(3.6, 1.0)  # all was heard at 3.4
    assert pace.gap == pytest.approx(0.4) and pace.spent == pytest.approx(3.1)
    pace.rest(4.0, 6.0)
    pace.add(6.9, 1.0)  # all was heard at 4.6, and 0.9 s of the silence are the machine's
    assert pace.gap == pytest.approx(0.9) and pace.spent == pytest.approx(4.4)


@pytest.mark.parametrize("arguments", [{"decoder": "diffusion"}, {"num_autoregressive_samples": 2}])
def test_what_cannot_be_streamed(arguments: dict[str, Any]) -> None:
    with scheduler(FakeEngine()) as made:
        handle = made.stream(TEXTS[0], voice(made.engine), settings(**{**ONE, **arguments}), 1)
        with pytest.raises(SettingsError, match="a stream is one sample"):
            next(iter(handle))
