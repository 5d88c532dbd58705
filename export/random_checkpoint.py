"""Writes random checkpoints in the official files' names and key layout, of any size.

    python -m tortoise_rt.export.random_checkpoint -o DIR [--size official|tiny] [--networks clvp,vocoder] [--seed N]

They make noise, not speech: they are for tests of loading, export and speed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tortoise_rt.export.bare import bare
from tortoise_rt.export.checkpoints import CONFIG_SECTIONS, write_network
from tortoise_rt.export.models.aligner import Aligner
from tortoise_rt.export.models.autoregressive import UnifiedVoice
from tortoise_rt.export.models.diffusion import DiffusionTts
from tortoise_rt.export.models.hifigan import HifiganGenerator
from tortoise_rt.export.models.ranking import CLVP, CVVP
from tortoise_rt.export.models.small import Detector, RandomLatentConverter
from tortoise_rt.export.models.univnet import UnivNetGenerator

NOTICE = "random weights: the output is noise, not speech"


def networks(size: str) -> dict[str, Callable[[], nn.Module]]:
    """Constructors of the networks but wav2vec2 at a size; "official" has the dimensions of the released model."""
    big = size == "official"
    ar, diffusion, hifi = (1024, 1024, 512) if big else (64, 64, 16)
    clvp = dict(dim=768, depth=20, heads=12, inner=1536) if big else dict(dim=64, depth=2, heads=1, inner=128)
    cvvp = dict(dim=512, depth=8, heads=8, inner=512) if big else dict(dim=64, depth=1, heads=1, inner=64)
    codes = 8192 if big else 256
    return {
        "autoregressive": lambda: UnifiedVoice(
            dim=ar,
            layers=30 if big else 2,
            heads=ar // 64 if big else 4,
            inner=4 * ar,
            voice_blocks=6 if big else 2,
            text_ids=256,
            text_positions=404,
            mel_codes=codes + 2,
            mel_positions=608,
        ),
        "clvp": lambda: CLVP(256, codes, 768 if big else 64, clvp, clvp),
        "cvvp": lambda: CVVP(codes, 512 if big else 64, cvvp, cvvp),
        "diffusion": lambda: DiffusionTts(
            channels=diffusion,
            heads=diffusion // 64 if big else 4,
            latent_dim=ar,
            codes=codes + 1,
            layers=10 if big else 2,
            final_blocks=3,
            integrator_layers=3,
            latent_blocks=4,
            code_blocks=3,
            voice_blocks=5,
        ),
        "vocoder": lambda: UnivNetGenerator(32 if big else 4, 64 if big else 8, [8, 8, 4], 4),
        "hifigan": lambda: HifiganGenerator(
            in_dim=ar,
            voice_dim=ar,
            channels=hifi,
            upsample_kernels=[16, 16, 4, 4],
            upsample_factors=[8, 8, 2, 2],
            block_kernels=[3, 7, 11],
            block_dilations=[[1, 3, 5]] * 3,
        ),
        "rlg_auto": lambda: RandomLatentConverter(ar, 6),
        "rlg_diffuser": lambda: RandomLatentConverter(2 * diffusion, 6),
        "detector": lambda: Detector(
            2,
            512 if big else 32,
            channels=[(32 if big else 8) << i for i in range(6 if big else 4)],
            blocks=2,
            kernel=5,
            factor=4,
            attention=4 if big else 1,
            heads=4,
        ),
        "aligner": lambda: Aligner(
            dim=128 if big else 16, blocks=5 if big else 2, inner=256 if big else 32, kernel=15
        ),
    }


def write_checkpoints(
    folder: Path, size: str = "tiny", only: list[str] | None = None, seed: int = 0, stop_bias: float = 3.0
) -> None:
    """Write the files of ``only`` (all networks when None) and a config.json into ``folder``.

    ``stop_bias`` raises the logit of the stop code, so that samples end by themselves.
    """
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for network, build in networks(size).items():
        if only is not None and network not in only:
            continue
        with bare():
            module = build()
        weights = {k: _random(k, v, generator) for k, v in module.state_dict().items()}
        if network == "autoregressive":
            weights["mel_head.bias"][-1] += stop_bias
        write_network(folder, network, weights)
    config: dict[str, Any] = {"notice": NOTICE}
    if size != "official":  # heads cannot be read from tensors; the official ones have 64 channels each
        config["autoregressive"] = {"heads": 4}
        config[CONFIG_SECTIONS["detector"]] = {"num_attn_heads": 4}
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def _random(key: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Weights of a size that keeps activations near 1; norms near the identity."""
    if key.endswith("inv_freq"):
        return 1.0 / 10000 ** (torch.arange(0, 2 * like.numel(), 2).float() / (2 * like.numel()))
    if like.ndim == 0:
        return torch.ones(())
    noise = torch.randn(like.shape, generator=generator)
    if like.ndim == 1:
        norm = key.endswith((".weight", ".g"))
        return 1 + 0.1 * noise if norm else 0.02 * noise
    fan_in = like[0].numel() if "gpt.h." not in key else like.shape[0]
    embedding = "emb" in key and like.ndim == 2 and "time_embed" not in key and "emb_layers" not in key
    if "kernel_conv" in key:  # kernels of UnivNet's convolutions: at full size they make it chaotic
        noise = noise * 0.1
    return noise * (0.3 if embedding else fan_in**-0.5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--size", choices=("tiny", "official"), default="tiny")
    parser.add_argument("--networks", help="comma-separated; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-bias", type=float, default=3.0)
    arguments = parser.parse_args()
    only = arguments.networks.split(",") if arguments.networks else None
    write_checkpoints(arguments.output, arguments.size, only, arguments.seed, arguments.stop_bias)


if __name__ == "__main__":
    main()
