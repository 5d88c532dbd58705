"""Schemathesis against the server's own OpenAPI document: no answer may be a 500, and each must be one that the document has.

    python benchmarks/fuzz_service.py [--examples 100] [--seed 1] [-o results.jsonl]

Needs: pip install schemathesis. A caller's ``timeout`` is taken out of the document before: an answer that ends in its middle because
its time is over is what was asked for, and no document can say so. The engine is the fake one, so that speech takes no time; voices and jobs are kept in a
temporary folder. Exits with 1 where something was found.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from serving import serving

from tortoise_rt.machine import environment

# 500 is in no operation of the document, so a conforming status is none
CHECKS = "status_code_conformance,content_type_conformance,response_schema_conformance"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=100, help="of each operation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="append JSON lines to this file")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # a fake voice seldom stops by itself, and says so each time
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORTOISE_RT_VOICES"] = str(Path(folder) / "voices")
        os.environ["TORTOISE_RT_CACHE"] = str(Path(folder) / "cache")
        with serving(jobs=Path(folder) / "jobs", timeout=20, per_minute=10**6) as server:
            document = server.http.get("/openapi.json").json()
            del document["components"]["schemas"]["Speech"]["properties"]["timeout"]
            (Path(folder) / "openapi.json").write_text(json.dumps(document))
            command = [
                str(Path(sys.executable).parent / "schemathesis"), "run", "openapi.json", "--url", server.url, "--checks", CHECKS,
                "--max-examples", str(options.examples), "--seed", str(options.seed), "--mode", "all", "--workers", "1",
                "--request-timeout", "60", "--suppress-health-check", "all",
            ]  # fmt: skip
            done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
            server.settled()
    print(done.stdout)
    if options.output is not None:
        row = {
            "kind": "fuzz_service",
            "schemathesis": version("schemathesis"),
            **vars(options),
            "code": done.returncode,
        }
        del row["output"]
        row |= {
            what: int(count)
            for count, what in re.findall(r"(\d+) (generated|passed|failed|skipped)", done.stdout)
        }
        with options.output.open("a") as file:
            file.writelines(
                json.dumps(line) + "\n" for line in ({**environment(), "benchmark": "fuzz_service"}, row)
            )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
