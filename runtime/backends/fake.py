"""A small deterministic engine for tests: every graph of ``spec.GRAPHS``, tiny dimensions, NumPy only.

It obeys the properties that the real networks have: a row's outputs depend on that row's inputs alone, the
autoregressive step on the row's whole history, however it was divided into calls, and samples end after a
plausible number of codes. What it says is noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..bundle import demo_folder
from ..engine import Array, Engine, EngineInfo, KVCache
from ..spec import ALIGNER_STRIDE, GRAPHS, HOP, MELS, SYMBOLS

DIMS: Mapping[str, int] = {
    "ar.dim": 16,
    "ar.layers": 1,
    "ar.heads": 1,
    "ar.mel_codes": 258,
    "ar.start_code": 256,
    "ar.stop_code": 257,
    "ar.mel_positions": 608,
    "ar.text_positions": 404,
    "ar.text_ids": 256,
    "ar.start_text": 255,
    "clvp.latent_dim": 8,
    "clvp.text_ids": 256,
    "clvp.codes": 256,
    "clvp.text_heads": 1,
    "clvp.speech_heads": 1,
    "cvvp.latent_dim": 8,
    "cvvp.codes": 256,
    "cvvp.heads": 1,
    "diffusion.dim": 8,
    "diffusion.latent_dim": 16,
    "diffusion.voice_dim": 16,
    "diffusion.layers": 1,
    "diffusion.heads": 1,
    "vocoder.channels": 4,
    "hifigan.in_dim": 16,
    "hifigan.voice_dim": 16,
    "rlg_auto.dim": 16,
    "rlg_diffuser.dim": 16,
    "wav2vec2.stride": 320,
}
CODES_PER_TEXT_ID = 2  #: samples end around this many codes per text id
_LOGIT_RANGE = 12.0
_WAVE = np.sin(np.arange(HOP) * (2 * np.pi * 4 / HOP)).astype(np.float32)  # one mel frame of a tone


class FakeEngine(Engine):
    """Runs in microseconds and needs no files; see the module's description."""

    def __init__(self, graphs: frozenset[str] = frozenset(GRAPHS)) -> None:
        tokenizer = demo_folder() / "tokenizer.json"
        self.info = EngineInfo(
            backend="fake",
            device="cpu",
            source="the fake engine",
            dims=DIMS,
            graphs=graphs,
            tokenizer=tokenizer if tokenizer.is_file() else None,
            notice="The fake engine is for tests: it makes noise.",
            fingerprint="fake",
            precision=dict.fromkeys(graphs, "fp32"),
        )

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        return tuple(np.asarray(a, np.float32) for a in _GRAPHS[graph](**inputs))

    # The cache of a row: a hash of its history, and how many text ids it has read.

    def _new_cache(self, rows: int, capacity: int) -> Array:
        return np.zeros((rows, 2), np.uint64)

    def _take_rows(self, cache: KVCache, rows: Array, capacity: int) -> Array:
        return cache.state[rows].copy()

    def _put_rows(self, target: KVCache, places: Array, source: KVCache, rows: Array) -> None:
        target.state[places] = source.state[rows]

    def _first_rows(self, cache: KVCache, count: int) -> Array:
        return cache.state[:count]

    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        state, text, codes = cache.state, inputs["text_ids"], inputs["codes"]
        for latent in inputs["voice"].swapaxes(0, 1):
            state[:, 0] = _hash_rows(_quantize(latent), state[:, 0])
        state[:, 0] = _hash_rows(text, state[:, 0])
        state[:, 1] += np.uint64(text.shape[1])
        latents = np.empty((*codes.shape, DIMS["ar.dim"]), np.float32)
        pairs = zip(codes.T, inputs["code_positions"].T, strict=True)
        for i, (code, position) in enumerate(pairs):
            state[:, 0] = _hash_rows(np.stack([code, position], axis=1), state[:, 0])
            latents[:, i] = _noise(state[:, 0], DIMS["ar.dim"])
        logits = (_noise(~state[:, 0], DIMS["ar.mel_codes"]) * (_LOGIT_RANGE / 2)).astype(np.float32)
        overdue = inputs["code_positions"][:, -1] - CODES_PER_TEXT_ID * state[:, 1].astype(np.int64)
        logits[:, DIMS["ar.stop_code"]] = np.clip(
            _LOGIT_RANGE / 2 + overdue, -2 * _LOGIT_RANGE, 4 * _LOGIT_RANGE
        )
        return logits, latents


