"""Readings in a folder: gone on with after whatever ends them, changed clip by clip, and joined."""

from __future__ import annotations

import json
import os
import re
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scheduling import TOKENIZER, Counting, settings, voice

from tortoise_rt.audio import write_wav
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.engine import Engine
from tortoise_rt.errors import EngineError, OutputError, SettingsError, VoiceError
from tortoise_rt.longform import FORMATS, Book, Chapter, Document, Joining
from tortoise_rt.longform import book as books
from tortoise_rt.longform import join as joins
from tortoise_rt.longform.join import Sound, gains, join, loudness
from tortoise_rt.pipeline import Pipeline
from tortoise_rt.rng import Philox
from tortoise_rt.spec import SAMPLE_RATE
from tortoise_rt.text import Tokenizer

QUICK = dict(num_autoregressive_samples=1, max_mel_tokens=12)
STORY = "The boat came in.|Who was on it?|Nobody knew.|The harbour was quiet.|We went home.|It was late."


def document(text: str = STORY, *more: str) -> Document:
    return Document("t", tuple(Chapter(f"Chapter {n}", (part,)) for n, part in enumerate((text, *more))))


def open_book(
    folder: Path, engine: Engine | None = None, text: str | Document = STORY, **options: Any
) -> Book:
    engine = engine or FakeEngine()
    arguments = {
        key: options.pop(key) for key in list(options) if key not in ("seed", "cast", "update", "length")
    }
    speaker = arguments.pop("voice", voice(engine))
    return Book(
        folder,
        document(text) if isinstance(text, str) else text,
        engine,
        speaker,
        settings(**{**QUICK, **arguments}),
        options.pop("seed", 7),
        tokenizer=Tokenizer(TOKENIZER),
        **options,
    )


def read(folder: Path, engine: Engine | None = None, text: str | Document = STORY, **options: Any) -> int:
    """Render and join; -> how many clips were made."""
    with open_book(folder, engine, text, **options) as book:
        made = book.render()
        book.join()
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def clip_files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "clips").iterdir())


def failing(after: int) -> Counting:
    """An engine that gives up behind so many clips."""
    engine = Counting()
    decoded = 0

    def count(graph: str, rows: int) -> None:
        nonlocal decoded
        decoded += graph == "hifigan"
        if decoded > after:
            raise EngineError("the power is out")

    engine.before = count
    return engine


# going on


def test_each_clip_is_that_text_said_alone(tmp_path: Path) -> None:
    assert read(tmp_path / "book") == 6
    pipeline = Pipeline(FakeEngine(), Tokenizer(TOKENIZER))
    for number, text in enumerate(STORY.split("|")):
        alone = pipeline.synthesize(text, voice(pipeline.engine), settings(**QUICK), 7 + number).wavs[0]
        with soundfile.SoundFile(next((tmp_path / "book/clips").glob(f"{number:04d}-*.wav"))) as file:
            assert np.abs(file.read() - alone).max() < 1e-4
            assert file.comment.startswith("Synthetic speech") and f"seed {7 + number}" in file.comment


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    assert read(tmp_path / "book") == 6
    before, engine = contents(tmp_path / "book"), Counting()
    assert read(tmp_path / "book", engine) == 0
    assert not engine.steps and not engine.runs, "nothing was computed"
    assert contents(tmp_path / "book") == before


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_reading_that_failed_goes_on(tmp_path: Path, after: int) -> None:
    read(tmp_path / "whole")
    with (
        open_book(tmp_path / "book", failing(after)) as book,
        pytest.raises(EngineError, match=r"^clip \d \('.*'\): .*the power is out"),
    ):
        book.render()
    done = clip_files(tmp_path / "book")
    assert len(done) <= after
    status = {name: (tmp_path / "book/clips" / name).stat() for name in done}
    engine = Counting()
    assert read(tmp_path / "book", engine, seed=None) == 6 - len(done)
    assert sum(graph == "hifigan" for graph, _ in engine.runs) == 6 - len(done)
    assert {name: (tmp_path / "book/clips" / name).stat() for name in done} == status
    assert contents(tmp_path / "book") == contents(tmp_path / "whole")


def test_an_interrupt_leaves_what_is_done(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise Interrupted

    read(tmp_path / "whole")
    with open_book(tmp_path / "book") as book, pytest.raises(Interrupted):
        book.render(stop)
    assert 2 <= len(clip_files(tmp_path / "book")) < 6
    noted = json.loads((tmp_path / "book/manifest.json").read_text())
    assert sum(bool(clip["sha256"]) for clip in noted["clips"]) == len(clip_files(tmp_path / "book"))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("clip")]
    read(tmp_path / "book")
    assert contents(tmp_path / "book") == contents(tmp_path / "whole")


