"""``say --stream``: files, pipes and loudspeakers, and what may befall them."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from test_cli import ok, run

from tortoise_rt import sinks
from tortoise_rt.errors import MissingDependency, OutputError
from tortoise_rt.spec import SAMPLE_RATE

TEXT = "The boat came in. Nobody knew who was on it."
PROGRAM = [sys.executable, "-m", "tortoise_rt", "say"]


def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_a_file(tmp_path: Path) -> None:
    target = tmp_path / "a.wav"
    result = ok("say", TEXT, "--stream", "--seed", "3", "-o", str(target))
    assert "first sound after" in result.output and "seed 3" in result.output
    wav, rate = soundfile.read(target)
    assert rate == SAMPLE_RATE and len(wav) > SAMPLE_RATE and np.abs(wav).max() > 0.05
    with soundfile.SoundFile(target) as file:
        assert "Synthetic speech" in file.comment and "seed 3" in file.comment
    report = json.loads(
        ok(
            "say", TEXT, "--stream", "--seed", "3", "--json", "-o", str(tmp_path / "b.flac")
        ).output.splitlines()[-1]
    )
    assert report["seed"] == 3 and report["audio_seconds"] == pytest.approx(len(wav) / rate, abs=0.01)
    assert np.abs(soundfile.read(tmp_path / "b.flac")[0] - wav).max() < 1e-3
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.wav", "b.flac"]


def test_a_pipe_gets_a_wav(tmp_path: Path) -> None:
    made = subprocess.run([*PROGRAM, TEXT, "--seed", "3", "-o", "-"], capture_output=True, check=True)
    ok("say", TEXT, "--stream", "--seed", "3", "-o", str(tmp_path / "a.wav"))
    wav = soundfile.read(tmp_path / "a.wav", dtype="int16")[0]
    assert (
        made.stdout[:4] == b"RIFF"
        and made.stdout[8:12] == b"WAVE"
        and b"Synthetic speech" in made.stdout[:400]
    )
    samples = np.frombuffer(made.stdout[made.stdout.index(b"data") + 8 :], "<i2")
    assert len(samples) == len(wav) and np.abs(samples.astype(int) - wav).max() <= 2
    raw = subprocess.run(
        [*PROGRAM, TEXT, "--seed", "3", "-o", "-", "--raw", "-q"], capture_output=True, check=True
    )
    assert len(raw.stdout) == 2 * len(wav) and raw.stderr == b""


def test_standard_input_is_said_as_it_comes() -> None:
    process = start("--stream", "-", "-o", "-", "--raw", "--seed", "1")
    assert process.stdin and process.stdout
    process.stdin.write(b"Hello there.\n")
    process.stdin.flush()
    first = process.stdout.read(9600)  # before the text ends
    assert len(first) == 9600 and process.poll() is None
    process.stdin.write("How are you, Zoë?".encode())
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and len(rest) > 9600, errors


def test_a_reader_that_goes_ends_it() -> None:
    process = start("--stream", TEXT * 30, "-o", "-")
    assert process.stdout and process.stderr
    process.stdout.read(1000)
    process.stdout.close()
    assert process.wait(60) == 141
    said = process.stderr.read().decode()
    assert "has gone: stopped" in said and "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_a_valid_file(tmp_path: Path, number: int) -> None:
    target = tmp_path / "a.wav"
    process = start("--stream", TEXT * 100, "-o", str(target))
    until = time.monotonic() + 60
    while not [p for p in tmp_path.iterdir() if p.stat().st_size > 100_000] and time.monotonic() < until:
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert process.returncode == 128 + number and b"Traceback" not in errors
    assert len(soundfile.read(target)[0]) > 40_000
    assert list(tmp_path.iterdir()) == [target]


def test_an_interruption_before_the_first_sound_ends_it_at_once(tmp_path: Path) -> None:
    """Of hundreds of samples that are drawn, which would take a minute."""
    arguments = ("--decoder", "diffusion", "--samples", "512", "-o", str(tmp_path / "a.wav"))
    process = start("--stream", f"{TEXT} And so on.", *arguments)
    assert process.stderr is not None
    while b"speaks" not in process.stderr.readline():  # it is told when the engine is there
        pass
    time.sleep(1)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 5
    assert process.returncode == 130 and b"Traceback" not in errors and not list(tmp_path.iterdir())


def test_a_hundred_thousand_characters_begin_at_once() -> None:
    process = start("--stream", "-", "-o", "-", "--raw")
    assert process.stdin and process.stdout
    text = (TEXT + " ") * 2300

    def feed() -> None:
        try:
            process.stdin.write(text.encode())  # type: ignore[union-attr]
            process.stdin.close()  # type: ignore[union-attr]
        except BrokenPipeError:
            pass

    import threading

    threading.Thread(target=feed, daemon=True).start()
    assert len(process.stdout.read(48_000)) == 48_000
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hello", "--raw", "--stream", "-o", "a.wav"], "--raw is for standard output: -o -"),
        (["hello", "--chunk", "4"], "--chunk is for a stream: add --stream"),
        (["hello", "--pause", "1"], "--pause is for a stream: add --stream"),
        (["hello", "--stream", "--candidates", "2", "-o", "-"], "a stream is one clip"),
        (["hello", "--stream", "--chunk", "-1", "-o", "-"], "stream_chunk_size is -1"),
        (
            ["hello", "--stream", "--pause", "99", "-o", "-"],
            "pause is 99; it must be at least 0 and at most 60",
        ),
        ([" ", "--stream", "-o", "-"], "nothing to say"),
        (["[sad hello", "--stream", "-o", "-"], "has no partner"),
        (["hello", "--stream", "--check", "-o", "-"], "leave check out"),
        (["hello", "--stream", "--words", "a.srt", "-o", "-"], "leave --stream out"),
        (["hello", "--words", "a.txt"], "its suffix must be one of .srt, .vtt, .json"),
        (["hello", "--stream", "-o", "a.mp3"], "its suffix must be one of"),
        (
            ["hello", "--stream", "--decoder", "diffusion", "--chunk", "8", "-o", "-"],
            "here a piece is a sentence",
        ),
        (["hello", "--stream", "--chunk", "-1", "--engine", "/none", "-o", "-"], "stream_chunk_size is -1"),
        (["hello", "--stream", "--pause", "-1", "--engine", "/none", "-o", "-"], "pause is -1"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str) -> None:
    result = run("say", *arguments)
    assert result.exit_code == 2 and message in result.output, result.output


def test_without_a_sound_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingDependency, match=r"pip install 'tortoise-rt\[play\]', or write to a file"):
        sinks.PlayerSink()
    result = run("say", "hello", "--stream", "--engine", "/none")  # before an engine is looked for
    assert result.exit_code == 2 and "nothing to play sound with" in result.output


def test_a_sound_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for sounddevice: no machine of the tests has a device."""
    played = io.BytesIO()
    calls: list[str] = []

    class Stream:
        def __init__(self, rate: int, channels: int, dtype: str) -> None:
            assert (rate, channels, dtype) == (SAMPLE_RATE, 1, "int16")

        @staticmethod
        def write(samples: bytes) -> None:
            assert 0 < len(samples) <= 2 * SAMPLE_RATE // 20  # an interrupt waits for one of them at most
            played.write(samples)

        start = staticmethod(lambda: calls.append("start"))
        stop = staticmethod(lambda: calls.append("stop"))
        abort = staticmethod(lambda: calls.append("abort"))
        close = staticmethod(lambda: calls.append("close"))

    class PortAudioError(Exception):
        pass

    module = types.SimpleNamespace(RawOutputStream=Stream, PortAudioError=PortAudioError)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    ok("say", "Hello there.", "--stream", "--seed", "1")
    assert calls == ["start", "stop", "close"] and len(played.getvalue()) > SAMPLE_RATE

    def refuse(*_: Any, **__: Any) -> None:
        raise PortAudioError("Error querying device -1")

    module.RawOutputStream = refuse
    with pytest.raises(OutputError, match="no sound device can be opened"):
        sinks.PlayerSink()


