"""Both vocoders, and the small things: random voices, the detector, fix-ups of codes."""

from __future__ import annotations

import numpy as np
import torch

from tortoise_rt.autoregressive import fix_codes, spoken_length
from tortoise_rt.detect import detect
from tortoise_rt.vocoder import hifigan, univnet, upsample_latents

from .recording import Check, Recording, Subject, floats


def check_univnet(recording: Recording, subject: Subject) -> None:
    mel, noise = recording["mel"], recording["z"]
    recording.compare("wav", univnet(subject.engine, mel, noise)[:, None])
    (wav,) = subject.engine.run("univnet", mel=mel, noise=noise[..., : mel.shape[2]])
    recording.compare("wav_nopad", recording.thin("wav_nopad", wav[:, None]))


def check_univnet_blocks(recording: Recording, subject: Subject) -> None:
    module = subject.module("vocoder")
    mel = torch.from_numpy(recording["mel"])
    with torch.inference_mode():
        x = module.conv_pre(torch.from_numpy(recording["z"])[..., : mel.shape[2]])
        for number, block in enumerate(module.res_stack):
            x = block(x, mel)
            name = f"block{number}_out"
            if name in recording:
                recording.compare(name, recording.thin(name, x.numpy()), inner=True)


def check_hifigan(recording: Recording, subject: Subject) -> None:
    latents = recording["hifi_latents"]
    recording.compare("hifi_up", upsample_latents(latents))
    recording.compare("hifi_wav", hifigan(subject.engine, latents, recording["hifi_g"])[:, None])


def check_hifigan_lengths(recording: Recording, subject: Subject) -> None:
    lengths = range(1, len(recording["hifi_frames_by_len"]) + 1)
    own = [upsample_latents(np.zeros((1, length, 1), np.float32)).shape[2] for length in lengths]
    recording.compare("hifi_frames_by_len", np.array(own))


def check_random_voices(recording: Recording, subject: Subject) -> None:
    for graph in ("rlg_auto", "rlg_diffuser"):
        (latent,) = subject.engine.run(graph, noise=recording[f"{graph}_noise"])
        recording.compare(f"{graph}_out", latent)


def check_detector(recording: Recording, subject: Subject) -> None:
    wav = floats(recording["classifier_wav_i16"])
    (logits,) = subject.engine.run("detector", wav=wav[:, None])
    recording.compare("classifier_logits", logits)
    probability = detect(subject.engine, wav[0])
    recording.compare("classifier_probs", np.array([[probability, 1 - probability]]))


def check_fix(recording: Recording, subject: Subject) -> None:
    recording.compare("fix_out", fix_codes(recording["fix_in"], subject.engine.dims["ar.stop_code"]))


def check_trim(recording: Recording, subject: Subject) -> None:
    recording.compare("trim_len", np.array([spoken_length(row) for row in recording["trim_codes"]]))


CHECKS: tuple[Check, ...] = (check_univnet, check_univnet_blocks, check_hifigan, check_hifigan_lengths)
MISC_CHECKS: tuple[Check, ...] = (check_random_voices, check_detector, check_fix, check_trim)
