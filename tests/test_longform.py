"""Readings in a folder: gone on with after whatever ends them, and changed clip by clip."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from readings import QUICK, STORY, clip_files, contents, failing, open_book, read
from scheduling import TOKENIZER, Counting, settings, voice

from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.errors import EngineError, OutputError, SettingsError, VoiceError
from tortoise_rt.longform import Joining
from tortoise_rt.longform import join as joins
from tortoise_rt.pipeline import Pipeline
from tortoise_rt.rng import Philox
from tortoise_rt.text import Tokenizer


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
