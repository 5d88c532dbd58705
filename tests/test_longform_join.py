"""The clips of a reading joined: loudness, pauses, formats, chapters, subtitles, memory."""

from __future__ import annotations

import json
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from readings import document, open_book, read
from scheduling import Counting

from tortoise_rt.audio import write_wav
from tortoise_rt.errors import OutputError, SettingsError
from tortoise_rt.longform import FORMATS, Joining
from tortoise_rt.longform import book as books
from tortoise_rt.longform import join as joins
from tortoise_rt.longform.join import Sound, gains, join, loudness
from tortoise_rt.spec import SAMPLE_RATE


def tone(level: float, seconds: float = 0.5) -> np.ndarray:
    return (level * np.sqrt(2) * np.sin(np.arange(int(seconds * SAMPLE_RATE)) * 0.2)).astype(np.float32)


def test_loudness_is_that_of_speech() -> None:
    assert loudness(np.zeros(100, np.float32)) == (0, 0) and loudness(np.zeros(0, np.float32)) == (0, 0)
    spoken = np.concatenate([tone(0.1), np.zeros(SAMPLE_RATE, np.float32), tone(0.1), 0.001 * tone(0.1)])
    level, peak = loudness(spoken)
    assert level == pytest.approx(0.1, rel=0.01) and peak == pytest.approx(0.1414, rel=0.01)


def test_gains_go_to_the_median_and_no_further_than_is_natural() -> None:
    four = 10 ** (4 / 20)
    assert gains([(0.1, 0.5), (0.08, 0.5), (0.125, 0.5)]) == pytest.approx([1, 1.25, 0.8])
    assert gains([(0.1, 0.5), (0.1, 0.5), (0.001, 0.01), (0.9, 0.95), (0.0, 0.0)]) == pytest.approx(
        [1, 1, four, 1 / four, 1]
    )
    assert gains([(0.1, 0.5), (0.1, 0.5), (0.07, 0.9)])[2] == pytest.approx(1.1), (
        "no peak is raised above 0.99"
    )
    assert gains([(0.1, 0.5), (0.1, 0.5), (0.07, 1.0)])[2] == 1
    assert gains([]) == []


