"""Voice latents: files of every kind, hostile ones among them, and blends."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from tortoise_rt import pth
from tortoise_rt.errors import OutputError, VoiceError
from tortoise_rt.latents import VoiceLatents, blend, load_latents

RNG = np.random.default_rng(0)
SOME = VoiceLatents(
    RNG.normal(size=(1, 64)).astype(np.float32), RNG.normal(size=(1, 96)).astype(np.float32), "abc"
)


def assert_same(a: VoiceLatents, b: VoiceLatents) -> None:
    np.testing.assert_array_equal(a.auto, b.auto)
    assert (a.diffusion is None) == (b.diffusion is None)
    if a.diffusion is not None:
        np.testing.assert_array_equal(a.diffusion, b.diffusion)


def zip_of(**entries: bytes) -> bytes:
    """A zip like torch.save's; "data_0" stands for data/0."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr("archive/" + name.replace("pickle", "data.pkl").replace("_", "/"), content)
    return buffer.getvalue()


def good_pickle() -> bytes:
    with zipfile.ZipFile(io.BytesIO(pth.pth_bytes(np.zeros((1, 4)), np.zeros((1, 8))))) as archive:
        return archive.read("latents/data.pkl")


@pytest.mark.parametrize("name", ["v.pth", "v.safetensors", "V.PTH"])
@pytest.mark.parametrize("latents", [SOME, VoiceLatents(SOME.auto)], ids=["both", "auto only"])
def test_saved_latents_come_back(tmp_path: Path, name: str, latents: VoiceLatents) -> None:
    latents.save(tmp_path / name)
    got = load_latents(tmp_path / name)
    assert_same(got, latents)
    assert got.fingerprint == (latents.fingerprint if name.endswith("safetensors") else "")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_same_latents_same_bytes(tmp_path: Path) -> None:
    SOME.save(tmp_path / "a.pth")
    SOME.save(tmp_path / "b.pth")
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_torch_reads_what_is_written(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    SOME.save(tmp_path / "v.pth")
    auto, diffusion = torch.load(tmp_path / "v.pth", weights_only=True)
    np.testing.assert_array_equal(auto.numpy(), SOME.auto)
    np.testing.assert_array_equal(diffusion.numpy(), SOME.diffusion)
    VoiceLatents(SOME.auto).save(tmp_path / "w.pth")
    np.testing.assert_array_equal(torch.load(tmp_path / "w.pth", weights_only=True).numpy(), SOME.auto)


def test_what_torch_writes_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    assert SOME.diffusion is not None
    auto, diffusion = torch.from_numpy(SOME.auto), torch.from_numpy(SOME.diffusion)
    path = tmp_path / "v.pth"
    wide = torch.cat([auto, auto + 1], 1)
    for saved in [
        (auto, diffusion),
        [auto, diffusion],
        (auto, diffusion, torch.zeros(1, 2, 80, 5), None),  # as forks that add the mels
        (auto.double(), diffusion),
        (wide[:, :64], diffusion),  # a view of a larger storage
        (diffusion.new_tensor(SOME.auto[0])[None], torch.from_numpy(np.repeat(SOME.diffusion, 2, 1))[:, ::2]),
        (auto[0], diffusion[0]),
        (auto.clone().requires_grad_(), diffusion),
    ]:
        torch.save(saved, path)
        assert_same(load_latents(path), SOME)
    torch.save(auto, path)
    assert_same(load_latents(path), VoiceLatents(SOME.auto))
    for dtype in (torch.half, torch.bfloat16):
        torch.save((auto.to(dtype), diffusion.to(dtype)), path)
        np.testing.assert_array_equal(load_latents(path).auto, auto.to(dtype).float().numpy())


def test_other_things_that_torch_writes_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "v.pth"
    for saved, message in [
        ({"a.weight": torch.zeros(2)}, "dictionary"),
        (torch.nn.Linear(2, 2), "has no place in voice latents"),
        (torch.nn.Linear(2, 2).state_dict(), "has no place in voice latents"),
        (
            (torch.zeros(1, 22050), torch.zeros(1, 22050)),
            "it holds recordings .2 of up to 22050 samples.*save each",
        ),
        ([torch.zeros(1, 22050)], "it holds recordings"),
        (torch.zeros(22050), "it holds recordings"),
        ([torch.zeros(1, 9000)] * 3, "it holds recordings .3 of up to 9000"),  # short ones
        ((7, "Hello.", [torch.zeros(1, 22050)], None), "debug state"),
        ((7, "Hello.", None, (torch.zeros(1, 4), torch.zeros(1, 4))), "debug state"),
        (torch.tensor(1.0), "shape"),
        ((torch.tensor(1.0),) * 3, "it holds recordings"),
        ((torch.zeros(1, 100, 5), torch.zeros(1, 4)), "shape"),
        ((torch.full((1, 4), torch.nan), torch.zeros(1, 4)), "not finite"),
        ((torch.zeros(1, 0), torch.zeros(1, 4)), "shape"),
        ((torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4)), "torch.LongStorage"),
        ((torch.zeros(1, 4),), "no tuple of two tensors"),
        ("text", "no tuple of two tensors"),
        ([], "no tuple of two tensors"),
    ]:
        torch.save(saved, path)
        with pytest.raises(VoiceError, match=message):
            load_latents(path)
    torch.save((torch.zeros(1, 4), torch.zeros(1, 4)), path, _use_new_zipfile_serialization=False)
    with pytest.raises(VoiceError, match="before 2020.*convert it"):
        load_latents(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    array=st_numpy.arrays(
        np.float32, st_numpy.array_shapes(min_dims=1, max_dims=3, max_side=5), elements=st.floats(width=32)
    )
)
def test_any_tensor_survives_a_pth_file(tmp_path: Path, array: np.ndarray) -> None:
    (tmp_path / "v.pth").write_bytes(pth.pth_bytes(array, array.T))
    first, second = pth.read_pth(tmp_path / "v.pth")
    np.testing.assert_array_equal(first, array)
    np.testing.assert_array_equal(second, array.T)


