"""``tortoise.utils.audio`` by its own names and shapes; torch tensors come back where torch is installed."""

from __future__ import annotations

import numpy as np

from ... import audio, mel, voice
from ...errors import VoiceError
from ...spec import MEL_MAX, MEL_MIN
from ...tensors import is_tensor, to_array
from ...voices import folder as shipped_folder
from ..tensors import give

BUILTIN_VOICES_DIR = str(shipped_folder())
TACOTRON_MEL_MAX, TACOTRON_MEL_MIN = MEL_MAX, MEL_MIN


def load_audio(audiopath, sampling_rate):
    """A file's first channel -> (1, samples) in [-1, 1] at ``sampling_rate`` Hz."""
    return give(audio.load_audio(audiopath, sampling_rate)[None])


def get_voices(extra_voice_dirs=[]):  # noqa: B006  # the reference's signature; it is not changed
    """Name -> paths of its clips or latents, of the voices in ``extra_voice_dirs``, the user's folder and those that ship."""
    known = voice.find_voices(extra_voice_dirs)
    return {name: [str(file) for file in voice.files_in(path)] for name, path in known.items()}


def load_voice(voice, extra_voice_dirs=[]):  # noqa: B006
    """-> (clips (1, samples) at 22.05 kHz, None), or (None, latents); (None, None) for "random"."""
    return load_voices([voice], extra_voice_dirs)


def load_voices(voices, extra_voice_dirs=[]):  # noqa: B006
    """As :func:`load_voice`, of several voices: their clips together, or the mean of their latents."""
    if voice.RANDOM in voices:
        return None, None
    loaded = [voice.load_voice(name, extra_voice_dirs, paths=False) for name in voices]
    found = [one for one in loaded if one is not None]
    if any(one.parts and one.latents is None for one in found):
        raise VoiceError(
            f"{' and '.join(voices)}: blends are not voices here; save them with tortoise-rt voices blend"
        )
    latents = [one.latents for one in found if one.latents is not None]
    if not latents:
        return [give(clip[None]) for one in found for clip in one.clips], None
    if len(latents) < len(found):
        raise VoiceError(
            f"{' and '.join(voices)}: clips and latents cannot be averaged; make latents of the clips first "
            "(tortoise-rt voices latents)"
        )
    parts = zip(*((one.auto, one.diffusion) for one in latents), strict=True)
    if any(one.diffusion is None for one in latents) or len({one.auto.shape for one in latents}) > 1:
        raise VoiceError(f"{' and '.join(voices)}: the latents are not of one model: compute them anew")
    return None, tuple(give(np.mean(part, axis=0, dtype=np.float32)) for part in parts)


def denormalize_tacotron_mel(norm_mel):
    """[-1, 1] -> log magnitude."""
    return (norm_mel + 1) / 2 * (MEL_MAX - MEL_MIN) + MEL_MIN


def normalize_tacotron_mel(mel):
    """Log magnitude -> [-1, 1]."""
    return 2 * ((mel - MEL_MIN) / (MEL_MAX - MEL_MIN)) - 1


def dynamic_range_compression(x, C=1, clip_val=1e-5):
    """log(C x), of no less than ``clip_val``."""
    return _same_kind(np.log(np.maximum(to_array(x), np.float32(clip_val)) * C), x)


def dynamic_range_decompression(x, C=1):
    """exp(x) / C."""
    return _same_kind(np.exp(to_array(x)) / C, x)


def wav_to_univnet_mel(wav, do_normalization=False, device=None):
    """(clips, samples) at 24 kHz -> (clips, 100, frames), log magnitude or in [-1, 1]; ``device`` has no effect."""
    return _same_kind(mel.univnet_mel(to_array(wav), do_normalization), wav)


def _same_kind(made, given):
    return give(made) if is_tensor(given) else made


__all__ = [
    "BUILTIN_VOICES_DIR",
    "TACOTRON_MEL_MAX",
    "TACOTRON_MEL_MIN",
    "denormalize_tacotron_mel",
    "dynamic_range_compression",
    "dynamic_range_decompression",
    "get_voices",
    "load_audio",
    "load_voice",
    "load_voices",
    "normalize_tacotron_mel",
    "wav_to_univnet_mel",
]
