"""What TensorRT's plans cost to build, without a GPU: time, memory, sizes, and how far each precision is off.

    pip install -e '.[cpu,export,tensorrt-rtx]'
    python benchmarks/plans.py --checkpoints DIR [--precision fp16 --precision int8] [--compute-capability 8.9] [-o results.jsonl]

Exports the checkpoints for tensorrt-rtx, once for each precision, in a process of its own. Errors are those that the export finds
on ONNX Runtime, of the range of each graph's outputs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tortoise_rt.machine import environment


def build(checkpoints: Path, precision: str, capability: str) -> dict[str, Any]:
    """Export once; -> what it took, and what it made."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        command = [sys.executable, "-m", "tortoise_rt", "export", "--checkpoints", str(checkpoints), "-o", str(bundle)]  # fmt: skip
        target = ["--target", "tensorrt-rtx", "--precision", precision, "--compute-capability", capability]
        began = time.perf_counter()
        process = subprocess.Popen([*command, *target])
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"the export in {precision} failed")
        seconds = time.perf_counter() - began
        manifest = json.loads((bundle / "manifest.json").read_text())
    files = manifest["files"]
    return {
        "kind": "plans",
        "checkpoints": checkpoints.name,
        "precision": precision,
        "compute_capability": capability,
        "libraries": manifest["target"]["libraries"],
        "seconds": round(seconds, 1),
        "peak_mib": used.ru_maxrss >> 10,
        "megabytes": {
            name: round(files[file]["bytes"] / 1e6, 1) for name, file in manifest["graphs"].items()
        },
        "errors": {name: float(f"{found['error']:.2g}") for name, found in manifest["parity"].items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--precision", action="append", help="may be given again  [default: fp16, int8, fp8]")
    parser.add_argument("--compute-capability", default="8.9")
    parser.add_argument("-o", "--output", type=Path, help="append JSON lines to this file")
    options = parser.parse_args()
    rows = [{**environment(), "benchmark": "plans"}]
    for precision in options.precision or ("fp16", "int8", "fp8"):
        rows.append(build(options.checkpoints, precision, options.compute_capability))
        print(json.dumps(rows[-1], indent=1))
    if options.output is not None:
        with options.output.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
