"""Latents kept in the cache: found again, never another clip's or model's, whatever happens to the files."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tortoise_rt import voice_cache
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.conditioning import clip_latents
from tortoise_rt.engine import Array

CLIPS = [np.sin(np.arange(22050 + 1000 * n) * 0.05 * (n + 1)).astype(np.float32) for n in range(3)]


class Counting(FakeEngine):
    """Counts what its graphs compute."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        self.ran.append(graph)
        return super()._run(graph, inputs)


@pytest.fixture
def engine(folder: Path) -> Counting:
    return Counting()


def files() -> list[Path]:
    return sorted(voice_cache.folder().iterdir())


def test_a_second_run_computes_nothing(engine: Counting) -> None:
    first = clip_latents(engine, CLIPS[:2])
    assert sorted(engine.ran) == ["ar_voice"] * 2 + ["diffusion_voice"] * 2
    again = clip_latents(Counting(), [CLIPS[1].copy(), CLIPS[0].copy()])
    fresh = Counting()
    for made in (clip_latents(fresh, [clip.copy() for clip in CLIPS[:2]]), again):
        np.testing.assert_array_equal(made.auto, first.auto)
        assert made.diffusion is not None and first.diffusion is not None
        np.testing.assert_array_equal(made.diffusion, first.diffusion)
    assert fresh.ran == []
    clip_latents(fresh, CLIPS)  # one more clip costs one more
    assert fresh.ran == ["ar_voice", "diffusion_voice"]
    assert voice_cache.folder().stat().st_mode & 0o077 == 0  # a voice is its owner's affair


def test_other_clips_and_models_are_others(engine: Counting) -> None:
    clip_latents(engine, CLIPS[:1])
    info = engine.info
    touched = CLIPS[0].copy()
    touched[-1] += 1e-6
    for clip, other in [
        (touched, info),
        (CLIPS[0][:-1], info),
        (CLIPS[0], dataclasses.replace(info, fingerprint="another")),
        (CLIPS[0], dataclasses.replace(info, device="cuda:0")),
        (CLIPS[0], dataclasses.replace(info, backend="onnx")),
        (CLIPS[0], dataclasses.replace(info, precision=dict.fromkeys(info.graphs, "int8row"))),
    ]:
        engine.info, engine.ran = other, []
        clip_latents(engine, [clip])
        assert engine.ran == ["ar_voice", "diffusion_voice"]


@pytest.mark.parametrize(
    "content", [b"", b"short", bytes(32), bytes(32 + 64), bytes(32 + 63), bytes(1 << 20)], ids=len
)
def test_damaged_files_are_made_anew(engine: Counting, content: bytes) -> None:
    wanted = clip_latents(engine, CLIPS[:1])
    good = {path: path.read_bytes() for path in files()}
    for path in files():
        path.write_bytes(content)
    np.testing.assert_array_equal(clip_latents(engine, CLIPS[:1]).auto, wanted.auto)
    assert {path: path.read_bytes() for path in files()} == good
    path = files()[0]
    path.write_bytes(good[path][:40] + bytes([good[path][40] ^ 1]) + good[path][41:])  # a bit that fell over
    np.testing.assert_array_equal(clip_latents(engine, CLIPS[:1]).auto, wanted.auto)


def test_a_cache_that_cannot_be_used_costs_time_alone(engine: Counting, folder: Path) -> None:
    (folder / ".cache").write_text("no folder")
    first = clip_latents(engine, CLIPS[:1])
    np.testing.assert_array_equal(clip_latents(engine, CLIPS[:1]).auto, first.auto)
    assert len(engine.ran) == 4


def test_what_was_not_used_for_longest_goes_first(engine: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice_cache, "MOST_FILES", 8)
    clips = [CLIPS[0][: 3000 + n] for n in range(5)]
    for number, clip in enumerate(clips):
        before = set(files()) if number else set()
        clip_latents(engine, [clip])
        for path in set(files()) - before:
            os.utime(path, (number, number))
        if number == 3:
            clip_latents(engine, clips[:1])  # used again, and so as new as can be
    assert len(files()) <= 8
    engine.ran = []
    clip_latents(engine, clips[:1])
    assert engine.ran == []
    clip_latents(engine, clips[1:2])
    assert engine.ran == ["ar_voice", "diffusion_voice"]


WRITER = """
import sys, numpy as np
from tortoise_rt import voice_cache
from tortoise_rt.backends.fake import FakeEngine
voice_cache.MOST_FILES = 12
engine, seen = FakeEngine(), 0
for turn in range(150):
    number = turn * int(sys.argv[1]) % 16
    clip = np.full(4000, number / 16, np.float32)
    latent = voice_cache.kept(engine, "ar_voice", clip, lambda clip: np.full((1, 2000), clip[0], np.float32))
    assert (latent == clip[0]).all() and latent.shape == (1, 2000)
"""


def test_many_write_at_once(folder: Path) -> None:
    """Four processes read, write and remove the same files; none sees another's or half of one."""
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(step)], stderr=subprocess.PIPE)
        for step in (1, 3, 5, 7)
    ]
    for writer in writers:
        _, said = writer.communicate(timeout=60)
        assert writer.returncode == 0, said.decode()
    assert len(files()) <= 12 + len(writers) and not [path for path in files() if path.name.startswith(".")]
