"""Reading the spoken corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tortoise_rt.spec import CODE_RATE, CODE_SAMPLES, HOP, SAMPLE_RATE

from .features import SILENCE

FRAMES_PER_CODE = CODE_SAMPLES // HOP
CODE_SECONDS = CODE_SAMPLES / CODE_RATE
_FRAME_SAMPLES = HOP * SAMPLE_RATE / CODE_RATE  # at the teacher's rate

_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
#: of NumPy's arrays, which shards of earlier versions hold where newer ones have tensors
torch.serialization.add_safe_globals(
    [_RECONSTRUCT, np.ndarray, np.dtype, np.dtypes.Int16DType, np.dtypes.Int32DType]
)


def paths(folder: Path) -> list[Path]:
    found = sorted(folder.glob("shard_*.pt"))
    if not found:
        raise FileNotFoundError(f"no spoken corpus in {folder}; run the stage speak first")
    return found


def read(path: Path) -> list[dict[str, Any]]:
    """One shard's rows, as teacher.speak_corpus wrote them; all that is no mel as arrays."""
    rows: list[dict[str, Any]] = torch.load(path, map_location="cpu", weights_only=True)
    for row in rows:
        row["ids"], row["starts"] = np.asarray(row["ids"]), np.asarray(row["starts"])
        if "wav" in row:
            row["wav"] = {voice: np.asarray(wav) for voice, wav in row["wav"].items()}
    return rows


def rows(folder: Path, limit: int | None = None, audio: bool = False) -> Iterator[dict[str, Any]]:
    """Rows of the first ``limit`` shards; with ``audio``, of those that hold it."""
    for path in paths(folder)[:limit]:
        shard = read(path)
        if audio and "wav" not in shard[0]:
            return
        yield from shard


def padded(mel: Tensor, extra: int = 2 * FRAMES_PER_CODE) -> Tensor:
    """(80, frames) -> float, whole codes long, with ``extra`` frames of silence behind."""
    short = -mel.shape[1] % FRAMES_PER_CODE + extra
    return torch.nn.functional.pad(mel.float(), (0, short), value=SILENCE)


def cut(wav: np.ndarray, first: int, samples: int) -> Tensor:
    """wav: (n,) int16 -> (samples,) float in [-1, 1] from sample ``first`` on; silence beyond the ends."""
    out = np.zeros(samples, np.float32)
    inside = wav[max(0, first) : max(0, first + samples)]
    at = max(0, -first)
    out[at : at + len(inside)] = inside.astype(np.float32) / 32767
    return torch.from_numpy(out)


def phonemes_at(row: dict[str, Any], frames: np.ndarray) -> np.ndarray:
    """The phoneme id spoken at each (fractional) mel frame."""
    starts = row["starts"].astype(np.int64)
    index = np.searchsorted(starts[1:], frames * _FRAME_SAMPLES, side="right")
    return row["ids"][np.clip(index, 0, len(row["ids"]) - 1)].astype(np.int64)
