"""Builds every graph of ``spec.GRAPHS`` as ONNX, straight from a network's weights (no tracing).

``write_graph`` is the entry point; ``BUILDERS`` names one function per graph, ``FAMILIES`` what they may use: ONNX
Runtime's own operators (domain com.microsoft), for the CPU, or standard ones alone, for GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt.errors import EngineError, suggest
from tortoise_rt.spec import GRAPHS

from . import aligners, autoregressive, diffusion, ranking, small, vocoders
from .builder import GraphBuilder
from .fused import FusedBuilder
from .standard import StandardBuilder
from .weights import TensorWriter

#: graph -> what adds its nodes, given the builder and the network's configuration
BUILDERS: Mapping[str, Callable[[GraphBuilder, Mapping[str, Any]], None]] = {
    "ar_voice": autoregressive.build_voice,
    "ar_step": autoregressive.build_step,
    "clvp_text": ranking.build_clvp_text,
    "clvp_speech": ranking.build_clvp_speech,
    "cvvp_voice": ranking.build_cvvp_voice,
    "cvvp_speech": ranking.build_cvvp_speech,
    "diffusion_voice": diffusion.build_voice,
    "diffusion_align": diffusion.build_align,
    "diffusion_condition": diffusion.build_condition,
    "diffusion_denoise": diffusion.build_denoise,
    "univnet": vocoders.build_univnet,
    "hifigan": vocoders.build_hifigan,
    "rlg_auto": small.build_random_latents,
    "rlg_diffuser": small.build_random_latents,
    "detector": small.build_detector,
    "aligner": aligners.build_aligner,
    "wav2vec2": aligners.build_wav2vec2,
}

FAMILIES: Mapping[str, type[GraphBuilder]] = {"fused": FusedBuilder, "standard": StandardBuilder}


def write_graph(
    graph: str,
    weights: Mapping[str, np.ndarray],
    dims: Mapping[str, int],
    config: Mapping[str, Any],
    folder: Path,
    precision: str = "fp32",
    family: str = "fused",
) -> tuple[Path, ...]:
    """Write ``<graph>.onnx`` and, for tensors over 1 KiB, ``<graph>.data`` into ``folder``.

    weights: the network's state dict (official keys, weight norm folded, float32); dims: see ``spec.DIM_KEYS``;
    config: what tensors cannot tell (see the builders); precision: one of ``export.quantize.PRECISIONS``, or of
    ``standard.PRECISIONS`` for that family
    -> the files written, the model first.
    Raises EngineError for an unknown graph. Weights are streamed: no second copy of them is held.
    """
    if graph not in BUILDERS:
        raise EngineError(f'no graph is called "{graph}". {suggest(graph, BUILDERS)}')
    model_path, data_path = folder / f"{graph}.onnx", folder / f"{graph}.data"
    with TensorWriter(data_path) as writer:
        builder = FAMILIES[family](GRAPHS[graph], weights, dims, writer, precision)
        BUILDERS[graph](builder, config)
        model_path.write_bytes(builder.finish().SerializeToString())
    return (model_path, data_path) if data_path.exists() else (model_path,)


__all__ = ["BUILDERS", "FAMILIES", "write_graph"]
