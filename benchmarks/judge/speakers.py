"""Who is judged: an engine of this package, or the teacher that its demo voice was trained on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tortoise_rt.bundle import MANIFEST, file_sha256, load_manifest
from tortoise_rt.defaults import DEFAULT_PRESET, default_voice, settings_for
from tortoise_rt.engine import Engine
from tortoise_rt.number_words import expand_numbers
from tortoise_rt.pipeline import Pipeline
from tortoise_rt.spec import CHECKPOINT_FILES
from tortoise_rt.tts import choose_tokenizer
from tortoise_rt.voice import find_voices, load_voice


@dataclasses.dataclass(frozen=True)
class Clip:
    """One sentence, spoken."""

    wav: np.ndarray = dataclasses.field(repr=False)  #: (samples,) float32, 24 kHz, in [-1, 1]
    seconds: float  #: that it took to make
    complete: bool  #: whether it ended by itself


class Speaker(Protocol):
    """What the benchmark measures."""

    reference: str | None  #: the voice whose clips it should sound like

    def say(self, text: str, seed: int) -> Clip: ...

    def facts(self) -> dict[str, Any]:
        """What identifies the speaker in the results."""
        ...


class EngineSpeaker:
    """An engine as ``tortoise-rt say`` uses it; ``settings`` are arguments of ``make_settings``."""

    def __init__(
        self, engine: Engine, voice: str | None, preset: str | None, settings: Mapping[str, Any]
    ) -> None:
        self.engine = engine
        self.arguments = {"preset": preset, **settings}
        self.settings = settings_for(engine, fallback=DEFAULT_PRESET, **self.arguments)
        name = default_voice(engine) if voice is None else voice
        self.voice = load_voice(name)
        self.reference: str | None = name
        self._pipeline = Pipeline(engine, choose_tokenizer(engine, None))

    def say(self, text: str, seed: int) -> Clip:
        start = time.perf_counter()
        result = self._pipeline.synthesize(text, self.voice, self.settings, seed)
        return Clip(result.wavs[0], time.perf_counter() - start, result.complete)

    def facts(self) -> dict[str, Any]:
        info = self.engine.info
        return {
            **identify(Path(info.source)),
            "backend": info.backend,
            "on": info.device,
            "fingerprint": info.fingerprint,
            "notice": info.notice,
            "voice": "random" if self.voice is None else self.voice.name,
            "settings": dataclasses.asdict(self.settings),
        }


class TeacherSpeaker:
    """The teacher; it says numbers in the same words as the engines."""

    def __init__(self, voice: str) -> None:
        from tortoise_rt.engines.demo.train.teacher import VOICES, Teacher

        if voice not in VOICES:
            raise SystemExit(f'the teacher has no voice "{voice}". It has: {", ".join(VOICES)}')
        self._voice, self._teacher = voice, Teacher()
        self.reference = voice if voice in find_voices() else None

    def say(self, text: str, seed: int) -> Clip:
        start = time.perf_counter()
        spoken = self._teacher.say(expand_numbers(text), (self._voice,), seed)
        wav = np.zeros(0, np.float32) if spoken is None else spoken.wav[self._voice]
        return Clip(wav, time.perf_counter() - start, spoken is not None)

    def facts(self) -> dict[str, Any]:
        return {"engine": "teacher", "voice": self._voice}


def identify(folder: Path) -> dict[str, Any]:
    """The name of a bundle or a folder of checkpoints; its weights: file -> the first digits of its SHA-256."""
    if (folder / MANIFEST).is_file():
        model = load_manifest(folder)["model"]
        name, sums = model["name"], {file: entry["sha256"] for file, entry in model["sources"].items()}
    else:
        files = (folder / file for file in CHECKPOINT_FILES.values())
        name, sums = folder.name, {file.name: file_sha256(file) for file in files if file.is_file()}
    return {"engine": name, "weights": {file: checksum[:16] for file, checksum in sums.items()}}
