"""Half precisions of the torch backend, as far as a CPU can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs PyTorch")

from tortoise_rt.backends import open_engine
from tortoise_rt.errors import EngineError
from tortoise_rt.export.checkpoints import Checkpoints
from tortoise_rt.export.parity import BOUNDS, check_graphs


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_graph_is_within_its_bound(data: Path, precision: str) -> None:
    engine = open_engine(data, device="cpu", precision=precision)
    report = {p.graph: p for p in check_graphs(engine, Checkpoints(data))}
    assert [p for p in report.values() if not p.ok] == []
    assert report["ar_step"].bound == BOUNDS[precision]
    assert report["ar_step"].error > 1e-4  # it is not float32 by another name
    assert report["univnet"].precision == "fp32"


def test_a_position_takes_half_the_memory(data: Path) -> None:
    full, half = (open_engine(data, device="cpu", precision=precision) for precision in ("fp32", "fp16"))
    assert half.position_bytes() * 2 == full.position_bytes()
    assert half.new_cache(1, 7).state.nbytes == 7 * half.position_bytes()


def test_the_default_is_fp32(data: Path) -> None:
    assert set(open_engine(data, device="cpu").info.precision.values()) == {"fp32"}


def test_unknown_names_are_refused(data: Path) -> None:
    with pytest.raises(EngineError, match="unknown precision 'fp61'. Did you mean \"fp16\""):
        open_engine(data, device="cpu", precision="fp61")


@pytest.mark.parametrize("backend", ["auto", "fake"])
def test_a_bundle_has_its_own(backend: str) -> None:
    with pytest.raises(EngineError, match="precision 'fp16' is for the backend torch"):
        open_engine(None, backend, precision="fp16")


def test_whole_runs_in_half_precision(data: Path) -> None:
    from tortoise_rt.config import make_settings
    from tortoise_rt.pipeline import Pipeline

    settings = make_settings(num_autoregressive_samples=1, decoder="hifigan", max_mel_tokens=10)
    result = Pipeline(open_engine(data, device="cpu", precision="bf16")).synthesize(
        [62, 84], None, settings, 1
    )
    assert all(np.isfinite(wav).all() and wav.dtype == np.float32 for wav in result.wavs)
