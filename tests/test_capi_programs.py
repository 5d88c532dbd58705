"""Programs with the C library: what they hear, many threads, many engines, and hosts that must notice nothing of Python."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from capi import FAKE, SECONDS, TOKENIZER, compiled, loaded, run
from conftest import ROOT

from tortoise_rt import TextToSpeech
from tortoise_rt.audio import write_wav
from tortoise_rt.capi.build import build
from tortoise_rt.defaults import settings_for
from tortoise_rt.scheduler import Scheduler
from tortoise_rt.streaming import Chunks
from tortoise_rt.tts import choose_engine, choose_tokenizer
from tortoise_rt.voice import load_voice

TEXT = "Hello there, how are you today?"


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
