"""The reference's own classes on the same card: those that its unpacked sdist and what is installed can make.

Random weights of the official size, float32 as it runs them, and under autocast, its ``half``. The sizes are those of
the suite's stages; a step of diffusion is two passes there, one without conditioning.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
Work = Callable[[], object]


def stages(source: Path, device: torch.device, time: Callable[[Work], Row]) -> Iterator[Row]:
    """A row for each class: its times by ``time``, or why there are none."""
    sys.path.insert(0, str(source))
    for name, make in (
        ("denoise step, 2 rows of 870 frames", _denoise),
        ("univnet, 10 s", _univnet),
        ("hifigan, 10 s", _hifigan),
        ("clvp, 16 rows of 500 codes", _clvp),
        ("decode one code", _autoregressive),
    ):
        work: Work | None = None
        for precision in ("fp32", "autocast"):
            row = {"kind": "reference", "stage": name, "precision": precision}
            try:
                with torch.inference_mode(), torch.device(device):
                    work = work or make()
                with (
                    torch.inference_mode(),
                    torch.autocast(device.type, torch.float16, precision == "autocast"),
                ):
                    row |= time(work)
            except Exception as error:  # whatever it raises here
                row["skipped"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            yield row


def _module(name: str) -> Any:
    return importlib.import_module(f"tortoise.models.{name}")


def _denoise() -> Work:
    network = _module("diffusion_decoder").DiffusionTts(
        model_channels=1024, num_layers=10, in_channels=100, out_channels=200, in_latent_channels=1024, in_tokens=8193,
        dropout=0, use_fp16=False, num_heads=16, layer_drop=0, unconditioned_percentage=0,
    ).eval()  # fmt: skip
    x, aligned, when = torch.randn(1, 100, 870), torch.randn(1, 1024, 870), torch.tensor([1000])

    def step() -> None:
        network(x, when, precomputed_aligned_embeddings=aligned)
        network(x, when, precomputed_aligned_embeddings=aligned, conditioning_free=True)

    return step


def _univnet() -> Work:
    network = _module("vocoder").UnivNetGenerator()
    network.eval(inference=True)  # which takes its weight norm off
    mel, noise = torch.randn(1, 100, 930), torch.randn(1, 64, 940)
    return lambda: network.inference(mel, noise)


def _hifigan() -> Work:
    network = _module("hifigan_decoder").HifiganGenerator(
        in_channels=1024, out_channels=1, resblock_type="1", resblock_dilation_sizes=[[1, 3, 5]] * 3,
        resblock_kernel_sizes=[3, 7, 11], upsample_kernel_sizes=[16, 16, 4, 4], upsample_initial_channel=512,
        upsample_factors=[8, 8, 2, 2], cond_channels=1024,
    ).eval()  # fmt: skip
    latents, voice = torch.randn(1, 215, 1024), torch.randn(1, 1024)
    return lambda: network.inference(latents, voice)


def _clvp() -> Work:
    network = _module("clvp").CLVP(
        dim_text=768, dim_speech=768, dim_latent=768, num_text_tokens=256, text_enc_depth=20, text_seq_len=350,
        text_heads=12, num_speech_tokens=8192, speech_enc_depth=20, speech_heads=12, speech_seq_len=430, use_xformers=True,
    ).eval()  # fmt: skip
    text, codes = torch.randint(0, 255, (16, 63)), torch.randint(0, 8192, (16, 500))
    return lambda: network(text, codes, return_loss=False)


def _autoregressive() -> Work:
    network = _module("autoregressive").UnifiedVoice(
        max_mel_tokens=604, max_text_tokens=402, max_conditioning_inputs=2, layers=30, model_dim=1024, heads=16,
        number_text_tokens=255, start_text_token=255, checkpointing=False, train_solo_embeddings=False,
    ).eval()  # fmt: skip
    network.post_init_gpt2_config(use_deepspeed=False, kv_cache=True, half=False)
    model = network.inference_model
    model.store_mel_emb(torch.zeros(1, 249, 1024))
    with torch.inference_mode():
        past = model(torch.full((1, 250), 8192), attention_mask=torch.ones(1, 250)).past_key_values
    code, mask = torch.full((1, 1), 9), torch.ones(1, 251)
    return lambda: model(code, past_key_values=past, attention_mask=mask)
