"""``tortoise.api_fast`` by its own names and signatures: one sample, decoded by HiFi-GAN.

As there, presets differ in nothing that one sample and this decoder use. Unlike there, ``conditioning_latents``,
``max_mel_tokens`` and ``k`` are not ignored, and the end of a stream is not cut off.
"""

from __future__ import annotations

from ..config import PRESETS, check_choice
from ..sentences import LONGEST
from .api import classify_audio_clip
from .base import (
    DEFAULT_MODELS_DIR,
    MODELS_DIR,
    ReferenceClass,
    code_limit,
    hub_urls,
    model_path,
    pick_best_batch_size_for_gpu,
)
from .tensors import give

MODELS = hub_urls("autoregressive", "detector", "rlg_auto", "hifigan")

_UNUSED = (
    "diffusion_iterations",
    "cond_free",
    "cond_free_k",
    "diffusion_temperature",
    "num_autoregressive_samples",
)


def get_model_path(model_name, models_dir=MODELS_DIR):
    """Where one of MODELS lies. Nothing is downloaded: that is what ``tortoise-rt fetch`` does."""
    return model_path(model_name, models_dir, MODELS)


class TextToSpeech(ReferenceClass):
    """The reference's fast class."""

    def get_conditioning_latents(self, voice_samples, return_mels=False):
        """-> the autoregressive latent (1, D), which is all that this decoder needs."""
        return give(self._tts.get_conditioning_latents(voice_samples)[0])

    def get_random_conditioning_latents(self):
        """-> the autoregressive latent (1, D) of a voice that does not exist."""
        return give(self._tts.get_random_conditioning_latents()[0])

    def tts_with_preset(self, text, preset="fast", **kwargs):
        """Yields what :meth:`tts` gives, (1, samples) at a time; settings of the diffusion decoder are ignored."""
        check_choice("preset", preset, PRESETS)
        yield from self.tts(text, **{name: value for name, value in kwargs.items() if name not in _UNUSED})

    def tts_stream(
        self,
        text,
        voice_samples=None,
        conditioning_latents=None,
        k=1,
        verbose=True,
        use_deterministic_seed=None,
        return_deterministic_state=False,
        overlap_wav_len=1024,
        stream_chunk_size=40,
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
        """Yields (samples,) pieces at 24 kHz. They join without a cross-fade: ``overlap_wav_len`` has no effect here.

        ``tortoise_rt.TextToSpeech.tts_stream`` makes them with one, for comparison.

        A text too long for one clip is said sentence by sentence.
        """
        pieces = self._tts.tts_stream(
            text,
            voice_samples,
            conditioning_latents,
            verbose,
            use_deterministic_seed,
            stream_chunk_size,
            split=not isinstance(text, str) or len(text) > LONGEST,
            k=k,
            temperature=temperature,
            length_penalty=length_penalty,
            repetition_penalty=repetition_penalty,
            top_p=top_p,
            max_mel_tokens=code_limit(max_mel_tokens),
            **hf_generate_kwargs,
        )
        yield from map(give, pieces)

    def tts(
        self,
        text,
        voice_samples=None,
        k=1,
        verbose=True,
        use_deterministic_seed=None,
        num_autoregressive_samples=512,
        temperature=0.8,
        length_penalty=1,
        repetition_penalty=2.0,
        top_p=0.8,
        max_mel_tokens=500,
        cvvp_amount=0.0,
        **hf_generate_kwargs,
    ):
        """-> (1, 1, samples) at 24 kHz, or a list of k clips, as drawn."""
        made = self._tts.tts(
            text,
            voice_samples,
            hf_generate_kwargs.pop("conditioning_latents", None),
            k,
            verbose,
            use_deterministic_seed,
            num_autoregressive_samples=k,
            temperature=temperature,
            length_penalty=length_penalty,
            repetition_penalty=repetition_penalty,
            top_p=top_p,
            max_mel_tokens=code_limit(max_mel_tokens),
            **{"decoder": "hifigan", **hf_generate_kwargs},
        )
        return give(made)


__all__ = [
    "DEFAULT_MODELS_DIR",
    "MODELS",
    "MODELS_DIR",
    "TextToSpeech",
    "classify_audio_clip",
    "get_model_path",
    "pick_best_batch_size_for_gpu",
]
