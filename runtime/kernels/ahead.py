"""The kernels of the loops that a device goes through by itself, for engines without Triton: bundles carry them compiled.

What a kernel is compiled from, and what it takes; beside that, in NumPy, what it computes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ARSettings
from ..samplers import DenoisingStep, update_mel
from ..sampling import NOTHING, Drawing, draw
from ..spec import Dims

DRAWS_AHEAD = 8  #: codes that are drawn before the host is asked
DENOISES_AHEAD = 20  #: steps of the diffusion loop before others have their turn

STEPS = 5  #: numbers of a row that draws: positions held, code, its position, codes drawn, and to be drawn
SETTINGS = 6  #: numbers of a row's settings, before its uniform numbers
FEW = 128  #: codes at most that are gathered, where top-k wants half as many or fewer
WARPS = 16  #: of the kernels that see all codes
UNIT = 2.0**60  #: probabilities are added up as multiples of its inverse: the order does not matter
TINY = float(np.finfo(np.float64).tiny)

NUMBERS = 8  #: of a denoising step, as :func:`step_row` orders them
BLOCK = 1024  #: values that a program takes one step down
UPDATE_WARPS = 4

ADDRESSES = 16  #: bytes that every address is a multiple of which a carried kernel is given
SIZES = 4  #: values that a mel's number of them is a multiple of


@dataclass(frozen=True)
class Carried:
    """A kernel that bundles carry."""

    module: str  #: of this package
    function: str
    arguments: Mapping[str, str]  #: name -> type, as Triton calls it
    constants: Mapping[str, int | float | bool]
    warps: int

    @property
    def multiples(self) -> dict[str, int]:
        """Arguments, what they are multiples of at every launch: the compiler relies on it, and loads several values at a time."""
        addresses = {name: ADDRESSES for name, type_ in self.arguments.items() if type_.startswith("*")}
        return addresses | ({"size": SIZES} if "size" in self.arguments else {})

    def described(self) -> dict[str, Any]:
        """All of it, as JSON gives it back: what was compiled from something else is not used."""
        return {
            "module": self.module,
            "source": _digest(self.module),
            "function": self.function,
            "arguments": [list(pair) for pair in self.arguments.items()],
            "multiples": self.multiples,
            "constants": dict(self.constants),
            "warps": self.warps,
        }


@functools.cache
def _digest(module: str) -> str:
    """SHA-256 of a module of this package."""
    return hashlib.sha256(Path(__file__).with_name(f"{module}.py").read_bytes()).hexdigest()


def carried(dims: Dims) -> Mapping[str, Carried]:
    """The kernels of a model of such dimensions: those that draw, and those that take diffusion steps."""
    kernels = {}
    if "ar.mel_codes" in dims:
        vocabulary = dims["ar.mel_codes"]
        block = 1 << (vocabulary - 1).bit_length()
        sizes = dict(VOCABULARY=vocabulary, SETTINGS=SETTINGS, MOST=DRAWS_AHEAD, BLOCK=block, EARLY=False)
        ends = dict(START=dims["ar.start_code"], STOP=dims["ar.stop_code"], NOTHING=NOTHING, UNIT=UNIT)
        logits, state = {"logits": "*fp32"}, {"seen": "*u8", "numbers": "*fp64", "steps": "*i64"}
        drawn, counts, stride, rows = (
            {"drawn": "*i64"},
            {"counts": "*i32"},
            {"stride": "i32"},
            {"rows": "i32"},
        )
        few = {**counts, "scores": "*fp32", "ids": "*i32"}
        for name, arguments, constants, warps in (
            ("gather", {**logits, **state, **few, **stride}, dict(FEW=FEW), WARPS),
            ("draw_among_few", {**state, **drawn, **few, **rows}, dict(FEW=FEW, **ends), 1),
            ("draw_among_all", {**logits, **state, **drawn, **counts, **stride, **rows}, dict(TINY=TINY, **ends), WARPS),
        ):  # fmt: skip
            kernels[name] = Carried("draw_codes", f"_{name}", arguments, {**sizes, **constants}, warps)
    if "diffusion.dim" in dims:
        mels = dict.fromkeys(("x", "last", "out", "free", "noise", "numbers"), "*fp32")
        for name, guided in (("update_guided", True), ("update_free", False)):
            constants = dict(GUIDED=guided, BLOCK=BLOCK)
            arguments = {**mels, "size": "i32"}
            kernels[name] = Carried("denoising_update", "_kernel", arguments, constants, UPDATE_WARPS)
    return kernels


@functools.lru_cache(maxsize=256)
def settings_row(settings: ARSettings) -> np.ndarray:
    """(SETTINGS,) float64: penalty, temperature, top-k, what top-p leaves out, typical mass, greedy. Off: 0, 0, -1, 0, 0."""
    left_out = float(np.float32(1 - settings.top_p)) if settings.top_p < 1 else -1.0
    # A sum that reaches the mass is enough: it is above the number before.
    mass = np.nextafter(settings.typical_mass, 0) if settings.typical else 0.0
    return np.array(
        [settings.repetition_penalty, settings.temperature, settings.top_k, left_out, mass, settings.greedy]
    )


def write_drawings(drawings: Sequence[Drawing | None], numbers: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Lay out what rows draw by, as ``draw_codes`` takes it; -> (drawings,) int64: codes that each draws at most."""
    most = np.zeros(len(drawings), np.int64)
    for row, drawing in enumerate(drawings):
        if drawing is not None:
            uniforms = drawing.uniforms[: numbers.shape[1] - SETTINGS]
            most[row] = len(uniforms)
            numbers[row, :SETTINGS] = settings_row(drawing.settings)
            numbers[row, SETTINGS : SETTINGS + len(uniforms)] = uniforms
            seen[row] = drawing.seen
    return most


def draw_codes_ref(
    logits: np.ndarray,
    drawings: Sequence[Drawing | None],
    steps: np.ndarray,
    drawn: np.ndarray,
    start: int,
    stop: int,
) -> None:
    """As ``draw_codes``, on the host; ``drawings`` stand for ``seen`` and ``numbers``."""
    for row, drawing in enumerate(drawings):
        length, _, position, place, most = steps[:, row]
        if length < 0 or drawing is None:
            continue
        steps[0, row] = -1
        if np.isfinite(logits[row]).all():
            u = drawing.uniforms[place]
            code = draw(logits[row], drawing.seen, u, start, drawing.settings)
            drawn[row, place], drawing.seen[code] = code, True
            if code != stop and place + 1 < most:
                steps[:, row] = length + 1, code, position + 1, place + 1, most


def step_row(step: DenoisingStep) -> np.ndarray:
    """(NUMBERS,) float32: guidance, what the clean mel is made of, and the update."""
    update = step.update
    numbers = [step.guidance or 0.0, step.recip, step.recipm1]
    return np.array([*numbers, update.x, update.start, update.last, update.low, update.high], np.float32)


def denoising_update_ref(
    x: np.ndarray, last: np.ndarray, out: np.ndarray, noise: np.ndarray, step: DenoisingStep
) -> None:
    """As ``denoising_update``, in NumPy; ``step`` for its numbers."""
    mels, k = x.shape[1], np.float32(step.guidance or 0.0)
    found = out[:1, :mels] if len(out) == 1 else (1 + k) * out[:1, :mels] - k * out[1:, :mels]
    start = np.clip(np.float32(step.recip) * x - np.float32(step.recipm1) * found, -1, 1)
    x[:] = update_mel(step.update, x, start, last, out[:1, mels:], noise)
    last[:] = start