class _CreatesFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_not_executed(tmp_path: Path, protocol: int, zipped: bool) -> None:
    hostile = pickle.dumps(_CreatesFile(tmp_path / "proof"), protocol)
    (tmp_path / "v.pth").write_bytes(zip_of(pickle=hostile, version=b"3\n") if zipped else hostile)
    with pytest.raises(VoiceError):
        load_latents(tmp_path / "v.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["v.pth"]


def _strided(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """The pickle of a tensor over a storage of four floats."""
    ints = [pth._int_tuple(size), pth._int_tuple(stride)]
    good = pth._pickled_tensor(np.zeros((1, 4), np.float32), 0)
    plain = pth._int(0) + pth._int_tuple((1, 4)) + pth._int_tuple((4, 1))
    return b"\x80\x02" + good.replace(plain, pth._int(offset) + ints[0] + ints[1]) + b"."


@pytest.mark.parametrize(
    "entries",
    [
        {"pickle": _strided((1, 5), (5, 1)), "data_0": bytes(16)},
        {"pickle": _strided((1, 4), (4, 1), offset=1), "data_0": bytes(16)},
        {"pickle": _strided((1, 4), (4, 1), offset=-1), "data_0": bytes(16)},
        {"pickle": _strided((1, 4), (4, -1)), "data_0": bytes(16)},
        {"pickle": _strided((1 << 20, 1 << 20), (0, 0)), "data_0": bytes(16)},
        {"pickle": _strided((1,) * 40, (0,) * 40), "data_0": bytes(16)},
        {"pickle": _strided((1, 4), (4, 1)), "data_0": bytes(12)},
        {"pickle": _strided((1, 4), (4, 1))},
        {"pickle": _strided((1, 4), (4, 1)), "data_0": bytes(16), "byteorder": b"big"},
        {"pickle": b"\x80\x02r\xff\xff\xff\x7f."},  # a memo of 2**31 places
        {"pickle": b"\x80\x02]" + b"r\xff\xff\xff\x7f" + b"."},
        {"pickle": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"."},
        {"pickle": b"\x80\x02X\x00\x00\x00\x00Q."},
        {"pickle": b"\x80\x02ctorch\nFloatStorage\n)R."},
        {"pickle": b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R."},
        {"pickle": b""},
        {"pickle": bytes(2 << 20)},
        {"version": b"3\n"},
    ],
)
def test_malformed_archives(tmp_path: Path, entries: dict[str, bytes]) -> None:
    (tmp_path / "v.pth").write_bytes(zip_of(**entries))
    with pytest.raises(VoiceError, match=r"cannot use .*v\.pth"):
        load_latents(tmp_path / "v.pth")


def test_compressed_and_huge_archives(tmp_path: Path) -> None:
    path = tmp_path / "v.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", good_pickle())
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(VoiceError, match="compressed"):
        load_latents(path)
    with open(path, "wb") as file:
        file.truncate(pth.MAX_FILE_BYTES + 1)
    with pytest.raises(VoiceError, match="take less than 64"):
        load_latents(path)
    path.rename(tmp_path / "v.safetensors")
    with pytest.raises(VoiceError, match="take less than 64"):
        load_latents(tmp_path / "v.safetensors")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_every_truncation_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    VoiceLatents(np.ones(3, np.float32), np.ones(3, np.float32)).save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(VoiceError):
            load_latents(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.integers(0, 10_000), value=st.integers(0, 255), suffix=st.sampled_from([".pth", ".safetensors"])
)
def test_damaged_bytes_give_latents_or_a_voice_error(
    tmp_path: Path, place: int, value: int, suffix: str
) -> None:
    path = tmp_path / f"v{suffix}"
    VoiceLatents(np.ones(3, np.float32), np.ones(3, np.float32)).save(path)
    data = bytearray(path.read_bytes())
    data[place % len(data)] = value
    path.write_bytes(data)
    try:
        assert load_latents(path).auto.dtype == np.float32
    except VoiceError as error:
        assert str(path) in str(error)


def test_latents_are_checked() -> None:
    assert VoiceLatents(np.zeros(5)).auto.shape == (1, 5)
    for bad in [
        np.zeros((2, 5)),
        np.zeros((1, 1, 5)),
        np.zeros(0),
        np.full(5, np.inf),
        np.zeros(5, int),
        np.zeros(20000),
    ]:
        with pytest.raises(VoiceError, match="the autoregressive latent"):
            VoiceLatents(bad)
        with pytest.raises(VoiceError, match="the diffusion latent"):
            VoiceLatents(np.zeros(5), bad)


def test_save_and_load_faults(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="suffix"):
        SOME.save(tmp_path / "v.npz")
    with pytest.raises(OutputError, match="missing does not exist"):
        SOME.save(tmp_path / "missing" / "v.pth")
    with pytest.raises(VoiceError, match="there is no file"):
        load_latents(tmp_path / "v.pth")
    (tmp_path / "v.safetensors").write_text("no tensors")
    with pytest.raises(VoiceError, match="not a sound"):
        load_latents(tmp_path / "v.safetensors")


def test_safetensors_of_something_else(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3)}, tmp_path / "v.safetensors")
    with pytest.raises(VoiceError, match='no tensor called "auto"'):
        load_latents(tmp_path / "v.safetensors")


