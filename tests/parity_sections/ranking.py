"""CLVP and CVVP."""

from __future__ import annotations

import numpy as np
import torch

from tortoise_rt.engine import Array
from tortoise_rt.ranking import cvvp_scores, normalize

from .recording import Check, Recording, Subject

LOSS_IDS = 10  #: text ids per row that the recorded loss reads; row i has i added to them


def similarity(subject: Subject, text: Array, codes: Array) -> Array:
    """CLVP's score of every text with every row of codes: (texts, rows)."""
    texts, scale = subject.engine.run("clvp_text", text_ids=text)
    (speech,) = subject.engine.run("clvp_speech", codes=codes)
    return normalize(texts) @ normalize(speech).T * scale[0]


def check_latents(recording: Recording, subject: Subject) -> None:
    texts, _ = subject.engine.run("clvp_text", text_ids=recording["text"])
    (speech,) = subject.engine.run("clvp_speech", codes=recording["codes"])
    recording.compare("clvp_text_latent", texts[:1])
    recording.compare("clvp_speech_latent", speech)


def check_encoders(recording: Recording, subject: Subject) -> None:
    clvp = subject.module("clvp")
    text, codes = torch.from_numpy(recording["text"][:1]), torch.from_numpy(recording["codes"][:1])
    with torch.inference_mode():
        text_encoded = clvp.text_transformer(clvp.text_emb(text))[0]
        speech_encoded = clvp.speech_transformer(clvp.speech_emb(codes))[0]
    recording.compare("clvp_text_enc_row0", text_encoded.numpy(), inner=True)
    recording.compare("clvp_speech_enc_row0", speech_encoded.numpy(), inner=True)


def check_scores(recording: Recording, subject: Subject) -> None:
    text, codes = recording["text"], recording["codes"]
    recording.compare("clvp_scores", similarity(subject, text, codes).diagonal())
    (used,) = recording.documented("clvp_loss", r"text\[:, :(\d+)\]", [LOSS_IDS])
    shifted = text[:, :used] + np.arange(len(text))[:, None]
    scores = similarity(subject, shifted, codes).astype(np.float64)
    losses = [np.logaddexp.reduce(scores, axis=axis) - scores.diagonal() for axis in (0, 1)]
    recording.compare("clvp_loss", np.float32(np.mean(losses)))


def check_cvvp(recording: Recording, subject: Subject) -> None:
    for match in recording.matches(r"cvvp_scores_(\d+)"):
        mel = recording["cvvp_mel"][0, int(match[1])]
        recording.compare(match[0], cvvp_scores(subject.engine, mel[None], recording["codes"]))


CHECKS: tuple[Check, ...] = (check_latents, check_encoders, check_scores, check_cvvp)
