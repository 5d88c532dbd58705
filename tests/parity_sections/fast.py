"""Whole runs of the reference's fast class: HiFi-GAN straight from latents, at once and in chunks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tortoise_rt.autoregressive import code_latents, read_prompt, text_row
from tortoise_rt.conditioning import mean_latent, voice_mels
from tortoise_rt.config import ARSettings
from tortoise_rt.engine import Array
from tortoise_rt.sampling import draw
from tortoise_rt.streaming import REFERENCE_FIRST, FadingDecoder
from tortoise_rt.vocoder import hifigan

from .autoregressive import UPSTREAM
from .recording import Check, Recording, Subject
from .sampling import ANY_CODE, replay_draws
from .whole import check_text, read_clips

CHUNK_CODES, OVERLAP = 10, 256  #: of the recorded stream, unless its README says otherwise


def speak(recording: Recording, subject: Subject) -> tuple[Array, Array]:
    """-> (voice latent (1, dim), text row (1, text)) of the recorded runs."""
    voice = mean_latent(subject.engine, "ar_voice", voice_mels(read_clips(recording)))
    return voice, text_row(recording["ids"].tolist(), subject.engine.dims)


def check_runs(recording: Recording, subject: Subject) -> None:
    """The fast class decodes the latents of all codes as they were drawn: no fix-up and no trimming."""
    voice, text = speak(recording, subject)
    for name, positions in (("kv", "upstream"), ("nokv", "trained")):
        if f"{name}_codes" not in recording:
            recording.compare(f"{name}_codes", ())
            continue
        ids, u = recording[f"{name}_codes"], recording[f"{name}_u"]
        settings = ARSettings(samples=1, max_mel_tokens=ids.shape[1], kv_positions=positions)
        codes = replay_draws(subject, voice, text, ids, u, settings)
        recording.compare(f"{name}_codes", codes)
        (latents,) = code_latents(subject.engine, voice, text, list(codes))
        recording.compare(f"{name}_wav", hifigan(subject.engine, latents, voice)[:, None])


def draw_stream(subject: Subject, voice: Array, text: Array, uniforms: Array) -> Iterator[tuple[int, Array]]:
    """(code, latent (1, dim) it was drawn from) one by one; the stop code is suppressed, as in the recording."""
    engine, settings = subject.engine, ARSettings()
    start, stop = engine.dims["ar.start_code"], engine.dims["ar.stop_code"]
    prompt = read_prompt(engine, voice, text)
    cache = engine.take_rows(prompt.cache, [0], prompt.cache.capacity + len(uniforms))
    logits, latent = prompt.logits[None], prompt.latent[None]
    seen = np.zeros(engine.dims["ar.mel_codes"], bool)
    seen[[1, start]] = True
    for step, u in enumerate(uniforms):
        suppressed = logits[0].copy()
        suppressed[stop] = -np.inf
        code = draw(suppressed, seen, u, ANY_CODE, settings)
        seen[code] = True
        yield code, latent
        if step + 1 < len(uniforms):
            positions = np.full((1, 1), step + UPSTREAM, np.int64)
            logits, latents = engine.ar_step(cache, np.full((1, 1), code, np.int64), positions)
            latent = latents[:, -1]


def check_stream(recording: Recording, subject: Subject) -> None:
    voice, text = speak(recording, subject)
    drawn = list(draw_stream(subject, voice, text, recording["stream_u"][:, 0]))
    latents = np.concatenate([latent for _, latent in drawn])
    recording.compare("stream_codes", np.array([code for code, _ in drawn]))
    recording.compare("stream_latents", latents)

    name = "stream_chunk_lens"
    (chunk_codes,) = recording.documented(name, r"stream_chunk_size=(\d+)", [CHUNK_CODES])
    (overlap,) = recording.documented(name, r"overlap_wav_len=(\d+)", [OVERLAP])
    first = max(chunk_codes, REFERENCE_FIRST)
    ends = [*range(first, len(drawn) + 1, chunk_codes), len(drawn)]
    decoder = FadingDecoder(subject.engine, voice, overlap)
    chunks = []
    for start, end in zip([0, *ends], ends, strict=False):
        decoder.feed(latents[start:end])
        chunks.append(decoder.take(ended=end == len(drawn)))
    recording.compare(name, np.array([len(chunk) for chunk in chunks]))
    for match in recording.matches(r"stream_wav_every(\d+)"):
        recording.compare(match[0], np.concatenate(chunks)[:: int(match[1])])
    for match in recording.matches(r"stream_chunk(\d+)_head"):
        recorded = recording[match[0]]
        recording.compare(match[0], chunks[int(match[1])][: len(recorded)])


def check_cross_fade(recording: Recording, subject: Subject) -> None:
    """Each rendering is the signal so far, a tenth louder than the last one."""
    signal = recording["hc_in"]
    names = [match[0] for match in recording.matches(r"hc_out_\d+")]
    lengths = np.cumsum([len(recording[name]) for name in names])
    overlap = len(signal) - int(lengths[-1])
    wavs = [signal[: length + overlap] * np.float32(1 + 0.1 * i) for i, length in enumerate(lengths)]
    decoder = FadingDecoder(subject.engine, np.zeros((1, 1), np.float32), overlap)
    for name, wav in zip(names, wavs, strict=True):
        recording.compare(name, decoder.fade(wav))


CHECKS: tuple[Check, ...] = (check_text, check_runs, check_stream, check_cross_fade)
