"""Where a graph's time goes, by operator.

    python benchmarks/operators.py --engine BUNDLE [--graph diffusion_denoise] [-o results.jsonl]

The last of three runs at a sentence's length, by ONNX Runtime's own profiler.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnxruntime

from tortoise_rt.backends import open_engine
from tortoise_rt.bench_graphs import graph_cases
from tortoise_rt.cli.progress import table
from tortoise_rt.machine import environment

Row = dict[str, Any]
RUNS = 3


def profile(bundle: Path, graph: str, folder: Path) -> Row:
    original = onnxruntime.InferenceSession

    def load(path: str, options: Any, **rest: Any) -> Any:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / graph)
        return original(path, options, **rest)

    onnxruntime.InferenceSession = load
    engine = open_engine(bundle, "onnx")
    try:
        case = next(case for case in graph_cases(engine) if case.graph == graph)
    except StopIteration:
        raise SystemExit(f"{graph} is not timed, or {bundle} does not have it") from None
    run = case.prepare(engine)
    for _ in range(RUNS):
        run()
    found = json.loads(Path(engine.session(graph).end_profiling()).read_text())  # type: ignore[attr-defined]
    runs = [event["dur"] for event in found if event["name"] == "model_run"]
    kernels = [event for event in found if event["name"].endswith("_kernel_time")]
    last = kernels[-(len(kernels) // len(runs)) :]
    spent: Counter[str] = Counter()
    for event in last:
        spent[event["args"]["op_name"]] += event["dur"]
    whole = sum(spent.values())
    return {
        "kind": "operators", "graph": graph, "what": case.what, "precision": engine.info.precision.get(graph, "fp32"),
        "ms": round(runs[-1] / 1e3, 1), "shares": {name: round(us / whole, 3) for name, us in spent.most_common(12)},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", type=Path, required=True, help="a bundle")
    parser.add_argument("--graph", default="diffusion_denoise")
    parser.add_argument("-o", "--output", type=Path, help="append JSON lines to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = profile(options.engine, options.graph, Path(folder))
    print(f"{row['graph']}, {row['what']}, {row['precision']}: {row['ms']} ms")
    print(table([("operator", "share"), *((name, f"{share:.1%}") for name, share in row["shares"].items())]))
    if options.output:
        about = {**environment(), "benchmark": "operators", "engine": options.engine.name}
        with options.output.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in (about, row))


if __name__ == "__main__":
    main()
