"""Which precision each graph gets: the fastest on this machine whose error, on what the checkpoint itself computes, is small.

Short clips are made in fp32 and what goes into each graph is kept. Then every form of a graph is judged by fp32 on the
same inputs, and timed on some as long as a sentence's. At last the same clips are decoded with all that was chosen, codes
and noise being equal, and their mels judged; forms are given up, the one nearest its bound first, until those are near
enough too.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tortoise_rt import autoregressive, conditioning, diffusion, ranking
from tortoise_rt.bench_graphs import decode_step
from tortoise_rt.config import Settings, make_settings
from tortoise_rt.engine import Array, Engine, KVCache
from tortoise_rt.proxy_engine import ProxyEngine
from tortoise_rt.rng import Philox
from tortoise_rt.spec import GRAPHS, MELS
from tortoise_rt.voice import VoiceLatents, load_voice

from .quantize import PRECISIONS, QUANTIZED

#: graph -> (what its error is, the largest that is taken)
BOUNDS: Mapping[str, tuple[str, float]] = {
    "ar_step": ("Kullback-Leibler divergence of the next code, mean, nats", 0.01),
    **dict.fromkeys(
        ("clvp_text", "clvp_speech", "cvvp_voice", "cvvp_speech"),
        ("angle to the right latent, as a share of that between any two", 0.1),
    ),
    **dict.fromkeys(
        ("diffusion_align", "diffusion_condition", "diffusion_denoise"), ("root mean square, relative", 0.05)
    ),
}
#: About what another seed of the diffusion's noise changes: 0.13 to 0.16 of the demo's mels, four seeds, two voices.
MEL_BOUND = ("whole clips: root mean square of the mel over its standard deviation", 0.15)
GAIN = 1.1  #: times as fast must a form be to be taken in place of a nearer one
LONG = {"frames": 936, "codes": 500}  #: steps in time of what is timed: ten seconds, a padded row
TEXTS = ("The quick brown fox jumps over the lazy dog.", "We shall see what the evening brings, said she.")
VOICES = ("alto", "tenor")  #: that ship; the texts are said in them by turns
CODES = 48  #: of the clips that are made
STEPS = 10  #: of diffusion
MANY_ROWS = 16  #: samples side by side when decoding is timed, beside a single one
CONTEXT = 200  #: positions held by each meanwhile
TEXT_IDS = 24  #: where there is no tokenizer
SEED = 20
REPEATS = 3

#: called with (what is being done, done, total)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trial:
    """One form of one graph, measured."""

    graph: str
    precision: str
    milliseconds: float  #: median; of ar_step the geometric mean over one row and MANY_ROWS
    error: float
    measure: str  #: what ``error`` is
    bound: float
    chosen: bool = False

    @property
    def ok(self) -> bool:
        return self.error <= self.bound


def choose_precisions(
    engines: Mapping[str, Engine], texts: Sequence[Sequence[int]], progress: Progress
) -> tuple[dict[str, str], list[Trial]]:
    """Engines of every precision, "fp32" the judge, and token ids -> a precision for each graph, and what was measured."""
    judge = engines["fp32"]
    kept = _keep_inputs(judge, texts)
    graphs = [graph for graph in QUANTIZED if judge.has(graph)]
    done, total = itertools.count(), len(graphs) * (len(engines) + 1) + 1
    trials: list[Trial] = []
    for graph in graphs:
        trials += _measure(engines, judge, graph, kept, lambda what: progress(what, next(done), total))
        for engine in engines.values():  # all forms of all graphs are more than many machines hold
            engine.release(graph)
    chosen = dict.fromkeys(judge.info.graphs, "fp32")
    for graph in graphs:
        able = [trial for trial in trials if trial.graph == graph and trial.ok]
        fastest = min(trial.milliseconds for trial in able)
        quick = [trial for trial in able if trial.milliseconds <= GAIN * fastest]
        chosen[graph] = min(quick, key=lambda trial: trial.error).precision
    progress("listening to whole clips", next(done), total)
    whole = list(_judge_clips(engines, kept.clips, chosen, trials)) if kept.clips else []
    marked = [replace(trial, chosen=chosen[trial.graph] == trial.precision) for trial in trials]
    return chosen, marked + whole


@dataclass
class _Clip:
    """A clip as fp32 makes it."""

    text: Array  #: (1, text + 3)
    codes: Array  #: (codes,) to be decoded
    voice: VoiceLatents
    settings: Settings


@dataclass
class _Kept:
    """What fp32 computed with."""

    said: list[tuple[Array, Array, Array]]  #: voice (1, dim), text (1, text + 3) and codes (codes,) as drawn
    calls: dict[str, list[dict[str, Array]]]  #: graph -> inputs
    clips: list[_Clip]  #: where the engine has diffusion


class _Keeping(ProxyEngine):
    """Keeps the inputs of the calls of each graph."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.calls: dict[str, list[dict[str, Array]]] = {}

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        self.calls.setdefault(graph, []).append(inputs)
        return super()._run(graph, inputs)


