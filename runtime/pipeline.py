"""The stages in order: text and voice -> codes -> best codes -> latents -> mel -> wav. START HERE."""

from __future__ import annotations

import numbers
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from . import autoregressive, checking, conditioning, diffusion, ranking, redaction, vocoder
from .alignment import Word, align, hear, require_aligner
from .config import ARSettings, Settings
from .engine import Array, Engine
from .errors import SettingsError, TextError
from .rng import MAX_SEED, Philox, Randomness
from .spec import SAMPLE_RATE
from .streaming import Chunks, Pace
from .text import Tokenizer
from .voice import Voice, VoiceLatents

#: called with (stage, done, total): "sampling", "ranking", "latents", "diffusion", "vocoder"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What a result was made from, beside its seed."""

    text: str | None  #: None where token ids were given
    ids: list[int]
    settings: Settings
    clips: tuple[Array, ...]  #: (samples,) each, 22.05 kHz, of a voice given as clips, or as parts that are


class Spoken(NamedTuple):
    """What is spoken of a text."""

    text: str | Sequence[int]
    ids: list[int]
    prompt: redaction.Prompt | None  #: the words that an aligner must listen for, where it must


@dataclass
class Result:
    """What a synthesis made. Lists hold one entry per candidate, best first."""

    wavs: list[Array]  #: (samples,) float32, 24 kHz, in [-1, 1]
    codes: Array  #: (samples drawn, code limit) int64, as drawn, padded with stop
    scores: Array  #: (samples drawn,) rank scores; zeros when there was nothing to choose from
    chosen: Array  #: (candidates,) indices into codes
    latents: list[Array]  #: (1, codes, dim), trimmed to what was decoded
    mels: list[Array]  #: (1, MELS, frames) log mel; empty with the HiFi-GAN decoder
    voice: VoiceLatents
    stop_code: int
    drawn: list[checking.Drawn] = field(default_factory=list)  #: with which seeds; empty for other randomness
    tries: tuple[int, ...] = ()  #: the seeds of all tries, those included of which no clip was kept
    seconds: dict[str, float] = field(default_factory=dict)  #: time per stage
    words: list[list[Word]] = field(default_factory=list)  #: where they are, if an aligner listened
    reports: list[checking.Report] = field(
        default_factory=list
    )  #: with the setting check: how the clips say the text
    request: Request | None = None  #: what was asked for

    @property
    def seed(self) -> int | None:
        """What the best clip was drawn with."""
        return self.drawn[0].seed if self.drawn else None

    def made_with(self, number: int = 0) -> str:
        """The seed of a clip, in words, and how many tries there were if not one."""
        tries = f" ({len(self.tries)} tries from seed {self.tries[0]})" if len(self.tries) > 1 else ""
        return f"seed {self.drawn[number].seed}{tries}" if self.drawn else ""

    @property
    def audio_seconds(self) -> float:
        """Length of all clips together."""
        return sum(len(wav) for wav in self.wavs) / SAMPLE_RATE

    @property
    def complete(self) -> bool:
        """Whether every chosen sample ended by itself, rather than at the limit of codes."""
        return bool((self.codes[self.chosen] == self.stop_code).any(axis=1).all())


class AutoregressiveStage(Protocol):
    """How codes are drawn and their latents found; the module ``autoregressive`` does it for one request alone."""

    def sample_codes(
        self,
        engine: Engine,
        voice: Array,
        text: Array,
        settings: ARSettings,
        rand: Randomness,
        progress: autoregressive.Progress,
    ) -> Array: ...

    def code_latents(
        self, engine: Engine, voice: Array, text: Array, rows: Sequence[Array]
    ) -> list[Array]: ...

    def stream_codes(
        self,
        engine: Engine,
        voice: Array,
        text: Array,
        settings: ARSettings,
        rand: Randomness,
        wanted: Callable[[], int],
        progress: autoregressive.Progress,
    ) -> Iterator[tuple[int, Array]]: ...


