"""How clean speech sounds (DNSMOS, no reference needed) and whose voice it is (embeddings of a speaker encoder)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tortoise_rt.resample import resample

RATE = 16000  #: Hz, what both judges hear
WINDOW = 9.01  #: seconds that DNSMOS judges at a time


class Quality(NamedTuple):
    """Opinion scores from 1 (bad) to 5 (excellent), as predicted by DNSMOS."""

    overall: float  #: P.835: speech and background together
    p808: float  #: P.808: a single question about quality


def quality(wav: np.ndarray, rate: int) -> Quality:
    """wav: (samples,) float32 in [-1, 1]; a short clip is repeated until it fills one window."""
    from speechmos import dnsmos

    heard = np.clip(resample(wav, rate, RATE), -1, 1)
    heard = np.resize(heard, max(len(heard), math.ceil(WINDOW * RATE)))
    scores = dnsmos.run(heard, RATE)
    return Quality(float(scores["ovrl_mos"]), float(scores["p808_mos"]))


class VoiceEncoder:
    """Resemblyzer's speaker encoder; embeddings of one voice point the same way."""

    def __init__(self) -> None:
        import resemblyzer

        self._prepare = resemblyzer.preprocess_wav
        self._encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)

    def embed(self, wav: np.ndarray, rate: int) -> np.ndarray:
        """wav: (samples,) -> (256,) of length 1; the product of two is their similarity, 1 for the same voice."""
        embedding: np.ndarray = self._encoder.embed_utterance(self._prepare(resample(wav, rate, RATE)))
        return embedding
