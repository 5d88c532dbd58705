"""The C library as tests use it: built once, called from this process, or linked to programs."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.capi import embedded, structs
from tortoise_rt.capi.build import build, this_environment
from tortoise_rt.capi.status import Status
from tortoise_rt.capi.structs import Audio
from tortoise_rt.defaults import settings_for
from tortoise_rt.errors import MissingDependency
from tortoise_rt.pipeline import Pipeline
from tortoise_rt.text import Tokenizer
from tortoise_rt.voice import VoiceLatents

ROOT = Path(__file__).resolve().parent.parent
STRICT = ("-Wall", "-Wextra", "-Werror")
SECONDS = 120  #: that a program may take
TOKENIZER = ROOT / "tests" / "data" / "tokenizer.json"
EXAMPLES = ROOT / "runtime" / "capi" / "examples"
FAKE = ("backend=fake", f"tokenizer={TOKENIZER}", "codes=40")  #: what capi_load is to speak with


def need_compiler(name: str = "cc") -> None:
    if shutil.which(name) is None:
        pytest.skip(f"there is no compiler {name}: what is compiled with it was not tested")


def compiled(prefix: Path, source: Path, program: Path, *flags: str) -> Path:
    """A C or C++ program, linked to the library as a user would, without a warning."""
    need_compiler("pkg-config")
    cpp = source.suffix == ".cpp"
    compiler, language = ("c++", "-std=c++17") if cpp else ("cc", "-std=c99")
    need_compiler(compiler)
    found = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "tortoise_rt"], capture_output=True, text=True, check=True,
        env={**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")},
    ).stdout.split()  # fmt: skip
    command = [
        compiler,
        language,
        *STRICT,
        "-pedantic",
        str(source),
        *found,
        "-pthread",
        "-lm",
        "-o",
        str(program),
        *flags,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def run(
    program: Path | str, *arguments: str, cwd: Path, status: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A program's run; it must end with ``status`` and show no traceback."""
    done = subprocess.run(
        [str(program), *arguments], cwd=cwd, capture_output=True, text=True, timeout=SECONDS, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == status, (
        f"{program} {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def loaded(programs: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    """What capi_load reports."""
    return json.loads(run(programs / "capi_load", *arguments, cwd=programs, **environment).stdout)


class Library:
    """The library in this process, which is Python already: calls are those of C, and so is what they may crash."""

    def __init__(self, path: Path) -> None:
        self.dll = ctypes.CDLL(str(path))
        for name in ("trt_last_error", "trt_status_name", "trt_version"):
            getattr(self.dll, name).restype = ctypes.c_char_p

    def call(self, name: str, *arguments: Any) -> int:
        given = [ctypes.c_double(a) if isinstance(a, float) else a for a in arguments]
        return int(getattr(self.dll, f"trt_{name}")(*given))

    def ok(self, name: str, *arguments: Any) -> None:
        status = self.call(name, *arguments)
        assert status == Status.OK, f"{name}: {self.dll.trt_status_name(status)!r} {self.error}"

    @property
    def error(self) -> str:
        return self.dll.trt_last_error().decode()

    def fails(self, status: Status, name: str, *arguments: Any) -> str:
        """-> the message."""
        found = self.call(name, *arguments)
        assert found == status, f"{name} gives {found}: {self.error}"
        return self.error

    def open(self, **options: Any) -> ctypes.c_void_p:
        """The fake engine, unless ``options`` name another."""
        made = structs.EngineOptions()
        self.ok("engine_options_init", ctypes.byref(made), ctypes.c_size_t(ctypes.sizeof(made)))
        for name, value in {"backend": b"fake", "tokenizer": os.fsencode(TOKENIZER), **options}.items():
            setattr(made, name, value)
        engine = ctypes.c_void_p()
        self.ok("engine_open", ctypes.byref(made), ctypes.byref(engine))
        return engine

    def settings(self, **values: Any) -> structs.Settings:
        made = structs.Settings()
        self.ok("settings_init", ctypes.byref(made), ctypes.c_size_t(ctypes.sizeof(made)))
        for name, value in {
            "decoder": b"hifigan",
            "num_autoregressive_samples": 1,
            "max_mel_tokens": 40,
            **values,
        }.items():
            setattr(made, name, value)
        return made

    def request(
        self, text: str | bytes = "Hello there.", settings: Any = None, **values: Any
    ) -> structs.Request:
        made = structs.Request()
        self.ok("request_init", ctypes.byref(made), ctypes.c_size_t(ctypes.sizeof(made)))
        content = ctypes.create_string_buffer(text.encode() if isinstance(text, str) else text)
        made.text = ctypes.addressof(content)
        chosen = self.settings() if settings is None else settings
        made.settings = ctypes.addressof(chosen)
        made.kept = content, chosen
        for name, value in {"seed": 1, **values}.items():
            setattr(made, name, value)
        return made

    def clip(self, engine: ctypes.c_void_p, request: structs.Request) -> bytes:
        """The samples of a request that succeeds."""
        audio = Audio()
        self.ok("synthesize", engine, ctypes.byref(request), ctypes.byref(audio))
        return self.samples(audio)

    def samples(self, audio: Audio) -> bytes:
        """What an audio holds, which is freed."""
        content = ctypes.string_at(audio.samples, 4 * audio.count)
        self.dll.trt_free(ctypes.c_void_p(audio.samples))
        return content


def built(folder: Path) -> Path:
    """The library's prefix. It must compile, without a warning; only where there is nothing to do so with, it is skipped."""
    need_compiler()
    try:
        this_environment()
    except MissingDependency as error:
        pytest.skip(f"the C library was not tested: {error}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CFLAGS", " ".join(STRICT))
        build(folder)
    return folder


def long_request(lib: Library, **values: object) -> structs.Request:
    """Thousands of steps."""
    return lib.request(settings=lib.settings(num_autoregressive_samples=400, max_mel_tokens=250), **values)


def steps(lib: Library, engine: ctypes.c_void_p) -> tuple[int, int]:
    """-> decoding steps and requests in flight."""
    info = structs.EngineInfo(struct_size=ctypes.sizeof(structs.EngineInfo))
    lib.ok("engine_get_info", engine, ctypes.byref(info))
    return info.steps, info.in_flight


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def slow_down(engine: ctypes.c_void_p, seconds: float) -> None:
    """Let each of an engine's steps take as long."""
    network = embedded._engines.get(engine.value or 0).network
    step = network._ar_step

    def slow(*arguments: object) -> object:
        time.sleep(seconds)
        return step(*arguments)  # type: ignore[arg-type]

    network._ar_step = slow  # type: ignore[method-assign, assignment]


def alone(seed: int, voice: VoiceLatents | None = None, **settings: object) -> bytes:
    """What the fake engine says in a request, by the pipeline, without a scheduler."""
    engine = FakeEngine()
    chosen = settings_for(
        engine, decoder="hifigan", num_autoregressive_samples=1, max_mel_tokens=40, **settings
    )
    return (
        Pipeline(engine, Tokenizer(TOKENIZER))
        .synthesize("Hello there.", voice, chosen, seed)
        .wavs[0]
        .tobytes()
    )
