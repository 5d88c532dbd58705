"""Settings of a synthesis, checked when they are made, and the presets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import SettingsError, suggest
from .spec import TRAINED_STEPS

DECODERS = ("diffusion", "hifigan")
SAMPLERS = ("ancestral", "ddim")
KV_POSITIONS = ("trained", "upstream")
MAX_SAMPLES = 4096


def _check(
    name: str, value: Any, low: float, high: float, *, above: bool = False, integer: bool = False
) -> None:
    """Raise a SettingsError unless low <= value <= high (low < value with ``above``)."""
    kind = "an integer" if integer else "a number"
    number = isinstance(value, int) if integer else isinstance(value, (int, float))
    if not number or isinstance(value, bool) or not math.isfinite(value):
        raise SettingsError(f"{name} must be {kind}, not {value!r}")
    if value < low or value > high or (above and value == low):
        bound = f"above {low:g}" if above else f"at least {low:g}"
        limit = "" if high == math.inf else f" and at most {high:g}"
        raise SettingsError(f"{name} is {value:g}; it must be {bound}{limit}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingsError(f"unknown {name} {value!r}. {suggest(str(value), choices)}")


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise SettingsError(f"{name} must be true or false, not {value!r}")


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
    batch_rows: int = 16  #: samples decoded together; bounds memory, never changes a result
    kv_positions: str = "trained"  #: "upstream" reproduces the reference's cached decode, for comparison

    def __post_init__(self) -> None:
        _check("samples", self.samples, 1, MAX_SAMPLES, integer=True)
        hint = " (for the most likely code each time use greedy)" if self.temperature == 0 else ""
        try:
            _check("temperature", self.temperature, 0, 100, above=True)
        except SettingsError as error:
            raise SettingsError(f"{error}{hint}") from None
        _check("top_p", self.top_p, 0, 1, above=True)
        _check("top_k", self.top_k, 0, math.inf, integer=True)
        _check("repetition_penalty", self.repetition_penalty, 0, 100, above=True)
        _check("length_penalty", self.length_penalty, -math.inf, math.inf)
        _check_flag("typical", self.typical)
        _check("typical_mass", self.typical_mass, 0, 1, above=True)
        _check_flag("greedy", self.greedy)
        if self.max_mel_tokens is not None:
            _check("max_mel_tokens", self.max_mel_tokens, 1, math.inf, integer=True)
        _check("batch_rows", self.batch_rows, 1, 1024, integer=True)
        _check_choice("kv_positions", self.kv_positions, KV_POSITIONS)


@dataclass(frozen=True)
class DiffusionSettings:
    """How the diffusion decoder turns latents into a mel."""

    iterations: int = 100  #: denoising steps, spaced over the trained 4000
    sampler: str = "ancestral"  #: "ancestral" (the reference's) or "ddim"
    eta: float = 0.0  #: ddim only: 0 is deterministic, 1 as noisy as ancestral sampling
    cond_free: bool = True  #: conditioning-free guidance: a second pass without conditioning
    cond_free_k: float = 2.0  #: its strength, ramped up over the steps
    temperature: float = 1.0  #: scales the initial noise; 0 sounds smooth and dull

    def __post_init__(self) -> None:
        _check("diffusion_iterations", self.iterations, 1, TRAINED_STEPS, integer=True)
        _check_choice("sampler", self.sampler, SAMPLERS)
        _check("eta", self.eta, 0, 1)
        _check_flag("cond_free", self.cond_free)
        _check("cond_free_k", self.cond_free_k, 0, 1000)
        _check("diffusion_temperature", self.temperature, 0, 1)


@dataclass(frozen=True)
class Settings:
    """Everything that shapes a clip beside its text, voice and seed."""

    ar: ARSettings = field(default_factory=ARSettings)
    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)
    decoder: str = "diffusion"  #: "diffusion" (then UnivNet) or "hifigan" (fast, straight from the latents)
    cvvp_amount: float = 0.0  #: 0: rank samples by text (CLVP); 1: by voice (CVVP); between: a mixture
    candidates: int = 1  #: clips returned, best first

    def __post_init__(self) -> None:
        _check_choice("decoder", self.decoder, DECODERS)
        _check("cvvp_amount", self.cvvp_amount, 0, 1)
        _check("candidates", self.candidates, 1, MAX_SAMPLES, integer=True)
        if self.candidates > self.ar.samples:
            raise SettingsError(
                f"{self.candidates} candidates of {self.ar.samples} samples: draw at least as many samples as candidates"
            )


#: The reference's presets for the diffusion decoder (tortoise.api). Names are those of its tts() arguments.
_COMMON: Mapping[str, Any] = {
    "temperature": 0.8,
    "length_penalty": 1.0,
    "repetition_penalty": 2.0,
    "top_p": 0.8,
    "cond_free_k": 2.0,
    "diffusion_temperature": 1.0,
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
    "diffusion_temperature": ("diffusion", "temperature"),
    "decoder": ("", "decoder"),
    "cvvp_amount": ("", "cvvp_amount"),
    "k": ("", "candidates"),
}


def make_settings(preset: str | None = None, **arguments: Any) -> Settings:
    """Settings from a preset's name and arguments named as those of the reference's ``tts()``, which override it.

    Raises SettingsError for an unknown preset or argument, or a value out of range.
    """
    if preset is not None and preset not in PRESETS:
        raise SettingsError(f"unknown preset {preset!r}. {suggest(str(preset), PRESETS)}")
    merged = {**(PRESETS[preset] if preset else {}), **arguments}
    parts: dict[str, dict[str, Any]] = {"ar": {}, "diffusion": {}, "": {}}
    for name, value in merged.items():
        if name not in ARGUMENTS:
            raise SettingsError(f"unknown setting {name!r}. {suggest(name, ARGUMENTS)}")
        part, attribute = ARGUMENTS[name]
        parts[part][attribute] = value
    # One greedy draw is all there is to draw.
    if parts["ar"].get("greedy") and "num_autoregressive_samples" not in arguments:
        parts["ar"]["samples"] = parts[""].get("candidates", 1)
    return Settings(
        ar=ARSettings(**parts["ar"]), diffusion=DiffusionSettings(**parts["diffusion"]), **parts[""]
    )


def replace(settings: Settings, **arguments: Any) -> Settings:
    """``settings`` with some arguments changed, named as in :func:`make_settings`."""
    current = {
        name: getattr(getattr(settings, part) if part else settings, attribute)
        for name, (part, attribute) in ARGUMENTS.items()
    }
    return make_settings(**{**current, **arguments})


__all__ = ["ARSettings", "DiffusionSettings", "Settings", "PRESETS", "ARGUMENTS", "make_settings", "replace"]
