"""How likely a clip came from TorToiSe."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .audio import AUDIO_SUFFIXES
from .engine import Array, Engine
from .errors import AudioError
from .sampling import softmax

MAX_SAMPLES = 220_000  #: at 24 kHz; the reference's command looks at this much of a clip


def detect(engine: Engine, wav: Array) -> float:
    """24 kHz wav (samples,) -> probability that TorToiSe made it."""
    (logits,) = engine.run("detector", wav=np.asarray(wav, np.float32)[None, None])
    return float(softmax(logits)[0, 0])


def find_clips(paths: Iterable[str | Path]) -> list[Path]:
    """The files named and every audio file in the folders named and below them, sorted; none of it is opened.

    Raises AudioError for a path that does not exist and for a folder without audio.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            if not path.exists():
                raise AudioError(f"there is no file or folder {path}: give clips, or folders of them")
            found.append(path)
            continue
        inside = [
            Path(folder) / name
            for folder, _, names in os.walk(path)  # links to folders are not followed: they may lead back
            for name in names
            if Path(name).suffix.lower() in AUDIO_SUFFIXES and not name.startswith(".")
        ]
        if not inside:
            raise AudioError(f"the folder {path} holds no audio ({', '.join(AUDIO_SUFFIXES)})")
        found += sorted(inside)
    return found
