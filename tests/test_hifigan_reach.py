"""How far HiFi-GAN sees, to the frame, and that no stage, window or piece is given less.

Random weights would hide what is missing: the outermost frame changes the sound by less than rounding does. So these
tests look at slopes, at sound that has nothing else in it, and at a network that hears all that it sees equally well.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tortoise_rt import vocoder
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.engine import Array
from tortoise_rt.spec import HOP
from tortoise_rt.streaming import StreamDecoder

torch = pytest.importorskip("torch")

FRAMES = 44
PARTS = ((20, 21), (13, 31), (0, 1), (0, 30), (43, 44))


@pytest.fixture(scope="module")
def official() -> Any:
    """A network with the kernels and dilations of the official one, and few channels."""
    from tortoise_rt.export.models.hifigan import HifiganGenerator

    torch.manual_seed(0)
    return HifiganGenerator(
        in_dim=4, voice_dim=4, channels=16, upsample_kernels=[16, 16, 4, 4], upsample_factors=[8, 8, 2, 2],
        block_kernels=[3, 7, 11], block_dilations=[[1, 3, 5]] * 3,
    ).double()  # fmt: skip


@pytest.fixture(scope="module")
def adding(official: Any) -> Any:
    """The same with positive weights and no biases: what it makes of positive latents is a sum, of which nothing cancels."""
    module = copy.deepcopy(official)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.zero_() if name.endswith("bias") else weight.uniform_(0.5, 1).div_(weight[0].numel())
    return module


def alone() -> Array:
    """Rows of latents (FRAMES, 4, FRAMES) in each of which one frame is heard, and no other."""
    return np.repeat(np.eye(FRAMES, dtype=np.float32)[:, None], 4, axis=1)


def test_what_the_network_and_its_stages_see(official: Any) -> None:
    """By the slopes of a frame's first sample to the left, and of its last to the right."""
    stages: list[Any] = []
    hooks = [up.register_forward_pre_hook(lambda _, given: stages.append(given[0])) for up in official.ups]
    x = torch.randn(1, 4, 60, dtype=torch.float64, requires_grad=True)
    middle, rates = 30, [1, 1, 8, 64, 128]
    wav = official(x, torch.zeros(1, 4, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
    lefts, rights = (
        torch.autograd.grad(wav[0, sample], [x, *stages], retain_graph=True)
        for sample in (middle * HOP, middle * HOP + HOP - 1)
    )
    reach = []
    for left, right, rate in zip(lefts, rights, rates, strict=True):
        first = int(torch.nonzero(left.abs().sum(dim=(0, 1)))[:, 0].min())
        last = int(torch.nonzero(right.abs().sum(dim=(0, 1)))[:, 0].max())
        reach.append(max(middle * rate - first, last - ((middle + 1) * rate - 1)))
    assert reach == [vocoder.HIFIGAN_HALO, *official.margins]
    assert official.margins[0] + 3 == vocoder.HIFIGAN_HALO  # the first convolution has seven taps


def test_a_part_is_that_of_the_whole(adding: Any) -> None:
    x, voice = torch.from_numpy(alone()).double(), torch.zeros(FRAMES, 4, dtype=torch.float64)
    with torch.no_grad():
        whole = adding(x, voice).numpy()
        assert (whole >= 0).all() and 0 < whole.max() < 1
        for first, last in PARTS:
            wanted = whole[:, first * HOP : last * HOP]
            assert_same(adding(x, voice, first, last).numpy(), wanted, 1e-9)


def test_a_part_is_that_of_the_whole_in_onnx(adding: Any, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from tortoise_rt.export.onnx import write_graph

    onnx = pytest.importorskip("onnx")
    weights = {name: weight.float().numpy() for name, weight in adding.state_dict().items()}
    config = {"upsample_factors": [8, 8, 2, 2]}
    path, *_ = write_graph("hifigan", weights, adding.dims(config), config, tmp_path)
    model = onnx.load(path)
    crops = {node.output[0] for node in model.graph.node if node.op_type == "Slice"}
    stages = [
        node.output[0] for node in model.graph.node if node.op_type == "LeakyRelu" and node.input[0] in crops
    ]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in stages)
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(first: int, last: int) -> list[Array]:
        ends = np.array([first, last])
        voice = np.zeros((FRAMES, 4), np.float32)
        return session.run(["wav", *stages], {"latents": alone(), "voice": voice, "wanted": ends})

    whole, *_ = run(0, FRAMES)
    for first, last in PARTS:
        part, *given = run(first, last)
        assert_same(part, whole[:, first * HOP : last * HOP], 1e-4)
        # What its stages are given is as long as those of the module, whose reach the slopes show.
        lengths = [
            min(FRAMES * rate, last * rate + margin) - max(0, first * rate - margin)
            for rate, margin in zip((1, 8, 64, 128), adding.margins, strict=True)
        ]
        assert [stage.shape[3] for stage in given] == lengths


def assert_same(found: Array, wanted: Array, bound: float) -> None:
    """Relative to each sample, however weak: nothing else is heard that could hide a difference."""
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(found == 0, wanted == 0)
    np.testing.assert_allclose(found, wanted, rtol=bound, atol=0)


def test_stages_compute_no_more_than_is_seen(official: Any) -> None:
    """A piece of 40 frames among 68, by the length of what each stage makes."""
    seen: list[int] = []
    hooks = [
        block.register_forward_hook(lambda _, inputs, output: seen.append(output.shape[2]))
        for block in official.resblocks[::3]
    ]
    with torch.no_grad():
        official(torch.zeros(1, 4, 68).double(), torch.zeros(1, 4).double(), 14, 54)
    for hook in hooks:
        hook.remove()
    frames = [samples / rate for samples, rate in zip(seen, (8, 64, 128, 256), strict=True)]
    assert frames[0] <= 40 + 2 * 10 and max(frames[1:]) <= 40 + 2 * 3


class Hearing(FakeEngine):
    """A vocoder that hears all frames up to HIFIGAN_HALO away equally well."""

    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        if graph != "hifigan":
            return super()._run(graph, inputs)
        first, last = inputs["wanted"]
        return (heard(inputs["latents"])[:, first * HOP : last * HOP],)


def heard(fine: Array) -> Array:
    """(rows, dim, frames) -> (rows, samples)"""
    halo = vocoder.HIFIGAN_HALO
    sums = np.pad(fine.sum(axis=1, dtype=np.float64), ((0, 0), (halo, halo))).cumsum(axis=1)
    sums = np.pad(sums, ((0, 0), (1, 0)))
    return np.repeat(sums[:, 2 * halo + 1 :] - sums[:, : -2 * halo - 1], HOP, axis=1)


@pytest.mark.parametrize("window", [384, 24])
@pytest.mark.parametrize("codes", [1, 2, 13, 60, 211])
def test_windows_and_pieces_get_all_that_is_seen(
    monkeypatch: pytest.MonkeyPatch, codes: int, window: int
) -> None:
    monkeypatch.setattr(vocoder, "WINDOW", window)
    engine, rng = Hearing(), np.random.default_rng(codes)
    latents = rng.uniform(1, 2, (1, codes, engine.dims["hifigan.in_dim"])).astype(np.float32)
    voice = np.zeros((1, engine.dims["hifigan.voice_dim"]), np.float32)
    wanted = heard(vocoder.upsample_latents(latents))
    np.testing.assert_allclose(vocoder.hifigan(engine, latents, voice), wanted, rtol=1e-5)
    for size in (1, 2, 7, 40):
        decoder, pieces = StreamDecoder(engine, voice), []
        for start in range(0, codes, size):
            decoder.feed(latents[0, start : start + size])
            pieces.append(decoder.take(ended=start + size >= codes))
        np.testing.assert_allclose(np.concatenate(pieces), wanted[0], rtol=1e-5)
