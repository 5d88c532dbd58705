"""The judge itself: what it calls wrong, missing and uncovered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from click.testing import CliRunner
from parity import main
from parity_sections.recording import Recording, Subject, relative_error

NO_SUBJECT: Any = None


def statuses(arrays: dict[str, np.ndarray], *checks: Any, judge: bool = True) -> dict[str, str]:
    outcomes = Recording("demo", arrays, {"thin": "something, every 4th frame"}, judge).run(
        checks, NO_SUBJECT
    )
    return {outcome.name: outcome.status for outcome in outcomes}


RAMP = np.linspace(0, 1, 5, dtype=np.float32)


@pytest.mark.parametrize(
    ("own", "status"),
    [(RAMP, "ok"), (RAMP + 9e-5, "ok"), (RAMP + 2e-4, "FAIL"), (RAMP[:4], "FAIL"), (RAMP * np.nan, "FAIL")],
)
def test_floats_are_judged_by_their_range(own: np.ndarray, status: str) -> None:
    assert statuses({"a": RAMP}, lambda recording, _: recording.compare("a", own)) == {"a": status}


def test_integers_must_be_equal() -> None:
    def check(recording: Recording, _: Subject) -> None:
        recording.compare("same", np.arange(3))
        recording.compare("other", np.arange(3))

    arrays = {"same": np.arange(3, dtype=np.int32), "other": np.array([0, 1, 3])}
    assert statuses(arrays, check) == {"same": "ok", "other": "FAIL"}


def test_an_input_counts_only_where_something_was_compared() -> None:
    def check(recording: Recording, _: Subject) -> None:
        recording.compare("out", recording["used"] * 2)

    def idle(recording: Recording, _: Subject) -> None:
        recording["looked at"]

    arrays = {"used": RAMP, "out": RAMP * 2, "looked at": RAMP, "forgotten": RAMP}
    wanted = {"out": "ok", "used": "ok", "looked at": "uncovered", "forgotten": "uncovered"}
    assert statuses(arrays, check, idle) == wanted


def test_what_a_set_lacks_is_absent_and_ends_only_its_own_check() -> None:
    def lacks_input(recording: Recording, _: Subject) -> None:
        recording.compare("a", recording["nowhere"])

    def lacks_output(recording: Recording, _: Subject) -> None:
        recording.compare("missing", RAMP)
        recording.compare("b", RAMP)

    wanted = {"nowhere": "absent", "missing": "absent", "b": "ok", "a": "uncovered"}
    assert statuses({"a": RAMP, "b": RAMP}, lacks_input, lacks_output) == wanted


def test_inside_a_network_is_marked_for_other_backends() -> None:
    def check(recording: Recording, _: Subject) -> None:
        recording.compare("a", RAMP, inner=True)

    assert statuses({"a": RAMP}, check, judge=False) == {"a": "inner"}
    assert statuses({"a": RAMP + 1}, check, judge=False) == {"a": "FAIL"}


@given(st.integers(1, 60), st.integers(1, 60))
def test_the_stride_is_found_from_the_shape(length: int, stride: int) -> None:
    full = np.arange(length, dtype=np.float32)
    recording = Recording("demo", {"a": full[::stride]}, {}, True)
    assert recording.thin("a", full).shape == full[::stride].shape


def test_the_documented_stride_is_taken_where_several_fit() -> None:
    full = np.arange(6, dtype=np.float32)
    assert len(full[::3]) == len(full[::4]) == len(full[::5])
    assert statuses({"thin": full[::4]}, lambda r, _: r.compare("thin", r.thin("thin", full))) == {
        "thin": "ok"
    }


def test_a_constant_is_judged_by_its_size() -> None:
    assert relative_error(np.array([2.2]), np.array([2.0])) == pytest.approx(0.1)


def test_the_program_fails_on_a_changed_and_an_unknown_array(data: Path, tmp_path: Path) -> None:
    def run(*options: str) -> Any:
        chosen = ["--checkpoints", str(data), "--vectors", str(tmp_path), "--backend", "torch", *options]
        return CliRunner().invoke(main, chosen)

    with np.load(data / "misc.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(tmp_path / "misc.npz", **arrays)
    right = run("--section", "misc")
    assert right.exit_code == 0, right.output
    np.savez(
        tmp_path / "misc.npz", **{**arrays, "trim_len": arrays["trim_len"] + 1, "novel": arrays["trim_len"]}
    )
    wrong = run("--section", "misc")
    assert wrong.exit_code == 1
    assert "1 FAIL, 1 uncovered" in wrong.output
    unknown = run("--section", "rnak")
    assert unknown.exit_code == 2
    assert 'no section is called "rnak". Did you mean "rank"?' in unknown.output
    assert "holds no recordings" in run("--section", "rank").output
