"""Settings of a synthesis, checked when they are made, and the presets."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np

from .errors import SettingsError, suggest
from .spec import TRAINED_STEPS

DECODERS = ("diffusion", "hifigan")
SAMPLERS = ("ancestral", "ddim", "dpm++2m", "dpm++2m_sde")
KV_POSITIONS = ("trained", "upstream")
MAX_SAMPLES = 4096
MAX_RETRIES = 100
SMALLEST = 1e-6  #: of what logits are divided by: less leaves the range of float32


def check_number(
    name: str, value: Any, low: float, high: float, *, above: bool = False, integer: bool = False
) -> Any:
    """``value`` as an int or a float; raises SettingsError unless low <= value <= high (low < value with ``above``)."""
    kind = "an integer" if integer else "a number"
    number = isinstance(value, Integral if integer else Real)
    if isinstance(value, bool) or not number:
        raise SettingsError(f"{name} must be {kind}, not {value!r}")
    try:
        size = float(value)
    except OverflowError:
        size = math.inf
    if not math.isfinite(size):
        raise SettingsError(f"{name} must be {kind}, not {size}")
    if size < low or size > high or (above and size == low):
        bound = f"above {low:g}" if above else f"at least {low:g}"
        limit = "" if high == math.inf else f" and at most {high:g}"
        raise SettingsError(f"{name} is {size:g}; it must be {bound}{limit}")
    return int(value) if integer else size


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raise a SettingsError unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise SettingsError(f"unknown {name} {value!r}. {suggest(str(value), choices)}")


def check_flag(name: str, value: Any) -> bool:
    """``value`` as a bool (NumPy's is one too); raises SettingsError for anything else."""
    if not isinstance(value, (bool, np.bool_)):
        raise SettingsError(f"{name} must be true or false, not {value!r}")
    return bool(value)


def _set_number(settings: Any, field: str, *limits: float, label: str = "", **kind: bool) -> None:
    """Check a field of frozen settings, and make it a plain int or float."""
    object.__setattr__(
        settings, field, check_number(label or field, getattr(settings, field), *limits, **kind)
    )


def _set_flag(settings: Any, field: str) -> None:
    object.__setattr__(settings, field, check_flag(field, getattr(settings, field)))


@dataclass(frozen=True)
class ARSettings:
    """How mel codes are drawn from the autoregressive network."""

    samples: int = 512  #: independent draws; the best are kept
    temperature: float = 0.8  #: softmax temperature; lower is more predictable
    top_p: float = 0.8  #: nucleus: smallest set of codes with this much probability
    top_k: int = 50  #: only this many most likely codes; 0 turns it off
    repetition_penalty: float = 2.0  #: divides (or multiplies) the logits of codes already drawn
    length_penalty: float = (
        1.0  #: accepted for compatibility; without effect when sampling, as in the reference
    )
    typical: bool = False  #: locally typical sampling (arXiv:2202.00666)
    typical_mass: float = 0.9  #: its probability mass
    greedy: bool = False  #: the most likely code each time, nothing random
    max_mel_tokens: int | None = None  #: longest output in codes; None: 500 or what the model has room for
    batch_rows: int | None = (
        None  #: most samples decoded together; None: as the scheduler has room for. Changes no result
    )
    kv_positions: str = "trained"  #: "upstream" reproduces the reference's cached decode, for comparison

    def __post_init__(self) -> None:
        _set_number(self, "samples", 1, MAX_SAMPLES, integer=True)
        if isinstance(self.temperature, Real) and self.temperature == 0:
            raise SettingsError(
                "temperature is 0; it must be above 0 and at most 100 "
                "(for the most likely code each time use greedy)"
            )
        _set_number(self, "temperature", SMALLEST, 100)
        _set_number(self, "top_p", 0, 1, above=True)
        _set_number(self, "top_k", 0, math.inf, integer=True)
        _set_number(self, "repetition_penalty", SMALLEST, 100)
        _set_number(self, "length_penalty", -math.inf, math.inf)
        _set_flag(self, "typical")
        _set_number(self, "typical_mass", 0, 1, above=True)
        _set_flag(self, "greedy")
        if self.max_mel_tokens is not None:
            _set_number(self, "max_mel_tokens", 1, math.inf, integer=True)
        if self.batch_rows is not None:
            _set_number(self, "batch_rows", 1, 1024, integer=True)
        check_choice("kv_positions", self.kv_positions, KV_POSITIONS)


@dataclass(frozen=True)
class DiffusionSettings:
    """How the diffusion decoder turns latents into a mel."""

    iterations: int = 100  #: denoising steps, spaced over the trained 4000
    sampler: str = "ancestral"  #: the reference's, or one of SAMPLERS that needs fewer steps
    eta: float = 0.0  #: ddim only: 0 is deterministic, 1 as noisy as ancestral sampling
    cond_free: bool = True  #: conditioning-free guidance: a second pass without conditioning
    cond_free_k: float = 2.0  #: its strength, ramped up over the steps
    cond_free_share: float = (
        1.0  #: share of the steps, the last ones, that are guided: guidance is weak in the first
    )
    temperature: float = 1.0  #: scales the initial noise; 0 sounds smooth and dull

    def __post_init__(self) -> None:
        _set_number(self, "iterations", 1, TRAINED_STEPS, integer=True, label="diffusion_iterations")
        check_choice("sampler", self.sampler, SAMPLERS)
        _set_number(self, "eta", 0, 1)
        _set_flag(self, "cond_free")
        _set_number(self, "cond_free_k", 0, 1000)
        _set_number(self, "cond_free_share", 0, 1)
        _set_number(self, "temperature", 0, 1, label="diffusion_temperature")


@dataclass(frozen=True)
class Settings:
    """Everything that shapes a clip beside its text, voice and seed."""

    ar: ARSettings = field(default_factory=ARSettings)
    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)
    decoder: str = "diffusion"  #: "diffusion" (then UnivNet) or "hifigan" (fast, straight from the latents)
    cvvp_amount: float = 0.0  #: 0: rank samples by text (CLVP); 1: by voice (CVVP); between: a mixture
    candidates: int = 1  #: clips returned, best first
    redaction: bool = True  #: words in [brackets] are spoken and then cut out, which takes an aligner
    check: bool = False  #: an aligner compares each clip with the text; bad ones are drawn again
    max_retries: int = 2  #: how often that may be

    def __post_init__(self) -> None:
        check_choice("decoder", self.decoder, DECODERS)
        _set_number(self, "cvvp_amount", 0, 1)
        _set_number(self, "candidates", 1, MAX_SAMPLES, integer=True)
        _set_flag(self, "redaction")
        _set_flag(self, "check")
        _set_number(self, "max_retries", 0, MAX_RETRIES, integer=True)
        if self.candidates > self.ar.samples:
            raise SettingsError(
                f"{self.candidates} candidates of {self.ar.samples} samples: draw at least as many samples as candidates"
            )


