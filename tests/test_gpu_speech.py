"""What the GPU suite says of sentences and streams, on an engine that computes nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tortoise_rt.backends.fake import FakeEngine

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from judge import gpu_speech


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_speech, "CODES", 12)
    monkeypatch.setattr(gpu_speech, "FEWER", 6)
    monkeypatch.setattr(gpu_speech, "TEXT", [20, 21, 22])


def test_sentences_say_what_first_runs_take() -> None:
    rows = list(gpu_speech.sentences(FakeEngine(), samples=2, steps=3))
    assert [row["settings"] for row in rows] == ["fast", "one sample, hifigan"]
    for row in rows:
        assert row["ok"] and 0 < row["first_of_length_audio_s"] < row["audio_s"]
        assert min(row["total_s"], row["first_run_s"], row["first_of_length_s"]) > 0


def test_streams_that_memory_does_not_allow_are_skipped() -> None:
    engine = FakeEngine()
    positions = 1 + engine.dims["ar.text_positions"] + engine.dims["ar.mel_positions"]
    for of_two, skipped in ((0.8, True), (1.2, False)):
        room = int(of_two / gpu_speech.SHARE * 2 * positions * engine.position_bytes())
        one, two = gpu_speech.streams(engine, (1, 2), lambda room=room: room)
        assert one["kind"] == "streams" and one["ok"] and one["together"] == 1
        assert 0 < one["first_round_sound_s"] <= one["first_round_s"] and one["total_s"] > 0
        assert (two["kind"] == "skip") == skipped
        if skipped:
            assert two["what"] == "2 streams at once" and "that are free" in two["reason"]
