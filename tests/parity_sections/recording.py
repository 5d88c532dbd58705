"""A file of recordings, which of its arrays have been compared, and with what outcome."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt.engine import Array, Engine
from tortoise_rt.errors import TortoiseError
from tortoise_rt.export.checkpoints import Checkpoints
from tortoise_rt.text import Tokenizer

STAGE = 1e-4  #: largest error of a stage in float32
WHOLE = 5e-3  #: of a whole run, which amplifies rounding
CONSTANTS = 1e-9  #: of constants computed in float64
NO_TOKENIZER = "needs the tokenizer.json of the reference: --tokenizer FILE"

#: what each outcome means; the first three are successes
STATUSES = ("ok", "inner", "absent", "FAIL", "uncovered")


@dataclass(frozen=True)
class Outcome:
    """One line of the report."""

    section: str
    name: str
    status: str  #: "inner": in bounds, compared on the torch module because no graph gives it
    error: float | None = None
    bound: float | None = None
    note: str = ""

    @property
    def failed(self) -> bool:
        return self.status in ("FAIL", "uncovered")

    @property
    def severity(self) -> float:
        """The error relative to its bound."""
        if self.error is None or self.error == 0:
            return 0.0
        return self.error / self.bound if self.bound else np.inf

    def __str__(self) -> str:
        numbers = [
            f"{value:9.2g}" if value is not None else f"{'-':>9}" for value in (self.error, self.bound)
        ]
        return f"{self.section:10} {self.name:36} {' '.join(numbers)}  {self.status:9} {self.note}".rstrip()


@dataclass
class Subject:
    """What is being compared with the recordings."""

    engine: Engine
    checkpoints: Checkpoints  #: of the same weights, for what lies inside the networks
    tokenizer: Path | None = None
    modules: dict[str, Any] = field(default_factory=dict)

    def module(self, network: str) -> Any:
        """The network as a torch module."""
        if network not in self.modules:
            self.modules[network] = self.checkpoints.load(network)
        return self.modules[network]

    def load_tokenizer(self, basic: bool = False) -> Tokenizer | None:
        return Tokenizer(self.tokenizer, basic) if self.tokenizer else None


class Absent(Exception):
    """A check asked for an array that this set does not have."""


class Recording:
    """The arrays of one file. An array is covered once a check has compared it, or has compared what it led to."""

    def __init__(
        self, section: str, arrays: Mapping[str, Any], meanings: Mapping[str, str], judge: bool
    ) -> None:
        self.section = section
        self.outcomes: list[Outcome] = []
        self._arrays = arrays
        self._meanings = meanings
        self._judge = judge  # whether the engine is the torch modules themselves
        self._read: set[str] = set()  # by the current check, before it compared anything
        self._covered: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> Any:
        """An array, half floats as float32 and integers as int64; raises Absent."""
        if name not in self._arrays:
            raise Absent(name)
        self._read.add(name)
        return widen(self._arrays[name])

    def matches(self, pattern: str) -> list[re.Match[str]]:
        """Matches of the arrays whose whole name fits ``pattern``, in the file's order."""
        return [match for name in self._arrays if (match := re.fullmatch(pattern, name))]

    def documented(self, name: str, pattern: str, default: Sequence[int] = ()) -> list[int]:
        """Numbers that the README of the set gives for ``name``: the groups of ``pattern``'s first match."""
        match = re.search(pattern, self._meanings.get(name, ""))
        return [int(number) for number in match.groups()] if match else list(default)

    def thin(self, name: str, full: Array) -> Array:
        """Every n-th entry along the last axis of ``full``, n such that as many are left as are recorded."""
        return full if name not in self else full[..., :: self.stride(name, full.shape[-1], -1)]

    def stride(self, name: str, length: int, axis: int) -> int:
        """The n for which every n-th of ``length`` entries are the recorded ones; the documented one if several do."""
        kept = np.shape(self[name])[axis]
        fitting = [n for n in range(1, length + 1) if -(-length // n) == kept]
        stated = self.documented(name, r"every (\d+)") + self.documented(name, r"steps 0,(\d+),")
        return next(iter([n for n in fitting if n in stated] + fitting), 1)

    def compare(
        self,
        name: str,
        own: Any,
        bound: float = STAGE,
        *,
        inner: bool = False,
        alias: str = "",
        measure: Callable[[Array, Array], float] | None = None,
    ) -> None:
        """Judge ``own`` by the recorded array; one of integers or text must be equal unless ``measure`` is given.

        inner: ``own`` comes from a torch module, not from the engine. alias: how the line calls a second comparison.
        """
        label = f"{name} ({alias})" if alias else name
        if name not in self:
            self._report(label, "absent")
            return
        recorded = self[name]
        own = np.asarray(own)
        exact = recorded.dtype.kind not in "f" and measure is None
        bound = 0.0 if exact else bound
        self._covered |= self._read
        if own.shape != recorded.shape:
            self._report(label, "FAIL", np.inf, bound, f"shape {own.shape} instead of {recorded.shape}")
            return
        error = (measure or (count_unequal if exact else relative_error))(own, recorded)
        passed = "inner" if inner and not self._judge else "ok"
        self._report(label, passed if error <= bound else "FAIL", error, bound)

    def report(self, name: str, status: str, note: str) -> None:
        """A line about an array that cannot be compared."""
        self._covered |= {name} & set(self._arrays)
        self._report(name, status, note=note)

    def attempt(self, check: Callable[..., None], *arguments: Any) -> None:
        """One check, which ends early where the set lacks an array that it needs."""
        self._read = set()
        try:
            check(self, *arguments)
        except Absent as absent:
            self._report(str(absent), "absent")
        except TortoiseError as error:
            self._report(check.__name__, "FAIL", np.inf, note=str(error))

    def run(self, checks: Iterable[Check], subject: Subject) -> list[Outcome]:
        """All checks, then a line for every array that they did not name themselves."""
        for check in checks:
            self.attempt(check, subject)
        named = {outcome.name for outcome in self.outcomes}
        for name in self._arrays:
            if name not in self._covered:
                self._report(name, "uncovered", note="no check compared it")
            elif name not in named:
                self._report(name, "ok", note="input")
        return self.outcomes

    def _report(
        self, name: str, status: str, error: float | None = None, bound: float | None = None, note: str = ""
    ) -> None:
        self.outcomes.append(Outcome(self.section, name, status, error, bound, note))


Check = Callable[[Recording, Subject], None]


def widen(array: Array) -> Array:
    """Stored narrow, used wide: float16 -> float32, integers -> int64."""
    if array.dtype == np.float16:
        return array.astype(np.float32)
    return array.astype(np.int64) if array.dtype.kind in "iu" and array.dtype != np.uint8 else array


def relative_error(own: Array, recorded: Array) -> float:
    """Largest difference over the range of the recorded array (its largest magnitude when it is constant)."""
    if recorded.size == 0:
        return 0.0
    scale = float(np.ptp(recorded)) or float(np.abs(recorded).max()) or 1.0
    error = float(np.abs(own.astype(np.float64) - recorded).max()) / scale
    return error if np.isfinite(error) else np.inf


def elementwise_error(own: Array, recorded: Array) -> float:
    """Largest difference of an element over its own size."""
    return float((np.abs(own - recorded) / np.maximum(np.abs(recorded), 1e-12)).max(initial=0))


def largest_difference(own: Array, recorded: Array) -> float:
    """Not relative to anything: for probabilities and shares."""
    return float(np.abs(own - recorded).max(initial=0))


def count_unequal(own: Array, recorded: Array) -> float:
    """How many entries differ."""
    return float(np.count_nonzero(own != recorded))


def floats(pcm: Array) -> Array:
    """16-bit samples -> float32 in [-1, 1)."""
    return (pcm / 32768).astype(np.float32)


def read_recordings(folder: Path, section: str, judge: bool) -> Recording | None:
    """The recordings of ``section`` in ``folder``; None when the set has no such file."""
    path = folder / ("text.json" if section == "text" else f"{section}.npz")
    if not path.is_file():
        return None
    meanings = read_meanings(folder / "README.md", path.name)
    if section == "text":
        return Recording(section, text_arrays(json.loads(path.read_text("utf-8"))), meanings, judge)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    spoken = folder / "e2e.json"
    if section in ("e2e", "e2e_fast") and spoken.is_file():
        arrays |= {name: np.asarray(value) for name, value in json.loads(spoken.read_text("utf-8")).items()}
    if section == "e2e_fast":
        arrays |= clips_of(folder / "e2e.npz")
    return Recording(section, arrays, meanings, judge)


def clips_of(path: Path) -> dict[str, Array]:
    """The voice clips, which the fast runs share with the others."""
    if not path.is_file():
        return {}
    with np.load(path) as file:
        return {name: file[name] for name in file.files if re.fullmatch(r"clip\d+_i16", name)}


def text_arrays(content: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Array]:
    """One array of objects per field of the tables in text.json, None where a row lacks it; "error" marks broken rows."""
    return {
        f"{table}.{key}": np.fromiter((row.get(key) for row in rows), object, len(rows))
        for table, rows in content.items()
        for key in dict.fromkeys(key for row in rows for key in row)
    }


def read_meanings(readme: Path, file: str) -> dict[str, str]:
    """Array -> its line in the README's table for ``file``."""
    if not readme.is_file():
        return {}
    section = re.search(rf"^## {re.escape(file)}$(.*?)(?=^## |\Z)", readme.read_text("utf-8"), re.M | re.S)
    rows = re.findall(r"^\| (\w+) \|[^|]*\|[^|]*\| (.*) \|$", section[1] if section else "", re.M)
    return dict(rows)
