"""Training examples of the text-reading networks: text ids, codes, and what the teacher knows of their timing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt.spec import CODE_SAMPLES, HOP, SAMPLE_RATE
from tortoise_rt.text import Tokenizer

from . import loop, shards, vqvae
from .shards import CODE_SECONDS

SPACE_TOKEN = 2  #: id of the tokenizer's [SPACE]
LEAST_CODES, MOST_CODES, MOST_TEXT = 4, 190, 120
HELD_OUT = 192  #: last examples of the corpus, never trained on
_FRAMES = CODE_SAMPLES // HOP


@dataclass(frozen=True)
class Example:
    text: np.ndarray  #: (n,) ids
    codes: np.ndarray  #: (m,)
    reading: (
        np.ndarray
    )  #: (m,) float32: the (fractional) index of the text id spoken at the middle of each code
    phonemes: np.ndarray  #: (m, 2): of the first and the second half of each code
    shard: int
    row: int  #: of the shard

    def __len__(self) -> int:
        return len(self.text) + len(self.codes) + 5  # voice, start and stops of the text, start code


def reading_of(row: dict[str, Any], text: Sequence[int], codes: int) -> np.ndarray:
    """Where in the text each code is: word by word where the teacher's words are the text's, else evenly."""
    starts = row["starts"].astype(np.int64)
    last = len(starts) - 2  # index of the last phoneme; it and the first are pads
    time = (np.arange(codes) + 0.5) * CODE_SECONDS * SAMPLE_RATE
    phoneme = np.clip(np.searchsorted(starts[1:], time, side="right"), 0, last)
    part = np.clip((time - starts[phoneme]) / np.maximum(1, starts[phoneme + 1] - starts[phoneme]), 0, 1)
    spoken_word = np.cumsum([0] + [p == " " for p in row["phonemes"]] + [False])[: last + 1]
    text_word = np.cumsum(np.asarray(text) == SPACE_TOKEN)
    if spoken_word[-1] != text_word[-1]:
        even = (phoneme + part - 1) / max(1, last - 1)
        return np.clip(even * len(text), 0, len(text) - 0.01).astype(np.float32)
    words = np.arange(text_word[-1] + 1)
    text_first = np.searchsorted(text_word, words)
    text_end = np.append(text_first[1:], len(text))
    spoken_first = np.searchsorted(spoken_word, words)
    spoken_end = np.append(spoken_first[1:], last + 1)
    word = spoken_word[phoneme]
    first = text_first[word] + (word > 0)  # a word's ids come after its space
    end = np.maximum(text_end[word], first + 1)
    sound = spoken_first[word] + 1
    sound_end = np.maximum(spoken_end[word] - (word == spoken_word[-1]), sound + 1)
    at = first + (phoneme + part - sound) / (sound_end - sound) * (end - first)
    return np.clip(at, np.maximum(first - 1, 0), end - 0.01).astype(np.float32)


def prepare(work: loop.Work) -> list[Example]:
    """All usable examples of the corpus, in its order; made once for a VQ-VAE, then read from examples.npz."""
    path, mine = work.folder / "examples.npz", vqvae.fingerprint(work)
    if not (path.exists() and _codebook(path) == mine):
        _write(path, _build(work), mine)
    return _read(path)


def split(examples: list[Example]) -> tuple[list[Example], list[Example]]:
    """-> (for training, shortest first; held out)."""
    return sorted(examples[:-HELD_OUT], key=len), examples[-HELD_OUT:]


def _build(work: loop.Work) -> list[Example]:
    tokenizer = Tokenizer(work.folder / "tokenizer.json")
    all_codes = vqvae.read_codes(work)
    examples = []
    for number, path in enumerate(shards.paths(work.data)):
        for index, (row, found) in enumerate(zip(shards.read(path), all_codes[path.name], strict=True)):
            text, codes = tokenizer.encode(row["text"]), found.numpy().astype(np.int64)
            if not (LEAST_CODES <= len(codes) <= MOST_CODES and 0 < len(text) <= MOST_TEXT):
                continue
            halves = (np.arange(len(codes))[:, None] + np.array([0.25, 0.75])) * _FRAMES
            examples.append(
                Example(
                    np.asarray(text, np.int64), codes, reading_of(row, text, len(codes)),
                    shards.phonemes_at(row, halves), number, index,
                )
            )  # fmt: skip
    return examples


def _write(path: Path, examples: list[Example], codebook: str) -> None:
    """``codebook``: the VQ-VAE's fingerprint."""
    part = path.with_suffix(".part.npz")
    np.savez(
        part,
        text=np.concatenate([e.text for e in examples]).astype(np.uint8),
        codes=np.concatenate([e.codes for e in examples]).astype(np.int16),
        reading=np.concatenate([e.reading for e in examples]),
        phonemes=np.concatenate([e.phonemes for e in examples]).astype(np.uint8),
        codebook=np.array(codebook),
        sizes=np.array([(len(e.text), len(e.codes), e.shard, e.row) for e in examples], np.int32),
    )
    part.replace(path)


def _codebook(path: Path) -> str | None:
    """The fingerprint that a file was written with; earlier versions wrote none."""
    with np.load(path) as stored:
        return str(stored["codebook"]) if "codebook" in stored else None


def _read(path: Path) -> list[Example]:
    with np.load(path) as stored:
        sizes = stored["sizes"]
        texts = np.cumsum(sizes[:, 0])[:-1]
        codes = np.cumsum(sizes[:, 1])[:-1]
        parts = zip(
            np.split(stored["text"].astype(np.int64), texts),
            np.split(stored["codes"].astype(np.int64), codes),
            np.split(stored["reading"], codes),
            np.split(stored["phonemes"].astype(np.int64), codes),
            sizes[:, 2].tolist(),
            sizes[:, 3].tolist(),
            strict=True,
        )
        return [Example(*part) for part in parts]
