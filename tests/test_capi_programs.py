"""Programs with the C library: the examples, many threads, many engines, and hosts that must notice nothing of Python."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from capi import EXAMPLES, SECONDS, TOKENIZER, compiled, need_compiler, run
from click.testing import CliRunner
from conftest import ROOT

from tortoise_rt import TextToSpeech
from tortoise_rt._version import __version__
from tortoise_rt.audio import write_wav
from tortoise_rt.capi.build import build
from tortoise_rt.cli import main
from tortoise_rt.defaults import settings_for
from tortoise_rt.scheduler import Scheduler
from tortoise_rt.streaming import Chunks
from tortoise_rt.tts import choose_engine, choose_tokenizer
from tortoise_rt.voice import load_voice

TEXT = "Hello there, how are you today?"
FAKE = ("backend=fake", f"tokenizer={TOKENIZER}", "codes=40")
ENVIRONMENT = "TRT_ERROR_ENVIRONMENT: "


@pytest.fixture(scope="module")
def programs(capi: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of compiled programs."""
    folder = tmp_path_factory.mktemp("programs")
    for source in (EXAMPLES / "hello.c", EXAMPLES / "server.c", ROOT / "benchmarks" / "capi_load.c"):
        compiled(capi, source, folder / source.stem)
    return folder


