"""Resampling and spectrograms."""

from __future__ import annotations

import numpy as np

from tortoise_rt.audio import conditioning_clip, resample
from tortoise_rt.mel import (
    ar_filterbank,
    ar_mel,
    denormalize_mel,
    normalize_mel,
    univnet_filterbank,
    univnet_mel,
)
from tortoise_rt.spec import CODE_RATE, SAMPLE_RATE

from .recording import Check, Recording, Subject, floats

#: of the padded 6 s clip, those recorded
CONDITIONING_FRAMES = [0, 1, 10, 60, 67, 68, 69, 70, 71, 300, 516]


def check_ar_mel(recording: Recording, subject: Subject) -> None:
    recording.compare("torch_mel", ar_mel(floats(recording["wav_i16"])))
    recording.compare("torch_mel_fb", ar_filterbank().T)


def check_resampling(recording: Recording, subject: Subject) -> None:
    recording.compare("wav_24k", resample(floats(recording["wav_i16"]), CODE_RATE, SAMPLE_RATE))


def check_file_rates(recording: Recording, subject: Subject) -> None:
    for match in recording.matches(r"wav(\d+)_to_(\d+)"):
        source, target = (
            {44: 44100, 22: CODE_RATE, 24: SAMPLE_RATE}.get(n, n * 1000) for n in map(int, match.groups())
        )
        recording.compare(match[0], resample(floats(recording[f"wav{match[1]}_i16"]), source, target))


def check_univnet_mel(recording: Recording, subject: Subject) -> None:
    wav = recording["wav_24k"]
    recording.compare("univnet_mel", univnet_mel(wav))
    recording.compare("univnet_mel_basis", univnet_filterbank())
    for match in recording.matches(r"univnet_mel_norm_first(\d+)"):
        recording.compare(match[0], univnet_mel(wav, normalize=True)[..., : int(match[1])])


def check_conditioning_clip(recording: Recording, subject: Subject) -> None:
    mel = ar_mel(conditioning_clip(floats(recording["wav_i16"][0]))[None])
    recording.compare("format_conditioning_frames", mel[0][:, CONDITIONING_FRAMES])
    recording.compare("format_conditioning_shape", np.array(mel.shape))


def check_normalisation(recording: Recording, subject: Subject) -> None:
    values = recording["tacotron_norm_in"]
    recording.compare("tacotron_norm_out", normalize_mel(values))
    recording.compare("tacotron_denorm_out", denormalize_mel(normalize_mel(values)))


CHECKS: tuple[Check, ...] = (
    check_ar_mel,
    check_resampling,
    check_file_rates,
    check_univnet_mel,
    check_conditioning_clip,
    check_normalisation,
)
