"""Is a stream the whole clip, and how soon does it begin?

Pieces are decoded while codes are still drawn; the comparison with the clip that is decoded whole shows that no seam can
be heard, and that both calls choose the same settings, voice and seed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from tortoise_rt import TextToSpeech

from .speakers import EngineSpeaker

TOLERANCE = 1e-3  #: of full scale (-60 dB): what another order of additions may change


def compare_stream(speaker: EngineSpeaker, text: str, seed: int) -> dict[str, Any]:
    """``text`` through ``tts_stream`` and through ``tts`` with what that uses: the fast decoder and one sample."""
    tts, voice = TextToSpeech(engine=speaker.engine), speaker.voice
    arguments = {**speaker.arguments, "decoder": "hifigan", "num_autoregressive_samples": 1}
    arguments |= {"use_deterministic_seed": seed, "verbose": False}
    if voice is not None and voice.clips:
        arguments["voice_samples"] = list(voice.clips)
    elif voice is not None:
        arguments["conditioning_latents"] = voice.latents
    start = time.perf_counter()
    whole = tts.tts(text, **arguments)[0, 0]
    seconds = time.perf_counter() - start
    start, first, pieces = time.perf_counter(), 0.0, []
    for piece in tts.tts_stream(text, split=False, **arguments):
        first = first or time.perf_counter() - start
        pieces.append(piece)
    stream = np.concatenate(pieces)
    same_length = len(stream) == len(whole)
    difference = float(np.abs(stream - whole).max()) if same_length else None
    return {
        "kind": "stream",
        "text": text,
        "seed": seed,
        "pieces": len(pieces),
        "samples": [len(whole), len(stream)],
        "difference": difference,
        "whole_s": round(seconds, 3),
        "first_s": round(first, 3),
        "ok": difference is not None and difference <= TOLERANCE,
    }


def summarize_streams(rows: Iterable[dict[str, Any]]) -> str:
    """One line for a person."""
    rows = list(rows)
    wrong = [row["text"] for row in rows if not row["ok"]]
    worst = max((row["difference"] or 0.0 for row in rows), default=0.0)
    whole, first = (np.median([row[key] for row in rows]) for key in ("whole_s", "first_s"))
    return (
        f"streams: {len(rows) - len(wrong)} of {len(rows)} are the whole clip (largest difference {worst:.1e}); "
        f"a whole clip takes {whole:.2f} s, a first piece {first:.2f} s (medians)"
        + "".join(f"\n  differs: {text}" for text in wrong)
    )
