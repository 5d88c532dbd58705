"""A random checkpoint of the official size, from files to a clip. Minutes and 10 GB of disk: python -m pytest -m official"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOKENIZER = ROOT / "tests" / "data" / "tokenizer.json"
MAX_GIB = 12  #: peak memory of an export

pytestmark = pytest.mark.official


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("official")


def run(*command: object) -> str:
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout


def command(*arguments: object) -> tuple[object, ...]:
    return sys.executable, "-m", "tortoise_rt", *arguments


def test_export_load_and_say(folder: Path) -> None:
    checkpoints, bundle, wav = folder / "checkpoints", folder / "bundle", folder / "out.wav"
    run(sys.executable, "-m", "tortoise_rt.export.random_checkpoint", "--size", "official", "-o", checkpoints)
    assert 1.5e9 < (checkpoints / "autoregressive.pth").stat().st_size < 1.8e9

    run(*command("export", "--checkpoints", checkpoints, "-o", bundle))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # KiB, of the largest child so far
    assert peak < MAX_GIB << 20, f"the export's peak is {peak >> 10} MiB"
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert len(manifest["parity"]) == len(manifest["graphs"]) == 15

    printed = run(
        *command(
            "say", "Hello there.", "--engine", bundle, "--tokenizer", TOKENIZER, "--preset", "ultra_fast"
        ),
        *("--max-mel-tokens", 40, "--seed", 1, "-o", wav, "--json"),
    )
    report = json.loads(printed)
    assert report["audio_seconds"] > 0.3
    assert wav.stat().st_size > 2 * 24000 * 0.3