def test_what_a_kill_leaves_half_written_does_not_count(tmp_path: Path) -> None:
    read(tmp_path / "whole")
    with open_book(tmp_path / "book") as book:
        book.render()
    for place in ("", "clips"):
        (tmp_path / "book" / place / ".0123456789abcdef.part").write_bytes(b"RIFF")
    (tmp_path / "book/clips" / clip_files(tmp_path / "whole")[3]).unlink()
    assert read(tmp_path / "book") == 1
    assert contents(tmp_path / "book") == contents(tmp_path / "whole")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / ".0123456789abcdef.part").touch()  # killed before there was a manifest
    assert read(empty) == 6


def test_a_random_voice_is_one_voice(tmp_path: Path) -> None:
    read(tmp_path / "book", voice=None)
    pipeline = Pipeline(FakeEngine(), Tokenizer(TOKENIZER))
    latents = pipeline.random_latents(Philox(7))
    alone = pipeline.synthesize("Who was on it?", latents, settings(**QUICK), 8).wavs[0]
    assert np.abs(joins.read_clip(next((tmp_path / "book/clips").glob("0001-*"))) - alone).max() < 1e-4


# what is refused


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(seed=8), "seed was 7, is 8"),
        (dict(temperature=0.5), "temperature was 0.8, is 0.5"),
        (dict(k=2, num_autoregressive_samples=2), "k was 1, is 2"),
        (dict(voice=voice(FakeEngine(), 1)), "voice was "),
        (dict(text=STORY + "|And cold."), r"the text or how it is cut has changed\): .* 1 of 7 clips"),
        (dict(cast={"Al": None}), "voice Al was null, is random "),
    ],
)
def test_another_reading_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    read(tmp_path / "book")
    before = contents(tmp_path / "book")
    with pytest.raises(OutputError, match=rf"holds another reading \(.*{told}.*--update"):
        open_book(tmp_path / "book", **change)
    assert contents(tmp_path / "book") == before


def test_another_engine_is_refused(tmp_path: Path) -> None:
    read(tmp_path / "book")
    other = FakeEngine()
    other.info = replace(other.info, fingerprint="another")
    with pytest.raises(OutputError, match="engine fingerprint was fake, is another"):
        open_book(tmp_path / "book", other)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").touch()
    for name, problem in (("file", "is a file"), ("full", "holds other files"), ("a/b", "does not exist")):
        with pytest.raises(OutputError, match=problem):
            open_book(tmp_path / name)
    with open_book(tmp_path / "book"), pytest.raises(OutputError, match="another process is reading into"):
        open_book(tmp_path / "book")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"format": 1', '"format": 9'),
        lambda text: text.replace('"speaker": ""', '"speaker": "x"'),
        lambda text: text.replace('"clips"', '"clops"'),
        lambda text: "[" * 100_000,
        lambda text: "[]",
    ],
)
def test_damaged_manifests(tmp_path: Path, damage: Callable[[str], str]) -> None:
    read(tmp_path / "book")
    manifest = tmp_path / "book/manifest.json"
    manifest.write_text(damage(manifest.read_text()))
    with pytest.raises(OutputError, match="manifest.json is damaged"):
        open_book(tmp_path / "book")


def test_clips_that_were_changed_are_not_taken(tmp_path: Path) -> None:
    read(tmp_path / "book")
    path = tmp_path / "book/clips" / clip_files(tmp_path / "book")[2]
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(OutputError, match=r"clips/0002-.*remove it to have clip 2 made again"):
        read(tmp_path / "book")
    path.unlink()
    assert read(tmp_path / "book") == 1


def test_a_voice_that_the_engine_cannot_have(tmp_path: Path) -> None:
    wide = voice(FakeEngine())
    with pytest.raises(VoiceError):
        read(tmp_path / "book", voice=replace(wide, auto=np.zeros((1, 5), np.float32)))
    with pytest.raises(VoiceError, match="has no random voices"):
        open_book(tmp_path / "other", FakeEngine(frozenset(["ar_step", "hifigan"])), voice=None)


# changes, clip by clip


def test_an_update_makes_what_differs(tmp_path: Path) -> None:
    read(tmp_path / "book")
    before = {name.partition("-")[2]: name for name in clip_files(tmp_path / "book")}
    changed = "A new beginning.|" + STORY.replace("Nobody knew", "Everybody knew")
    assert read(tmp_path / "book", text=changed, update=True) == 2
    after = {name.partition("-")[2]: name for name in clip_files(tmp_path / "book")}
    assert len(after) == 7 and len(before.keys() & after.keys()) == 5
    assert all(int(after[key][:4]) == int(before[key][:4]) + 1 for key in before.keys() & after.keys())
    assert read(tmp_path / "book", text=changed) == 0
    assert read(tmp_path / "book", text=changed, temperature=0.5, update=True) == 7


