"""What would be said and by which settings, found out before any network runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .autoregressive import ROWS, code_limit, most_text_ids
from .config import Settings
from .pipeline import Pipeline
from .rng import nth_seed
from .sentences import Sentence
from .spec import CODE_RATE, CODE_SAMPLES
from .voice import Voice

CODES_A_CHARACTER = 1.4  #: of cleaned English, at about 15 characters a second


class Piece(NamedTuple):
    """A token."""

    id: int
    text: str
    known: bool  #: False for what the vocabulary has no token for: it is not heard


@dataclass(frozen=True)
class Clip:
    """One synthesis: a whole text, or a sentence of a stream."""

    text: str
    cleaned: str  #: what is spoken
    pieces: list[Piece]
    cut: list[str]  #: out of the sound then, pair of brackets by pair
    heard: str  #: what is left, where anything is in brackets
    most_tokens: int
    seed: int

    @property
    def fits(self) -> bool:
        """Whether it can be said in one go."""
        return 0 < len(self.pieces) <= self.most_tokens

    @property
    def unheard(self) -> list[str]:
        """What the vocabulary has no tokens for."""
        return list(dict.fromkeys(piece.text for piece in self.pieces if not piece.known))


@dataclass(frozen=True)
class Explanation:
    """What a request comes to."""

    engine: Mapping[str, str]
    voice: Mapping[str, Any]
    settings: Mapping[str, tuple[Any, str]]  #: argument -> (value, where it comes from)
    clips: Sequence[Clip]
    most_codes: int  #: of one sample
    samples: int
    candidates: int
    denoisings: int  #: of one candidate, guided passes counted twice; 0 without diffusion

    @property
    def cost(self) -> dict[str, float]:
        """Rough figures, of all clips together."""
        codes = [min(self.most_codes, math.ceil(len(c.cleaned) * CODES_A_CHARACTER)) for c in self.clips]
        return {
            "clips": len(self.clips),
            "samples": self.samples * len(self.clips),
            "codes_expected": self.samples * sum(codes),
            "codes_at_most": self.samples * self.most_codes * len(self.clips),
            "denoising_passes": self.denoisings * self.candidates * len(self.clips),
            "audio_seconds_expected": round(self.candidates * sum(codes) * CODE_SAMPLES / CODE_RATE, 1),
        }

    def as_json(self) -> dict[str, Any]:
        """For a machine."""
        return {
            "engine": dict(self.engine),
            "voice": dict(self.voice),
            "settings": {
                name: {"value": value, "from": origin} for name, (value, origin) in self.settings.items()
            },
            "clips": [
                {
                    "text": clip.text,
                    "cleaned": clip.cleaned,
                    "cut": clip.cut,
                    "heard": clip.heard,
                    "ids": [piece.id for piece in clip.pieces],
                    "pieces": [piece.text for piece in clip.pieces],
                    "unheard": clip.unheard,
                    "fits": clip.fits,
                    "seed": clip.seed,
                }
                for clip in self.clips
            ],
            "cost": self.cost,
        }

    def lines(self) -> Iterable[str]:
        """For a person."""
        yield "Engine    " + ", ".join(self.engine.values())
        parts = self.voice.get("parts", [])
        made = [] if parts else [self.voice["made_of"]]
        yield "Voice     " + ", ".join([self.voice["name"], *made, self.voice["from"]])
        for part in parts:
            yield f"  {part['name']:7} {100 * part['weight']:.0f} %, {part['made_of']}"
        if not self.clips:
            yield "Nothing   is said: the text is empty once cleaned"
        for number, clip in enumerate(self.clips, 1):
            yield f"Clip {number}    {clip.text}"
            yield f"  said    {clip.cleaned}"
            if clip.heard:
                yield f"  heard   {clip.heard}"
                yield "  cut     " + (
                    " ".join(f"[{words}]" for words in clip.cut)
                    or "nothing: what is in brackets has no letters that an aligner could find"
                )
            tokens = " ".join(f"{piece.text}:{piece.id}" for piece in clip.pieces)
            yield f"  tokens  {len(clip.pieces)} of at most {clip.most_tokens}: {tokens}"
            if clip.unheard:
                yield f"  unheard {' '.join(clip.unheard)} (the vocabulary has no token: write it as words)"
            if not clip.fits:
                yield "  refused " + (
                    "too long: --stream cuts it into sentences" if clip.pieces else "nothing to say"
                )
            yield f"  seed    {clip.seed}"
        yield "Settings"
        width = max(map(len, self.settings))
        for name, (value, origin) in self.settings.items():
            yield f"  {name:{width}}  {value!s:<10}  {origin}"
        cost = self.cost
        yield (
            f"Cost      {cost['samples']} samples of at most {self.most_codes} codes (about {cost['codes_expected']} of "
            f"{cost['codes_at_most']} in all), {cost['denoising_passes']} denoising passes, "
            f"about {cost['audio_seconds_expected']:g} s of audio"
        )


def explain(
    pipeline: Pipeline,
    sentences: Iterable[Sentence],
    voice: Mapping[str, Any],
    settings: Settings,
    origins: Mapping[str, tuple[Any, str]],
    seed: int,
) -> Explanation:
    """What saying ``sentences`` (one for a clip, more for a stream, numbered from ``seed`` on) comes to.

    ``origins`` are those of :func:`tortoise_rt.defaults.settings_origins`. Raises a SettingsError for a code limit
    beyond the model's, and what a synthesis raises for a text that it cannot say.
    """
    engine = pipeline.engine
    most_codes, diffusion = code_limit(settings.ar, engine.dims), settings.diffusion
    guided = round(diffusion.iterations * diffusion.cond_free_share) if diffusion.cond_free else 0
    resolved = {"max_mel_tokens": most_codes, "batch_rows": settings.ar.batch_rows or ROWS}
    return Explanation(
        {
            "source": str(engine.info.source),
            "backend": engine.info.backend,
            "device": engine.info.device,
            "tokenizer": "" if pipeline.tokenizer is None else str(pipeline.tokenizer.path),
        },
        voice,
        {name: (resolved.get(name, value), origin) for name, (value, origin) in origins.items()},
        [
            _clip(pipeline, sentence.text, settings, nth_seed(seed, number))
            for number, sentence in enumerate(sentences)
        ],
        most_codes,
        settings.ar.samples,
        settings.candidates,
        diffusion.iterations + guided if settings.decoder == "diffusion" else 0,
    )


def _clip(pipeline: Pipeline, text: str, settings: Settings, seed: int) -> Clip:
    """What becomes of one text, by the pipeline's own reading of it."""
    said, ids, prompt = pipeline.spoken(text, settings)
    assert pipeline.tokenizer is not None and isinstance(said, str)  # else there are no ids
    bracketed = prompt is not None and (any(prompt.inside) or not prompt.sure)
    return Clip(
        text,
        pipeline.tokenizer.clean(said),
        [Piece(*piece) for piece in pipeline.tokenizer.pieces(said)] if ids else [],
        prompt.to_cut if prompt is not None else [],
        prompt.to_hear if prompt is not None and bracketed else "",
        most_text_ids(pipeline.engine.dims),
        seed,
    )


def describe_voice(name: str, voice: Voice | None, origin: str) -> dict[str, Any]:
    """What a voice is made of and who named it."""
    described = {
        "name": name,
        "made_of": "drawn from the seed" if voice is None else voice.made_of,
        "from": origin,
    }
    if voice is None or not voice.parts:
        return described
    parts = [{"name": part.name, "weight": share, "made_of": part.made_of} for part, share in voice.shares]
    return {**described, "parts": parts}