def sounds(folder: Path, *levels: float, ends: str = "clip") -> list[Sound]:
    made = []
    for number, level in enumerate(levels):
        path = folder / f"{number}.wav"
        write_wav(path, tone(level))
        made.append(Sound(path, SAMPLE_RATE // 2, ends, title="T" if number == 0 else None))
    return made


def test_joined_clips_are_the_clips_with_pauses(tmp_path: Path) -> None:
    one, two, three = sounds(tmp_path, 0.1, 0.2, 0.1)
    two = replace(two, ends="paragraph")
    joined = join(
        tmp_path / "all.wav", [one, two, three], [1, 0.5, 1], Joining(0.1, 0.3, 0.5), lambda *_: None
    )
    wav, seconds = joins.read_clip(tmp_path / "all.wav"), SAMPLE_RATE // 2
    clips = [joins.read_clip(sound.path) for sound in (one, two, three)]
    wanted = np.concatenate([clips[0], np.zeros(2400), 0.5 * clips[1], np.zeros(7200), clips[2]])
    assert len(wav) == 3 * seconds + 9600 and np.abs(wav - wanted).max() < 1e-4
    assert joined.seconds == pytest.approx(len(wav) / SAMPLE_RATE, abs=1e-3)
    assert joined.as_json() == {
        "name": "all.wav",
        "seconds": joined.seconds,
        "chapters": [{"title": "T", "start": 0.0}],
    }


@pytest.mark.parametrize("suffix", FORMATS)
def test_clips_are_read_once_where_loudness_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    read(tmp_path / "book")
    opened: list[Path] = []
    reading = joins.read_clip
    for module in (joins, books):
        monkeypatch.setattr(module, "read_clip", lambda path: opened.append(path) or reading(path))
    with open_book(tmp_path / "book") as book:
        book.join(suffix, Joining(match_loudness=False))
        assert len(opened) == 6
        book.join(suffix)
        assert len(opened) == 18  # once for their loudness


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_written(tmp_path: Path, suffix: str) -> None:
    read(tmp_path / "book")
    with open_book(tmp_path / "book") as book:
        try:
            joined = book.join(suffix, Joining(comment="Synthetic speech"))[0]
        except OutputError as error:
            pytest.skip(str(error))
        with soundfile.SoundFile(joined.path) as file:
            assert file.samplerate == SAMPLE_RATE and file.channels == 1
            assert abs(file.frames / SAMPLE_RATE - joined.seconds) < 0.2
            assert file.comment == "Synthetic speech"


def test_formats_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(tmp_path / "book")
    with open_book(tmp_path / "book") as book:
        with pytest.raises(OutputError, match=r"'.aac'; it must be one of .wav, .flac, .ogg, .mp3"):
            book.join(".aac")
        monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": ""})
        with pytest.raises(OutputError, match="cannot write .mp3"):
            book.join(".mp3")
    with open_book(tmp_path / "new") as book, pytest.raises(SettingsError, match="6 clips are not made yet"):
        book.join()
    with pytest.raises(SettingsError, match="paragraph_pause is -1"):
        Joining(paragraph_pause=-1)


def test_a_wav_beyond_four_gigabytes_has_long_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(tmp_path / "book")
    plain = joins.read_clip(tmp_path / "book/combined.wav")
    monkeypatch.setattr(joins, "MOST_WAV_BYTES", 2 * len(plain) - 1)
    read(tmp_path / "book")
    assert soundfile.info(tmp_path / "book/combined.wav").format == "RF64"
    np.testing.assert_array_equal(joins.read_clip(tmp_path / "book/combined.wav"), plain)
    monkeypatch.setattr(joins, "MOST_WAV_BYTES", 2 * len(plain))
    read(tmp_path / "book")
    assert soundfile.info(tmp_path / "book/combined.wav").format == "WAV"


def test_subtitles_say_when_each_clip_is_heard(tmp_path: Path) -> None:
    with open_book(tmp_path / "book", text="One boat.|Two <boats>.") as book:
        book.render()
        one, two = (len(joins.read_clip(book.paths(number)[0])) / SAMPLE_RATE for number in (0, 1))
        book.join(joining=Joining(subtitles=".vtt", pause=0.5))
    shown = (tmp_path / "book/combined.vtt").read_text()
    assert shown == (
        f"WEBVTT\n\n00:00:00.000 --> 00:00:00.{round(one * 1000):03}\nOne boat.\n\n"
        f"00:00:01.{round(one * 1000) - 500:03} --> 00:00:01.{round((one + two) * 1000) - 500:03}\nTwo &lt;boats&gt;.\n\n"
    )
    with pytest.raises(SettingsError, match="unknown subtitles '.ass'"):
        Joining(subtitles=".ass")


def test_chapters_have_files_or_marks(tmp_path: Path) -> None:
    text = document("One boat.|Two boats.", "Three boats.")
    with open_book(tmp_path / "book", text=text) as book:
        book.render()
        whole = book.join()[0]
        parts = book.join(".flac", Joining(by_chapter=True))
    assert [part.path.name for part in parts] == ["chapter_01.flac", "chapter_02.flac"]
    assert [part.chapters for part in parts] == [[("Chapter 0", 0.0)], [("Chapter 1", 0.0)]]
    start = dict(whole.chapters)["Chapter 1"]
    assert start == pytest.approx(parts[0].seconds + Joining().chapter_pause, abs=0.002)
    kept = json.loads((tmp_path / "book/manifest.json").read_text())["files"]
    assert [entry["name"] for entry in kept] == ["chapter_01.flac", "chapter_02.flac"]


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path: Path) -> None:
    """Clips of a second, 48 MB of them where there are 500."""
    peaks = {}
    write_wav(tmp_path / "clip.wav", tone(0.1, 1.0))
    for count in (50, 500):
        with open_book(tmp_path / str(count), text="|".join(f"Boat {n}." for n in range(count))) as book:
            for number in range(count):
                os.link(tmp_path / "clip.wav", book.paths(number)[0])
            assert book.render() == 0
            tracemalloc.start()
            try:
                book.join()
                peaks[count] = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
    assert peaks[500] < peaks[50] + (3 << 20) and peaks[500] < 8 << 20, peaks


def test_memory_of_rendering(tmp_path: Path) -> None:
    """A clip's results are let go once it is written."""
    held: list[int] = []
    engine = Counting()
    with open_book(tmp_path / "book", engine, text="|".join(f"Boat {n}." for n in range(40))) as book:

        def note(stage: str, done: int, total: int) -> None:
            held.append(tracemalloc.get_traced_memory()[0])

        tracemalloc.start()
        try:
            book.render(note)
        finally:
            tracemalloc.stop()
    assert held[-1] < held[10] + (1 << 20), held
