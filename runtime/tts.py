"""``TextToSpeech``: the reference's class by its own arguments, on any engine."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from . import redaction
from .audio import check_clip
from .autoregressive import ROWS
from .backends import open_engine
from .checking import retried
from .conditioning import clip_latents, diffusion_mels, one_voice, random_latents, voice_mels
from .config import Settings, check_number
from .debug_state import check_folder, save_debug_state
from .defaults import DEFAULT_PRESET, check_settings, default_voice, settings_for
from .detect import detect
from .engine import Array, Engine
from .errors import AudioError, SettingsError, TextError, VoiceError
from .generate import settings_of_generate
from .pipeline import Result, check_seed
from .reading import PAUSE, Reader
from .rng import Philox, fresh_seed
from .scheduler import Handle, Priority, Scheduler
from .spec import CODE_RATE, SAMPLE_RATE
from .streaming import MOST_CODES, REFERENCE_FIRST, REFERENCE_SIZE, Chunks
from .tensors import all_in_kind, any_tensor, in_kind, is_tensor, to_array
from .text import Tokenizer, find_reference_tokenizer
from .voice import Voice, VoiceLatents, check_amount, load_voice

log = logging.getLogger("tortoise_rt")
MOST_CALLS = 4096  #: threads that wait for speech at a time
T = TypeVar("T")


def choose_engine(
    engine: str | Path | Engine | None = None,
    checkpoints: str | Path | None = None,
    backend: str = "auto",
    device: str = "auto",
    precision: str | None = None,
) -> Engine:
    """The engine that is given, or the one opened from a bundle or from checkpoints; the demo bundle for neither."""
    if engine is not None and checkpoints is not None:
        raise SettingsError(f"engine {engine} and checkpoints {checkpoints}: name one of the two")
    check_path("engine", engine, Engine)
    check_path("checkpoints", checkpoints)
    if isinstance(engine, Engine):
        return engine
    if checkpoints is not None and backend == "auto":
        backend = "torch"
    return open_engine(checkpoints if engine is None else engine, backend, device, precision)


def choose_tokenizer(engine: Engine, path: str | Path | None, basic: bool = False) -> Tokenizer | None:
    """The tokenizer in ``path``, else the engine's, else that of an installed tortoise-tts package, else None."""
    chosen = path or engine.info.tokenizer or find_reference_tokenizer()
    return None if chosen is None else Tokenizer(chosen, basic)


def check_path(name: str, value: Any, *others: type) -> None:
    """Raise a SettingsError unless ``value`` is a path, None or one of the types ``others``."""
    if value is not None and not isinstance(value, (str, os.PathLike, *others)):
        raise SettingsError(f"{name} must be the path of a folder, not {value!r}")


def check_text(text: Any) -> None:
    """Raise a TextError unless ``text`` is a string."""
    if not isinstance(text, str):
        raise TextError(f"text must be a string, not {type(text).__name__}")


def checked_parts(parts: Iterable[str]) -> Iterator[str]:
    """The parts in which a text comes, each checked when it does; raises as :func:`check_text`."""
    if not isinstance(parts, Iterable) or isinstance(parts, (bytes, bytearray)):
        check_text(parts)
    return map(_checked, parts)


def _checked(part: str) -> str:
    check_text(part)
    return part