def _mix(x: Array) -> Array:
    """Scrambles 64-bit words (splitmix64)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hash_rows(values: Array, start: Array) -> Array:
    """Integers (rows, count) appended to the hashes ``start`` (rows,) uint64, one after the other."""
    for column in values.astype(np.int64).view(np.uint64).T:
        start = _mix(start ^ _mix(column))
    return start


def _noise(seeds: Array, count: int) -> Array:
    """seeds (rows,) uint64 -> (rows, count) in [-1, 1), a function of the seed."""
    words = _mix(seeds[:, None] ^ _mix(np.arange(count, dtype=np.uint64)))
    return (words >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1


def _quantize(x: Array) -> Array:
    return np.rint(x * 1e4).astype(np.int64)


def _project(x: Array, size: int) -> Array:
    """x (..., width) -> (..., size) in (-1, 1). einsum, because a BLAS product's rounding depends on its rows."""
    weights = (
        np.random.default_rng([x.shape[-1], size]).standard_normal((x.shape[-1], size)) / x.shape[-1] ** 0.5
    )
    return np.tanh(np.einsum("...i,ij->...j", x, weights))


def _encode(ids: Array, size: int) -> Array:
    return _noise(_hash_rows(ids, np.zeros(len(ids), np.uint64)), size)


def _mean_mel(mel: Array, size: int) -> Array:
    return _project(mel.mean(axis=2), size)


def _align(latents: Array, voice: Array, frame_index: Array) -> tuple[Array, Array]:
    spoken = _project(latents, DIMS["diffusion.dim"])[:, frame_index]
    return spoken + _project(voice, DIMS["diffusion.dim"])[:, None], np.zeros(DIMS["diffusion.dim"])


def _denoise(x: Array, condition: Array, timestep: Array) -> tuple[Array]:
    noise = 0.5 * x + 0.5 * _project(condition, MELS).transpose(0, 2, 1)
    return (np.concatenate([noise, np.tanh(x)], axis=1),)


def _wave(loudness: Array) -> Array:
    """(rows, frames) -> (rows, frames * HOP): a tone as loud as each frame says."""
    return (loudness[:, :, None] * _WAVE).reshape(len(loudness), -1)


def _univnet(mel: Array, noise: Array) -> tuple[Array]:
    return (_wave(np.tanh(mel.mean(axis=1) * 0.1 + noise.mean(axis=1))),)


def _hifigan(latents: Array, voice: Array, wanted: Array) -> tuple[Array]:
    latents = latents[:, :, slice(*wanted)]
    return (_wave(np.tanh(latents.mean(axis=1) + voice.mean(axis=1)[:, None])),)


def _hear(values: Array, outputs: int) -> tuple[Array]:
    """Letters at random: a function of what is heard."""
    words = _hash_rows(_quantize(values.reshape(len(values), -1)[:, :256]), np.zeros(len(values), np.uint64))
    return (
        _LOGIT_RANGE / 2 * _noise(words, outputs * len(SYMBOLS)).reshape(len(values), outputs, len(SYMBOLS)),
    )


def _detector(wav: Array) -> tuple[Array]:
    level = np.abs(wav[:, 0]).mean(axis=1)
    return (np.stack([level, 0.5 - level], axis=1),)


_ONE = np.ones(1)
_GRAPHS: Mapping[str, Callable[..., tuple[Array, ...]]] = {
    "ar_voice": lambda mel: (_mean_mel(mel, DIMS["ar.dim"]),),
    "clvp_text": lambda text_ids: (_encode(text_ids, DIMS["clvp.latent_dim"]), _ONE),
    "clvp_speech": lambda codes: (_encode(codes, DIMS["clvp.latent_dim"]),),
    "cvvp_voice": lambda mel: (_mean_mel(mel, DIMS["cvvp.latent_dim"]), _ONE),
    "cvvp_speech": lambda codes: (_encode(codes, DIMS["cvvp.latent_dim"]),),
    "diffusion_voice": lambda mel: (_mean_mel(mel, DIMS["diffusion.voice_dim"]),),
    "diffusion_align": _align,
    "diffusion_condition": lambda aligned, timestep: (aligned + np.sin(timestep)[:, None, None],),
    "diffusion_denoise": _denoise,
    "univnet": _univnet,
    "hifigan": _hifigan,
    "rlg_auto": lambda noise: (_project(noise, DIMS["rlg_auto.dim"]),),
    "rlg_diffuser": lambda noise: (_project(noise, DIMS["rlg_diffuser.dim"]),),
    "detector": _detector,
    "aligner": lambda mel: _hear(mel, -(-mel.shape[2] // ALIGNER_STRIDE)),
    "wav2vec2": lambda wav: _hear(wav, max(0, (wav.shape[1] - 400) // DIMS["wav2vec2.stride"] + 1)),
}