@pytest.mark.parametrize(
    ("closed", "text", "said"),
    [(">&-", "hello", "standard output is closed"), ("<&-", "-", "standard input is closed")],
)
def test_closed_descriptors(closed: str, text: str, said: str) -> None:
    command = f'"{sys.executable}" -m tortoise_rt say --stream {text} -o - {closed}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_terminal_gets_no_samples() -> None:
    import pty

    main, side = pty.openpty()
    with os.fdopen(main, "rb"), os.fdopen(side, "wb") as terminal:
        done = subprocess.run(
            [*PROGRAM, TEXT, "--stream", "-o", "-"], stdout=terminal, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 2 and b"standard output is a terminal" in done.stderr


def test_the_header_of_a_pipe() -> None:
    header = sinks.wav_header("odd")
    riff, size, wave, fmt, length = struct.unpack("<4sI4s4sI", header[:20])
    assert (riff, size, wave, fmt, length) == (b"RIFF", 0xFFFFFFFF, b"WAVE", b"fmt ", 16)
    assert len(header) % 2 == 0 and header[-8:-4] == b"data"
    wav = io.BytesIO(header + sinks.to_16_bits(np.array([0, 1, -1, 2, -2], np.float32)))
    samples, rate = soundfile.read(wav, dtype="int16")
    assert rate == SAMPLE_RATE and samples.tolist() == [0, 32767, -32767, 32767, -32767]


def test_a_folder_that_does_not_exist_is_told(tmp_path: Path) -> None:
    result = run("say", TEXT, "--stream", "-o", str(tmp_path / "missing" / "a.wav"))
    assert result.exit_code == 2 and "does not exist" in result.output


@pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="this system has no /dev/full, a device that is full"
)
def test_a_full_disk_is_told() -> None:
    with open("/dev/full", "wb") as full:
        process = subprocess.run([*PROGRAM, TEXT, "--stream", "-o", "-"], stdout=full, stderr=subprocess.PIPE)
    assert process.returncode == 2 and b"Traceback" not in process.stderr
    assert b"cannot write to standard output" in process.stderr
