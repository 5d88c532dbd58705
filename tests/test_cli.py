"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner, Result

from tortoise_rt import __version__
from tortoise_rt.cli import main
from tortoise_rt.pipeline import Pipeline
from tortoise_rt.voice import VoiceLatents

TOKENIZER = Path(__file__).parent / "data" / "tokenizer.json"
FAKE = ["--backend", "fake"]
SAY = ["say", *FAKE, "--tokenizer", str(TOKENIZER), "--samples", "3", "--diffusion-iterations", "2"]
COMMAND = [sys.executable, "-c", "from tortoise_rt.cli import main; main()"]


pytestmark = pytest.mark.usefixtures("folder")


def run(*arguments: str, stdin: bytes | str | None = None) -> Result:
    return CliRunner().invoke(main, list(arguments), input=stdin)


def ok(*arguments: str, stdin: bytes | str | None = None) -> Result:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result


def write_clip(path: Path, seconds: float = 1.0, value: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = (value * np.sin(np.arange(int(22050 * seconds)) * 0.05)).astype(np.float32)
    soundfile.write(path, samples, 22050, subtype="FLOAT")
    return path


# say


def test_say_writes_a_marked_clip(folder: Path) -> None:
    result = ok(*SAY, "Hello there.", "--seed", "7", "-o", "hello.wav")
    assert "hello.wav: " in result.stdout
    assert "real-time factor" in result.stdout and "seed 7" in result.stdout and "sampling" in result.stdout
    with soundfile.SoundFile(folder / "hello.wav") as file:
        assert (file.samplerate, file.channels) == (24000, 1)
        assert file.frames > 0
        assert file.comment.startswith("Synthetic speech") and "seed 7" in file.comment
    assert [p.name for p in folder.iterdir() if p.is_file()] == ["hello.wav"]


def test_say_without_the_mark(folder: Path) -> None:
    ok(*SAY, "Hello.", "--no-mark", "-o", "hello.flac")
    with soundfile.SoundFile(folder / "hello.flac") as file:
        assert "Synthetic" not in file.comment


def test_the_seed_that_is_printed_makes_the_clip_again(folder: Path) -> None:
    printed = ok(*SAY, "Hello there.", "-o", "a.wav").stdout.splitlines()[0]
    seed = printed.rpartition("seed ")[2]
    ok(*SAY, "Hello", "there.", "--seed", seed, "-o", "b.wav")
    ok(*SAY, "-", "--seed", seed, "-o", "c.wav", stdin="Hello there.\n")
    ok(*SAY, "Hello there.", "-o", "d.wav")
    a, b, c, d = ((folder / f"{name}.wav").read_bytes() for name in "abcd")
    assert a == b == c
    assert a != d


def test_candidates_are_numbered(folder: Path) -> None:
    ok(*SAY, "Hello.", "--candidates", "2", "--seed", "1", "-o", "x.wav")
    assert sorted(p.name for p in folder.glob("*.wav")) == ["x_0.wav", "x_1.wav"]
    ok(*SAY, "Hello.", "--seed", "1", "-o", "x.wav")
    assert (folder / "x.wav").read_bytes() == (folder / "x_0.wav").read_bytes()


def test_say_takes_every_setting() -> None:
    every = (
        "--preset ultra_fast --decoder diffusion --temperature 0.7 --top-p 0.9 --top-k 10 --repetition-penalty 1.5 "
        "--length-penalty 1 --typical --typical-mass 0.8 --max-mel-tokens 60 --cvvp-amount 0 --sampler ddim --eta 0.5 "
        "--cond-free --cond-free-k 1 --cond-free-share 0.5 --diffusion-temperature 0.9 --batch-rows 2 --kv-positions upstream --verbose"
    )
    ok(*SAY, "Hello.", *every.split())
    ok(*SAY[:-4], "Hello.", "--greedy", "--decoder", "hifigan", "--basic-cleaners")


def test_quiet_says_nothing() -> None:
    result = ok(*SAY, "Hello.", "--quiet")
    assert result.output == ""


def test_say_warns_of_a_clip_that_did_not_end() -> None:
    result = ok(*SAY, "Hello.", "--max-mel-tokens", "3")
    assert "did not stop by itself within 3 codes" in result.stderr


def test_voices_are_found_by_name_and_by_path(folder: Path) -> None:
    write_clip(folder / "mine" / "emma" / "1.wav")
    VoiceLatents(np.ones(16), np.ones(16)).save(folder / "tom.safetensors")
    ok(*SAY, "Hello.", "--voice", "emma", "--voices-dir", "mine")
    ok(*SAY, "Hello.", "--voice", "mine/emma", "--cvvp-amount", "1")
    ok(*SAY, "Hello.", "--voice", "tom.safetensors")


def hostile_pickle(path: Path) -> None:
    path.write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")


def test_say_refuses_bad_input_in_one_line(folder: Path) -> None:
    write_clip(folder / "voices" / "emma" / "1.wav")
    (folder / "empty").mkdir()
    (folder / "text.wav").write_text("no audio")
    soundfile.write(folder / "nan.wav", np.full(22050, np.nan, np.float32), 22050, subtype="FLOAT")
    write_clip(folder / "short.wav", 0.01)
    hostile_pickle(folder / "hostile.pth")
    (folder / "folder.wav").mkdir()
    cases: list[tuple[list[str], str]] = [
        ([""], "the text is empty"),
        (["word " * 500], "tokens; the limit is 398"),
        (["Hello [you."], "--no-redaction"),
        (["[Hello you.]"], "all of the text is in brackets"),
        (["Hi", "--voice", "ema", "--voices-dir", "voices"], 'Did you mean "emma"?'),
        (["Hi", "--voice", "empty"], "holds no audio"),
        (["Hi", "--voice", "text.wav"], "cannot be read as audio"),
        (["Hi", "--voice", "nan.wav"], "not finite"),
        (["Hi", "--voice", "short.wav"], "at least 0.1 s"),
        (["Hi", "--voice", "hostile.pth"], "cannot use hostile.pth"),
        (["Hi", "--voices-dir", "missing", "--voice", "x"], "does not exist"),
        (["Hi", "--voices-dir", "missing"], "does not exist"),
        (["Hi", "--voices-dir", "missing", "--voice", "random"], "does not exist"),
        (["Hi", "--voice", ""], "empty name"),
        (["Hi", "--temperature", "0"], "temperature is 0; it must be above 0"),
        (["Hi", "--samples", "0"], "samples is 0"),
        (["Hi", "--candidates", "9"], "9 candidates of 3 samples"),
        (["Hi", "--candidates", "1000000000"], "candidates is 1e+09"),
        (["Hi", "--max-mel-tokens", "9999"], "max_mel_tokens is 9999"),
        (["Hi", "--seed", "-1"], "seed is -1"),
        (["Hi", "--cvvp-amount", "0.5"], "needs the voice's clips"),
        (["Hi", "--preset", "fst"], "'fst' is not one of"),
        (["Hi", "-o", "missing/x.wav"], "folder missing does not exist"),
        (["Hi", "-o", "x.mp3"], "suffix must be one of"),
        (["Hi", "-o", "folder.wav"], "is a folder"),
        (["Hi", "--backend", "onyx"], 'Did you mean "onnx"'),
        (["Hi", "--backend", "auto", "--engine", "missing"], "no engine at missing"),
        (["Hi", "--backend", "auto", "--engine", "empty"], "checkpoint files"),
        (["Hi", "--engine", "empty", "--checkpoints", "empty"], "name one of the two"),
        (["Hi", "--tokenizer", "text.wav"], "is not a tokenizer"),
    ]
    for arguments, message in cases:
        result = run(*SAY, *arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert message in result.stderr, (arguments, result.stderr)
        assert result.stderr.splitlines()[-1].startswith("Error: ")
        assert "Traceback" not in result.output
    assert not (folder / "executed").exists()
    assert not (folder / "missing").exists()
    assert not (folder / "output.wav").exists()


@pytest.mark.parametrize(("stdin", "message"), [(b"\xff\xfe", "not valid UTF-8"), (b" \n", "is empty")])
def test_standard_input_that_is_no_text(stdin: bytes, message: str) -> None:
    result = run(*SAY, "-", stdin=stdin)
    assert result.exit_code == 2 and message in result.stderr


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folders_that_cannot_be_written(folder: Path) -> None:
    (folder / "locked").mkdir(mode=0o500)
    result = run(*SAY, "Hi", "-o", "locked/x.wav")
    assert result.exit_code == 2 and "cannot be written" in result.stderr


def test_output_is_checked_before_synthesis(monkeypatch: pytest.MonkeyPatch) -> None:
    def synthesize(*_: object) -> None:
        raise AssertionError("synthesized")

    monkeypatch.setattr(Pipeline, "synthesize", synthesize)
    assert run(*SAY, "Hi", "-o", "missing/x.wav").exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    ["--temperature 0", "--voice nobody", "--voice empty", "--seed -1", "--tokenizer missing.json"],
)
def test_input_is_checked_before_an_engine_is_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    (folder / "empty").mkdir()
    monkeypatch.setattr("tortoise_rt.tts.open_engine", lambda *_: pytest.fail("opened"))
    assert run("say", "Hi", *arguments.split()).exit_code == 2


def test_interruption_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tortoise_rt.audio._write", interrupt)
    result = run(*SAY, "Hi")
    assert result.exit_code == 130 and "Traceback" not in result.output
    assert not [p for p in folder.iterdir() if p.is_file()]


def test_debug_shows_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(run("--debug", *SAY, "").exception, ValueError)
    monkeypatch.setenv("TORTOISE_RT_DEBUG", "1")
    assert isinstance(run(*SAY, "").exception, ValueError)


# the other commands


def test_doctor_reports() -> None:
    report = ok("doctor").output
    for title in ("Machine", "Packages", "Runs on", "GPU", "Folders", "Engines", "Next"):
        assert title in report.splitlines()
    assert "tortoise-rt say" in report or "tortoise-rt export" in report


def test_version_and_unknown_commands() -> None:
    assert __version__ in ok("--version").output
    result = run("sya")
    assert result.exit_code == 2 and "No such command" in result.output


def test_commands_are_these() -> None:
    assert sorted(main.commands) == [
        "bench",
        "capi",
        "detect",
        "doctor",
        "export",
        "fetch",
        "read",
        "replay",
        "say",
        "serve",
        "triton",
        "verify",
        "voices",
    ]
    voices = ["add", "blend", "import", "latents", "list", "show"]
    assert sorted(main.commands["voices"].commands) == voices  # type: ignore[attr-defined]


# as a program


def test_ctrl_c_ends_without_a_traceback(folder: Path) -> None:
    command = [*COMMAND, *SAY[:-4], "Hello there.", "--samples", "4096", "--batch-rows", "1", "-o", "x.wav"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stderr.readline().startswith(
        "Note:"
    )  # synthesis comes next
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not [p for p in folder.iterdir() if p.is_file()]


def test_closed_pipes_are_no_error() -> None:
    process = subprocess.Popen([*COMMAND, "say", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.wait(timeout=20)


def test_progress_is_drawn_on_terminals_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tortoise_rt.cli.progress import Bar

    def draw() -> str:
        with Bar() as bar:
            for done in range(3):
                bar("sampling", done, 2)
        return capsys.readouterr().err

    assert draw() == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert "sampling" in (drawn := draw()) and "2/2" in drawn and drawn.endswith("\x1b[K")