def _keep_inputs(judge: Engine, texts: Sequence[Sequence[int]]) -> _Kept:
    """Say the texts, with few codes and steps."""
    keeping, rand = _Keeping(judge), Philox(SEED)
    settings = make_settings(
        num_autoregressive_samples=2, max_mel_tokens=min(CODES, judge.dims["ar.mel_positions"]),
        diffusion_iterations=STEPS, decoder="diffusion" if judge.has("diffusion_denoise") else "hifigan",
    )  # fmt: skip
    loaded = [load_voice(name, paths=False) for name in VOICES]
    voices = [(conditioning.resolve(judge, v, settings, rand)[0], conditioning.clip_mels(v)) for v in loaded]
    stop = judge.dims["ar.stop_code"]
    said = []
    for ids, (voice, mels) in zip(texts, itertools.cycle(voices)):  # voices do not end
        row = autoregressive.text_row(ids, judge.dims)
        codes = autoregressive.sample_codes(judge, voice.auto, row, settings.ar, rand)
        said.append((voice.auto, row, codes[0, : autoregressive.stopped_length(codes[0], stop)]))
        fixed = autoregressive.fix_codes(codes, stop)
        if judge.has("clvp_speech"):
            ranking.clvp_scores(keeping, ids, fixed)
        if judge.has("cvvp_speech") and mels is not None:
            ranking.cvvp_scores(keeping, mels, fixed)
    clips = []
    if judge.has("diffusion_denoise"):
        for (_, row, drawn), (voice, _) in zip(said, itertools.cycle(voices)):  # voices do not end
            clips.append(_Clip(row, drawn, voice, settings))
            _decode(keeping, keeping, clips[-1])
    return _Kept(said, keeping.calls, clips)


def _decode(reader: Engine, denoiser: Engine, clip: _Clip) -> Array:
    """The clip's mel, its latents read by one engine and decoded by another."""
    (latents,) = autoregressive.code_latents(reader, clip.voice.auto, clip.text, [clip.codes])
    assert clip.voice.diffusion is not None
    return diffusion.latents_to_mel(
        denoiser, latents, clip.voice.diffusion, clip.settings.diffusion, Philox(SEED)
    )


# --- one graph ---


def _measure(
    engines: Mapping[str, Engine], judge: Engine, graph: str, kept: _Kept, told: Callable[[str], None]
) -> list[Trial]:
    """Every form of a graph; ``told`` is called with what is being done."""
    measure, bound = BOUNDS[graph]
    errors = {}
    for precision, engine in engines.items():
        told(f"measuring {graph} in {precision}")
        if engine is judge:
            errors[precision] = 0.0
        elif graph == "ar_step":
            errors[precision] = _divergence(engine, judge, kept)
        else:
            errors[precision] = _distance(engine, judge, graph, kept.calls[graph])
    told(f"timing {graph}")
    if graph == "ar_step":
        held = min(CONTEXT, judge.dims["ar.mel_positions"] - 2)
        each = [
            _by_turns({p: decode_step(engine, rows, held) for p, engine in engines.items()})
            for rows in (1, MANY_ROWS)
        ]
        seconds = {p: statistics.geometric_mean(found[p] for found in each) for p in engines}
    else:
        largest = max(kept.calls[graph], key=lambda inputs: sum(array.size for array in inputs.values()))
        long = _lengthened(graph, largest, judge)
        seconds = _by_turns(
            {p: functools.partial(engine.run, graph, **long) for p, engine in engines.items()}
        )
    return [
        Trial(graph, precision, round(1000 * seconds[precision], 3), error, measure, bound)
        for precision, error in errors.items()
    ]


def _lengthened(graph: str, inputs: Mapping[str, Array], engine: Engine) -> dict[str, Array]:
    """Inputs repeated in time to the lengths of LONG, as far as the model goes."""
    found = dict(inputs)
    for tensor in GRAPHS[graph].inputs:
        for axis, dim in enumerate(tensor.dims):
            if dim in LONG:
                size = LONG[str(dim)]
                if dim == "codes":
                    size = min(size, engine.dims["ar.mel_positions"])
                array = found[tensor.name]
                found[tensor.name] = array.take(np.arange(size) % array.shape[axis], axis)
    return found


