"""``tortoise.api`` by its own names and signatures: ``from tortoise_rt.compat.api import TextToSpeech``.

Clips and latents are NumPy arrays unless torch tensors are given. ``models_dir`` may be a bundle as well. Nothing
is downloaded. See :class:`tortoise_rt.TextToSpeech` for what has no effect here.
"""

from __future__ import annotations

from ..tts import classify_audio_clip as _classify_audio_clip
from .base import DEFAULT_MODELS_DIR, MODELS_DIR, ReferenceClass, code_limit, models_folder


def classify_audio_clip(clip):
    """The probability that a clip at 24 kHz came from TorToiSe."""
    return _classify_audio_clip(clip, models_folder(MODELS_DIR))


class TextToSpeech(ReferenceClass):
    """The reference's class: samples ranked, then decoded by diffusion."""

    def get_conditioning_latents(self, voice_samples, return_mels=False):
        """-> (autoregressive, diffusion) latents, and the mels behind them with ``return_mels``."""
        return self._tts.get_conditioning_latents(voice_samples, return_mels)

    def get_random_conditioning_latents(self):
        """-> (autoregressive, diffusion) latents of a voice that does not exist."""
        return self._tts.get_random_conditioning_latents()

    def tts_with_preset(self, text, preset="fast", **kwargs):
        """:meth:`tts` with the settings of a preset; ``kwargs`` override them."""
        return self._tts.tts_with_preset(text, preset, **{"decoder": "diffusion", **kwargs})

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
        return self._tts.tts(
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


__all__ = ["DEFAULT_MODELS_DIR", "MODELS_DIR", "TextToSpeech", "classify_audio_clip"]
