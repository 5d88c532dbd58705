"""Everything of a run in a folder, to look into it and to do it again.

``state.json`` holds text, token ids, settings, the seed of each clip and what engine it was; ``arrays.safetensors`` the
voice's latents (``voice.auto``, ``voice.diffusion``; with CVVP its clips, ``clip.0``, ...), all ``codes`` and ``scores``,
the ``chosen`` samples and the latents of each (``latents.0``, ...). Of clips that were checked and drawn again it is the
tries that clips were kept of. Nothing in it is code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ._version import __version__
from .autoregressive import ROWS
from .checking import Drawn, gathered
from .config import Settings, make_settings, settings_arguments
from .engine import Array, Engine
from .errors import InputError, OutputError, SettingsError
from .output import complete_file
from .pipeline import Pipeline, Result, check_seed
from .scheduler import Scheduler
from .text import Tokenizer
from .voice import Voice, VoiceLatents

STATE, ARRAYS = "state.json", "arrays.safetensors"
_FORMAT, _VERSION = "tortoise-rt debug state", 1
_MAX_JSON, _MAX_ARRAYS = 16 << 20, 2 << 30  # bytes


@dataclass(frozen=True)
class DebugState:
    """A run as it was."""

    text: str | None  #: None where token ids were given
    ids: list[int]
    settings: Settings
    drawn: list[Drawn]  #: with which seed each clip was, best first
    tries: tuple[int, ...]  #: the seeds of all tries
    voice: VoiceLatents
    clips: tuple[Array, ...]  #: (samples,) each, 22.05 kHz; only where CVVP ranked by them
    codes: Array  #: (samples drawn, code limit) int64
    scores: Array  #: (samples drawn,)
    chosen: Array  #: (candidates,)
    latents: list[Array]  #: (1, codes, dim), best first
    engine: Mapping[str, Any]  #: source, backend, device, fingerprint, precision

    @property
    def seed(self) -> int:
        """What the best clip was drawn with."""
        return self.drawn[0].seed


def check_folder(folder: str | Path) -> Path:
    """``folder`` as a path; raises an OutputError when it can neither be made nor be written to."""
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file: name a folder for the debug state")
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist: create it, or write elsewhere")
    return path


def save_debug_state(folder: str | Path, result: Result, engine: Engine) -> None:
    """Write a result's run to ``folder``, which is made where its parent exists. Raises OutputError where it cannot be."""
    import safetensors.numpy

    path, request = check_folder(folder), result.request
    if request is None or not result.drawn:
        raise OutputError("this result has no seed of its own: its run cannot be done again")
    arrays = {
        "voice.auto": result.voice.auto,
        "codes": result.codes,
        "scores": result.scores,
        "chosen": result.chosen,
    }
    if result.voice.diffusion is not None:
        arrays["voice.diffusion"] = result.voice.diffusion
    arrays |= {f"latents.{i}": latents for i, latents in enumerate(result.latents)}
    if request.settings.cvvp_amount > 0:
        arrays |= {f"clip.{i}": clip for i, clip in enumerate(request.clips)}
    info = engine.info
    state = {
        "format": _FORMAT,
        "version": _VERSION,
        "tortoise_rt": __version__,
        "text": request.text,
        "ids": request.ids,
        "clips": [drawn._asdict() for drawn in result.drawn],
        "tries": result.tries,
        "settings": settings_arguments(request.settings),
        "chosen": [int(i) for i in result.chosen],
        "scores": [round(float(score), 6) for score in result.scores],
        "complete": result.complete,
        "audio_seconds": round(result.audio_seconds, 3),
        "seconds": {stage: round(spent, 3) for stage, spent in result.seconds.items()},
        "engine": {
            "source": str(info.source),
            "backend": info.backend,
            "device": info.device,
            "fingerprint": info.fingerprint,
            "precision": dict(info.precision),
        },
    }
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {path} cannot be made ({error.strerror}): write elsewhere") from error
    data = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    with complete_file(path / ARRAYS) as unfinished:
        unfinished.write_bytes(data)
    with complete_file(path / STATE) as unfinished:
        unfinished.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def load_debug_state(folder: str | Path) -> DebugState:
    """What :func:`save_debug_state` wrote; raises an InputError when it is missing, damaged or of another format."""
    path = Path(folder)
    state, arrays = _read_json(path / STATE), _read_arrays(path / ARRAYS)
    if state.get("format") != _FORMAT or state.get("version") != _VERSION:
        raise InputError(
            f"{path / STATE} has the format {state.get('format')!r}, version {state.get('version')!r}; "
            f"{_FORMAT!r}, version {_VERSION} is read: write it anew"
        )
    try:
        text, engine = state["text"], dict(state["engine"])
        if text is not None and not isinstance(text, str):
            raise TypeError("text is no string")
        engine["precision"] = {str(k): str(v) for k, v in dict(engine.get("precision") or {}).items()}
        drawn = [Drawn(check_seed(clip["seed"]), int(clip["rank"])) for clip in state["clips"]]
        tries = tuple(map(check_seed, state["tries"]))
        settings = make_settings(**state["settings"])
        _check_shapes(arrays)
        if len(drawn) != len(arrays["chosen"]) or not drawn:
            raise ValueError("there is not one seed for each clip")
        if not all(seed in tries and 0 <= rank < settings.candidates for seed, rank in drawn):
            raise ValueError("a clip is of no try")
        return DebugState(
            text,
            [int(i) for i in state["ids"]],
            settings,
            drawn,
            tries,
            VoiceLatents(
                arrays["voice.auto"], arrays.get("voice.diffusion"), str(engine.get("fingerprint", ""))
            ),
            tuple(_numbered(arrays, "clip")),
            arrays["codes"],
            arrays["scores"],
            arrays["chosen"],
            _numbered(arrays, "latents"),
            engine,
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the debug state in {path} is damaged ({error!r}): write it anew") from error


def replay(state: DebugState, engine: Engine, tokenizer: Tokenizer | None = None) -> Result:
    """The run of ``state`` once more, by a scheduler as runs are: the tries that clips were kept of, and these clips.

    Raises SettingsError when the tokenizer makes other ids of its text.
    """
    pipeline = Pipeline(engine, tokenizer)
    said: str | list[int] = state.ids
    if state.text is not None and pipeline.tokenizer is not None:
        said = state.text
    voice = Voice("debug state", clips=state.clips, latents=state.voice)
    kept = [seed for seed in state.tries if any(seed == drawn.seed for drawn in state.drawn)]
    with Scheduler(engine, pipeline.tokenizer, rows=state.settings.ar.batch_rows or ROWS) as scheduler:
        again = {seed: scheduler.submit(said, voice, state.settings, seed).result() for seed in kept}
    result = replace(gathered(again, state.drawn), tries=state.tries)
    if result.request is not None and result.request.ids != state.ids:
        raise SettingsError(
            "this engine's tokenizer makes other ids of the text: replay it with the one that was used"
        )
    return result


def differences(state: DebugState, result: Result) -> dict[str, float]:
    """How far a result is from the run of ``state``, at most: codes that differ, and scores and latents by how much."""
    same = result.codes.shape == state.codes.shape
    codes = int((result.codes != state.codes).sum()) if same else max(result.codes.size, state.codes.size)
    pairs = list(zip(state.latents, result.latents, strict=False))
    alike = len(state.latents) == len(result.latents) and all(a.shape == b.shape for a, b in pairs)
    return {
        "codes": float(codes),
        "scores": _apart(state.scores, result.scores) if same else np.inf,
        "latents": max((_apart(a, b) for a, b in pairs), default=0.0) if alike else np.inf,
    }


def _check_shapes(arrays: Mapping[str, Array]) -> None:
    """Raise a ValueError unless codes, scores and chosen samples belong together."""
    codes, scores, chosen = arrays["codes"], arrays["scores"], arrays["chosen"]
    whole = codes.dtype.kind == "i" and chosen.dtype.kind == "i"
    if not whole or codes.ndim != 2 or scores.shape != codes.shape[:1] or chosen.ndim != 1:
        raise ValueError("codes, scores and chosen are not of one run")
    if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(codes):
        raise ValueError("a sample is chosen that there is not")


def _apart(one: Array, other: Array) -> float:
    return float(np.abs(one - other).max(initial=0))


def _numbered(arrays: Mapping[str, Array], name: str) -> list[Array]:
    return [arrays[f"{name}.{i}"] for i in range(sum(key.startswith(f"{name}.") for key in arrays))]


def _check_file(path: Path, limit: int) -> None:
    if not path.is_file():
        raise InputError(f"there is no file {path}: give a folder that --debug-state has written")
    if path.stat().st_size > limit:
        raise InputError(f"{path} has {path.stat().st_size} bytes; a debug state has at most {limit}")


def _read_json(path: Path) -> dict[str, Any]:
    _check_file(path, _MAX_JSON)
    try:
        state = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}): write it anew") from error
    if not isinstance(state, dict):
        raise InputError(f"{path} holds no debug state: write it anew")
    return state


def _read_arrays(path: Path) -> dict[str, Array]:
    import safetensors.numpy

    _check_file(path, _MAX_ARRAYS)
    try:
        return dict(safetensors.numpy.load_file(path))
    except (
        Exception
    ) as error:  # the library raises its own error, OSError, or KeyError for a dtype NumPy lacks
        raise InputError(f"{path} is not a sound .safetensors file ({error}): write it anew") from error


__all__ = ["DebugState", "differences", "load_debug_state", "replay", "save_debug_state"]
