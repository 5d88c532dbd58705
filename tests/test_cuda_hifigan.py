"""HiFi-GAN in few shapes, on the CPU: the same sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")

from tortoise_rt.backends.cuda_hifigan import FRAMES, HALO, in_few_shapes  # noqa: E402
from tortoise_rt.backends.torch import TorchEngine  # noqa: E402

TINY = Path(__file__).parent / "data" / "tiny-a"


@torch.inference_mode()
def test_any_part_in_any_number_of_rows_is_that_of_the_whole() -> None:
    engine = TorchEngine(TINY, "cpu")
    module = engine.module("hifigan")
    shapes = set()

    def run(latents: torch.Tensor, voice: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        shapes.add((tuple(latents.shape), tuple(wanted.tolist())))
        return module(latents, voice, *wanted.tolist())

    rng = np.random.default_rng(0)
    ends = [
        (90, 0, 90),
        (90, 0, 40),
        (90, 13, 77),
        (90, 20, 90),
        (90, 13, 90),
        (20, 0, 20),
        (27, 0, 27),
        (150, 14, 137),
    ]
    for rows, parts in ((1, ends), (3, ends[1:4]), (5, ends[-1:]), (33, ends[5:6])):
        for frames, first, last in parts:
            latents = torch.from_numpy(
                rng.standard_normal((rows, engine.dims["hifigan.in_dim"], frames), np.float32)
            )
            voice = torch.from_numpy(
                rng.standard_normal((rows, engine.dims["hifigan.voice_dim"]), np.float32)
            )
            got = in_few_shapes(run, latents, voice, first, last)
            wanted = module(latents, voice, first, last)
            assert got.shape == wanted.shape
            assert (got - wanted).abs().max() < 1e-5
    assert {rows for (rows, _, _), _ in shapes} == {1, 4, 16, 33}
    padded = {last - first for (_, _, frames), (first, last) in shapes if frames > 20}
    assert padded <= set(FRAMES) and HALO in {first for _, (first, _) in shapes}
