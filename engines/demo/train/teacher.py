"""The teacher: hibari-tts (Apache-2.0) speaks the corpus, in its own voice and in a lower one made from it.

The teacher's network predicts a parametric spectrum (harmonics, noise, pitch) and a duration per phoneme. The second
voice is the same spectrum with its frequencies scaled down (a longer vocal tract) and a lower pitch, so it says the
same at the same times. Phonemes and durations are kept: they supervise the training.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tortoise_rt.spec import CODE_SAMPLES, SAMPLE_RATE

from . import corpus, loop
from .features import log_mel

UNIT = 600  #: samples at 24 kHz that the teacher counts durations in
SHARD = 1000  #: sentences in one file
LONGEST = 8.5  #: seconds
EDGE_BEFORE, EDGE_AFTER = 1200, 3600  #: samples kept around the audible part
AUDIBLE = 0.01
_DURATIONS = "/Cast_32_output_0"  # inner tensor of the teacher's graph (version 0.2.1)


@dataclass(frozen=True)
class VoiceShape:
    """How a voice differs from the teacher's."""

    pitch: float = 1.0
    formants: float = 1.0


#: The demo's voices. A formant factor below 1 is a longer vocal tract.
VOICES = {"alto": VoiceShape(), "tenor": VoiceShape(pitch=0.58, formants=0.86)}


@dataclass(frozen=True)
class Utterance:
    wav: dict[str, np.ndarray]  #: voice -> (samples,) float32 at 24 kHz
    phonemes: str
    ids: np.ndarray  #: (phonemes + 2,) with a pad at both ends
    starts: np.ndarray  #: (phonemes + 3,) samples at 24 kHz


def _scaled(spectrum: np.ndarray, factor: float) -> np.ndarray:
    """(bins, frames), frequencies multiplied by ``factor``; above the highest that is known, the last value."""
    bins = np.arange(len(spectrum)) / factor
    low = np.minimum(bins.astype(int), len(spectrum) - 2)
    part = np.minimum(bins - low, 1)[:, None].astype(np.float32)
    return (1 - part) * spectrum[low] + part * spectrum[low + 1]


class Teacher:
    """Speaks one sentence at a time, on one thread."""

    def __init__(self) -> None:
        import hibari
        import onnx
        import onnxruntime

        self.hibari = hibari.Hibari()
        model = onnx.load(self.hibari.model_path)
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(_DURATIONS))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def say(self, text: str, voices: tuple[str, ...] = ("alto",), seed: int = 0) -> Utterance | None:
        """None where the teacher has nothing to say or needs more than one breath."""
        parts = self.hibari.phonemize(text)
        if len(parts) != 1:
            return None
        phonemes = "".join(p for p in parts[0] if p in self.hibari.vocab)
        ids = np.asarray(self.hibari.ids(phonemes), np.int64)
        if len(ids) < 4:
            return None
        outputs = self.session.run(None, {"ids": ids[None], "speed": np.ones(1, np.float32)})
        spectra, durations = [part[0] for part in outputs[:6]], outputs[6].reshape(-1)
        if len(durations) != len(ids):
            raise RuntimeError("the teacher's durations have moved; this needs hibari-tts 0.2.1")
        starts = np.concatenate([[0], np.cumsum(durations)]) * UNIT
        wavs = {voice: self._synthesise(spectra, VOICES[voice], seed) for voice in voices}
        audible = np.where(np.abs(next(iter(wavs.values()))) > AUDIBLE)[0]
        if not len(audible):
            return None
        first = max(0, audible[0] - EDGE_BEFORE)
        last = min(starts[-1], audible[-1] + EDGE_AFTER)
        return Utterance(
            {voice: wav[first:last] for voice, wav in wavs.items()},
            phonemes,
            ids,
            np.clip(starts - first, 0, last - first),
        )

    def _synthesise(self, spectra: list[np.ndarray], shape: VoiceShape, seed: int) -> np.ndarray:
        from hibari import dsp

        harmonic, rotation, noise, free, phase, pitch = spectra
        if shape != VoiceShape():
            harmonic, rotation, noise, free = (
                _scaled(part, shape.formants) for part in (harmonic, rotation, noise, free)
            )
            harmonic = harmonic + 0.5 * np.float32(np.log(shape.pitch))  # more harmonics, the same power
            nearest = np.minimum(np.rint(np.arange(len(phase)) / shape.formants).astype(int), len(phase) - 1)
            phase, pitch = phase[nearest], pitch * np.float32(shape.pitch)
        return dsp.synth(harmonic, rotation, noise, free, phase, pitch, np.random.default_rng(seed))


def speak_corpus(work: loop.Work, first: int = 0, step: int = 1, audio_shards: int = 10) -> None:
    """Shards first, first + step, ... of the corpus -> data/shard_NNN.pt; what is there already is kept.

    Every shard holds the teacher's mels; the first ``audio_shards`` hold audio and mels of all voices as well.
    """
    torch.set_num_threads(1)
    work.data.mkdir(exist_ok=True)
    texts = [text for _, text in corpus.read(work.folder / "corpus.txt.gz")]
    teacher = Teacher()
    for shard in range(first, -(-len(texts) // SHARD), step):
        path = work.data / f"shard_{shard:03d}.pt"
        if path.exists():
            continue
        work.check_time(f"speak, before {path.name}")
        began = time.time()
        voices = tuple(VOICES) if shard < audio_shards else ("alto",)
        rows = [_row(teacher, text, voices) for text in texts[shard * SHARD : (shard + 1) * SHARD]]
        spoken = [row for row in rows if row is not None]
        loop.save(spoken, path)
        seconds = sum(row["seconds"] for row in spoken)
        print(
            f"{path.name}: {len(spoken)} sentences, {seconds:.0f} s of speech in {time.time() - began:.0f} s",
            flush=True,
        )


def _row(teacher: Teacher, text: str, voices: tuple[str, ...]) -> dict[str, Any] | None:
    said = teacher.say(text, voices)
    if said is None:
        return None
    seconds = len(said.wav["alto"]) / SAMPLE_RATE
    if seconds > LONGEST:
        return None
    row = dict(
        text=text,
        phonemes=said.phonemes,
        ids=torch.from_numpy(said.ids.astype(np.int16)),
        starts=torch.from_numpy(said.starts.astype(np.int32)),
        seconds=seconds,
        mel={voice: code_mel(wav).half() for voice, wav in said.wav.items()},
    )
    if len(voices) > 1:
        row["wav"] = {
            voice: torch.from_numpy((np.clip(wav, -1, 1) * 32767).astype(np.int16))
            for voice, wav in said.wav.items()
        }
    return row


def code_mel(wav: np.ndarray) -> torch.Tensor:
    """wav: (samples,) at 24 kHz -> (80, frames) log mel at 22.05 kHz, whole codes long."""
    from scipy.signal import resample_poly

    low = resample_poly(wav, 147, 160).astype(np.float32)  # CODE_RATE / SAMPLE_RATE
    low = np.pad(low, (0, -len(low) % CODE_SAMPLES))
    return log_mel(torch.from_numpy(low)[None])[0]
