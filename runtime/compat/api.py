"""``tortoise.api`` by its own names and signatures: ``from tortoise_rt.compat.api import TextToSpeech``.

Clips and latents come as torch tensors where torch is installed, else as NumPy arrays. ``models_dir`` may be a bundle as
well. Nothing is downloaded. See :class:`tortoise_rt.TextToSpeech` for what has no effect here.
"""

from __future__ import annotations

from ..tts import classify_audio_clip as _classify_audio_clip
from .base import (
    DEFAULT_MODELS_DIR,
    MODELS_DIR,
    ReferenceClass,
    code_limit,
    engine_folder,
    hub_urls,
    model_path,
    pick_best_batch_size_for_gpu,
)
from .tensors import give

MODELS = hub_urls(
    "autoregressive", "detector", "clvp", "cvvp", "diffusion", "vocoder", "rlg_auto", "rlg_diffuser"
)


def get_model_path(model_name, models_dir=MODELS_DIR):
    """Where one of MODELS lies. Nothing is downloaded: that is what ``tortoise-rt fetch`` does."""
    return model_path(model_name, models_dir, MODELS)


def classify_audio_clip(clip):
    """The probability that a clip at 24 kHz came from TorToiSe."""
    return give(_classify_audio_clip(clip, engine_folder(MODELS_DIR)))


class TextToSpeech(ReferenceClass):
    """The reference's class: samples ranked, then decoded by diffusion."""

    def get_conditioning_latents(self, voice_samples, return_mels=False):
        """-> (autoregressive, diffusion) latents, and the mels behind them with ``return_mels``."""
        return give(self._tts.get_conditioning_latents(voice_samples, return_mels))

    def get_random_conditioning_latents(self):
        """-> (autoregressive, diffusion) latents of a voice that does not exist."""
        return give(self._tts.get_random_conditioning_latents())

    def tts_with_preset(self, text, preset="fast", **kwargs):
        """:meth:`tts` with the settings of a preset; ``kwargs`` override them."""
        made = self._tts.tts_with_preset(text, preset, **{"decoder": "diffusion", **kwargs})
        return _give_clips(made, kwargs.get("return_deterministic_state", False))

    def tts(
        self,
        text,
        voice_samples=None,
        conditioning_latents=None,
        k=1,
        verbose=True,
        use_deterministic_seed=None,
        return_deterministic_state=False,
        num_autoregressive_samples=512,
        temperature=0.8,
        length_penalty=1,
        repetition_penalty=2.0,
        top_p=0.8,
        max_mel_tokens=500,
        cvvp_amount=0.0,
        diffusion_iterations=100,
        cond_free=True,
        cond_free_k=2,
        diffusion_temperature=1.0,
        **hf_generate_kwargs,
    ):
        """-> (1, 1, samples) at 24 kHz, or a list of k clips, best first."""
        made = self._tts.tts(
            text,
            voice_samples,
            conditioning_latents,
            k,
            verbose,
            use_deterministic_seed,
            return_deterministic_state,
            num_autoregressive_samples=num_autoregressive_samples,
            temperature=temperature,
            length_penalty=length_penalty,
            repetition_penalty=repetition_penalty,
            top_p=top_p,
            max_mel_tokens=code_limit(max_mel_tokens),
            cvvp_amount=cvvp_amount,
            diffusion_iterations=diffusion_iterations,
            cond_free=cond_free,
            cond_free_k=cond_free_k,
            diffusion_temperature=diffusion_temperature,
            **{"decoder": "diffusion", **hf_generate_kwargs},
        )
        return _give_clips(made, return_deterministic_state)


def _give_clips(made, with_state):
    """Clips as tensors; the state behind them is what the caller gave."""
    return (give(made[0]), made[1]) if with_state else give(made)


__all__ = [
    "DEFAULT_MODELS_DIR",
    "MODELS",
    "MODELS_DIR",
    "TextToSpeech",
    "classify_audio_clip",
    "get_model_path",
    "pick_best_batch_size_for_gpu",
]
