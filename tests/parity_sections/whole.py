"""Whole runs, from text and voice to audio, with all randomness recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from tortoise_rt.autoregressive import code_latents, fix_codes, text_row
from tortoise_rt.config import ARGUMENTS, Settings, make_settings
from tortoise_rt.engine import Array, Engine, KVCache
from tortoise_rt.pipeline import Pipeline, Result
from tortoise_rt.proxy_engine import ProxyEngine
from tortoise_rt.ranking import clvp_scores
from tortoise_rt.scheduler import Scheduler
from tortoise_rt.vocoder import univnet
from tortoise_rt.voice import Voice

from .randomness import Recorded
from .recording import NO_TOKENIZER, WHOLE, Check, Recording, Subject, floats, largest_difference
from .sampling import draw_margins


def read_clips(recording: Recording) -> tuple[Array, ...]:
    """The voice's clips, (samples,) each."""
    return tuple(floats(recording[match[0]][0]) for match in recording.matches(r"clip\d+_i16"))


def check_text(recording: Recording, subject: Subject) -> None:
    tokenizer = subject.load_tokenizer()
    if tokenizer is None:
        recording.report("text", "uncovered", NO_TOKENIZER)
        return
    text = str(recording["text"])
    recording.compare("ids", np.array(tokenizer.encode(text)))


def batches(recording: Recording, run: str, stop: int) -> Iterator[tuple[Array, Array]]:
    """(codes (rows, steps), uniforms (steps, rows)) of each batch of samples; a batch ends with its last live row."""
    codes, u = recording[f"{run}_codes_raw"], recording[f"{run}_u"]
    rows = u.shape[1]
    for first in range(0, len(codes), rows):
        batch = codes[first : first + rows]
        stopped = (batch == stop).any(axis=1)
        lengths = np.where(stopped, (batch == stop).argmax(axis=1) + 1, batch.shape[1])
        steps = int(lengths.max())
        yield batch[:, :steps], u[:steps]
        u = u[steps:]


def numbered(recording: Recording, name: str) -> list[Array]:
    """The arrays ``name_0``, ``name_1``, ... ."""
    return [recording[match[0]] for match in recording.matches(rf"{name}_\d+")]


def run_settings(recording: Recording, run: str) -> Settings:
    """What the run's arguments ask for, with as many samples as the reference drew (whole batches only)."""
    given: dict[str, Any] = json.loads(bytes(recording[f"{run}_kwargs_json"]))
    arguments = {name: value for name, value in given.items() if name in ARGUMENTS}
    codes = recording[f"{run}_codes_raw"]
    arguments |= {
        "num_autoregressive_samples": len(codes),
        "max_mel_tokens": codes.shape[1],
        "kv_positions": "upstream",
    }
    if f"{run}_rlg_auto_noise" in recording:  # no clips: the reference then leaves CVVP out, ours objects
        arguments["cvvp_amount"] = 0
    return make_settings(**arguments)


def replay(
    recording: Recording, subject: Subject, run: str, scheduled: bool = False
) -> tuple[Settings, Result]:
    """The run by the pipeline alone, or by a scheduler of three rows."""
    settings = run_settings(recording, run)
    uniforms = [row for _, u in batches(recording, run, subject.engine.dims["ar.stop_code"]) for row in u.T]
    rand = Recorded(
        uniforms,
        start=numbered(recording, f"{run}_init_noise"),
        steps=numbered(recording, f"{run}_step_noise"),
        vocoder=numbered(recording, f"{run}_z"),
    )
    voice = None
    if f"{run}_rlg_auto_noise" in recording:
        rand.voice["auto"] = recording[f"{run}_rlg_auto_noise"]
        rand.voice["diffusion"] = recording[f"{run}_rlg_diffuser_noise"]
    else:
        voice = Voice("recorded", read_clips(recording))
    request = recording["ids"].tolist(), voice, settings, rand
    if not scheduled:
        return settings, Pipeline(subject.engine, subject.load_tokenizer()).synthesize(*request)
    with Scheduler(subject.engine, subject.load_tokenizer(), rows=3) as scheduler:
        return settings, scheduler.submit(*request).result()


