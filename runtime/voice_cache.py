"""Latents of clips, kept in the user's cache by what decides them: the clip, the model and how it is run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ._version import __version__
from .bundle import cache_folder
from .engine import Array, Engine
from .latents import MAX_WIDTH

FORM = 1  #: to be raised when a clip's way to its latent changes within a version
MOST_FILES = 4096  #: of a latent each, 4 or 8 KB with the official checkpoints
SPARED = 0.75  #: of them stay when there are more: those used last
_DIGEST = hashlib.sha256().digest_size


def kept(engine: Engine, graph: str, clip: Array, make: Callable[[Array], Array]) -> Array:
    """The latent (1, dim) of a clip by a voice encoder: the one that is kept, else what ``make`` computes, which then is.

    A cache that cannot be read or written costs time, nothing else.
    """
    path = folder() / _name(engine, graph, clip)
    with contextlib.suppress(OSError):
        if (latent := _read(path)) is not None:
            return latent
    latent = make(clip)
    with contextlib.suppress(OSError):
        _write(path, latent)
    return latent


def folder() -> Path:
    """Where the latents are kept; it may be removed at any time."""
    return cache_folder() / "latents"


def _name(engine: Engine, graph: str, clip: Array) -> str:
    info = engine.info
    way = [FORM, __version__, info.fingerprint, graph, info.precision.get(graph), info.backend, info.device]
    digest = hashlib.sha256(json.dumps(way).encode() + b"\0")
    digest.update(np.ascontiguousarray(clip, "<f4").data)
    return digest.hexdigest()


def _read(path: Path) -> Array | None:
    """The latent in a file, which counts as used now; None for a damaged one. Raises OSError where there is none."""
    with path.open("rb") as file:
        content = file.read(_DIGEST + 4 * MAX_WIDTH + 1)
    digest, values = content[:_DIGEST], content[_DIGEST:]
    if not values or hashlib.sha256(values).digest() != digest:
        return None
    with contextlib.suppress(OSError):  # a cache may be for reading only
        os.utime(path)
    return np.frombuffer(values, "<f4").astype(np.float32)[None]


def _write(path: Path, latent: Array) -> None:
    """Readers see all of a file or nothing; of several writers of one name, which write the same, any may win."""
    values = np.ascontiguousarray(latent, "<f4").tobytes()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_name(f".{secrets.token_hex(8)}")
    try:
        unfinished.write_bytes(hashlib.sha256(values).digest() + values)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    _bound(path.parent)


def _bound(place: Path) -> None:
    """Remove what was not used for longest where there are more than MOST_FILES."""
    with os.scandir(place) as entries:
        paths = [Path(entry) for entry in entries]
    if len(paths) > MOST_FILES:
        used = {}
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # another process removes as well
                used[path] = path.stat().st_mtime_ns
        for path in sorted(used, key=used.__getitem__)[: len(used) - int(SPARED * MOST_FILES)]:
            path.unlink(missing_ok=True)
