"""``tortoise-rt capi``: the library for C programs."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from ..errors import OutputError
from . import options


@click.group()
def capi() -> None:
    """Speech inside C programs, and C++, Rust, Go or Node by their interfaces to C.

    \b
    tortoise-rt capi build -o capi               # once, for this environment
    tortoise-rt capi examples -o examples        # programs to begin with
    export PKG_CONFIG_PATH=capi/lib/pkgconfig
    cc -std=c99 examples/hello.c $(pkg-config --cflags --libs tortoise_rt) -o hello
    ./hello                                      # hello.wav, by the engine that ships

    The manual is the header, capi/include/tortoise_rt.h: a complete program, rules for threads and memory, then each function.
    C++ has tortoise_rt.hpp beside it. With CMake: find_package(tortoise_rt) with CMAKE_PREFIX_PATH=capi, and link
    tortoise_rt::tortoise_rt.

    The library starts Python inside the program, as a guest: in the environment that it was built in, or the one whose
    python the variable TORTOISE_RT_PYTHON or trt_start() names.
    """


@capi.command()
@click.option(
    "-o",
    "--output",
    type=options.FOLDER,
    default=Path("capi"),
    show_default=True,
    metavar="DIR",
    help="A folder that is made, or written into: include, lib, lib/pkgconfig, lib/cmake.",
)
def build(output: Path) -> None:
    """Compile libtortoise_rt.so for this environment, with a C compiler (CC and CFLAGS are heeded).

    The library is small, and good for this Python to the second number (3.11, whichever). It opens libpython when it is used, so
    programs start without one, and are told what is missing.
    """
    from ..capi.build import build, this_environment

    library = build(output)
    click.echo(f"{library} for {this_environment().python}")
    click.echo(f"Next: export PKG_CONFIG_PATH={output.absolute() / 'lib' / 'pkgconfig'}")
    click.echo("      cc PROGRAM.c $(pkg-config --cflags --libs tortoise_rt)")


@capi.command()
@click.option(
    "-o",
    "--output",
    type=options.FOLDER,
    required=True,
    metavar="DIR",
    help="A folder that is not there yet.",
)
def examples(output: Path) -> None:
    """Copy the example programs: hello.c, hello.cpp, server.c, hello.rs, and a CMakeLists.txt that builds them."""
    from ..capi.build import FOLDER

    try:
        shutil.copytree(FOLDER / "examples", output)
    except OSError as error:
        raise OutputError(f"cannot write {output} ({error}): name a folder that is not there yet") from error
    for file in sorted(output.iterdir()):
        click.echo(file)