#: The reference's presets for the diffusion decoder (tortoise.api), then faster ones of our own. Names are those of
#: arguments of tts().
_COMMON: Mapping[str, Any] = {
    "temperature": 0.8,
    "length_penalty": 1.0,
    "repetition_penalty": 2.0,
    "top_p": 0.8,
    "cond_free_k": 2.0,
    "diffusion_temperature": 1.0,
    "sampler": "ancestral",
    "cond_free": True,
    "cond_free_share": 1.0,
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "ultra_fast": {
        **_COMMON,
        "num_autoregressive_samples": 16,
        "diffusion_iterations": 30,
        "cond_free": False,
    },
    "fast": {**_COMMON, "num_autoregressive_samples": 96, "diffusion_iterations": 80},
    "standard": {**_COMMON, "num_autoregressive_samples": 256, "diffusion_iterations": 200},
    "high_quality": {**_COMMON, "num_autoregressive_samples": 256, "diffusion_iterations": 400},
    "turbo": {
        **_COMMON,
        "num_autoregressive_samples": 16,
        "diffusion_iterations": 10,
        "sampler": "dpm++2m",
        "cond_free": False,
    },
    "swift": {
        **_COMMON,
        "num_autoregressive_samples": 96,
        "diffusion_iterations": 20,
        "sampler": "dpm++2m",
        "cond_free_share": 0.75,
    },
}

