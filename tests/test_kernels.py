"""Every kernel against its reference on odd shapes: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="needs Triton")
if DEVICE == "cpu" and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    pytest.skip("Triton 3.6's interpreter does not work with NumPy from 2.4 on", allow_module_level=True)

from tortoise_rt.backends import cuda_decode, cuda_diffusion  # noqa: E402
from tortoise_rt.backends.torch import TorchEngine  # noqa: E402
from tortoise_rt.export.parity import random_inputs, relative_error  # noqa: E402
from tortoise_rt.kernels import decode_attention as decode  # noqa: E402
from tortoise_rt.kernels import group_norm as norms  # noqa: E402
from tortoise_rt.kernels import relative_attention as relative  # noqa: E402
from tortoise_rt.kernels import rows_linear as linear  # noqa: E402
from tortoise_rt.spec import GRAPHS  # noqa: E402

TINY = Path(__file__).parent / "data" / "tiny-a"
TYPES = [(torch.float32, 1e-5), (torch.float16, 3e-3)]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def there(array: np.ndarray, dtype: Any = None) -> Any:
    """A copy on the device."""
    return torch.from_numpy(array.copy()).to(DEVICE, dtype)


@pytest.mark.parametrize(("dtype", "bound"), TYPES)
@pytest.mark.parametrize("more", [{}, {"gelu": True}, {"add": True}])
@pytest.mark.parametrize(
    ("rows", "size", "columns", "normed"),
    [(1, 64, 30, True), (1, 5000, 3, False), (3, 100, 17, True), (20, 300, 48, True), (4, 1500, 9, False)],
)
def test_rows_linear(
    rows: int, size: int, columns: int, normed: bool, more: dict[str, bool], dtype: Any, bound: float
) -> None:
    x, weight, bias = normal(rows, size) + 3, normal(columns, size) / size**0.5, normal(columns)
    norm, wanted = ((normal(size), normal(size + 1)[1:]) if normed else None), normal(rows, columns)
    out = there(wanted)
    of_norm = None if norm is None else tuple(there(part, dtype) for part in norm)
    linear.rows_linear(there(x), there(weight, dtype), there(bias, dtype), out, of_norm, **more)
    linear.rows_linear_ref(x, weight, bias, wanted, norm, **more)
    assert relative_error(out.cpu().numpy(), wanted) < bound


def test_a_norm_over_too_much_is_refused() -> None:
    x, weight, vector = (there(normal(*shape)) for shape in ((2, 2000), (3, 2000), (2000,)))
    with pytest.raises(ValueError, match="2000 inputs; the most is 1024"):
        linear.rows_linear(x, weight, vector[:3], there(normal(2, 3)), (vector, vector))


@pytest.mark.parametrize(("dtype", "bound"), TYPES)
@pytest.mark.parametrize(
    ("rows", "heads", "width", "capacity"), [(1, 2, 16, 5), (3, 4, 12, 300), (5, 1, 64, 140)]
)
def test_decode_attention(rows: int, heads: int, width: int, capacity: int, dtype: Any, bound: float) -> None:
    cache, qkv = there(normal(2, 2, rows, heads, capacity, width), dtype), normal(rows, 3 * heads * width)
    lengths = np.random.default_rng(0).integers(0, capacity, rows)
    lengths[0], lengths[-1] = capacity - 1, -1 if rows > 1 else 0
    held = cache[1].float().cpu().numpy()
    for row, length in enumerate(lengths):
        cache[:, :, row, :, max(length, 0) :] = float("nan")  # never read
    wanted, out = np.full((rows, heads * width), 7.0, np.float32), torch.full((rows, heads * width), 7.0)
    anchor, out = torch.empty(1, device=DEVICE, dtype=dtype), out.to(DEVICE)
    state = torch.tensor(decode.cache_state(cache, anchor), device=DEVICE)
    decode.decode_attention(there(qkv), state, there(lengths), 1, anchor, heads, out)
    decode.decode_attention_ref(qkv, held, lengths, wanted)
    assert relative_error(out.cpu().numpy(), wanted) < bound
    live = lengths.argmax()
    new = cache[1, :, live, :, lengths[live]].float().cpu().numpy()
    assert relative_error(new, held[:, live, :, lengths[live]]) < bound


@pytest.mark.parametrize(("dtype", "bound"), TYPES)
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize(
    ("rows", "time", "groups", "width", "modulated"),
    [(1, 1, 4, 4, False), (2, 37, 4, 3, True), (1, 100, 2, 17, True)],
)
def test_group_norm(
    rows: int, time: int, groups: int, width: int, modulated: bool, taps: int, silu: bool, dtype: Any, bound: float
) -> None:  # fmt: skip
    channels = groups * width
    x, gain, shift = normal(rows, time, channels) + 1, normal(channels), normal(channels + 1)[1:]
    by = normal(rows, 2 * channels) if modulated else None
    wanted = np.zeros((rows, time, taps * channels), np.float32)
    out = torch.full(wanted.shape, float("nan"), dtype=dtype, device=DEVICE)
    given = None if by is None else there(by, dtype)
    norms.group_norm(there(x, dtype), there(gain, dtype), there(shift, dtype), groups, out, given, silu)
    norms.group_norm_ref(x, gain, shift, groups, wanted, by, silu)
    assert relative_error(out.float().cpu().numpy(), wanted) < bound


@pytest.mark.parametrize(("dtype", "bound"), TYPES)
@pytest.mark.parametrize(
    ("rows", "time", "heads", "width", "most"), [(1, 1, 2, 16, 64), (2, 150, 2, 12, 64), (1, 260, 1, 64, 8)]
)
def test_relative_attention(
    rows: int, time: int, heads: int, width: int, most: int, dtype: Any, bound: float
) -> None:
    qkv, bias = normal(rows, time, heads * 3 * width), normal(heads, 2 * most + 1)
    wanted = np.zeros((rows, time, heads * width), np.float32)
    out = torch.full(wanted.shape, float("nan"), dtype=dtype, device=DEVICE)
    relative.relative_attention(there(qkv, dtype), there(bias), out)
    relative.relative_attention_ref(qkv, bias, wanted)
    assert relative_error(out.float().cpu().numpy(), wanted) < bound


@pytest.mark.parametrize("rows", [4, 32])
@torch.inference_mode()
def test_a_step_is_the_modules(rows: int) -> None:
    """By the fused kernels and, for many rows, by the library; rows of the pool that are not live are left alone."""
    engine, rng = TorchEngine(TINY, DEVICE), np.random.default_rng(0)
    text, voice = rng.integers(0, 250, (3, 9)), normal(3, engine.dims["ar.dim"])
    cache, start = engine.new_cache(3, 40), np.zeros((3, 1), np.int64)
    engine.ar_step(cache, start, start, voice, text)
    longer = engine.take_rows(cache, range(3))
    engine.ar_step(longer, np.ones((3, 4), np.int64), np.ones((3, 4), np.int64))
    engine.put_rows(cache, [1], longer, [1])
    model, codes, positions = (
        engine.module("autoregressive"),
        rng.integers(0, 200, (3, 1)),
        cache.lengths[:, None],
    )
    cuda_decode.lay_out(model)
    step, other = cuda_decode.Step(model, rows, cache.state), engine.take_rows(cache, range(3))
    step.run()
    step.write(other, codes, positions)
    step.run()
    past = there(cache.lengths)
    voices = torch.zeros((3, 0, engine.dims["ar.dim"]), device=DEVICE)
    logits, latents = model.step(
        cache.state, past, voices, there(text[:, :0]), there(codes), there(positions.copy())
    )
    wanted = torch.cat((logits, latents[:, 0]), dim=1).cpu().numpy()
    assert relative_error(step.out[:3].cpu().numpy(), wanted) < 1e-5
    assert relative_error(other.state.cpu().numpy(), cache.state.cpu().numpy()) < 1e-5


@pytest.mark.parametrize("graph", ["diffusion_condition", "diffusion_denoise"])
@torch.inference_mode()
def test_channels_last_is_the_module(graph: str) -> None:
    engine = TorchEngine(TINY, "cpu")
    module = engine.module("diffusion")
    inputs = random_inputs(
        GRAPHS[graph], engine.dims, {"rows": 2, "frames": 41, "codes": 3}, np.random.default_rng(0)
    )
    wanted = engine.run(graph, **inputs)[0]
    fast = cuda_diffusion.ChannelsLast(module.to(DEVICE))
    got = getattr(fast, graph.removeprefix("diffusion_"))(*(there(array) for array in inputs.values()))
    assert relative_error(got.cpu().numpy(), wanted) < 1e-5
