"""What each graph of ``spec.GRAPHS`` computes, in terms of the torch modules. The judge of every other backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

GraphFunction = Callable[..., tuple[Tensor, ...]]

#: graph -> function of (module of its network, inputs in the order of the spec); ar_step is UnifiedVoice.step
GRAPH_FUNCTIONS: Mapping[str, GraphFunction] = {
    "ar_voice": lambda m, mel: (m.conditioning_encoder(mel),),
    "clvp_text": lambda m, text_ids: (m.encode_text(text_ids), _scale(m)),
    "clvp_speech": lambda m, codes: (m.encode_speech(codes),),
    "cvvp_voice": lambda m, mel: (m.encode_voice(mel), _scale(m)),
    "cvvp_speech": lambda m, codes: (m.encode_speech(codes),),
    "diffusion_voice": lambda m, mel: (m.encode_voice(mel),),
    "diffusion_align": lambda m, latents, voice, frame_index: m.align(latents, voice, frame_index),
    "diffusion_condition": lambda m, aligned, timestep: (m.condition(aligned, timestep),),
    "diffusion_denoise": lambda m, x, condition, timestep: (m.denoise(x, condition, timestep),),
    "univnet": lambda m, mel, noise: (m(mel, noise),),
    "hifigan": lambda m, latents, voice, wanted: (m(latents, voice, *wanted.tolist()),),
    "rlg_auto": lambda m, noise: (m(noise),),
    "rlg_diffuser": lambda m, noise: (m(noise),),
    "detector": lambda m, wav: (m(wav),),
    "aligner": lambda m, mel: (m(mel),),
    "wav2vec2": lambda m, wav: (m(wav),),
}


def _scale(module: Any) -> Tensor:
    return module.temperature.exp().reshape(1)
