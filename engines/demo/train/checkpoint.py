"""The committed weights as checkpoint files in the official layout, for the exporter and for the original's classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tortoise_rt.export.checkpoints import write_network

from . import autoregressive, hifigan

#: stage -> the network that it trains
NETWORKS: Mapping[str, str] = {
    "autoregressive": "autoregressive",
    "hifigan": "hifigan",
    "clvp": "clvp",
    "diffusion": "diffusion",
    "univnet": "vocoder",
    "aligner": "aligner",
}
NEEDED = ("autoregressive", "hifigan")  #: stages without which the demo does not speak
#: stages whose networks the demo has
SHIPPED = (*NEEDED, "clvp", "diffusion", "univnet", "aligner")

#: what tensors cannot tell, and what the demo takes where its user says nothing
CONFIG: Mapping[str, Any] = {
    "autoregressive": {
        "heads": autoregressive.HEADS,
        "start_text_token": autoregressive.START_TEXT,
        "start_mel_token": autoregressive.START,
        "stop_mel_token": autoregressive.STOP,
    },
    "hifi": {
        "upsample_factors": hifigan.UPSAMPLE_FACTORS,
        "resblock_dilation_sizes": hifigan.BLOCK_DILATIONS,
    },
    "defaults": {"decoder": "hifigan", "voice": "alto", "num_autoregressive_samples": 1, "clip_length": 100},
    "notice": "a small model for a first try",
}


def write(weights: Path, output: Path, stages: Sequence[str] = SHIPPED) -> None:
    """Write the networks of ``stages`` that ``weights`` holds, tokenizer.json and config.json into the folder ``output``.

    ``weights``: one STAGE.safetensors for each network, half precision, keys "model/<key>"; and tokenizer.json.
    """
    output.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if stage in NEEDED or _file(weights, stage).exists():
            write_network(output, NETWORKS[stage], _official(stage, read(weights, stage)))
    shutil.copyfile(weights / "tokenizer.json", output / "tokenizer.json")
    (output / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n", "utf-8")


def read(weights: Path, stage: str) -> dict[str, Tensor]:
    """A stage's network in float32, as the stage trains it."""
    tensors = load_file(_file(weights, stage))
    return {key[6:]: value.float() for key, value in sorted(tensors.items()) if key.startswith("model/")}


def _file(weights: Path, stage: str) -> Path:
    return weights / f"{stage}.safetensors"


def _official(stage: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a stage trains in normalised form, for inputs as they are."""
    if stage == "univnet":
        from .univnet import folded

        return folded(weights)
    return weights