class TextToSpeech:
    """Speech from text, with the constructor and methods of the reference's class of this name.

    ``engine`` is a bundle's folder or an open Engine, ``models_dir`` or ``checkpoints`` a folder of checkpoints
    (``models_dir`` may also be a bundle); with none of them, the demo bundle speaks. ``autoregressive_batch_size``
    samples decode side by side, of all threads that call; it bounds memory and never changes a result. The cache is always on: ``kv_cache``,
    ``use_deepspeed`` and ``half`` are accepted and have no effect. ``precision`` ("fp32", "fp16", "bf16") is of
    checkpoints; a bundle has that of its export.

    Arrays in and out are NumPy; torch tensors are accepted, and returned when given.
    """

    def __init__(
        self,
        autoregressive_batch_size: int | None = None,
        models_dir: str | Path | None = None,
        enable_redaction: bool = True,
        kv_cache: bool = False,
        use_deepspeed: bool = False,
        half: bool = False,
        device: Any = None,
        tokenizer_vocab_file: str | Path | None = None,
        tokenizer_basic: bool = False,
        *,
        engine: str | Path | Engine | None = None,
        checkpoints: str | Path | None = None,
        backend: str = "auto",
        precision: str | None = None,
    ) -> None:
        if models_dir is not None and engine is not None:
            raise SettingsError(f"models_dir {models_dir} and engine {engine}: name one of the two")
        check_path("models_dir", models_dir)
        if autoregressive_batch_size is not None:
            check_settings(batch_rows=autoregressive_batch_size)
        device = "auto" if device is None else str(device)
        chosen = models_dir if engine is None else engine
        self.engine = choose_engine(chosen, checkpoints, backend, device, precision)
        self.enable_redaction = enable_redaction
        self._batch_rows = autoregressive_batch_size
        tokenizer = choose_tokenizer(self.engine, tokenizer_vocab_file, tokenizer_basic)
        rows = ROWS if autoregressive_batch_size is None else autoregressive_batch_size
        self.scheduler = Scheduler(self.engine, tokenizer, rows=rows, queue=MOST_CALLS)
        if half:
            _warn_about_half()

    def tts(
        self,
        text: str,
        voice_samples: Any = None,
        conditioning_latents: Any = None,
        k: int = 1,
        verbose: bool = True,
        use_deterministic_seed: int | None = None,
        return_deterministic_state: bool = False,
        debug_state: str | Path | None = None,
        **settings: Any,
    ) -> Any:
        """Say ``text``; -> (1, 1, samples) float32 at 24 kHz, or a list of k such clips, best first, for k > 1.

        The voice is that of ``voice_samples`` (clips at 22.05 kHz), else of ``conditioning_latents``, else the
        engine's own, else a random one. ``settings`` are those of :func:`tortoise_rt.make_settings`
        (num_autoregressive_samples, temperature, length_penalty, repetition_penalty, top_p, top_k, max_mel_tokens,
        cvvp_amount, diffusion_iterations, cond_free, cond_free_k, diffusion_temperature, decoder, ...) and default
        to the engine's, else to the reference's. ``verbose`` logs the seed and the time of each stage (logger
        "tortoise_rt"). With ``return_deterministic_state``, -> (clips, (seed, text, voice_samples,
        conditioning_latents)): these arguments make the same clips again. ``debug_state`` names a folder to write
        everything of the run to (:mod:`tortoise_rt.debug_state`).
        """
        if debug_state is not None:
            check_folder(debug_state)
        result = self._synthesize(
            text, voice_samples, conditioning_latents, use_deterministic_seed, verbose, {"k": k, **settings}
        )
        if debug_state is not None:
            save_debug_state(debug_state, result, self.engine)
        tensors = any_tensor(voice_samples, conditioning_latents)
        clips = [in_kind(wav[None, None], tensors) for wav in result.wavs]
        made = clips if len(clips) > 1 else clips[0]
        if return_deterministic_state:
            return made, (result.tries[0], text, voice_samples, conditioning_latents)
        return made

    def tts_with_preset(self, text: str, preset: str = DEFAULT_PRESET, **arguments: Any) -> Any:
        """:meth:`tts` with the settings of a preset: "ultra_fast", "fast", "standard" or "high_quality"."""
        return self.tts(text, preset=preset, **arguments)

    def tts_stream(
        self,
        text: str | Iterable[str],
        voice_samples: Any = None,
        conditioning_latents: Any = None,
        verbose: bool = True,
        use_deterministic_seed: int | None = None,
        stream_chunk_size: int | None = None,
        split: bool = True,
        pause: float = PAUSE,
        first_chunk: int | None = None,
        overlap_wav_len: int | None = None,
        **settings: Any,
    ) -> Generator[Any, None, None]:
        """Say ``text``, or the parts in which it comes; gives (samples,) float32 pieces at 24 kHz while it is drawn.

        It is said sentence by sentence, the first with the seed, each other with the next seed, and ``pause`` seconds
        of silence between them, all in one voice; with ``split`` off the text is one clip. What is said of a sentence is, joined, the
        clip that :meth:`tts` makes with its seed, this voice, one sample and the decoder "hifigan" (not with kv_positions="upstream"). Settings that ask for more
        samples, or for diffusion, as a preset does, make pieces of whole sentences. A piece waits for ``stream_chunk_size`` codes; by
        default for as many as the listener has sound in hand for, 0 is all of a sentence; the first waits for
        ``first_chunk``, by default 8 or that size. ``overlap_wav_len`` is for comparison: it makes pieces as the original
        does, which decodes all so far for each and cross-fades over so many samples (1024 there, with pieces of 40).
        """
        if settings.pop("k", 1) not in (1, None):
            raise SettingsError("a stream is one clip: leave k out, or use tts()")
        sizes = (stream_chunk_size, first_chunk, overlap_wav_len)
        chunks = None if sizes == (None, None, None) else chunks_of(*sizes)
        quick = {} if settings.get("preset") else {"num_autoregressive_samples": 1, "decoder": "hifigan"}
        chosen = self._settings(**{**quick, **settings})
        voice, seed = self._voice(voice_samples, conditioning_latents), _seed(use_deterministic_seed)
        reader = Reader(self.scheduler, voice, chosen, seed, chunks=chunks, pause=pause, split=split)
        tensors = any_tensor(voice_samples, conditioning_latents)
        if not isinstance(text, str):
            text = checked_parts(text)
        elif chosen.redaction:
            redaction.check(text, self.engine)

        def pieces(text: str | Iterator[str]) -> Generator[Any, None, None]:
            with contextlib.closing(reader.read(text)) as read:
                for piece in read:
                    yield in_kind(piece.wav, tensors)
            if verbose:
                log.info("seed %d: %s", seed, reader.pace.report())

        return pieces(text)

    def get_conditioning_latents(self, voice_samples: Any, return_mels: bool = False) -> tuple[Any, ...]:
        """Clips at 22.05 kHz, (samples,) or (1, samples) each -> (autoregressive (1, D), diffusion (1, 2C)) latents.

        The second is None on an engine without the diffusion decoder. With ``return_mels``, the mels they were
        computed from follow: (1, clips, 80, frames) and (1, clips, 100, frames).
        """
        clips = as_clips(voice_samples)
        latents = _wait(self.scheduler.call(lambda engine: clip_latents(engine, clips)))
        arrays = [latents.auto, latents.diffusion]
        if return_mels:
            arrays += [voice_mels(clips)[None], diffusion_mels(clips)[None]]
        return all_in_kind(arrays, any_tensor(voice_samples))

    def get_random_conditioning_latents(self, seed: int | None = None) -> tuple[Any, ...]:
        """The latents of a voice that does not exist, another one for each seed."""
        rand = Philox(_seed(seed))
        latents = _wait(self.scheduler.call(lambda engine: random_latents(engine, rand)))
        return latents.auto, latents.diffusion

    def classify_audio_clip(self, clip: Any) -> Any:
        """A clip at 24 kHz, (samples,) or (1, samples) -> the probability that it came from TorToiSe, by this engine."""
        self.engine.require("detector")
        return _probability(clip, lambda wav: _wait(self.scheduler.call(lambda engine: detect(engine, wav))))

    def _synthesize(
        self,
        text: str,
        voice_samples: Any,
        conditioning_latents: Any,
        seed: int | None,
        verbose: bool,
        arguments: dict[str, Any],
        priority: Priority = Priority.NORMAL,
    ) -> Result:
        check_text(text)
        settings = self._settings(**arguments)
        given, first = self._voice(voice_samples, conditioning_latents), _seed(seed)
        voice = _wait(self.scheduler.call(lambda engine: one_voice(engine, given, settings, first)))

        def say(seed: int) -> Result:
            return _wait(self.scheduler.submit(text, voice, settings, seed, priority=priority))

        result = retried(say, first, settings.max_retries)
        if verbose:
            times = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in result.seconds.items())
            log.info("%s, %.2f s of audio: %s", result.made_with(), result.audio_seconds, times)
        for report in result.reports:
            if not report.ok:
                log.warning("a clip is not its text: %s", "; ".join(report.problems))
        if not result.complete:
            log.warning("a clip reached max_mel_tokens before its end: it may miss words; split the text")
        return result

    def _settings(self, preset: str | None = None, **arguments: Any) -> Settings:
        arguments = settings_of_generate(arguments)
        arguments.setdefault("batch_rows", self._batch_rows)
        arguments.setdefault("enable_redaction", self.enable_redaction)
        return settings_for(self.engine, preset, **arguments)

    def _voice(self, samples: Any, latents: Any) -> Voice | VoiceLatents | None:
        if samples is not None:
            return Voice("given", clips=as_clips(samples))
        if latents is not None:
            return as_latents(latents)
        return load_voice(default_voice(self.engine), paths=False)  # a bundle may name voices, not files


