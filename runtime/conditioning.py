"""Voices -> the latents that condition the autoregressive network and the diffusion decoder."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from . import ranking
from .audio import conditioning_clip, diffusion_clip
from .config import Settings
from .engine import Array, Engine
from .errors import VoiceError
from .mel import ar_mel, univnet_mel
from .rng import Randomness
from .voice import Voice, VoiceLatents

log = logging.getLogger("tortoise_rt")


def resolve(
    engine: Engine, voice: Voice | VoiceLatents | None, settings: Settings, rand: Randomness
) -> tuple[VoiceLatents, Array | None]:
    """-> (latents of the voice, None being a random one; mels of its clips where there are any, for CVVP).

    Raises VoiceError for latents that do not fit the engine, SettingsError where CVVP must rank without clips.
    """
    mels = None
    if voice is None:
        latents = random_latents(engine, rand, settings.decoder)
    elif isinstance(voice, VoiceLatents):
        latents = voice
    elif not isinstance(voice, Voice):
        raise VoiceError(f"voice must be a Voice, VoiceLatents or None, not {type(voice).__name__}")
    elif voice.latents is not None:
        latents = voice.latents
    else:
        mels = voice_mels(voice.clips)
        latents = clip_latents(engine, voice.clips, settings.decoder, mels)
    check_latents(engine, latents, settings.decoder)
    if settings.cvvp_amount > 0 and settings.ar.samples > settings.candidates:
        ranking.require_mels(settings.cvvp_amount, mels)
    return latents, mels


def clip_latents(
    engine: Engine, clips: Sequence[Array], decoder: str | None = None, mels: Array | None = None
) -> VoiceLatents:
    """Clips (samples,) at 22.05 kHz -> the latents of their common voice.

    For the hifigan ``decoder`` the diffusion latent is left out. ``mels``: the clips' voice_mels, if known.
    """
    if not len(clips):
        raise VoiceError("a voice needs at least one clip")
    auto = mean_latent(engine, "ar_voice", voice_mels(clips) if mels is None else mels)
    spoken = None
    if decoder != "hifigan" and engine.has("diffusion_voice"):
        spoken = mean_latent(engine, "diffusion_voice", diffusion_mels(clips))
    return VoiceLatents(auto, spoken, engine.info.fingerprint)


def random_latents(engine: Engine, rand: Randomness, decoder: str | None = None) -> VoiceLatents:
    """The latents of a voice that does not exist; without a diffusion latent for the hifigan ``decoder``."""
    check_random(engine)
    (auto,) = engine.run("rlg_auto", noise=rand.voice_noise("auto", engine.dims["rlg_auto.dim"]))
    spoken = None
    if decoder != "hifigan" and engine.has("rlg_diffuser", "diffusion_denoise"):
        noise = rand.voice_noise("diffusion", engine.dims["rlg_diffuser.dim"])
        (spoken,) = engine.run("rlg_diffuser", noise=noise)
    return VoiceLatents(auto, spoken, engine.info.fingerprint)


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


def check_latents(engine: Engine, latents: VoiceLatents, decoder: str) -> None:
    """Raise a VoiceError for latents of the wrong sizes; warn about those of another checkpoint."""
    own = engine.info.fingerprint
    if not same_origin(latents.fingerprint, own):
        log.warning(
            "the voice's latents were made by another checkpoint (%s) than this engine's (%s): "
            "compute them again from the voice's clips",
            latents.fingerprint,
            own,
        )
    _check_size("autoregressive", latents.auto, engine.dims["ar.dim"])
    if decoder == "diffusion":
        if latents.diffusion is None:
            raise VoiceError("the voice has no diffusion latent: use --decoder hifigan or the voice's clips")
        _check_size("diffusion", latents.diffusion, engine.dims["diffusion.voice_dim"])


def _check_size(part: str, latent: Array, wanted: int) -> None:
    if latent.shape[-1] != wanted:
        raise VoiceError(
            f"the voice's {part} latent has {latent.shape[-1]} values; this model's have {wanted}: "
            "compute latents with this model from the voice's clips"
        )


def same_origin(one: str, other: str) -> bool:
    """Whether two fingerprints (``network=digits,...``) agree on every network that both name."""
    first, second = (dict(part.split("=", 1) for part in f.split(",") if "=" in part) for f in (one, other))
    return all(first[network] == second[network] for network in first.keys() & second.keys())
