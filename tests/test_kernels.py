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

from tortoise_rt.autoregressive import read_and_draw  # noqa: E402
from tortoise_rt.backends import cuda_decode, cuda_diffusion  # noqa: E402
from tortoise_rt.backends.torch import TorchEngine  # noqa: E402
from tortoise_rt.config import SAMPLERS, ARSettings, DiffusionSettings  # noqa: E402
from tortoise_rt.diffusion import make_schedule, plan  # noqa: E402
from tortoise_rt.export.parity import random_inputs, relative_error  # noqa: E402
from tortoise_rt.kernels import ahead  # noqa: E402
from tortoise_rt.kernels import decode_attention as decode  # noqa: E402
from tortoise_rt.kernels import denoising_update as updates  # noqa: E402
from tortoise_rt.kernels import draw_codes as drawing  # noqa: E402
from tortoise_rt.kernels import group_norm as norms  # noqa: E402
from tortoise_rt.kernels import relative_attention as relative  # noqa: E402
from tortoise_rt.kernels import rows_linear as linear  # noqa: E402
from tortoise_rt.sampling import NOTHING, Drawing  # noqa: E402
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


SETTINGS = {
    "usual": ARSettings(),
    "every code": ARSettings(top_k=0, top_p=1.0, temperature=3.0),
    "nucleus of all": ARSettings(top_k=0, top_p=0.95, temperature=2.0),
    "tiny nucleus": ARSettings(top_p=1e-9),
    "one": ARSettings(top_k=1),
    "typical": ARSettings(typical=True, typical_mass=0.4, top_k=0),
    "typical of few": ARSettings(typical=True, typical_mass=1.0, top_k=7, repetition_penalty=0.5),
    "greedy": ARSettings(greedy=True),
}


def draw_all(logits: np.ndarray, drawings: list[Drawing | None], start: int, stop: int) -> tuple[Any, ...]:
    """Two draws of every row from the same logits, by the kernel -> codes, steps, codes seen."""
    rows, vocabulary = logits.shape
    most = max(len(d.uniforms) for d in drawings if d is not None)
    numbers, seen = np.zeros((rows, ahead.SETTINGS + most)), np.zeros((rows, vocabulary), np.uint8)
    for row, d in enumerate(drawings):
        if d is not None:
            numbers[row, : ahead.SETTINGS] = ahead.settings_row(d.settings)
            numbers[row, ahead.SETTINGS :][: len(d.uniforms)] = d.uniforms
            seen[row] = d.seen
    given = there(seen), there(numbers), there(first_steps(drawings)), there(np.full((rows, most), NOTHING))
    few = torch.empty((rows, ahead.FEW), device=DEVICE)
    scratch = few[:, 0].int(), few, few.int()
    for _ in range(2):
        drawing.draw_codes(there(logits), *given, scratch, start, stop)
    return given[3].cpu().numpy(), given[2].cpu().numpy(), given[0].cpu().numpy()


def first_steps(drawings: list[Drawing | None]) -> np.ndarray:
    lengths = [-1 if d is None else 10 + row for row, d in enumerate(drawings)]
    most = [0 if d is None else len(d.uniforms) for d in drawings]
    return np.array([lengths, [5] * len(most), [3] * len(most), [0] * len(most), most])