#: argument of the reference's tts() (or of ours) -> (part of Settings, field)
ARGUMENTS: Mapping[str, tuple[str, str]] = {
    "num_autoregressive_samples": ("ar", "samples"),
    "temperature": ("ar", "temperature"),
    "top_p": ("ar", "top_p"),
    "top_k": ("ar", "top_k"),
    "repetition_penalty": ("ar", "repetition_penalty"),
    "length_penalty": ("ar", "length_penalty"),
    "typical_sampling": ("ar", "typical"),
    "typical_mass": ("ar", "typical_mass"),
    "greedy": ("ar", "greedy"),
    "max_mel_tokens": ("ar", "max_mel_tokens"),
    "batch_rows": ("ar", "batch_rows"),
    "kv_positions": ("ar", "kv_positions"),
    "diffusion_iterations": ("diffusion", "iterations"),
    "sampler": ("diffusion", "sampler"),
    "eta": ("diffusion", "eta"),
    "cond_free": ("diffusion", "cond_free"),
    "cond_free_k": ("diffusion", "cond_free_k"),
    "cond_free_share": ("diffusion", "cond_free_share"),
    "diffusion_temperature": ("diffusion", "temperature"),
    "decoder": ("", "decoder"),
    "cvvp_amount": ("", "cvvp_amount"),
    "k": ("", "candidates"),
    "enable_redaction": ("", "redaction"),
    "check": ("", "check"),
    "max_retries": ("", "max_retries"),
}


def make_settings(preset: str | None = None, **arguments: Any) -> Settings:
    """Settings from a preset's name and arguments named as those of the reference's ``tts()``, which override it.

    Raises SettingsError for an unknown preset or argument, or a value out of range.
    """
    if preset is not None:
        check_choice("preset", preset, PRESETS)
    merged = {**(PRESETS[preset] if preset is not None else {}), **arguments}
    parts: dict[str, dict[str, Any]] = {"ar": {}, "diffusion": {}, "": {}}
    for name, value in merged.items():
        if name not in ARGUMENTS:
            raise SettingsError(f"unknown setting {name!r}. {suggest(name, ARGUMENTS)}")
        part, attribute = ARGUMENTS[name]
        parts[part][attribute] = value
    # One greedy draw is all there is to draw.
    if (
        check_flag("greedy", parts["ar"].get("greedy", False))
        and "num_autoregressive_samples" not in arguments
    ):
        parts["ar"]["samples"] = parts[""].get("candidates", 1)
    return Settings(
        ar=ARSettings(**parts["ar"]), diffusion=DiffusionSettings(**parts["diffusion"]), **parts[""]
    )


def settings_arguments(settings: Settings) -> dict[str, Any]:
    """The arguments of :func:`make_settings` that give ``settings``."""
    return {
        name: getattr(getattr(settings, part) if part else settings, attribute)
        for name, (part, attribute) in ARGUMENTS.items()
    }


def replace(settings: Settings, **arguments: Any) -> Settings:
    """``settings`` with some arguments changed, named as in :func:`make_settings`."""
    return make_settings(**{**settings_arguments(settings), **arguments})


__all__ = [
    "ARSettings",
    "DiffusionSettings",
    "Settings",
    "PRESETS",
    "ARGUMENTS",
    "make_settings",
    "replace",
    "settings_arguments",
]
