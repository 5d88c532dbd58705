"""Which samples are best: CLVP scores codes against the text, CVVP against the voice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .engine import Array, Engine
from .errors import SettingsError
from .spec import STOP_TEXT

BATCH = 16  #: rows of codes encoded at once


def normalize(latents: Array) -> Array:
    """Unit length over the last axis."""
    return latents / np.maximum(np.linalg.norm(latents, axis=-1, keepdims=True), 1e-12)


def clvp_scores(engine: Engine, ids: Sequence[int], codes: Array) -> Array:
    """Text ids (the pad is added here) against fixed-up codes (samples, codes), padding included -> (samples,)."""
    text, scale = engine.run("clvp_text", text_ids=np.array([[*ids, STOP_TEXT]], np.int64))
    return normalize(encode_speech(engine, "clvp_speech", codes)) @ normalize(text)[0] * scale[0]


def cvvp_scores(engine: Engine, mels: Array, codes: Array) -> Array:
    """Mels of the voice's clips (clips, bands, frames) against codes (samples, codes) -> mean over clips (samples,)."""
    voices, scale = engine.run("cvvp_voice", mel=mels)
    similarity = normalize(encode_speech(engine, "cvvp_speech", codes)) @ normalize(voices).T
    return similarity.mean(axis=1) * scale[0]


def encode_speech(engine: Engine, graph: str, codes: Array) -> Array:
    """(samples, codes) -> (samples, latent_dim), in batches."""
    batches = [engine.run(graph, codes=codes[i : i + BATCH])[0] for i in range(0, len(codes), BATCH)]
    return np.concatenate(batches)


def rank(engine: Engine, ids: Sequence[int], codes: Array, cvvp_amount: float, mels: Array | None) -> Array:
    """Scores (samples,) of fixed-up codes; higher is better. ``mels``: of the voice's clips, for CVVP."""
    if cvvp_amount == 0:
        return clvp_scores(engine, ids, codes)
    by_voice = cvvp_scores(engine, require_mels(cvvp_amount, mels), codes)
    if cvvp_amount == 1:
        return by_voice
    return by_voice * cvvp_amount + clvp_scores(engine, ids, codes) * (1 - cvvp_amount)


def require_mels(cvvp_amount: float, mels: Array | None) -> Array:
    """``mels`` itself; raises SettingsError when there are none to rank by."""
    if mels is None:
        raise SettingsError(
            f"cvvp_amount is {cvvp_amount:g}, but ranking by voice needs the voice's clips, "
            "which latents and random voices lack: give clips or set cvvp_amount to 0"
        )
    return mels


def best(scores: Array, count: int) -> Array:
    """Indices of the ``count`` highest scores, best first; ties in order."""
    return np.argsort(-scores, kind="stable")[:count]