def chunks_of(size: int | None, first: int | None = None, overlap: int | None = None) -> Chunks:
    """Pieces of ``size`` codes; None: few at first, then more; 0: a sentence. ``overlap``: the original's, for comparison."""
    if overlap and size is None:
        size = REFERENCE_SIZE
    if size is not None:
        size = int(check_number("stream_chunk_size", size, 0, MOST_CODES, integer=True)) or MOST_CODES
    if first is None:
        first = size or Chunks.first
        first = max(first, REFERENCE_FIRST) if overlap else first
    return Chunks(first, size, 0 if overlap is None else overlap)


def classify_audio_clip(clip: Any, engine: str | Path | Engine | None = None) -> Any:
    """A clip at 24 kHz, (samples,) or (1, samples) -> the probability that it came from TorToiSe."""
    check_path("engine", engine, Engine)
    return _probability(clip, lambda wav: detect(_classifier(engine), wav))


def _probability(clip: Any, judge: Callable[[Array], float]) -> Any:
    """What ``judge`` makes of a clip; as a tensor for a tensor."""
    probability = judge(as_clip(clip, SAMPLE_RATE, "the clip"))
    return in_kind(np.array(probability, np.float32), True) if is_tensor(clip) else probability


def as_clips(samples: Any) -> tuple[Array, ...]:
    """One clip or a sequence of them at 22.05 kHz -> (samples,) float32 each; raises AudioError for unusable ones."""
    array = is_tensor(samples) or isinstance(samples, np.ndarray)
    if not array and not isinstance(samples, (list, tuple)):
        raise AudioError(
            f"voice_samples is of type {type(samples).__name__}; clips are needed: (samples,) or (1, samples) each, at "
            f"{CODE_RATE} Hz, as load_audio(path, {CODE_RATE}) gives them"
        )
    given: Sequence[Any] = [samples] if array and samples.ndim < 3 else samples
    clips = tuple(as_clip(clip, CODE_RATE, f"voice sample {i + 1}") for i, clip in enumerate(given))
    check_amount(clips, "the voice")
    return clips


