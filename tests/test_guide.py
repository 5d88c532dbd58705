"""What the guide says to type works: every section's commands and programs, run in a folder of their own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT
from hub import serving

GUIDE = ROOT / "GUIDE.md"
SECONDS = 120  #: that a command may take
EXPORTED = "TorToiSe itself"  #: the section whose commands need PyTorch, and a hub


@dataclass
class Block:
    """A fenced block: its kind and text."""

    kind: str
    text: str


def sections(guide: str) -> dict[str, list[Block]]:
    """Heading -> its blocks."""
    found: dict[str, list[Block]] = {}
    for part in re.split(r"^## ", guide, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        fenced = re.findall(r"^```(\w+)\n(.*?)^```$", body, flags=re.MULTILINE | re.DOTALL)
        found[heading.strip()] = [Block(kind, text) for kind, text in fenced]
    return found


def commands(text: str) -> list[tuple[str, int]]:
    """(command, exit status) of a console block; a line that ends with a backslash goes on in the next."""
    found, status = [], 0
    for line in text.replace("\\\n", " ").split("\n"):
        if line.startswith("$? "):
            status = int(line[3:])
        elif line.startswith("$ "):
            found.append((line[2:], status))
            status = 0
    return found


CC = (
    "cc -x c -std=c99 -Wall -Wextra -Werror -Icapi/include -Lcapi/lib -Wl,-rpath,$PWD/capi/lib -o program "
    "-Wl,--no-as-needed -ltortoise_rt"
)
PARSES = f"{sys.executable} -c 'import ast, sys; ast.parse(sys.stdin.read())'"
#: kind of a block -> (command, exit status) of what it says; C comes behind "capi build -o capi"
RUNS: dict[str, Callable[[str], list[tuple[str, int]]]] = {
    "console": commands,
    "python": lambda text: [(f"{sys.executable} - <<'EOF'\n{text}\nEOF", 0)],
    "py": lambda text: [(f"{PARSES} <<'EOF'\n{text}\nEOF", 0)],  # of a GPU's: run in test_exchange.py
    "c": lambda text: [(f"{CC} - <<'EOF' && ./program\n{text}\nEOF", 0)],
}
SECTIONS = sections(GUIDE.read_text("utf-8"))


@pytest.fixture
def mirror(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub on this machine whose checkpoints are tiny and random, of sizes that a file beside them must say."""
    (tmp_path / "work" / "models").mkdir(parents=True)
    shutil.copy(data / "config.json", tmp_path / "work" / "models")
    with serving() as server:
        server.files = {
            path.name: path.read_bytes() for path in (*data.glob("*.pth"), *(data / "wav2vec2").iterdir())
        }
        server.files["tokenizer.json"] = (data.parent / "tokenizer.json").read_bytes()
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_section_works(
    heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("onnxruntime")
    if heading == EXPORTED:
        pytest.importorskip("torch")
        pytest.importorskip("onnx")
        request.getfixturevalue("mirror")
    if heading == "Inside C programs" and shutil.which("cc") is None:
        pytest.skip("there is no C compiler: the section's programs were not tested")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("TORTOISE_RT_CACHE", str(tmp_path / ".cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    runs = [run for block in SECTIONS[heading] for run in RUNS[block.kind](block.text)]
    assert runs, "a section shows how"
    for command, status in runs:
        done = subprocess.run(
            ["bash", "-c", command], cwd=work, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        said = textwrap.indent(done.stdout + done.stderr, "    ")
        assert done.returncode == status, f"$ {command}\n{said}"
        assert "Traceback" not in done.stderr, f"$ {command}\n{said}"


def test_reading_the_guide() -> None:
    made = sections(
        "# G\n## One\n```console\n$ a \\\n  b\nout\n$? 2\n$ c\n```\n## Two\n```python\nx = 1\n```\n"
    )
    assert made == {
        "One": [Block("console", "$ a \\\n  b\nout\n$? 2\n$ c\n")],
        "Two": [Block("python", "x = 1\n")],
    }
    assert commands(made["One"][0].text) == [("a    b", 0), ("c", 2)]