def _by_turns(runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each of REPEATS runs, by turns, as a machine's speed drifts, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(found[1:]) for name, found in seconds.items()}


def _divergence(engine: Engine, judge: Engine, kept: _Kept) -> float:
    """KL divergence of the next code from fp32's, mean over all codes of the texts, which fp32 drew."""
    found = []
    for voice, text, codes in kept.said:
        expected, given = (_log_chances(one, voice, text, codes) for one in (judge, engine))
        found.append((np.exp(expected) * (expected - given)).sum(axis=-1))
    return float(np.concatenate(found).mean())


def _log_chances(engine: Engine, voice: Array, text: Array, codes: Array) -> Array:
    """(codes, vocabulary) logarithms of the chances of each code, given those before it."""
    prompt = autoregressive.read_prompt(engine, voice, text)
    cache = engine.take_rows(prompt.cache, [0], prompt.cache.capacity + len(codes))
    rows = [prompt.logits]
    for position, code in enumerate(codes[:-1], 1):
        rows.append(engine.ar_step(cache, np.array([[code]]), np.array([[position]]))[0][0])
    values = np.array(rows, np.float64)
    values -= values.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))


def _distance(engine: Engine, judge: Engine, graph: str, calls: Sequence[dict[str, Array]]) -> float:
    """How far a graph's first output is from fp32's, as BOUNDS has it; the worst of all calls."""
    pairs = [[one.run(graph, **inputs)[0].astype(np.float64) for one in (judge, engine)] for inputs in calls]
    if GRAPHS[graph].network in ("clvp", "cvvp"):
        expected, given = (ranking.normalize(np.concatenate(latents)) for latents in zip(*pairs, strict=True))
        between = _angles(expected @ expected.T)[np.triu_indices(len(expected), 1)]
        typical = float(np.median(between)) if len(between) else 1.0
        return float(_angles((expected * given).sum(axis=-1)).max() / max(typical, 1e-6))
    if graph == "diffusion_denoise":  # the noise; the variance is a small matter
        pairs = [[out[:, :MELS] for out in pair] for pair in pairs]
    return max(
        float(np.sqrt(((given - expected) ** 2).mean() / (expected**2).mean())) for expected, given in pairs
    )


def _angles(cosines: Array) -> Array:
    return np.arccos(np.clip(cosines, -1, 1))


# --- the whole clip ---


def _judge_clips(
    engines: Mapping[str, Engine], clips: Sequence[_Clip], chosen: dict[str, str], trials: Sequence[Trial]
) -> Iterator[Trial]:
    """The mels with all that is ``chosen``; forms in it go back to fp32 until the worst is near enough."""
    expected = [_decode(engines["fp32"], engines["fp32"], clip) for clip in clips]
    heard = [graph for graph in ("ar_step", *_DIFFUSION) if chosen[graph] != "fp32"]
    measure, bound = MEL_BOUND
    while heard:
        began = time.perf_counter()
        mixed = _Mixed(engines, chosen)
        mels = [_decode(mixed, mixed, clip) for clip in clips]
        seconds = time.perf_counter() - began
        error = max(
            float(np.sqrt(((mel - right) ** 2).mean()) / right.std())
            for mel, right in zip(mels, expected, strict=True)
        )
        names = "+".join(f"{graph}:{chosen[graph]}" for graph in heard)
        yield Trial("whole clips", names, round(1000 * seconds, 1), error, measure, bound, error <= bound)
        if error <= bound:
            return
        shares = {t.graph: t.error / t.bound for t in trials if chosen.get(t.graph) == t.precision}
        worst = max(heard, key=lambda graph: shares[graph])
        chosen[worst] = "fp32"
        heard.remove(worst)


_DIFFUSION = ("diffusion_align", "diffusion_condition", "diffusion_denoise")


class _Mixed(ProxyEngine):
    """Runs each graph in the precision chosen for it."""

    def __init__(self, engines: Mapping[str, Engine], chosen: Mapping[str, str]) -> None:
        super().__init__(engines[chosen["ar_step"]])
        self._engines, self._chosen = engines, chosen

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        return self._engines[self._chosen[graph]]._run(graph, inputs)

    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        return self._engines[self._chosen["ar_step"]]._ar_step(cache, inputs)


def as_rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """For the manifest."""
    return [{**asdict(trial), "error": float(f"{trial.error:.3g}")} for trial in trials]


__all__ = ["PRECISIONS", "TEXTS", "TEXT_IDS", "Trial", "as_rows", "choose_precisions"]
