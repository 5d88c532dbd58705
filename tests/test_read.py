"""``tortoise-rt read``: what it prints, what it takes, how it fails; and how it survives being killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
from click.testing import CliRunner, Result

from tortoise_rt.cli import main
from tortoise_rt.cli.read import _duration

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = Path(__file__).parent / "data" / "tokenizer.json"
FAKE = ["--backend", "fake", "--tokenizer", str(TOKENIZER), "--samples", "1", "--decoder", "hifigan"]
STORY = "The boat came in.|Who was on it?|Nobody knew.|The harbour was quiet."

pytestmark = pytest.mark.usefixtures("folder")


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, ["read", *FAKE, *arguments], input=stdin)


def ok(*arguments: str, stdin: str | None = None) -> str:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def story(folder: Path) -> str:
    (folder / "story.txt").write_text(STORY)
    return "story.txt"


def test_a_reading_and_what_is_changed_in_it(folder: Path, story: str) -> None:
    assert "4 clips, of which 4 were made now" in ok(story, "-o", "book", "--seed", "7")
    assert "of which 0 were made now" in ok(story, "-o", "book")
    assert "of which 2 were made now" in ok(story, "-o", "book", "--regenerate", "1,3=99")
    seeds = [clip["seed"] for clip in json.loads((folder / "book/manifest.json").read_text())["clips"]]
    assert seeds[0] == 7 and seeds[3] == 99 and seeds[1] != 8
    refused = run(story, "-o", "book", "--temperature", "0.5")
    assert refused.exit_code == 2
    assert (
        "temperature was 0.8, is 0.5): go on with the same text and settings, have 4 of 4" in refused.stderr
    )
    made = json.loads(
        ok(story, "-o", "book", "--temperature", "0.5", "--update", "--json", "--format", "flac")
    )
    assert (
        made["made"] == 4
        and made["clips"] == 4
        and made["seed"] == 7
        and made["files"] == ["book/combined.flac"]
    )
    with soundfile.SoundFile(folder / "book/combined.flac") as file:
        assert file.comment.startswith("Synthetic speech")
    ok(story, "-o", "book", "--temperature", "0.5", "--no-mark", "--no-match-loudness", "--by-chapter")
    assert soundfile.SoundFile(folder / "book/chapter_01.wav").comment == ""


def test_pauses(folder: Path, story: str) -> None:
    lengths = {}
    for pause in ("0", "1"):
        lengths[pause] = json.loads(ok(story, "-o", "book", "--pause", pause, "--json", "--seed", "1"))
    assert lengths["1"]["audio_seconds"] - lengths["0"]["audio_seconds"] == pytest.approx(3, abs=0.01)


def test_takes_and_a_cast(folder: Path) -> None:
    play = "Al: Good evening.\nIt is late: very late.\nBo: It is."
    several = [
        "-",
        "-o",
        "play",
        "--samples",
        "2",
        "--candidates",
        "2",
        "--cast",
        "Al=alto",
        "--cast",
        "Bo=tenor",
    ]
    ok(*several, "--voice", "alto", stdin=play)
    ok(*several, "--voice", "alto", "--take", "1=1", stdin=play)
    clips = json.loads((folder / "play/manifest.json").read_text())["clips"]
    assert [(clip["speaker"], clip["take"], len(clip["files"])) for clip in clips] == [
        ("Al", 0, 2),
        ("Bo", 1, 2),
    ]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["missing.txt", "-o", "b"], "missing.txt does not exist"),
        (["story.txt"], "Missing option '-o'"),
        (["story.txt", "-o", "no/such"], "the folder no does not exist"),
        (["story.txt", "-o", "story.txt"], "story.txt is a file"),
        (["story.txt", "-o", "b", "--regenerate", "one"], "'one' is no number of a clip"),
        (["story.txt", "-o", "b", "--regenerate", "9"], "there is no clip 9: the clips are 0 to 3"),
        (["story.txt", "-o", "b", "--take", "1"], "which take of clip 1?"),
        (["story.txt", "-o", "b", "--take", "1=4"], "clip 1 has the takes 0 to 0"),
        (["story.txt", "-o", "b", "--cast", "Al"], "'Al' is no name and voice"),
        (["story.txt", "-o", "b", "--cast", "Al=nobody"], 'unknown voice "nobody"'),
        (["story.txt", "-o", "b", "--pause", "99"], "pause is 99"),
        (["story.txt", "-o", "b", "--clip-length", "5"], "clip_length is 5"),
        (["story.txt", "-o", "b", "--seed", "-1"], "seed is -1"),
        (["story.txt", "-o", "b", "--format", "aac"], "'aac' is not one of"),
        (["brackets.txt", "-o", "b"], "has no partner"),
        (["all.txt", "-o", "b"], "all of the text is in brackets"),
    ],
)
def test_what_is_refused(folder: Path, story: str, arguments: list[str], problem: str) -> None:
    (folder / "brackets.txt").write_text("I am [sad, please feed me.")
    (folder / "all.txt").write_text("[I am sad.]")
    result = run(*arguments)
    assert result.exit_code == 2 and problem in " ".join(result.stderr.split()), result.stderr
    assert "Traceback" not in result.output and not list(folder.glob("b/clips/*.wav"))


def test_time_left() -> None:
    assert [_duration(s) for s in (0, 59, 61, 3540, 3700, 7260)] == [
        "0 s", "59 s", "1 min", "59 min", "1 h 2 min", "2 h 1 min",
    ]  # fmt: skip


def test_ctrl_c_says_how_to_go_on(folder: Path) -> None:
    (folder / "long.txt").write_text("|".join(f"This is sentence number {n}." for n in range(400)))
    arguments = ["read", *FAKE, "long.txt", "-o", "book", "--seed", "1", "--max-mel-tokens", "8"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tortoise_rt", *arguments], stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not list(folder.glob("book/clips/0*.wav")) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said
    done = len(list(folder.glob("book/clips/0*.wav")))
    assert 0 < done < 400
    assert f"{done} of 400 clips are in book: the same command (without --regenerate) goes on" in said
    assert "Interrupted" in said


def test_a_reading_that_is_killed_is_that_of_one_that_is_not(folder: Path) -> None:
    options = f"{' '.join(FAKE)} --max-mel-tokens 8"
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/killed_reading.py"), "--kills", "4", "--sentences", "30",
         "--options", options],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["kills"] == 4 and row["clips_made"] == 30 * row["readings"] > 0
    assert row["clips_made_twice"] == row["readings_that_differ"] == 0
