"""The clips of the voices that ship: a few sentences by the teacher, in each of its voices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from tortoise_rt.resample import resample
from tortoise_rt.spec import CODE_RATE, SAMPLE_RATE

from .teacher import VOICES, Teacher

SENTENCES = (
    "The kettle began to sing, so I poured two cups of tea.",
    "We sat by the open window and watched the boats come home.",
    "Nobody spoke until the last light had gone from the water.",
)
PAUSE = 0.1  #: seconds between sentences
PEAK = 0.7  #: of full scale


def write(folder: Path) -> None:
    """Write ``folder``/VOICE/1.flac for every voice; what is there is replaced."""
    teacher = Teacher()
    said = [teacher.say(sentence, tuple(VOICES)) for sentence in SENTENCES]
    for voice in VOICES:
        wavs = [one.wav[voice] for one in said if one is not None]
        joined = np.concatenate([np.append(wav, np.zeros(int(PAUSE * SAMPLE_RATE))) for wav in wavs])
        clip = resample(joined.astype(np.float32), SAMPLE_RATE, CODE_RATE)
        (folder / voice).mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / voice / "1.flac", clip * PEAK / np.abs(clip).max(), CODE_RATE, "PCM_16")
