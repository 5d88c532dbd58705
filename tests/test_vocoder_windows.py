"""Vocoding in windows gives the samples of the whole clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tortoise_rt import vocoder
from tortoise_rt.backends import open_engine
from tortoise_rt.bundle import demo_folder
from tortoise_rt.engine import Engine
from tortoise_rt.spec import MELS

BOUND = 2e-6  #: of full scale: rounding in another order


@pytest.fixture(scope="module")
def random_engine(random_bundle: Path) -> Engine:
    return open_engine(random_bundle, "onnx", "cpu")


def whole_and_windows(monkeypatch: pytest.MonkeyPatch, decode: Any, *arguments: Any) -> tuple[Any, Any]:
    whole = decode(*arguments)
    monkeypatch.setattr(vocoder, "WINDOW", 24)
    return whole, decode(*arguments)


@pytest.mark.parametrize("frames", [3, 24, 61, 120])
def test_univnet(random_engine: Engine, monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    rng = np.random.default_rng(frames)
    mel = rng.uniform(-9, 1, (2, MELS, frames)).astype(np.float32)
    noise = rng.standard_normal(vocoder.noise_shape(mel), np.float32)
    whole, parts = whole_and_windows(monkeypatch, vocoder.univnet, random_engine, mel, noise)
    assert whole.shape == parts.shape == (2, frames * vocoder.HOP)
    assert np.abs(whole - parts).max() < BOUND < 0.01 < whole.std()


@pytest.mark.parametrize("engine", ["random", "demo"])
@pytest.mark.parametrize("codes", [2, 13, 40])
def test_hifigan(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, engine: str, codes: int
) -> None:
    chosen = open_engine(demo_folder()) if engine == "demo" else request.getfixturevalue("random_engine")
    rng = np.random.default_rng(codes)
    latents = rng.standard_normal((1, codes, chosen.dims["hifigan.in_dim"]), np.float32)
    voice = rng.standard_normal((1, chosen.dims["hifigan.voice_dim"]), np.float32)
    whole, parts = whole_and_windows(monkeypatch, vocoder.hifigan, chosen, latents, voice)
    assert whole.shape == parts.shape
    assert np.abs(whole - parts).max() < BOUND < whole.std()


def test_halos_are_no_larger_than_needed_by_half(
    random_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With half of either halo the windows do differ: the tests above can fail."""
    monkeypatch.setattr(vocoder, "UNIVNET_HALO", 8)
    monkeypatch.setattr(vocoder, "HIFIGAN_HALO", 7)
    rng = np.random.default_rng(0)
    mel = rng.uniform(-9, 1, (1, MELS, 96)).astype(np.float32)
    noise = rng.standard_normal(vocoder.noise_shape(mel), np.float32)
    whole, parts = whole_and_windows(monkeypatch, vocoder.univnet, random_engine, mel, noise)
    assert np.abs(whole - parts).max() > BOUND
    latents = rng.standard_normal((1, 40, random_engine.dims["hifigan.in_dim"]), np.float32)
    voice = rng.standard_normal((1, random_engine.dims["hifigan.voice_dim"]), np.float32)
    monkeypatch.setattr(vocoder, "WINDOW", 384)
    whole, parts = whole_and_windows(monkeypatch, vocoder.hifigan, random_engine, latents, voice)
    assert np.abs(whole - parts).max() > BOUND