def loaded(programs: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    """What capi_load reports."""
    return json.loads(run(programs / "capi_load", *arguments, cwd=programs, **environment).stdout)


def hashed(samples: np.ndarray) -> str:
    """FNV-1a of 64 bits."""
    seen = 14695981039346656037
    for byte in samples.astype("<f4").tobytes():
        seen = ((seen ^ byte) * 1099511628211) % 2**64
    return f"{seen:016x}"


# --- what it says is what Python says ---


def test_the_headers_program(programs: Path, tmp_path: Path) -> None:
    """With the engine that ships, by its own settings: the file is the one that Python writes."""
    done = run(programs / "hello", cwd=tmp_path)
    wav = TextToSpeech().tts(TEXT, use_deterministic_seed=7)[0, 0]
    assert done.stdout == f"{len(wav) / 24000:.2f} s of speech\n" and done.stderr == ""
    write_wav(tmp_path / "python.wav", wav)
    assert (tmp_path / "hello.wav").read_bytes() == (tmp_path / "python.wav").read_bytes()


def test_strict_samples_are_pythons(programs: Path) -> None:
    engine = choose_engine()
    settings = settings_for(engine, decoder="hifigan", num_autoregressive_samples=1)
    voice = load_voice("alto")
    with Scheduler(engine, choose_tokenizer(engine, None), strict=True) as scheduler:
        wavs = [scheduler.submit(TEXT, voice, settings, seed).result().wavs[0] for seed in range(2)]
        pieces = list(scheduler.stream(TEXT, voice, settings, 0, chunks=Chunks(8, 8)))
    assert len(pieces) > 3
    assert loaded(programs, "strict=1", "requests=2")["hashes"] == [hashed(wav) for wav in wavs]
    assert loaded(programs, "strict=1", "stream=1")["hashes"] == [hashed(np.concatenate(pieces))]
    assert np.abs(np.concatenate(pieces) - wavs[0]).max() <= 1e-5


def test_many_threads(programs: Path) -> None:
    """8 threads with 25 requests each: to the bit what one thread after another gets, and rows share their steps."""
    work = (*FAKE, "codes=12", "rows=8", "threads=8", "requests=25")
    aside, apart = loaded(programs, *work, "strict=1"), loaded(programs, *work, "strict=1", "aside=0")
    assert aside["hashes"] == apart["hashes"] and len(set(aside["hashes"])) == 200
    assert apart["decoded"] == apart["steps"] == aside["decoded"]
    assert aside["decoded"] > 3 * aside["steps"]
    joined = loaded(programs, *work)
    assert joined["decoded"] > 3 * joined["steps"] and joined["decoded"] == aside["decoded"]


def test_memory_is_flat(programs: Path) -> None:
    """Of 100 clips; the benchmark makes 500, with networks."""
    report = loaded(programs, *FAKE, "codes=8", "requests=100")
    assert report["late_kib"] - report["early_kib"] < 4096


@pytest.fixture(scope="module")
def checking(capi: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library with AddressSanitizer."""
    prefix = tmp_path_factory.mktemp("asan") / "prefix"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CFLAGS", "-fsanitize=address -fno-omit-frame-pointer")
        build(prefix)
    return prefix


def test_address_sanitizer(checking: Path, tmp_path: Path) -> None:
    """50 engines, one after another: no error of the C side, no leak of ours, and the memory of engines comes back."""
    load = ROOT / "benchmarks" / "capi_load.c"
    program = compiled(checking, load, tmp_path / "load", "-fsanitize=address", "-g")
    ours = re.compile(
        r"#1 0x\w+ in (\w+) .*/(?:tortoise_rt|python|capi_load)\.c:"
    )  # who asked malloc for what leaked
    others = (
        tmp_path / "others"
    )  # what Python, its packages and OpenSSL keep: not looked up, which takes long
    others.write_text("leak:libpython\nleak:site-packages\nleak:libcrypto\nleak:libstdc++\n")
    sanitized = {
        "ASAN_OPTIONS": "detect_leaks=1:exitcode=0",
        "LSAN_OPTIONS": f"suppressions={others}:print_suppressions=0",
    }
    for work in (["cycles=50"], ["cycles=2", "stream=1", "threads=4", "requests=3"]):
        done = run(program, *FAKE, "codes=8", *work, cwd=tmp_path, **sanitized)
        assert json.loads(done.stdout)["hashes"]
        assert "ERROR: AddressSanitizer" not in done.stderr and not ours.findall(done.stderr), done.stderr
    leaking = run(program, *FAKE, "leak=1", cwd=tmp_path, **sanitized)
    assert "take_audio" in ours.findall(leaking.stderr)  # so one would be seen


# --- other languages, and a server ---


def test_cpp(capi: Path, tmp_path: Path) -> None:
    done = run(compiled(capi, EXAMPLES / "hello.cpp", tmp_path / "hello"), cwd=tmp_path)
    assert done.stdout.endswith(" s of speech\n") and done.stderr == ""
    say = TextToSpeech().tts
    for name, text, voice in [("morning", "Good morning.", "alto"), ("night", "And good night.", "tenor")]:
        given = load_voice(voice)
        assert given is not None
        wav = say(text, voice_samples=list(given.clips), use_deterministic_seed=7)[0, 0]
        made, _ = soundfile.read(tmp_path / f"{name}.wav", dtype="float32")
        assert len(made) == len(wav) and np.abs(made - wav).max() < 1e-3


CPP = """
#include <cassert>
#include <cstring>
#include <tortoise_rt.hpp>
int main(int, char **arguments) {
    trt::options options;
    options.backend = "fake";
    options.tokenizer = arguments[1];
    trt::engine engine(options), moved(std::move(engine));
    trt::settings settings;
    settings.decoder = "hifigan";
    settings.num_autoregressive_samples = 1;
    settings.max_mel_tokens = 40;
    trt::request request("Hello there. And more.");
    request.settings = &settings;
    try { moved.load_voice("nobody"); assert(false); }
    catch (const trt::error &error) { assert(error.status() == TRT_ERROR_VOICE && std::strstr(error.what(), "nobody")); }
    try { moved.speak(request, [](const trt_chunk &) { throw 5; }); assert(false); }
    catch (int thrown) { assert(thrown == 5); }
    int pieces = 0;
    moved.speak(request, [&](const trt_chunk &) { return ++pieces < 2; });
    assert(pieces == 2);
    std::size_t samples = 0;
    trt::stream stream = moved.stream(request);
    while (auto piece = stream.next()) samples += piece->count;
    assert(stream.ended() && samples > 0);
    request.text = "Hello there.";
    request.seed = 1;
    trt::job job = moved.submit(request);
    assert(job.wait() && job.audio().size() == moved.synthesize(request).size());
    assert(moved.info().has_hifigan == 1);
    settings.num_autoregressive_samples = 2;
    settings.k = 2;
    settings.check = 1;
    settings.max_retries = 1;
    trt::job several = moved.submit(request);
    assert(several.audio(1).size() > 0 && several.audio().problems() > 0 && several.audio().tries() == 2);
    assert(!several.problems(1).empty());
    try { several.audio(2); assert(false); }
    catch (const std::out_of_range &) {}
    trt_request nothing = request;
    nothing.settings = nullptr;
    nothing.text = nullptr;
    trt::stream live = moved.live(nothing);
    live.feed("Hel");
    live.feed("lo.");
    live.finish();
    assert(live.next());
}
"""


def test_cpp_wrapper(capi: Path, tmp_path: Path) -> None:
    source = tmp_path / "wrapper.cpp"
    source.write_text(CPP)
    run(compiled(capi, source, tmp_path / "wrapper"), str(TOKENIZER), cwd=tmp_path)


def test_rust(capi: Path, tmp_path: Path) -> None:
    need_compiler("rustc")
    lib = capi / "lib"
    command = ["rustc", "--edition", "2021", "-D", "warnings", str(EXAMPLES / "hello.rs"), "-L", str(lib), "-l", "tortoise_rt",
               "-C", f"link-arg=-Wl,-rpath,{lib}", "-o", str(tmp_path / "hello")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run(tmp_path / "hello", cwd=tmp_path)
    made, rate = soundfile.read(tmp_path / "crab.wav", dtype="float32")
    said = TextToSpeech().tts_stream("Hello from a crab. And good bye.", use_deterministic_seed=7)
    wav = np.concatenate(list(said))
    assert rate == 24000 and len(made) == len(wav) and np.abs(made - wav).max() < 1e-3


def test_a_server(programs: Path) -> None:
    """Three clients hear what they asked for; one that hangs up disturbs nobody; a signal ends it."""
    server = subprocess.Popen(
        [programs / "server", "0", "3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        texts = ["One for me. And two.", "Something else for you.", "A third is listening, too."]
        heard: dict[str, bytes] = {}

        def listen(text: str) -> None:
            with socket.create_connection(("127.0.0.1", port), SECONDS) as client:
                client.sendall(text.encode() + b"\n")
                heard[text] = b"".join(iter(partial(client.recv, 65536), b""))

        with socket.create_connection(("127.0.0.1", port), SECONDS) as client:
            client.sendall(b"Nobody hears the end of this. Or this. Or this. Or this.\n")
            assert client.recv(16)
        threads = [threading.Thread(target=listen, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        for text in texts:
            wav = np.concatenate(list(TextToSpeech().tts_stream(text, use_deterministic_seed=7)))
            made = np.frombuffer(heard[text], "<i2").astype(np.float32) / 32767
            assert len(made) == len(wav) and np.abs(made - np.clip(wav, -1, 1)).max() < 1e-3
    finally:
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=SECONDS)
    assert server.returncode == 0 and said == ""


def test_cmake(capi: Path, tmp_path: Path) -> None:
    need_compiler("cmake")
    sources = shutil.copytree(EXAMPLES, tmp_path / "sources")
    lists = sources / "CMakeLists.txt"
    found = lists.read_text().replace("tortoise_rt REQ", f"tortoise_rt {__version__} EXACT REQ")
    lists.write_text(found)
    for command in (
        ["-S", "sources", "-B", "build", f"-DCMAKE_PREFIX_PATH={capi}"],
        ["--build", "build"],
    ):
        done = subprocess.run(["cmake", *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    for program in ("hello", "hello_cpp"):
        assert (
            "no python at /none"
            in run(tmp_path / "build" / program, cwd=tmp_path, status=1, TORTOISE_RT_PYTHON="/none").stderr
        )


# --- a host notices nothing ---


def test_a_guest(capi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    done = run(
        compiled(capi, ROOT / "tests" / "c" / "guest.c", tmp_path / "guest"),
        cwd=tmp_path,
        LC_ALL="POSIX",
        HOME=str(tmp_path),
    )
    assert not (tmp_path / ".cache" / "Microsoft").exists()
    assert done.stdout.splitlines()[-1] == "said: all" and "wrong" not in done.stdout and done.stderr == ""


def test_threads_that_begin_at_once(checking: Path, tmp_path: Path) -> None:
    """And each closes its engine in a callback of its own, which goes on reading the piece that it was given."""
    program = compiled(
        checking, ROOT / "tests" / "c" / "race.c", tmp_path / "race", "-fsanitize=address", "-g"
    )
    assert run(program, str(TOKENIZER), cwd=tmp_path, ASAN_OPTIONS="detect_leaks=0").stderr == ""


def test_a_plug_in(capi: Path, tmp_path: Path) -> None:
    program = compiled(capi, ROOT / "tests" / "c" / "plugin.c", tmp_path / "plugin", "-Wno-pedantic", "-ldl")
    library = capi / "lib" / "libtortoise_rt.so"
    other = shutil.copy(library, tmp_path)  # which finds the Python of the first at work
    assert run(program, str(library), other, str(TOKENIZER), cwd=tmp_path).stdout == "0 0 0 0 "


def test_streams_of_the_host_may_be_closed(programs: Path) -> None:
    command = f"exec {programs}/capi_load {' '.join(FAKE)} 0<&- 2>&-"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0 and json.loads(done.stdout)["hashes"]


def test_another_programs_python_is_not_ours(programs: Path, tmp_path: Path) -> None:
    """What the caller's environment says to Python is not heard, whether there is more of it or not, nor what lies around."""
    (tmp_path / "numpy.py").write_text("raise RuntimeError('not this one')")
    strange = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nowhere", "PYTHONSTARTUP": "/nowhere", "LC_ALL": "C",
               "TORTOISE_RT_CACHE": str(tmp_path)}  # fmt: skip
    done = subprocess.run(
        [programs / "capi_load", *FAKE],
        cwd=tmp_path,
        env=strange,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert json.loads(done.stdout)["hashes"] == loaded(programs, *FAKE)["hashes"]


# --- without the environment ---


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
