"""Every recorded array of the reference against this implementation: a program, and a test on the tiny recordings.

    python tests/parity.py --checkpoints DIR --vectors DIR --backend torch|onnx [--section NAME ...]

prints a line per array: section, name, error (largest difference over the array's range), bound, and

    ok         within its bound ("input" where it led to others that were compared)
    inner      within its bound, compared on the torch module: no graph of the backend gives it
    absent     this set of recordings does not have it
    FAIL       out of bounds
    uncovered  nothing compared it

and exits with 1 when there is an array of the last two kinds.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from parity_sections import SECTIONS
from parity_sections.recording import NO_TOKENIZER, STATUSES, Outcome, Subject, read_recordings

from tortoise_rt.backends import open_engine
from tortoise_rt.errors import TortoiseError, suggest
from tortoise_rt.export.checkpoints import Checkpoints

BACKENDS = ("torch", "onnx")
ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "tests" / "data" / "tiny-a"


def find_tokenizer(vectors: Path) -> Path | None:
    """The reference's tokenizer.json: named by TORTOISE_RT_TOKENIZER, or beside the recordings or the repository."""
    named = os.environ.get("TORTOISE_RT_TOKENIZER")
    places = [vectors, ROOT.parent / "shared" / "reference"]
    if vectors.resolve() != TINY:  # beside it lies a tokenizer of our own, for other tests
        places.insert(1, vectors.parent)
    candidates = [Path(named)] if named else [place / "tokenizer.json" for place in places]
    return next((path for path in candidates if path.is_file()), None)


def open_subject(checkpoints: Path, backend: str, device: str, work: Path, tokenizer: Path | None) -> Subject:
    """The engine to judge; for onnx, checkpoints are first exported to a bundle in ``work``."""
    if backend == "onnx":
        from tortoise_rt.export.bundle import export_bundle

        export_bundle(checkpoints, work / "bundle", check=False)
        engine = open_engine(work / "bundle", "onnx", device)
    else:
        engine = open_engine(checkpoints, backend, device)
    return Subject(engine, Checkpoints(checkpoints), tokenizer)


def run_section(section: str, subject: Subject, vectors: Path) -> list[Outcome]:
    """All outcomes of one section."""
    recording = read_recordings(vectors, section, judge=subject.engine.info.backend == "torch")
    if recording is None:
        return [Outcome(section, "(the whole file)", "absent")]
    return recording.run(SECTIONS[section], subject)


def strays(vectors: Path) -> list[Outcome]:
    """Files of recordings that no section reads."""
    return [
        Outcome(path.stem, "(the whole file)", "uncovered", note="no section reads it")
        for path in sorted(vectors.glob("*.npz"))
        if path.stem not in SECTIONS
    ]


def summarize(outcomes: list[Outcome]) -> str:
    measured = [outcome for outcome in outcomes if outcome.error is not None]
    lines = []
    if measured:
        worst = max(measured, key=lambda outcome: outcome.severity)
        lines.append(f"worst relative to its bound: {worst.section} {worst.name}, {worst.severity:.2g} of it")
    counts = Counter(outcome.status for outcome in outcomes)
    lines.append(", ".join(f"{counts[status]} {status}" for status in STATUSES))
    return "\n".join(lines)


@click.command()
@click.option("--checkpoints", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--vectors", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--backend", type=click.Choice(BACKENDS), required=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--section", "sections", multiple=True, metavar="NAME", help="Only this one; may be repeated.")
@click.option("--tokenizer", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(
    checkpoints: Path,
    vectors: Path,
    backend: str,
    device: str,
    sections: tuple[str, ...],
    tokenizer: Path | None,
) -> None:
    """Compare this implementation with recordings of the reference."""
    for name in sections:
        if name not in SECTIONS:
            raise click.UsageError(f'no section is called "{name}". {suggest(name, SECTIONS)}')
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as work:
        try:
            subject = open_subject(
                checkpoints, backend, device, Path(work), tokenizer or find_tokenizer(vectors)
            )
        except TortoiseError as error:
            raise click.ClickException(str(error)) from None
        for section in sections or SECTIONS:
            found = run_section(section, subject, vectors)
            print(*found, sep="\n", flush=True)
            outcomes += found
    if not sections:
        unread = strays(vectors)
        print(*unread, sep="\n", end="\n" if unread else "")
        outcomes += unread
    if all(outcome.status == "absent" for outcome in outcomes):
        raise click.ClickException(f"{vectors} holds no recordings of {', '.join(sections or SECTIONS)}")
    print(summarize(outcomes))
    sys.exit(any(outcome.failed for outcome in outcomes))


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Subject]]:
    """Opened when first asked for, kept for the session."""
    opened: dict[str, Subject] = {}

    class Lazy(dict[str, Subject]):
        def __missing__(self, backend: str) -> Subject:
            self[backend] = open_subject(
                TINY, backend, "cpu", tmp_path_factory.mktemp(backend), find_tokenizer(TINY)
            )
            return self[backend]

    yield Lazy(opened)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("section", SECTIONS)
def test_parity(section: str, backend: str, subjects: dict[str, Subject]) -> None:
    if backend == "onnx":
        pytest.importorskip("onnxruntime")
    outcomes = run_section(section, subjects[backend], TINY)
    untested = [outcome for outcome in outcomes if outcome.note == NO_TOKENIZER]
    wrong = [str(outcome) for outcome in outcomes if outcome.failed and outcome not in untested]
    assert not wrong, "\n".join(["", *wrong])
    if untested:
        pytest.skip(f"{', '.join(outcome.name for outcome in untested)}: {NO_TOKENIZER}")


if __name__ == "__main__":
    main()
