"""Every kernel against its reference on odd shapes: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from on_device import DEVICE, TYPES, here, normal, there, torch

from tortoise_rt.config import SAMPLERS, ARSettings, DiffusionSettings
from tortoise_rt.diffusion import make_schedule, plan
from tortoise_rt.export.parity import relative_error
from tortoise_rt.kernels import ahead, try_out
from tortoise_rt.kernels import decode_attention as decode
from tortoise_rt.kernels import denoising_update as updates
from tortoise_rt.kernels import draw_codes as drawing
from tortoise_rt.kernels import group_norm as norms
from tortoise_rt.kernels import location_variable as variable
from tortoise_rt.kernels import relative_attention as relative
from tortoise_rt.kernels import rows_linear as linear
from tortoise_rt.sampling import NOTHING, Drawing


def test_triton_is_tried() -> None:
    out = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    try_out.try_out(out)
    assert out.item() == 1


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
    assert relative_error(here(out), wanted) < bound


@pytest.mark.parametrize("more", [{}, {"gelu": True}, {"add": True}])
@pytest.mark.parametrize(("rows", "size", "normed"), [(2, 1000, True), (20, 300, True), (4, 1500, False)])
def test_rows_linear_in_little_memory(
    rows: int, size: int, normed: bool, more: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on GPUs of 8.6, 8.9 and 12.0: a row is read block by block, also where it is normed."""
    monkeypatch.setattr(linear, "roomy", lambda tensor: False)
    test_rows_linear(rows, size, 21, normed, more, torch.float32, 1e-5)


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
    held = here(cache[1])
    for row, length in enumerate(lengths):
        cache[:, :, row, :, max(length, 0) :] = float("nan")  # never read
    wanted, out = np.full((rows, heads * width), 7.0, np.float32), torch.full((rows, heads * width), 7.0)
    anchor, out = torch.empty(1, device=DEVICE, dtype=dtype), out.to(DEVICE)
    state = torch.tensor(decode.cache_state(cache, anchor), device=DEVICE)
    decode.decode_attention(there(qkv), state, there(lengths), 1, anchor, heads, out)
    decode.decode_attention_ref(qkv, held, lengths, wanted)
    assert relative_error(here(out), wanted) < bound
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
    assert relative_error(here(out), wanted) < bound


@pytest.mark.parametrize(("dtype", "bound"), TYPES)
@pytest.mark.parametrize(
    ("rows", "time", "heads", "width", "most"),
    [(1, 1, 2, 16, 64), (2, 150, 2, 12, 64), (1, 260, 1, 64, 8), (1, 70, 1, 68, 8)],
)
def test_relative_attention(
    rows: int, time: int, heads: int, width: int, most: int, dtype: Any, bound: float
) -> None:
    qkv, bias = normal(rows, time, heads * 3 * width), normal(heads, 2 * most + 1)
    wanted = np.zeros((rows, time, heads * width), np.float32)
    out = torch.full(wanted.shape, float("nan"), dtype=dtype, device=DEVICE)
    relative.relative_attention(there(qkv, dtype), there(bias), out)
    relative.relative_attention_ref(qkv, bias, wanted)
    assert relative_error(here(out), wanted) < bound


@pytest.mark.parametrize(("dtype", "bound"), TYPES)
@pytest.mark.parametrize("frames_first", [False, True])
@pytest.mark.parametrize(
    ("rows", "channels", "frames", "hop"), [(1, 4, 3, 8), (2, 17, 5, 7), (1, 32, 1, 64), (1, 3, 2, 131)]
)
def test_location_variable(
    rows: int, channels: int, frames: int, hop: int, frames_first: bool, dtype: Any, bound: float
) -> None:
    """Of kernels that lie as the module makes them, frame by frame apart, and each frame's side by side."""
    x, h, shift = (
        normal(rows, channels, frames * hop),
        normal(rows, channels, frames * hop + 1)[..., 1:],
        normal(channels),
    )
    kernels, biases = normal(rows, channels, 2 * channels, 3, frames), normal(rows, 2 * channels, frames)
    kernels /= channels**0.5
    laid = there(kernels, dtype)
    if frames_first:
        laid = laid.movedim(4, 1).contiguous().movedim(1, 4)
    got = there(x, dtype)
    variable.location_variable(got, there(h, dtype), there(shift, dtype), laid, there(biases, dtype))
    variable.location_variable_ref(x, h, shift, kernels, biases)
    assert relative_error(here(got), x) < bound


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
    return here(given[3]), here(given[2]), here(given[0])


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
            np.testing.assert_allclose(here(mine), wanted, rtol=1e-5, atol=1e-5)
