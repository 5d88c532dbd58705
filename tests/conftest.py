"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The test model is so small that torch's threads only wait for each other, the more so under pytest-xdist.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data() -> Path:
    """Recordings of the reference implementation on a tiny random model."""
    return ROOT / "tests" / "data" / "tiny-a"


@pytest.fixture(scope="session")
def tokenizer_path() -> Path:
    """The official tokenizer.json, which is not part of this repository."""
    chosen = os.environ.get("TORTOISE_RT_TOKENIZER")
    path = Path(chosen) if chosen else ROOT.parent / "shared" / "reference" / "tokenizer.json"
    if not path.is_file():
        pytest.skip(
            f"no tokenizer at {path}: set TORTOISE_RT_TOKENIZER to the tokenizer.json of tortoise-tts"
        )
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with caches and voices of its own."""
    monkeypatch.setenv("TORTOISE_RT_CACHE", str(tmp_path / ".cache"))
    monkeypatch.setenv("TORTOISE_RT_VOICES", str(tmp_path / ".voices"))
    monkeypatch.delenv("TORTOISE_RT_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path
