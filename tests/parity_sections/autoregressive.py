"""The autoregressive network: voice latent, logits step by step and in one pass, latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tortoise_rt.autoregressive import code_latents, text_row
from tortoise_rt.conditioning import mean_latent
from tortoise_rt.engine import Array, Engine

from .recording import Check, Recording, Subject, relative_error

TRAINED, UPSTREAM = 1, 2  #: position of the first code; the reference's cached decode is off by one
TAIL_CODES = (
    6  #: of latents_wavlen: its wav ends in the code this far from their end, if the README says nothing else
)


def padded_text_row(padded: Array, engine: Engine) -> Array:
    """The text row for ids that already carry the pad: (1, text) -> (1, text + 2)."""
    return text_row(padded[0, :-1].tolist(), engine.dims)


def forced_logits(
    engine: Engine, voice: Array, text: Array, codes: Array, first_position: int
) -> tuple[Array, Array]:
    """Logits (codes + 1, rows, vocabulary) and latents (codes + 1, rows, dim) after the start code and each given one.

    voice: (1, dim); text: (1, text), start and stops included; codes: (rows, codes), the last of which is read too.
    """
    rows, count = codes.shape
    capacity = 2 + text.shape[1] + count
    cache = engine.new_cache(rows, capacity)
    start = np.full((rows, 1), engine.dims["ar.start_code"], np.int64)
    logits, latents = engine.ar_step(
        cache, start, np.zeros_like(start), np.repeat(voice, rows, axis=0), np.repeat(text, rows, axis=0)
    )
    all_logits, all_latents = [logits], [latents[:, -1]]
    for step in range(count):
        logits, latents = engine.ar_step(
            cache, codes[:, step : step + 1], np.full((rows, 1), step + first_position, np.int64)
        )
        all_logits.append(logits)
        all_latents.append(latents[:, -1])
    return np.stack(all_logits), np.stack(all_latents)


def compare_logits(
    recording: Recording, name: str, logits: Array, *, alias: str = "", inner: bool = False
) -> None:
    """The recorded columns of logits (..., vocabulary), and what is recorded of the whole vocabulary."""
    options: dict[str, Any] = {"alias": alias, "inner": inner}
    recording.compare(name, logits[..., recording["logit_cols"]], **options)
    recording.compare(f"{name}_lse", np.logaddexp.reduce(logits.astype(np.float64), axis=-1), **options)
    largest = -np.sort(-logits, axis=-1)[..., :4]
    recording.compare(f"{name}_top4", largest, **options)

    def shortfall(own: Array, ids: Array) -> float:
        """How far the recorded codes' own logits are from the largest: 0, or rounding where two nearly tie."""
        return relative_error(np.take_along_axis(logits, ids, axis=-1), largest)

    recording.compare(f"{name}_top4_ids", np.argsort(-logits, axis=-1)[..., :4], measure=shortfall, **options)


def check_voice(recording: Recording, subject: Subject) -> None:
    mels = recording["cond_mel"][0]
    recording.compare("cond_latent", mean_latent(subject.engine, "ar_voice", mels))
    recording.compare("cond_latent_first", mean_latent(subject.engine, "ar_voice", mels[:1]))


def check_latents(recording: Recording, subject: Subject) -> None:
    text = padded_text_row(recording["text"], subject.engine)
    voice, codes = recording["cond_latent"], recording["codes"]
    latents = code_latents(subject.engine, voice, text, list(codes))
    recording.compare("latents", np.concatenate(latents))
    ended = codes[1].copy()
    (tail,) = recording.documented("latents_wavlen", r"\(M-(\d+)\)", [TAIL_CODES])
    ended[len(ended) - tail + 1 :] = subject.engine.dims["ar.stop_code"]
    recording.compare("latents_wavlen", code_latents(subject.engine, voice, text, [ended])[0][0])


def check_full_pass(recording: Recording, subject: Subject) -> None:
    """Logits of one pass over everything: from the engine step by step, from the module at once."""
    stop = subject.engine.dims["ar.stop_code"]
    text = padded_text_row(recording["text"], subject.engine)
    voice, codes = recording["cond_latent"], recording["codes"]
    read = np.pad(codes, ((0, 0), (0, 1)), constant_values=stop)
    stepped, _ = forced_logits(subject.engine, voice, text, read, TRAINED)
    stride = recording.stride("full_logits", read.shape[1] + 1, 1)
    compare_logits(recording, "full_logits", stepped.swapaxes(0, 1)[:, ::stride])

    module, rows = subject.module("autoregressive"), len(codes)
    inputs = [np.repeat(voice, rows, axis=0), np.repeat(text, rows, axis=0)]
    read = np.pad(read, ((0, 0), (1, 0)), constant_values=subject.engine.dims["ar.start_code"])
    with torch.inference_mode():
        text_logits, code_logits = module(*map(torch.from_numpy, [*inputs, read]))
        text_targets = torch.from_numpy(np.pad(inputs[1][:, 1:], ((0, 0), (0, 1))))
        code_targets = torch.from_numpy(np.pad(read[:, 1:], ((0, 0), (0, 1)), constant_values=stop))
        losses = [
            float(F.cross_entropy(logits.transpose(1, 2), targets))
            for logits, targets in ((text_logits, text_targets), (code_logits, code_targets))
        ]
    compare_logits(recording, "full_logits", code_logits.numpy()[:, ::stride], alias="one pass", inner=True)
    recording.compare("text_logits_row0", text_logits[0].numpy(), inner=True)
    recording.compare("loss", np.array(losses), inner=True)


def check_prefix(recording: Recording, subject: Subject) -> None:
    text = torch.from_numpy(padded_text_row(recording["text"], subject.engine))
    voice = torch.from_numpy(recording["cond_latent"])[:, None]
    nothing = torch.zeros((1, 0), dtype=torch.int64)
    with torch.inference_mode():
        embedded = subject.module("autoregressive").embed(voice, text, nothing, nothing)
    recording.compare("prefix_emb", embedded.numpy(), inner=True)


def check_teacher_forcing(recording: Recording, subject: Subject) -> None:
    text = padded_text_row(recording["text"], subject.engine)
    for match in recording.matches(r"tf_b(\d+)_(cached|nocache)_logits"):
        codes = recording["tf_hist"][: int(match[1])]
        position = UPSTREAM if match[2] == "cached" else TRAINED
        logits, _ = forced_logits(subject.engine, recording["cond_latent"], text, codes, position)
        compare_logits(recording, match[0], logits[:: recording.stride(match[0], len(logits), 0)])


CHECKS: tuple[Check, ...] = (check_voice, check_latents, check_full_pass, check_prefix, check_teacher_forcing)
