"""A fast, lean runtime for TorToiSe text-to-speech.

    import tortoise_rt

    tts = tortoise_rt.TextToSpeech(engine="my-bundle")
    wav = tts.tts_with_preset("Hello there.", preset="fast")  # (1, 1, samples) float32, 24 kHz

Names are imported when first used, so that importing the package costs almost nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .audio import load_audio
    from .backends import open_engine
    from .config import PRESETS, ARSettings, DiffusionSettings, Settings, make_settings
    from .errors import (
        AudioError,
        BundleError,
        BundleMismatch,
        CheckpointError,
        EngineError,
        FetchError,
        InputError,
        MissingDependency,
        OutputError,
        SettingsError,
        TextError,
        TortoiseError,
        VoiceError,
    )
    from .latents import VoiceLatents
    from .pipeline import Pipeline, Result
    from .tts import TextToSpeech, classify_audio_clip
    from .voice import Voice, load_voice

#: module -> the public names it defines
_EXPORTS = {
    "audio": ("load_audio",),
    "backends": ("open_engine",),
    "config": ("ARSettings", "DiffusionSettings", "PRESETS", "Settings", "make_settings"),
    "errors": (
        "AudioError",
        "BundleError",
        "BundleMismatch",
        "CheckpointError",
        "EngineError",
        "FetchError",
        "InputError",
        "MissingDependency",
        "OutputError",
        "SettingsError",
        "TextError",
        "TortoiseError",
        "VoiceError",
    ),
    "latents": ("VoiceLatents",),
    "pipeline": ("Pipeline", "Result"),
    "tts": ("TextToSpeech", "classify_audio_clip"),
    "voice": ("Voice", "load_voice"),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "ARSettings",
    "AudioError",
    "BundleError",
    "BundleMismatch",
    "CheckpointError",
    "DiffusionSettings",
    "EngineError",
    "FetchError",
    "InputError",
    "MissingDependency",
    "OutputError",
    "PRESETS",
    "Pipeline",
    "Result",
    "Settings",
    "SettingsError",
    "TextError",
    "TextToSpeech",
    "TortoiseError",
    "Voice",
    "VoiceError",
    "VoiceLatents",
    "__version__",
    "classify_audio_clip",
    "load_audio",
    "load_voice",
    "make_settings",
    "open_engine",
]
