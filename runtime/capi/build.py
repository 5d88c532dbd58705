"""Compiles the C library for the environment that this runs in, and lays it out as a prefix of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from .._version import __version__
from ..errors import MissingDependency, OutputError

FOLDER = Path(__file__).parent
SOURCES = ("tortoise_rt.c", "python.c")
HEADERS = ("tortoise_rt.h", "tortoise_rt.hpp")
SONAME = "libtortoise_rt.so.1"
FLAGS = (
    "-std=gnu11",
    "-O2",
    "-g",
    "-fPIC",
    "-fvisibility=hidden",
    "-fexceptions",
    "-Wall",
    "-Wextra",
    "-Wno-format-truncation",
)
#: not unloaded by dlclose: Python cannot be started again
LINKING = ("-shared", f"-Wl,-soname,{SONAME}", "-Wl,-z,nodelete", "-Wl,-z,defs", "-ldl", "-lpthread")

PKG_CONFIG = """\
prefix=${{pcfiledir}}/../..
libdir=${{prefix}}/lib
includedir=${{prefix}}/include

Name: tortoise_rt
Description: Speech from text with TorToiSe models
Version: {version}
Cflags: -I${{includedir}}
Libs: -L${{libdir}} -Wl,-rpath,${{libdir}} -ltortoise_rt
"""
CMAKE = """\
# find_package(tortoise_rt) gives the target tortoise_rt::tortoise_rt
get_filename_component(_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT TARGET tortoise_rt::tortoise_rt)
  add_library(tortoise_rt::tortoise_rt SHARED IMPORTED)
  set_target_properties(tortoise_rt::tortoise_rt PROPERTIES
    IMPORTED_LOCATION "${_prefix}/lib/libtortoise_rt.so"
    IMPORTED_SONAME "SONAME"
    INTERFACE_INCLUDE_DIRECTORIES "${_prefix}/include")
endif()
unset(_prefix)
""".replace('SONAME"', f'{SONAME}"')
CMAKE_VERSION = """\
set(PACKAGE_VERSION "{version}")
if(PACKAGE_VERSION VERSION_LESS PACKAGE_FIND_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE FALSE)
else()
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
  if(PACKAGE_VERSION VERSION_EQUAL PACKAGE_FIND_VERSION)
    set(PACKAGE_VERSION_EXACT TRUE)
  endif()
endif()
"""


@dataclass(frozen=True)
class Environment:
    """The Python that the library starts."""

    python: str  #: its path
    include: Path  #: where Python.h is
    libpython: Path
    soname: str  #: libpython's name


def this_environment() -> Environment:
    """Raises MissingDependency where it has no headers or no shared libpython."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        raise MissingDependency(
            f"there is no {include / 'Python.h'}, which the library is compiled with: install Python's headers "
            f"(Debian: {version}-dev)"
        )
    known = [sysconfig.get_config_var(name) for name in ("INSTSONAME", "LDLIBRARY")]
    soname = next((name for name in known if name and ".so" in name), f"lib{version}.so.1.0")
    folders = [sysconfig.get_config_var("LIBDIR") or "/usr/lib"]
    folders.append(os.path.join(folders[0], sysconfig.get_config_var("MULTIARCH") or ""))
    found = [path for folder in folders if (path := Path(folder, soname)).is_file()]
    if not found:
        raise MissingDependency(
            f"there is no {soname} in {' or '.join(folders)}, and the library needs a shared libpython: install it (Debian: "
            f"lib{version}), or use a Python that was built with --enable-shared"
        )
    return Environment(sys.executable, include, found[0], soname)


def build(output: Path) -> Path:
    """Write include/, lib/, lib/pkgconfig/ and lib/cmake/ into ``output``; -> the library.

    The folder is made; the one above it must exist. Raises MissingDependency without a C compiler or without what
    it needs of Python, OutputError when the folder cannot be written.
    """
    environment = this_environment()
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        raise MissingDependency(
            f"there is no C compiler {compiler[0]}: install one (Debian: gcc), or set CC to one"
        )
    if not output.absolute().parent.is_dir():
        raise OutputError(
            f"the folder {output.absolute().parent} does not exist: create it, or write elsewhere"
        )
    include, lib = output / "include", output / "lib"
    cmake, pkgconfig = lib / "cmake" / "tortoise_rt", lib / "pkgconfig"
    try:
        for folder in (include, cmake, pkgconfig):
            folder.mkdir(parents=True, exist_ok=True)
        for header in HEADERS:
            shutil.copyfile(FOLDER / header, include / header)
        _compile([*compiler, *FLAGS, *shlex.split(os.environ.get("CFLAGS", ""))], environment, lib / SONAME)
        link = lib / "libtortoise_rt.so"
        link.unlink(missing_ok=True)
        link.symlink_to(SONAME)
        (pkgconfig / "tortoise_rt.pc").write_text(PKG_CONFIG.format(version=__version__))
        (cmake / "tortoise_rtConfig.cmake").write_text(CMAKE)
        (cmake / "tortoise_rtConfigVersion.cmake").write_text(CMAKE_VERSION.format(version=__version__))
    except OSError as error:
        raise OutputError(f"cannot write the library into {output} ({error}): check the folder") from error
    return link


def _compile(command: list[str], environment: Environment, library: Path) -> None:
    """Into another name, which becomes the library's: a program may be running with the one before."""
    values = {
        "TRT_VERSION": __version__,
        "TRT_PYTHON": environment.python,
        "TRT_LIBPYTHON": str(environment.libpython),
        "TRT_SONAME": environment.soname,
    }
    unfinished = library.with_name(f".{library.name}.part")
    try:
        done = subprocess.run(
            [*command, *(f"-D{name}={_literal(value)}" for name, value in values.items()), f"-I{environment.include}",
             *(str(FOLDER / source) for source in SOURCES), *LINKING, "-o", str(unfinished)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            said = next(
                (line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-300:]
            )
            raise MissingDependency(f"{command[0]} cannot compile the library: {said}")
        os.replace(unfinished, library)
    finally:
        unfinished.unlink(missing_ok=True)


def _literal(text: str) -> str:
    """A C string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