class Pipeline:
    """Synthesis with one engine."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | None = None,
        autoregressive_stage: AutoregressiveStage = autoregressive,
    ) -> None:
        self.engine, self._stage = engine, autoregressive_stage
        if tokenizer is None and engine.info.tokenizer is not None:
            tokenizer = Tokenizer(engine.info.tokenizer)
        self.tokenizer = tokenizer

    def encode(self, text: str | Sequence[int]) -> list[int]:
        """Text -> token ids, none for text that is blank once cleaned; ids pass through."""
        if not isinstance(text, str):
            if isinstance(text, (bytes, bytearray)) or not all(map(_is_whole, _items(text))):
                raise TextError(f"text must be a string or token ids, not {type(text).__name__}")
            return [int(i) for i in text]
        if self.tokenizer is None:
            raise TextError(
                f"{self.engine.info.source} has no tokenizer.json: put the model's beside its checkpoints"
            )
        return self.tokenizer.encode(text) if self.tokenizer.clean(text).strip() else []

    def prompt(self, text: str | Sequence[int], settings: Settings) -> redaction.Prompt | None:
        """The words of a text that an aligner must listen for; None where none must. Raises as :meth:`check` does."""
        if not isinstance(text, str):
            if settings.check:
                raise TextError("token ids cannot be checked: give the text that they stand for")
            return None
        brackets = settings.redaction and redaction.check(text, self.engine)
        if settings.check:
            require_aligner(self.engine, "checking clips", "leave check out (--check, --words)")
        if not (brackets or settings.check) or self.tokenizer is None:
            return None
        return redaction.parse(text, self.tokenizer.clean, settings.redaction)

    def spoken(self, text: str | Sequence[int], settings: Settings) -> Spoken:
        """What is spoken of a text. Raises as :meth:`prompt` does."""
        prompt = self.prompt(text, settings)
        said = text if prompt is None else prompt.text
        return Spoken(said, self.encode(said), prompt)

    def voice_latents(self, clips: Sequence[Array]) -> VoiceLatents:
        """Clips (samples,) at 22.05 kHz -> the latents of their common voice."""
        return conditioning.clip_latents(self.engine, clips)

    def random_latents(self, rand: Randomness) -> VoiceLatents:
        """The latents of a voice that does not exist."""
        return conditioning.random_latents(self.engine, rand)

    def synthesize(
        self,
        text: str | Sequence[int],
        voice: Voice | VoiceLatents | None,
        settings: Settings,
        seed: int | Randomness,
        progress: Progress = lambda stage, done, total: None,
    ) -> Result:
        """Say ``text`` in ``voice`` (None: a random one). The seed alone decides every random number."""
        rand = seed if isinstance(seed, Randomness) else Philox(check_seed(seed))
        seconds: dict[str, float] = {}
        self.check(voice, settings)
        _, ids, prompt = self.spoken(text, settings)
        row = autoregressive.text_row(ids, self.engine.dims)
        autoregressive.code_limit(settings.ar, self.engine.dims)

        with timed(seconds, "voice"):
            latents, clip_mels = conditioning.resolve(self.engine, voice, settings, rand)
        with timed(seconds, "sampling"):
            codes = self._stage.sample_codes(
                self.engine, latents.auto, row, settings.ar, rand, lambda *n: progress("sampling", *n)
            )
        stop = self.engine.dims["ar.stop_code"]
        fixed = autoregressive.fix_codes(codes, stop)
        with timed(seconds, "ranking"):
            scores = self._scores(ids, fixed, settings, clip_mels, progress)
        chosen = ranking.best(scores, settings.candidates)
        with timed(seconds, "latents"):
            spoken = [autoregressive.codes_to_decode(codes[i], stop, settings.decoder) for i in chosen]
            code_latents = self._stage.code_latents(self.engine, latents.auto, row, spoken)
        used = getattr(rand, "seed", None)
        clips = voice.all_clips if isinstance(voice, Voice) else ()
        request = Request(text if isinstance(text, str) else None, list(ids), settings, clips)
        result = Result(
            [], codes, scores, chosen, code_latents, [], latents, stop, seconds=seconds, request=request
        )
        if used is not None:
            result.drawn, result.tries = [checking.Drawn(used, n) for n in range(len(chosen))], (used,)
        decode = self._hifigan if settings.decoder == "hifigan" else self._diffuse
        for number in range(len(chosen)):
            decode(result, number, settings, rand, progress)
            if prompt is not None:
                self._listen(result, number, prompt, settings.check)
        return result

    def stream(
        self,
        text: str | Sequence[int],
        voice: Voice | VoiceLatents | None,
        settings: Settings,
        seed: int | Randomness,
        chunks: Chunks | None = None,
        progress: Progress = lambda stage, done, total: None,
    ) -> Generator[Array, None, Pace]:
        """Say ``text`` by HiFi-GAN; yields pieces (samples,) of the clip that :meth:`synthesize` gives, as codes are drawn.

        One sample, which is heard while it is drawn; ``chunks`` says how much a piece waits for. -> how it kept up.
        With kv_positions "upstream", latents are those of the shifted positions, as in the reference's stream: another clip.
        """
        if settings.decoder != "hifigan" or settings.ar.samples > 1:
            raise SettingsError("a stream is one sample, decoded by hifigan: num_autoregressive_samples=1")
        clock = time.monotonic
        began, chunks, pace = clock(), chunks or Chunks(), Pace()
        rand = seed if isinstance(seed, Randomness) else Philox(check_seed(seed))
        self.check(voice, settings)
        spoken = self.spoken(text, settings)
        if spoken.prompt is not None:
            raise SettingsError(
                "a clip with words in [brackets], or to be checked, cannot be streamed: it must be complete"
            )
        row = autoregressive.text_row(spoken.ids, self.engine.dims)
        latents, _ = conditioning.resolve(self.engine, voice, settings, rand)
        decoder, size = chunks.decoder(self.engine, latents.auto), chunks.first
        drawn: list[Array] = []
        last = clock()
        for code, latent in self._stage.stream_codes(
            self.engine, latents.auto, row, settings.ar, rand, lambda: size - len(drawn),  # noqa: B023
            lambda *n: progress("sampling", *n),
        ):  # fmt: skip
            drawn.append(latent)
            pace.complete = code == self.engine.dims["ar.stop_code"]
            if len(drawn) == size:
                decoder.feed(np.stack(drawn))
                piece, now = decoder.take(), clock()
                if len(piece):
                    pace.add(now - began, len(piece) / SAMPLE_RATE)
                    yield piece
                    pace.rest(now - began, clock() - began)
                pace.code_seconds = (now - last) / len(drawn)
                size = chunks.size(pace.in_hand(now - began), pace.code_seconds, size)
                last = clock()
                drawn.clear()
        if drawn:
            decoder.feed(np.stack(drawn))
        if len(piece := decoder.take(ended=True)):
            pace.add(clock() - began, len(piece) / SAMPLE_RATE)
            yield piece
        return pace

    def _diffuse(
        self, result: Result, number: int, settings: Settings, rand: Randomness, progress: Progress
    ) -> None:
        count = len(result.chosen)
        with timed(result.seconds, "diffusion"):
            mel = diffusion.latents_to_mel(
                self.engine,
                result.latents[number],
                _present(result.voice.diffusion),
                settings.diffusion,
                rand,
                number,
                lambda done, total: progress("diffusion", number * total + done, count * total),
            )
        with timed(result.seconds, "vocoder"):
            noise = rand.vocoder_noise(number, vocoder.noise_shape(mel)).astype(np.float32)
            wav = vocoder.univnet(self.engine, mel, noise)[0]
        progress("vocoder", number + 1, count)
        result.mels.append(mel)
        result.wavs.append(wav)

    def _hifigan(
        self, result: Result, number: int, settings: Settings, rand: Randomness, progress: Progress
    ) -> None:
        with timed(result.seconds, "vocoder"):
            wav = vocoder.hifigan(self.engine, result.latents[number], result.voice.auto)[0]
        progress("vocoder", number + 1, len(result.chosen))
        result.wavs.append(wav)

    def _listen(self, result: Result, number: int, prompt: redaction.Prompt, check: bool) -> None:
        """Find the words of a clip, report how it says them, and cut out what is in brackets."""
        with timed(result.seconds, "listening"):
            heard = hear(self.engine, result.wavs[number])
            if check:
                stopped = bool((result.codes[result.chosen[number]] == result.stop_code).any())
                report, words = checking.judge(heard, prompt.words, stopped, result.seed)
                result.reports.append(report)
            else:
                words = align(heard, prompt.words)
            result.wavs[number], left = redaction.cut(result.wavs[number], words, prompt)
            result.words.append(left)

    def _scores(
        self,
        ids: Sequence[int],
        fixed: Array,
        settings: Settings,
        clip_mels: Array | None,
        progress: Progress,
    ) -> Array:
        if not self._can_rank(settings, clip_mels):  # nothing to choose: keep them in the order drawn
            return np.zeros(len(fixed), np.float32)
        progress("ranking", 0, len(fixed))
        scores = ranking.rank(self.engine, ids, fixed, settings.cvvp_amount, clip_mels)
        progress("ranking", len(fixed), len(fixed))
        return scores

    def _can_rank(self, settings: Settings, clip_mels: Array | None) -> bool:
        """Whether samples are ranked: always when some are dropped, otherwise where engine and voice allow it."""
        if settings.ar.samples > settings.candidates:
            return True
        able = self.engine.has(*_ranking_graphs(settings)) and (
            settings.cvvp_amount == 0 or clip_mels is not None
        )
        return settings.ar.samples > 1 and able

    def check(self, voice: Voice | VoiceLatents | None, settings: Settings) -> None:
        """Raise before any work when the engine lacks a network that ``voice`` or ``settings`` need."""
        self.engine.require("ar_step")
        if settings.decoder == "hifigan":
            self.engine.require("hifigan", instead="the decoder diffusion (--decoder diffusion)")
        else:
            decoder = "the decoder hifigan (--decoder hifigan)"
            self.engine.require("diffusion_denoise", "univnet", instead=decoder)
        if settings.cvvp_amount > 0:
            self.engine.require("cvvp_speech", instead="a cvvp_amount of 0 (--cvvp-amount 0)")
        if settings.ar.samples > settings.candidates:
            count = f"as many samples as are returned (--samples {settings.candidates})"
            self.engine.require(*_ranking_graphs(settings), instead=count)
        if voice is None:
            conditioning.check_random(self.engine)


def check_seed(seed: Any) -> int:
    """``seed`` as an int; raises SettingsError when it is not a whole number or out of range."""
    if not _is_whole(seed) or not 0 <= seed <= MAX_SEED:
        raise SettingsError(f"seed is {seed!r}; it must be a whole number from 0 to {MAX_SEED}")
    return int(seed)


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _items(value: Any) -> Iterable[Any]:
    """The items of a sequence; for anything else one that is no token id."""
    return value if isinstance(value, Iterable) else (None,)


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the time the block takes to ``seconds[stage]``."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


def _ranking_graphs(settings: Settings) -> list[str]:
    """The graphs that ranking needs."""
    return ["clvp_speech"] * (settings.cvvp_amount < 1) + ["cvvp_speech"] * (settings.cvvp_amount > 0)


def _present(latent: Array | None) -> Array:
    assert latent is not None  # conditioning.check_latents saw to it
    return latent
