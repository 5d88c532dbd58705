"""Voices -> the latents that condition the autoregressive network and the diffusion decoder."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from . import ranking
from .audio import conditioning_clip, diffusion_clip
from .config import Settings
from .engine import Array, Engine
from .errors import VoiceError
from .latents import VoiceLatents, blend, same_origin
from .mel import ar_mel, univnet_mel
from .rng import Philox, Randomness
from .voice import Voice
from .voice_cache import kept

log = logging.getLogger("tortoise_rt")


def resolve(
    engine: Engine, voice: Voice | VoiceLatents | None, settings: Settings, rand: Randomness
) -> tuple[VoiceLatents, Array | None]:
    """-> (latents of the voice, None being a random one; mels of its clips where CVVP is to rank by them).

    Raises VoiceError for latents that do not fit the engine, SettingsError where CVVP must rank without clips.
    """
    mels = None
    if voice is None:
        latents = random_latents(engine, rand, settings.decoder)
    elif isinstance(voice, VoiceLatents):
        latents = voice
    elif not isinstance(voice, Voice):
        raise VoiceError(f"voice must be a Voice, VoiceLatents or None, not {type(voice).__name__}")
    else:
        latents = voice_latents(engine, voice, settings.decoder)
        mels = clip_mels(voice) if settings.cvvp_amount > 0 else None
    check_latents(engine, latents, settings.decoder)
    if settings.cvvp_amount > 0 and settings.ar.samples > settings.candidates:
        ranking.require_mels(settings.cvvp_amount, mels)
    return latents, mels


def voice_latents(engine: Engine, voice: Voice, decoder: str | None = None) -> VoiceLatents:
    """The latents of a voice; of one of several parts, the mean of theirs by weight.

    For the hifigan ``decoder`` the diffusion latent is left out where it would have to be computed or to be there
    in every part. Raises VoiceError for parts that do not fit the engine or each other.
    """
    if voice.latents is not None:
        return voice.latents
    if not voice.parts:
        return clip_latents(engine, voice.clips, decoder)
    made = []
    for part, _ in voice.parts:
        latents = voice_latents(engine, part, decoder)
        check_latents(engine, latents, decoder)
        made.append(replace(latents, diffusion=None) if decoder == "hifigan" else latents)
    return blend(made, [weight for _, weight in voice.parts])


def clip_mels(voice: Voice | VoiceLatents | None) -> Array | None:
    """What CVVP hears of a voice: the mels of all its clips; None where it has none, or a part has none."""
    clips = voice.all_clips if isinstance(voice, Voice) else ()
    return voice_mels(clips) if clips else None


def clip_latents(engine: Engine, clips: Sequence[Array], decoder: str | None = None) -> VoiceLatents:
    """Clips (samples,) at 22.05 kHz -> the latents of their common voice: the mean of the clips', as in the reference.

    For the hifigan ``decoder`` the diffusion latent is left out. A clip's latents are kept in the user's cache.
    """
    if not len(clips):
        raise VoiceError("a voice needs at least one clip")
    auto = _mean_of_clips(engine, "ar_voice", clips, voice_mels)
    spoken = None
    if decoder != "hifigan" and engine.has("diffusion_voice"):
        spoken = _mean_of_clips(engine, "diffusion_voice", clips, diffusion_mels)
    return VoiceLatents(auto, spoken, engine.info.fingerprint)


def _mean_of_clips(
    engine: Engine, graph: str, clips: Sequence[Array], mels: Callable[[Sequence[Array]], Array]
) -> Array:
    """Each clip's latent, from the cache or from its ``mels``, averaged -> (1, dim)."""
    make = lambda clip: mean_latent(engine, graph, mels([clip]))  # noqa: E731
    return np.mean([kept(engine, graph, clip, make) for clip in clips], axis=0)


def random_latents(engine: Engine, rand: Randomness, decoder: str | None = None) -> VoiceLatents:
    """The latents of a voice that does not exist; without a diffusion latent for the hifigan ``decoder``."""
    check_random(engine)
    (auto,) = engine.run("rlg_auto", noise=rand.voice_noise("auto", engine.dims["rlg_auto.dim"]))
    spoken = None
    if decoder != "hifigan" and engine.has("rlg_diffuser", "diffusion_denoise"):
        noise = rand.voice_noise("diffusion", engine.dims["rlg_diffuser.dim"])
        (spoken,) = engine.run("rlg_diffuser", noise=noise)
    return VoiceLatents(auto, spoken, engine.info.fingerprint)


def one_voice(
    engine: Engine, voice: Voice | VoiceLatents | None, settings: Settings, seed: int
) -> Voice | VoiceLatents:
    """The voice of what is said with several seeds: a random one is the first seed's, as the next seed's is another."""
    return random_latents(engine, Philox(seed), settings.decoder) if voice is None else voice


def check_random(engine: Engine) -> None:
    """Raise a VoiceError when the engine has no random voices."""
    if not engine.has("rlg_auto"):
        raise VoiceError(
            f"{engine.info.source} has no random voices (rlg_auto.pth): name a voice (tortoise-rt voices list), give "
            "clips or latents, or use an engine exported from checkpoints that have them "
            "(tortoise-rt export --checkpoints DIR)"
        )


def voice_mels(clips: Sequence[Array]) -> Array:
    """What the autoregressive voice encoder and CVVP hear of clips: (clips, AR_MELS, frames)."""
    return np.concatenate([ar_mel(conditioning_clip(clip)[None]) for clip in clips])


def diffusion_mels(clips: Sequence[Array]) -> Array:
    """What the diffusion decoder's voice encoder hears of clips: (clips, MELS, frames)."""
    return np.concatenate([univnet_mel(diffusion_clip(clip)[None]) for clip in clips])


def mean_latent(engine: Engine, graph: str, mels: Array) -> Array:
    """One latent per clip, one clip at a time, averaged -> (1, dim)."""
    latents = [engine.run(graph, mel=mel[None])[0] for mel in mels]
    return np.mean(latents, axis=0)


def check_latents(engine: Engine, latents: VoiceLatents, decoder: str | None) -> None:
    """Raise a VoiceError for latents of the wrong sizes; warn, once, about those of another checkpoint.

    Without a ``decoder``, a diffusion latent is checked where there is one and the engine takes one.
    """
    _check_size("autoregressive", latents.auto, engine.dims["ar.dim"])
    if decoder == "diffusion" and latents.diffusion is None:
        raise VoiceError("the voice has no diffusion latent: use --decoder hifigan or the voice's clips")
    if decoder != "hifigan" and latents.diffusion is not None and engine.has("diffusion_align"):
        _check_size("diffusion", latents.diffusion, engine.dims["diffusion.voice_dim"])
    if not same_origin(latents.fingerprint, engine.info.fingerprint):
        _warn_of_origin(latents.fingerprint, engine.info.fingerprint)


def _check_size(part: str, latent: Array, wanted: int) -> None:
    if latent.shape[-1] != wanted:
        raise VoiceError(
            f"the voice's {part} latent has {latent.shape[-1]} values; this model's have {wanted}: "
            "compute latents with this model from the voice's clips"
        )


@functools.lru_cache(maxsize=1000)
def _warn_of_origin(theirs: str, own: str) -> None:
    """Once for each pair: a book is said sentence by sentence, and each comes by here."""
    log.warning(
        "the voice's latents were made by another checkpoint (%s) than this engine's (%s): "
        "compute them again from the voice's clips",
        theirs,
        own,
    )