def as_clip(clip: Any, rate: int, name: str) -> Array:
    """(samples,) or (1, samples) -> (samples,) float32; raises AudioError unless it is a usable clip."""
    try:
        array = to_array(clip)
    except (TypeError, ValueError) as error:
        raise AudioError(f"{name} is no array of samples: {error}") from error
    array = array[0] if array.ndim == 2 and len(array) == 1 else array
    check_clip(array, rate, name)
    return array


def as_latents(latents: Any) -> VoiceLatents:
    """VoiceLatents, a pair (autoregressive, diffusion) or an autoregressive latent alone -> VoiceLatents."""
    if isinstance(latents, VoiceLatents):
        return latents
    if isinstance(latents, (tuple, list)):
        if len(latents) == 4:  # with the mels that get_conditioning_latents(return_mels=True) adds
            latents = latents[:2]
        if not 1 <= len(latents) <= 2:
            raise VoiceError(
                f"conditioning_latents has {len(latents)} parts: (autoregressive, diffusion) are needed"
            )
        return VoiceLatents(*(None if part is None else _latent(part) for part in latents))  # type: ignore[arg-type]
    return VoiceLatents(_latent(latents))


def _latent(part: Any) -> Array:
    try:
        return to_array(part)
    except (TypeError, ValueError) as error:
        raise VoiceError(f"conditioning_latents holds no array of numbers: {error}") from error


def _wait(handle: Handle[T]) -> T:
    try:
        return handle.result()
    except BaseException:  # an interrupt too: nobody waits for it any more
        handle.cancel()
        raise


def _seed(seed: int | None) -> int:
    return fresh_seed() if seed is None else check_seed(seed)


@functools.lru_cache(maxsize=1)
def _classifier(engine: str | Path | Engine | None) -> Engine:
    return choose_engine(engine)


@functools.cache
def _warn_about_half() -> None:
    log.warning(
        'half=True has no effect: precision is chosen when an engine is exported, or by precision="fp16" for checkpoints'
    )
