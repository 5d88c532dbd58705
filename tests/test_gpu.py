"""The torch backend on an NVIDIA GPU; skipped, and said so, where there is none. All of it: benchmarks/gpu_suite.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from tortoise_rt.backends import open_engine  # noqa: E402
from tortoise_rt.config import make_settings  # noqa: E402
from tortoise_rt.export.checkpoints import Checkpoints  # noqa: E402
from tortoise_rt.export.parity import check_graphs  # noqa: E402
from tortoise_rt.pipeline import Pipeline  # noqa: E402

TINY = Path(__file__).parent / "data" / "tiny-a"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here"),
]


def test_every_graph_agrees_with_the_cpu() -> None:
    parity = list(check_graphs(open_engine(TINY, device="cuda"), Checkpoints(TINY)))
    assert len(parity) == 15
    assert all(p.ok for p in parity)


def test_whole_runs_agree_with_the_cpu() -> None:
    settings = make_settings(num_autoregressive_samples=4, diffusion_iterations=5, max_mel_tokens=30)
    results = [
        Pipeline(open_engine(TINY, device=device)).synthesize([62, 84, 28], None, settings, seed=1)
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_array_equal(results[0].codes, results[1].codes)
    np.testing.assert_allclose(results[0].wavs[0], results[1].wavs[0], atol=5e-3)