def test_clips_are_made_again(tmp_path: Path) -> None:
    read(tmp_path / "book")
    before = contents(tmp_path / "book")
    with open_book(tmp_path / "book") as book:
        book.again({1: None, 4: 99})
        assert book.missing() == [1, 4]
        assert book.render() == 2
        seeds = [clip.seed for clip in book.manifest.clips]
        book.join()
    assert seeds[4] == 99 and seeds[1] != 8 and [seeds[n] for n in (0, 2, 3, 5)] == [7, 9, 10, 12]
    assert read(tmp_path / "book") == 0, "the new seeds are the reading's"
    with open_book(tmp_path / "book") as book:
        book.again({1: 8, 4: 11})
        book.render()
        book.join()
    assert contents(tmp_path / "book") == before
    with (
        open_book(tmp_path / "book") as book,
        pytest.raises(SettingsError, match="no clip 6: the clips are 0 to 5"),
    ):
        book.again({6: None})


def test_takes_are_kept_and_chosen(tmp_path: Path) -> None:
    options: dict[str, Any] = dict(k=2, num_autoregressive_samples=3)
    with open_book(tmp_path / "book", **options) as book:
        book.render()
        assert len(clip_files(tmp_path / "book")) == 12
        first = book.join()[0].path.read_bytes()
        book.choose({2: 1})
        assert book.join(joining=Joining(match_loudness=False))[0].path.read_bytes() != first
        wanted = joins.read_clip(book.paths(2)[1])
        with pytest.raises(SettingsError, match="clip 2 has the takes 0 to 1, and no 2"):
            book.choose({2: 2})
    with open_book(tmp_path / "book", **options) as book:
        assert book.render() == 0 and book.manifest.clips[2].take == 1
        book.join(joining=Joining(pause=0, paragraph_pause=0, chapter_pause=0, match_loudness=False))
        at = sum(len(joins.read_clip(book.paths(number)[0])) for number in (0, 1))
    joined = joins.read_clip(tmp_path / "book/combined.wav")
    np.testing.assert_array_equal(joined[at : at + len(wanted)], wanted)


def test_the_cast_has_its_voices(tmp_path: Path) -> None:
    cast = {"Al": voice(FakeEngine(), 3)}
    read(tmp_path / "book", text="One here.\nAl: Two there.", cast=cast)
    pipeline = Pipeline(FakeEngine(), Tokenizer(TOKENIZER))
    alone = pipeline.synthesize("Two there.", cast["Al"], settings(**QUICK), 8).wavs[0]
    assert np.abs(joins.read_clip(next((tmp_path / "book/clips").glob("0001-*"))) - alone).max() < 1e-4


def test_random_speakers_are_persons_of_their_own(tmp_path: Path) -> None:
    heard = []
    for folder, cast in (("one", {"Al": None, "Bo": None}), ("two", {"Bo": None})):
        read(tmp_path / folder, text="Here.|Here.|Here.\nAl: One.\nBo: Two.", voice=None, cast=cast)
        manifest = json.loads((tmp_path / folder / "manifest.json").read_text())
        heard.append(manifest["voices"])
    assert len(set(heard[0].values())) == 3 and heard[0][""] == "random 7"
    assert heard[1].items() <= heard[0].items()  # whoever else is there


def test_clips_name_the_seed_that_made_them(tmp_path: Path) -> None:
    """Noise is never the text, so each clip is drawn as often as allowed."""
    with open_book(tmp_path / "book", check=True, max_retries=2, text="A boat.|Nobody knew.") as book:
        book.render()
        for number, first in ((0, 7), (1, 8)):
            with soundfile.SoundFile(book.paths(number)[0]) as file:
                made = int(re.search(r"seed (\d+) \(3 tries", file.comment)[1])  # type: ignore[index]
                assert f"(3 tries from seed {first}); may not say its text" in file.comment
            passage = book.manifest.clips[number].passage.text
            chosen = settings(**QUICK)
            pipeline = Pipeline(FakeEngine(), Tokenizer(TOKENIZER))
            alone = pipeline.synthesize(passage, voice(FakeEngine()), chosen, made).wavs[0]
            assert np.abs(joins.read_clip(book.paths(number)[0]) - alone).max() < 1e-4


def test_clips_that_were_cut_off_are_known_for_good(tmp_path: Path) -> None:
    with open_book(tmp_path / "book", max_mel_tokens=3, text="A boat.|Nobody knew at all.") as book:
        book.render()
        assert book.doubtful()
        doubtful = book.doubtful()
    manifest = tmp_path / "book/manifest.json"
    content = json.loads(manifest.read_text())
    for clip in content["clips"]:
        clip.update(sha256=[], seconds=[], sound=True)  # as a kill leaves it
    manifest.write_text(json.dumps(content))
    with open_book(tmp_path / "book", max_mel_tokens=3, text="A boat.|Nobody knew at all.") as book:
        assert book.render() == 0 and book.doubtful() == doubtful


# joining


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


def test_a_clip_made_again_may_have_other_bits(tmp_path: Path) -> None:
    """As after another version of what computes it: the clip that is there counts, not the one that was."""
    folder = tmp_path / "book"
    read(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["clips"][0]["sha256"] = ["0" * 64]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(OutputError, match="remove it to have clip 0 made again"):
        read(folder)
    (folder / "clips" / clip_files(folder)[0]).unlink()
    assert read(folder) == 1 and read(folder) == 0