class Dictated(ProxyEngine):
    """An engine that wants ``codes`` drawn, at trained positions; it counts the passes over several codes."""

    def __init__(self, engine: Engine, codes: Array) -> None:
        super().__init__(engine)
        self.codes, self.passes = codes, 0

    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        logits, latents = super()._ar_step(cache, inputs)
        self.passes += inputs["codes"].shape[1] > 1
        logits[:] = 0
        logits[:, self.codes[min(int(inputs["code_positions"][0, -1]), len(self.codes) - 1)]] = 1e3
        return logits, latents


def kept_latents(recording: Recording, subject: Subject, result: Result, sample: int) -> Array | None:
    """The latents (1, codes, dim) up to the stop that the scheduler keeps while it decodes a sample as it was recorded.

    None for checkpoints without HiFi-GAN, for which it keeps them.
    """
    if not subject.engine.has("hifigan"):
        return None
    engine = Dictated(subject.engine, result.codes[sample])
    settings = make_settings(
        num_autoregressive_samples=1,
        max_mel_tokens=result.codes.shape[1],
        decoder="hifigan",
        greedy=True,
    )
    with Scheduler(engine, subject.load_tokenizer(), rows=1) as scheduler:
        again = scheduler.submit(recording["ids"].tolist(), result.voice, settings, 0).result()
    assert (again.codes == result.codes[sample]).all()
    assert engine.passes == 0
    return again.latents[0]


def check_run(recording: Recording, subject: Subject, run: str) -> None:
    engine = subject.engine
    settings, result = replay(recording, subject, run)
    ids = recording["ids"].tolist()
    fixed = fix_codes(result.codes, result.stop_code)
    recording.compare(f"{run}_codes_raw", result.codes)
    recording.compare(f"{run}_codes_fixed", fixed)
    # The recorded scores are CLVP's even where the ranking mixes in CVVP's, or where a lone sample is not ranked.
    by_text = settings.cvvp_amount == 0 and len(fixed) > 1
    recording.compare(f"{run}_clvp", result.scores if by_text else clvp_scores(engine, ids, fixed))
    recording.compare(f"{run}_auto_cond", result.voice.auto)

    text = text_row(ids, engine.dims)
    margins = [
        draw_margins(subject, result.voice.auto, text, codes, u, settings.ar).min(axis=1)
        for codes, u in batches(recording, run, result.stop_code)
    ]
    recording.compare(f"{run}_margin", np.concatenate(margins), measure=largest_difference)

    latents = np.concatenate(code_latents(engine, result.voice.auto, text, list(fixed[result.chosen])))
    recording.compare(f"{run}_latents", latents)
    for row, kept in zip(latents, result.latents, strict=True):
        row[: kept.shape[1]] = kept[0]
    recording.compare(f"{run}_latents", latents, alias="as decoded")

    _, shared = replay(recording, subject, run, scheduled=True)
    recording.compare(f"{run}_codes_raw", shared.codes, alias="scheduled")
    for row, kept in zip(latents, shared.latents, strict=True):
        row[: kept.shape[1]] = kept[0]
    recording.compare(f"{run}_latents", latents, alias="scheduled")

    if engine.dims["ar.start_code"] not in result.codes[result.chosen]:  # ours never draws it
        found = [kept_latents(recording, subject, result, sample) for sample in result.chosen]
        for row, kept_row in zip(latents, found, strict=True):
            if kept_row is not None:
                row[: kept_row.shape[1]] = kept_row[0]
        if any(kept_row is not None for kept_row in found):
            recording.compare(f"{run}_latents", latents, alias="kept while decoding")

    for number, (mel, wav) in enumerate(zip(result.mels, result.wavs, strict=True)):
        recording.compare(f"{run}_mel_{number}", mel, WHOLE)
        recording.compare(f"{run}_wav_{number}", wav[None, None], WHOLE)
        vocoded = univnet(engine, recording[f"{run}_mel_{number}"], recording[f"{run}_z_{number}"])
        recording.compare(f"{run}_wav_{number}", vocoded[:, None], alias="from mel")


def check_runs(recording: Recording, subject: Subject) -> None:
    for match in recording.matches(r"(\w+)_kwargs_json"):
        recording.attempt(check_run, subject, match[1])


CHECKS: tuple[Check, ...] = (check_text, check_runs)
