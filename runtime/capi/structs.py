"""The structs of ``tortoise_rt.h``, field by field, and the memory that callers pass.

A struct that begins with ``struct_size`` is read as far as that says, and what is behind it is as if it were not set.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import c_char, c_char_p, c_double, c_int64, c_size_t, c_void_p
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..engine import Array
from ..errors import InputError

S = TypeVar("S", bound="Versioned")


class Versioned(ctypes.Structure):
    """A struct that may grow at its end."""

    struct_size: int

    @classmethod
    def read(cls: type[S], address: int) -> S:
        """The caller's struct at ``address``; 0: one in which nothing is set."""
        made = cls()
        for name, kind in cls._fields_:  # type: ignore[misc]
            if kind in (c_int64, c_double):
                setattr(made, name, -1)
        if address:
            ctypes.memmove(ctypes.byref(made), address, c_size_t.from_address(address).value)
        return made

    def given(self) -> dict[str, Any]:
        """Name -> value of what is set: numbers that are not negative, and strings."""
        found: dict[str, Any] = {}
        for name, kind in type(self)._fields_:  # type: ignore[misc]
            value = getattr(self, name)
            if kind is c_char_p and value is not None:
                found[name] = decoded(value, name)
            elif kind in (c_int64, c_double) and not value < 0:  # what is no number is refused later
                found[name] = value
        return found


class EngineOptions(Versioned):
    _fields_: ClassVar = [
        ("struct_size", c_size_t),
        ("engine", c_char_p),
        ("checkpoints", c_char_p),
        ("backend", c_char_p),
        ("device", c_char_p),
        ("precision", c_char_p),
        ("tokenizer", c_char_p),
        ("voices", c_char_p),
        ("rows", c_int64),
        ("queue", c_int64),
        ("strict", c_int64),
    ]


class EngineInfo(Versioned):
    _fields_: ClassVar = [
        ("struct_size", c_size_t),
        ("has_diffusion", c_int64),
        ("has_hifigan", c_int64),
        ("can_rank", c_int64),
        ("has_random_voices", c_int64),
        ("can_listen", c_int64),
        ("autoregressive_width", c_int64),
        ("diffusion_width", c_int64),
        ("rows", c_int64),
        ("in_flight", c_int64),
        ("steps", c_int64),
        ("decoded", c_int64),
        ("backend", c_char * 16),
        ("device", c_char * 16),
        ("default_voice", c_char * 64),
        ("source", c_char * 256),
        ("notice", c_char * 256),
    ]

    def write(self, address: int) -> None:
        """Fill the caller's struct as far as its size says."""
        self.struct_size = c_size_t.from_address(address).value
        ctypes.memmove(address, ctypes.byref(self), self.struct_size)


class Settings(Versioned):
    _fields_: ClassVar = [
        ("struct_size", c_size_t),
        ("preset", c_char_p),
        ("decoder", c_char_p),
        ("sampler", c_char_p),
        ("num_autoregressive_samples", c_int64),
        ("max_mel_tokens", c_int64),
        ("batch_rows", c_int64),
        ("top_k", c_int64),
        ("greedy", c_int64),
        ("typical_sampling", c_int64),
        ("diffusion_iterations", c_int64),
        ("cond_free", c_int64),
        ("enable_redaction", c_int64),
        ("temperature", c_double),
        ("top_p", c_double),
        ("typical_mass", c_double),
        ("repetition_penalty", c_double),
        ("diffusion_temperature", c_double),
        ("eta", c_double),
        ("cond_free_k", c_double),
        ("cond_free_share", c_double),
        ("cvvp_amount", c_double),
        ("k", c_int64),
        ("check", c_int64),
        ("max_retries", c_int64),
    ]


class Request(Versioned):
    text: int | None
    voice: int | None
    settings: int | None
    seed: int

    _fields_: ClassVar = [
        ("struct_size", c_size_t),
        ("text", c_void_p),
        ("voice", c_void_p),
        ("settings", c_void_p),
        ("seed", c_int64),
        ("priority", c_int64),
        ("timeout", c_double),
        ("split", c_int64),
        ("pause", c_double),
        ("chunk", c_int64),
        ("first_chunk", c_int64),
    ]


class Clip(ctypes.Structure):
    samples: int
    count: int
    rate: int

    _fields_: ClassVar = [("samples", c_void_p), ("count", c_size_t), ("rate", c_int64)]


class Audio(ctypes.Structure):
    _fields_: ClassVar = [
        ("samples", c_void_p),
        ("count", c_size_t),
        ("seed", c_int64),
        ("complete", c_int64),
        ("tries", c_int64),
        ("problems", c_int64),
    ]


class Chunk(ctypes.Structure):
    _fields_: ClassVar = [
        ("samples", c_void_p),
        ("count", c_size_t),
        ("sequence", c_int64),
        ("sentence", c_int64),
    ]


def write_struct(made: ctypes.Structure, address: int) -> None:
    """Fill a struct of the caller's."""
    ctypes.memmove(address, ctypes.byref(made), ctypes.sizeof(made))


def decoded(text: bytes, name: str, kind: type[InputError] = InputError) -> str:
    """UTF-8 -> a string; raises ``kind``."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise kind(f"{name} is not UTF-8: {error}") from None


def fitted(text: str, size: int) -> bytes:
    """``text`` as UTF-8 of at most ``size`` bytes with the zero behind it, cut between characters."""
    return text.encode("utf-8")[: size - 1].decode("utf-8", "ignore").encode("utf-8") if size else b""


def floats(address: int, count: int) -> Array:
    """A copy of the caller's numbers, (count,) float32. Raises InputError for more than any memory has."""
    if count > sys.maxsize // 4:
        raise InputError(f"{count} numbers were given, more than memory can hold: is the count set?")
    made = np.empty(count, np.float32)
    ctypes.memmove(made.ctypes.data, address, made.nbytes)
    return made


def write_floats(array: Array, address: int) -> None:
    """Copy numbers into the caller's memory, as many as there are."""
    flat = np.ascontiguousarray(array, np.float32)
    ctypes.memmove(address, flat.ctypes.data, flat.nbytes)


def write_number(address: int, value: int) -> None:
    """Set a handle, a size_t or an int64_t of the caller's."""
    c_int64.from_address(address).value = value


def write_text(text: str, address: int, size: int) -> None:
    """Set a string of the caller's that has ``size`` bytes, cut where it is longer."""
    if size:
        content = fitted(text, size) + b"\0"
        ctypes.memmove(address, content, len(content))
