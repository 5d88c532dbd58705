"""The judge of exported graphs must notice a graph that is a little wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from tortoise_rt.backends.torch import TorchEngine
from tortoise_rt.engine import Array, KVCache
from tortoise_rt.export.checkpoints import Checkpoints
from tortoise_rt.export.parity import ExportError, check_graphs, require_parity
from tortoise_rt.spec import GRAPHS


class Spoilt(TorchEngine):
    """Off by 0.1 % in one graph's output, or in one output of ar_step."""

    spoilt = ""

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        outputs = super()._run(graph, inputs)
        return (outputs[0] * np.float32(1.001), *outputs[1:]) if graph == self.spoilt else outputs

    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        logits, latents = super()._ar_step(cache, inputs)
        several = inputs["codes"].shape[1] > 1
        if self.spoilt == "logits":
            logits = logits * np.float32(1.001)
        if self.spoilt == "latents" or (self.spoilt == "latents of several codes" and several):
            latents = latents * np.float32(1.001)
        return logits, latents


@pytest.mark.parametrize(
    ("spoilt", "graph"),
    [
        ("logits", "ar_step"),
        ("latents", "ar_step"),
        ("latents of several codes", "ar_step"),
        ("ar_voice", "ar_voice"),
        ("clvp_text", "clvp_text"),
        ("diffusion_denoise", "diffusion_denoise"),
        ("univnet", "univnet"),
        ("detector", "detector"),
    ],
)
def test_a_graph_that_is_a_little_wrong_is_named(data: Path, spoilt: str, graph: str) -> None:
    engine = Spoilt(data, "cpu")
    engine.spoilt = spoilt
    engine.info = replace(engine.info, graphs=frozenset({graph, "rlg_auto", "clvp_speech"}))
    report = list(check_graphs(engine, Checkpoints(data)))
    assert [p.graph for p in report if not p.ok] == [graph]
    with pytest.raises(ExportError, match=graph) as caught:
        require_parity(report)
    assert caught.value.report == tuple(report)


def test_the_module_agrees_with_itself(data: Path) -> None:
    report = list(check_graphs(TorchEngine(data, "cpu"), Checkpoints(data)))
    assert len(report) == len(GRAPHS)
    require_parity(report)