def test_blend() -> None:
    a, b = VoiceLatents(np.ones(2), np.zeros(3), "n=x"), VoiceLatents(np.zeros(2), np.ones(3), "n=x")
    assert_same(blend([a, b]), VoiceLatents(np.full(2, 0.5), np.full(3, 0.5)))
    assert blend([a, b]).fingerprint == "n=x"
    assert_same(blend([a, b], [3, 1]), VoiceLatents(np.full(2, 0.75), np.full(3, 0.25)))
    for others, weights in [
        ([], None),
        ([a, b], [1]),
        ([a, b], [1, -1]),
        ([a, b], [1, np.nan]),
        ([a, b], [1, 0]),
        ([a, b], [1, np.inf]),
        ([a, VoiceLatents(np.ones(3), np.ones(3))], None),
        ([a, VoiceLatents(np.ones(2))], None),
        ([a, VoiceLatents(np.ones(2), np.ones(3), "n=y")], None),
    ]:
        with pytest.raises(VoiceError):
            blend(others, weights)


def test_blends_know_where_they_come_from() -> None:
    def made_by(fingerprint: str) -> VoiceLatents:
        return VoiceLatents(np.ones(2), np.ones(3), fingerprint)

    both, first = made_by("autoregressive=a,diffusion=b"), made_by("autoregressive=a")
    assert blend([both, first]).fingerprint == "autoregressive=a,diffusion=b"
    assert blend([both, made_by("")]).fingerprint == ""  # as from .pth files
    with pytest.raises(
        VoiceError, match=r"different checkpoints \(autoregressive=a,diffusion=b / autoregressive=c\)"
    ):
        blend([both, made_by("autoregressive=c")])
    with pytest.raises(VoiceError, match="1 of the 2 voices have no diffusion latent.*--decoder hifigan"):
        blend([both, VoiceLatents(np.ones(2))])


def test_weights_however_large_are_shares() -> None:
    voices = [VoiceLatents(np.full(4, value, np.float32)) for value in (1, 3)]
    np.testing.assert_allclose(blend(voices, [1e308, 1e308]).auto, np.full((1, 4), 2))
