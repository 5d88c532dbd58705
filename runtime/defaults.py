"""What a synthesis takes where its caller says nothing: the engine's own defaults, and what its networks can do."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any

from .config import (
    ARGUMENTS,
    MAX_SAMPLES,
    PRESETS,
    Settings,
    check_choice,
    make_settings,
    settings_arguments,
)
from .engine import Engine

DEFAULT_PRESET = "fast"  #: of the command line and of tts_with_preset(), as in the reference
log = logging.getLogger("tortoise_rt")


def default_voice(engine: Engine) -> str:
    """The voice that the engine names as its own, else "random"."""
    return str(engine.info.defaults.get("voice", "random"))


def check_settings(preset: str | None = None, **arguments: Any) -> None:
    """Raise a SettingsError for arguments of :func:`settings_for` that no engine takes."""
    given = {name: value for name, value in arguments.items() if value is not None}
    # How many samples there are to choose from may be the engine's to say.
    make_settings(preset, **{"num_autoregressive_samples": MAX_SAMPLES, **given})


def settings_for(
    engine: Engine, preset: str | None = None, fallback: str | None = None, **arguments: Any
) -> Settings:
    """Settings from arguments named as in :func:`make_settings`; None means that the caller does not say.

    What the caller names wins over the ``preset`` named, that over the engine's defaults, those over the preset
    that the engine names or ``fallback``. The decoder is one that the engine has, and samples that it could not
    rank are not drawn, whatever the preset says, unless the caller names them.
    """
    check_settings(preset, **arguments)
    if arguments.get("length_penalty") not in (None, 1):
        _warn_about_length_penalty()
    own = {name: value for name, value in engine.info.defaults.items() if name in ARGUMENTS}
    given = {name: value for name, value in arguments.items() if value is not None}
    base = engine.info.defaults.get("preset", fallback) if preset is None else None
    merged = {**_preset(base), **own, **_preset(preset), **given}
    if "decoder" not in merged and engine.has("hifigan") and not engine.has("diffusion_denoise", "univnet"):
        merged["decoder"] = "hifigan"
    if "num_autoregressive_samples" not in given:
        if merged.get("greedy"):
            merged.pop("num_autoregressive_samples", None)  # make_settings draws as many as are returned
        elif not engine.has("cvvp_speech" if merged.get("cvvp_amount") == 1 else "clvp_speech"):
            merged["num_autoregressive_samples"] = merged.get("k", 1)
            log.info("%s cannot rank samples: drawing no more than are returned", engine.info.source)
        elif "num_autoregressive_samples" in own:  # enough for what the caller wants returned
            merged["num_autoregressive_samples"] = max(
                merged["num_autoregressive_samples"], merged.get("k", 1)
            )
    return make_settings(**merged)


@functools.cache
def _warn_about_length_penalty() -> None:
    log.warning(
        "length_penalty has no effect: it weighs beams, and codes are drawn (in the original as well)"
    )


def settings_origins(
    engine: Engine, preset: str | None = None, fallback: str | None = None, **arguments: Any
) -> dict[str, tuple[Any, str]]:
    """Each argument's value as :func:`settings_for` finds it, and where it comes from."""
    settings = settings_for(engine, preset, fallback, **arguments)
    base = engine.info.defaults.get("preset")
    whose = "the engine's preset" if base else "the default preset"
    layers: list[tuple[str, Mapping[str, Any]]] = [
        ("option", {name: value for name, value in arguments.items() if value is not None}),
        (f"preset {preset}", _preset(preset)),
        ("the engine", engine.info.defaults),
        (f"{whose}, {base or fallback}", {} if preset else _preset(base or fallback)),
    ]
    origins: dict[str, tuple[Any, str]] = {}
    for name, value in settings_arguments(settings).items():
        origin, said = next(
            ((who, given[name]) for who, given in layers if name in given), ("default", value)
        )
        origins[name] = (
            value,
            origin if said == value else f"what the engine has networks for ({origin}: {said})",
        )
    return origins


def _preset(name: str | None) -> dict[str, Any]:
    """A preset's arguments; none for None."""
    if name is None:
        return {}
    check_choice("preset", name, PRESETS)
    return dict(PRESETS[name])
