"""The C library and the environment that it was built for: without it, another one, another version; and how it is built."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from capi import EXAMPLES, FAKE, compiled, loaded, need_compiler, run
from click.testing import CliRunner

from tortoise_rt._version import __version__
from tortoise_rt.cli import main

ENVIRONMENT = "TRT_ERROR_ENVIRONMENT: "


def test_no_environment(programs: Path, tmp_path: Path) -> None:
    """A program starts without Python, and says what is missing."""
    needed = subprocess.run(["ldd", programs / "hello"], capture_output=True, text=True, check=True).stdout
    assert "libpython" not in needed
    said = run(programs / "hello", cwd=tmp_path, status=1, TORTOISE_RT_PYTHON="/nowhere/bin/python").stderr
    assert said == ENVIRONMENT + (
        "there is no python at /nowhere/bin/python: set TORTOISE_RT_PYTHON to that of an environment with tortoise-rt\n"
    )
    stray = tmp_path / "bin" / "python"
    stray.parent.mkdir()
    shutil.copy("/bin/true", stray)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    said = run(programs / "hello", cwd=tmp_path, status=1, TORTOISE_RT_PYTHON=str(stray)).stderr
    assert said.startswith(f"{ENVIRONMENT}{stray} is no Python {version}, which this library was built for")


STARTS = """
#include <stdio.h>
#include <tortoise_rt.h>
int main(int count, char **pythons) {
    for (int i = 1; i < count; i++)
        printf("%s\\n", trt_start(*pythons[i] ? pythons[i] : NULL) ? trt_last_error() : "started");
    return 0;
}
"""


def test_an_environment_without_the_package(capi: Path, tmp_path: Path) -> None:
    """Python runs by then, and so the next one cannot be started, nor is it blamed."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    (tmp_path / "starts.c").write_text(STARTS)
    program = compiled(capi, tmp_path / "starts.c", tmp_path / "starts")
    done = run(program, "/nowhere/python", python, sys.executable, python, "", cwd=tmp_path)
    missing = (
        f"{python} cannot run tortoise-rt (No module named 'tortoise_rt'): "
        f"{python} -m pip install 'tortoise-rt[cpu]'"
    )
    nowhere, *others = done.stdout.splitlines()
    assert nowhere.startswith("there is no python at /nowhere/python") and done.stderr == ""
    assert others == [missing, f"Python runs already, in {python}: name that one, or none", missing, missing]


def test_a_library_of_another_version(capi: Path, tmp_path: Path) -> None:
    other = shutil.copytree(capi, tmp_path / "other", symlinks=True) / "lib" / "libtortoise_rt.so.1"
    other.write_bytes(other.read_bytes().replace(f"{__version__}\0".encode(), b"9.9.9\0"))
    said = run(
        compiled(tmp_path / "other", EXAMPLES / "hello.c", tmp_path / "hello"), cwd=tmp_path, status=1
    ).stderr
    assert said == (
        f"{ENVIRONMENT}the library is tortoise-rt 9.9.9 and its environment has {__version__}: "
        "run tortoise-rt capi build there\n"
    )


def test_another_environment(programs: Path, tmp_path: Path) -> None:
    """The one that a variable names, not the one that the library was built in."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "own"], check=True)
    site = next((tmp_path / "own" / "lib").glob("python*")) / "site-packages"
    tree = tmp_path / "tree" / "tortoise_rt"
    tree.mkdir(parents=True)
    for part in ("", ".export", ".engines", ".voices"):  # which an editable install keeps apart
        package = Path(str(importlib.import_module(f"tortoise_rt{part}").__file__)).parent
        for file in [package] if part else package.iterdir():
            if not (tree / file.name).exists():
                (tree / file.name).symlink_to(file)
    paths = [str(tree.parent), *(path for path in sys.path if path and os.path.isdir(path))]
    site.joinpath("others.pth").write_text("\n".join(paths))
    python = str(tmp_path / "own" / "bin" / "python")
    assert loaded(programs, *FAKE, TORTOISE_RT_PYTHON=python)["hashes"] == loaded(programs, *FAKE)["hashes"]


# --- the command ---


def test_the_command(tmp_path: Path) -> None:
    need_compiler()
    runner = CliRunner()
    done = runner.invoke(main, ["capi", "build", "-o", str(tmp_path / "made")])
    assert done.exit_code == 0, done.output
    made = sorted(
        str(path.relative_to(tmp_path / "made")) for path in (tmp_path / "made").rglob("*") if path.is_file()
    )
    assert made == [
        "include/tortoise_rt.h", "include/tortoise_rt.hpp", "lib/cmake/tortoise_rt/tortoise_rtConfig.cmake",
        "lib/cmake/tortoise_rt/tortoise_rtConfigVersion.cmake", "lib/libtortoise_rt.so", "lib/libtortoise_rt.so.1",
        "lib/pkgconfig/tortoise_rt.pc",
    ]  # fmt: skip
    assert sys.executable in done.output and "pkg-config --cflags --libs tortoise_rt" in done.output
    done = runner.invoke(main, ["capi", "examples", "-o", str(tmp_path / "programs")])
    assert {path.name for path in (tmp_path / "programs").iterdir()} == {
        path.name for path in EXAMPLES.iterdir()
    }
    done = runner.invoke(main, ["capi", "examples", "-o", str(tmp_path / "programs")])
    assert done.exit_code == 2 and "name a folder that is not there yet" in done.output
    done = runner.invoke(main, ["capi", "build", "-o", str(tmp_path / "a" / "b")])
    assert done.exit_code == 2 and "does not exist: create it" in done.output
    assert "tortoise-rt capi build -o capi" in runner.invoke(main, ["capi", "--help"]).output
