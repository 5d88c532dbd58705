#!/usr/bin/env python3
"""What the lean install (``pip install .[cpu]``) costs and whether it speaks; exits with 1 over a limit.

    python benchmarks/lean_install.py VENV --output DIR

VENV is a virtual environment with nothing but the lean install; DIR takes the wav. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

MAX_MIB = 400  #: installed size, all dependencies
MAX_IMPORT_S = 0.3  #: of ``import tortoise_rt``, beyond starting Python
MAX_OVERHEAD_S = 1.5  #: of ``say``, outside synthesis and model loading


def run(*command: str | Path) -> tuple[float, str]:
    """-> (seconds, standard output); raises with what was printed when the command fails."""
    start = time.perf_counter()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start, done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("venv", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    python, say = arguments.venv / "bin" / "python", arguments.venv / "bin" / "tortoise-rt"

    packages = next((arguments.venv / "lib").glob("python*")) / "site-packages"
    own = {"pip", "setuptools", "wheel", "_distutils_hack", "pkg_resources"}
    folders = [p for p in packages.iterdir() if p.name.split("-")[0] not in own]
    size = sum(
        f.stat().st_size for p in folders for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()
    )
    heavy = run(
        python,
        "-c",
        "import sys, tortoise_rt; print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])",
    )[1].strip()
    run(python, "-c", "import tortoise_rt")
    bare = statistics.median(run(python, "-c", "pass")[0] for _ in range(5))
    loaded = statistics.median(run(python, "-c", "import tortoise_rt")[0] for _ in range(5))
    wav = arguments.output / "hello.wav"
    command = (say, "say", "Hello there.", "--seed", "1", "-o", wav, "--json")
    run(*command)
    total, printed = run(*command)
    report = json.loads(printed.strip().splitlines()[-1])
    figures = {
        "installed_mib": round(size / 2**20),
        "loaded_by_import": heavy,
        "import_s": round(loaded - bare, 3),
        "say_s": round(total, 2),
        "synthesis_s": round(report["seconds"], 2),
        "load_s": round(report["load_seconds"], 2),
        "overhead_s": round(total - report["seconds"] - report["load_seconds"], 2),
        "audio_s": report["audio_seconds"],
        "wav_bytes": wav.stat().st_size,
    }
    print(json.dumps(figures))
    problems = [
        problem
        for wrong, problem in (
            (figures["installed_mib"] > MAX_MIB, f"the install is over {MAX_MIB} MiB"),
            (heavy != "[]", f"import tortoise_rt loads {heavy}"),
            (figures["import_s"] > MAX_IMPORT_S, f"import tortoise_rt takes over {MAX_IMPORT_S} s"),
            (figures["overhead_s"] > MAX_OVERHEAD_S, f"say spends over {MAX_OVERHEAD_S} s outside synthesis"),
            (figures["audio_s"] <= 0, "say wrote no sound"),
        )
        if wrong
    ]
    for problem in problems:
        print(f"FAIL: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