@pytest.mark.parametrize(("vocabulary", "coarse"), [(37, True), (700, False)])
@pytest.mark.parametrize("name", SETTINGS)
def test_codes_are_the_hosts(vocabulary: int, name: str, coarse: bool) -> None:
    """Rows that are dead, broken, at their end or full of ties, numbers near 0 and 1, and a start code that is likeliest."""
    rng, start, stop = np.random.default_rng(vocabulary), vocabulary - 2, vocabulary - 1
    logits = (4 * rng.standard_normal((8, vocabulary))).astype(np.float32)
    logits[4, start] = logits[5, start] = 30 if coarse else 6
    logits[6, stop] = 100
    logits = np.round(logits) if coarse else logits
    logits[2, 11] = np.nan
    uniforms = rng.random((8, 2))
    uniforms[0], uniforms[3] = (0.0, 1 - 2**-53), (1 - 2**-53, 0.5)
    drawings = [Drawing(rng.random(vocabulary) < 0.1, u, SETTINGS[name]) for u in uniforms]
    given = [None if row == 1 else d for row, d in enumerate(drawings)]
    given[7] = Drawing(drawings[7].seen, drawings[7].uniforms[:1], SETTINGS[name])
    codes, steps, seen = draw_all(logits, given, start, stop)
    wanted, wanted_steps = np.full((8, 2), NOTHING), first_steps(given)
    for _ in range(2):
        ahead.draw_codes_ref(logits, given, wanted_steps, wanted, start, stop)
    np.testing.assert_array_equal(codes, wanted)
    for row, d in enumerate(given):
        if d is not None:
            np.testing.assert_array_equal(seen[row], d.seen)
            live = wanted_steps[0, row] >= 0
            np.testing.assert_array_equal(
                steps[:, row] if live else steps[0, row], wanted_steps[:, row] if live else -1
            )
    assert (
        start not in codes
        and (codes[[1, 2]] == NOTHING).all()
        and codes[6, 0] == stop
        and codes[7, 1] == NOTHING
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("rows", "frames"), [(1, 3), (2, 41)])
def test_denoising_update(rows: int, frames: int, sampler: str, dtype: Any) -> None:
    settings = DiffusionSettings(iterations=7, sampler=sampler, eta=0.5, cond_free=rows == 2)
    steps = plan(make_schedule(7, sampler), settings)
    for step in (steps[0], steps[3], steps[6]):
        x, last, noise = (np.roll(normal(1, 6, frames), n) for n in (0, 1, 2))
        out = normal(rows, 12, frames).astype(np.float16).astype(np.float32)
        got = there(x), there(last)
        numbers = there(ahead.step_row(step))
        updates.denoising_update(*got, there(out, dtype), there(noise), numbers)
        ahead.denoising_update_ref(x, last, out, noise, step)
        for mine, wanted in zip(got, (x, last), strict=True):
            np.testing.assert_allclose(mine.cpu().numpy(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(DEVICE == "cpu", reason="a minute in the interpreter; steps and draws are tested apart")
@torch.inference_mode()
def test_steps_that_draw_are_steps_and_draws() -> None:
    """Three codes of two live rows, of different limits, and of one that is left alone."""
    engine, rng = TorchEngine(TINY, DEVICE), np.random.default_rng(0)
    dims = engine.dims
    text, voice = np.repeat(rng.integers(0, 250, (1, 9)), 3, axis=0), normal(3, dims["ar.dim"])
    cache, zeros = engine.new_cache(3, 40), np.zeros((3, 1), np.int64)
    engine.ar_step(cache, zeros, zeros, voice, text)
    host = engine.take_rows(cache, range(3))
    uniforms = rng.random((3, 3))
    seen = np.zeros((3, dims["ar.mel_codes"]), bool)
    given = [
        Drawing(seen[0], uniforms[0], ARSettings()),
        None,
        Drawing(seen[2], uniforms[2, :2], ARSettings(top_k=3)),
    ]
    cuda_decode.lay_out(engine.module("autoregressive"))
    ends = dims["ar.start_code"], dims["ar.stop_code"]
    step = cuda_decode.DrawingStep(engine.module("autoregressive"), 4, cache.state, *ends)
    step.run()
    step.write(cache, zeros + 5, zeros + 1, given)
    for _ in range(3):
        step.run()
    engine.draws_ahead = 0
    codes, positions = zeros + 5, zeros + 1
    for i in range(3):
        left = [d and Drawing(d.seen, d.uniforms[i:], d.settings) for d in given]
        live = [d if d is not None and len(d.uniforms) else None for d in left]
        drawn, latents = read_and_draw(engine, host, codes, positions + i, live)
        np.testing.assert_array_equal(step.drawn[:3, i].cpu().numpy(), drawn[:, 0])
        for row, d in enumerate(live):
            if d is not None:
                assert relative_error(step.latents[row, i].cpu().numpy(), latents[row, 0]) < 1e-5
                seen[row, drawn[row, 0]] = True
        codes = np.maximum(drawn, 0)


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
