"""Reading, resampling, spectrograms and writing of audio."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tortoise_rt import audio, mel
from tortoise_rt.errors import AudioError, OutputError
from tortoise_rt.resample import resample, resample_blocks
from tortoise_rt.spec import CODE_RATE, DIFFUSION_VOICE_SAMPLES, VOICE_SAMPLES

RATES = [8000, 11025, 16000, 22050, 24000, 44099, 44100, 48000, 96000]


@pytest.fixture(scope="module")
def recorded(data: Path) -> dict[str, np.ndarray]:
    with np.load(data / "frontend.npz") as arrays:
        return dict(arrays)


def as_wav(samples: np.ndarray) -> np.ndarray:
    return samples.astype(np.float32) / 32768


def tone(seconds: float, rate: int, hz: float = 440) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def assert_near(actual: np.ndarray, expected: np.ndarray, bound: float) -> None:
    """``bound`` is relative to the range of ``expected``."""
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    assert np.abs(actual - expected).max() <= bound * np.ptp(expected)


# --- against the recordings ---


@pytest.mark.parametrize(
    ("source", "result", "rates"),
    [
        ("wav_i16", "wav_24k", (22050, 24000)),
        ("wav44_i16", "wav44_to_22", (44100, 22050)),
        ("wav16_i16", "wav16_to_22", (16000, 22050)),
    ],
)
def test_resample_as_recorded(
    recorded: dict[str, np.ndarray], source: str, result: str, rates: tuple[int, int]
) -> None:
    assert_near(resample(as_wav(recorded[source]), *rates), recorded[result], 1e-6)


def test_filterbanks_as_recorded(recorded: dict[str, np.ndarray]) -> None:
    assert_near(mel.ar_filterbank().T, recorded["torch_mel_fb"], 1e-5)
    assert_near(mel.univnet_filterbank(), recorded["univnet_mel_basis"], 1e-5)


def test_ar_mel_as_recorded(recorded: dict[str, np.ndarray]) -> None:
    assert_near(mel.ar_mel(as_wav(recorded["wav_i16"])), recorded["torch_mel"], 1e-5)
    padded = mel.ar_mel(audio.conditioning_clip(as_wav(recorded["wav_i16"][0]))[None])
    assert padded.shape == tuple(recorded["format_conditioning_shape"])
    frames = [0, 1, 10, 60, 67, 68, 69, 70, 71, 300, 516]
    assert_near(padded[0][:, frames], recorded["format_conditioning_frames"], 1e-5)


def test_univnet_mel_as_recorded(recorded: dict[str, np.ndarray]) -> None:
    # Bands at the floor, 100 dB below the loudest, hold the rounding of the reference's float32 convolution.
    got = mel.univnet_mel(recorded["wav_24k"])
    assert_near(got, recorded["univnet_mel"], 1e-4)
    assert np.abs(got - recorded["univnet_mel"]).mean() <= 1e-6 * np.ptp(recorded["univnet_mel"])
    normalized = mel.univnet_mel(recorded["wav_24k"], normalize=True)
    assert_near(normalized[..., :8], recorded["univnet_mel_norm_first8"], 1e-5)


def test_mel_range_as_recorded(recorded: dict[str, np.ndarray]) -> None:
    normalized = mel.normalize_mel(recorded["tacotron_norm_in"])
    assert_near(normalized, recorded["tacotron_norm_out"], 1e-6)
    assert_near(mel.denormalize_mel(normalized), recorded["tacotron_denorm_out"], 1e-6)


# --- resampling ---


@pytest.mark.parametrize("to_rate", [22050, 24000])
@pytest.mark.parametrize("from_rate", RATES)
def test_resampled_tone_is_the_tone(from_rate: int, to_rate: int) -> None:
    got = resample(tone(0.5, from_rate), from_rate, to_rate)
    assert len(got) == -(-len(tone(0.5, from_rate)) * to_rate // from_rate)
    inner = slice(200, -200)  # the ends ring
    expected = tone(1, to_rate)[: len(got)]
    assert np.abs(got[inner] - expected[inner]).max() < 2e-3


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(0, 300),
    rates=st.tuples(st.sampled_from(RATES), st.sampled_from([16000, 22050, 24000])),
    factor=st.floats(-4, 4, width=32),
    seed=st.integers(0, 99),
)
def test_resample_is_linear_and_row_by_row(
    samples: int, rates: tuple[int, int], factor: float, seed: int
) -> None:
    x, y = np.random.default_rng(seed).uniform(-1, 1, (2, samples)).astype(np.float32)
    both = resample(np.stack([x, y])[:, None], *rates)
    assert both.shape == (2, 1, -(-samples * rates[1] // rates[0]))
    np.testing.assert_array_equal(both[0, 0], resample(x, *rates))
    np.testing.assert_allclose(resample(factor * x + y, *rates), factor * both[0, 0] + both[1, 0], atol=1e-5)


@pytest.mark.parametrize(
    "rates", [(8000, 22050), (44099, 22050), (96000, 24000), (22050, 22050), (384000, 1000)]
)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_resampled_piece_by_piece(rates: tuple[int, int], size: int) -> None:
    for samples in (0, 1, 5, 1003):
        x = np.random.default_rng(0).uniform(-1, 1, samples).astype(np.float32)
        pieces = resample_blocks([np.zeros(0), *(x[i : i + size] for i in range(0, samples, size))], *rates)
        np.testing.assert_array_equal(np.concatenate([*pieces]), resample(x, *rates))


def test_resample_in_blocks_equals_its_parts() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, 150_000).astype(np.float32)
    whole = resample(x, 22050, 24000)
    late = resample(x[147 * 800 :], 22050, 24000)  # a multiple of 147 samples starts at the same phase
    np.testing.assert_array_equal(whole[160 * 800 + 100 :], late[100:])


@pytest.mark.parametrize("rates", [(0, 22050), (22050, -1), (22050.5, 24000), (10**9, 22050), ("a", 1)])
def test_resample_rates_out_of_range(rates: tuple[int, int]) -> None:
    with pytest.raises(AudioError, match="rates are 1 to 384000 Hz"):
        resample(np.zeros(10, np.float32), *rates)


# --- clips for the encoders ---


def test_conditioning_clip_is_the_middle() -> None:
    long = np.random.default_rng(0).uniform(-1, 1, VOICE_SAMPLES + 5001).astype(np.float32)
    np.testing.assert_array_equal(audio.conditioning_clip(long), long[2500:-2501])
    short = audio.conditioning_clip(long[:1000])
    np.testing.assert_array_equal(short, np.pad(long[:1000], (0, VOICE_SAMPLES - 1000)))


def test_rounding_does_not_move_the_crop() -> None:
    """Another machine's resampler rounds otherwise; it must not hear another six seconds."""
    long = tone(8, CODE_RATE) * np.linspace(0, 1, 8 * CODE_RATE, dtype=np.float32)
    rounded = np.nextafter(long, np.float32(2), dtype=np.float32)
    difference = np.abs(audio.conditioning_clip(long) - audio.conditioning_clip(rounded))
    assert 0 < difference.max() < 1e-6


@pytest.mark.parametrize("samples", [2205, 94079, 94080, 94081, 94200, 150_000])
def test_diffusion_clip_is_the_start_of_the_whole_clip(samples: int) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, samples).astype(np.float32)
    whole = resample(x, 22050, 24000)[:DIFFUSION_VOICE_SAMPLES]
    np.testing.assert_array_equal(
        audio.diffusion_clip(x), np.pad(whole, (0, DIFFUSION_VOICE_SAMPLES - len(whole)))
    )


@pytest.mark.parametrize("shape", [(512,), (1, 512), (1, 1, 9999)])
def test_mel_of_unusable_shapes(shape: tuple[int, ...]) -> None:
    for front_end in (mel.ar_mel, mel.univnet_mel):
        with pytest.raises(AudioError, match="more than 512 samples"):
            front_end(np.zeros(shape, np.float32))


# --- reading ---


@pytest.mark.parametrize(
    ("name", "subtype", "bound"),
    [
        ("a.wav", "PCM_16", 1e-4),
        ("a.wav", "PCM_U8", 2e-2),
        ("a.wav", "PCM_24", 1e-6),
        ("a.wav", "PCM_32", 1e-6),
        ("a.wav", "FLOAT", 0),
        ("a.wav", "DOUBLE", 1e-6),
        ("a.flac", "PCM_16", 1e-4),
        ("a.ogg", "VORBIS", 0.1),
        ("a.mp3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_load_formats(tmp_path: Path, name: str, subtype: str, bound: float) -> None:
    x = tone(0.5, 22050)
    soundfile.write(tmp_path / name, np.stack([x, -x / 2], axis=1), 22050, subtype=subtype)
    got = audio.load_audio(tmp_path / name, 22050)
    assert got.dtype == np.float32
    heard = x / 4 if name == "a.mp3" else x  # the mean, else the first channel
    assert np.abs(got[3000:8000] - heard[3000:8000]).max() <= bound


def test_load_resamples_then_clips(tmp_path: Path) -> None:
    x = 3 * tone(0.5, 44100)
    soundfile.write(tmp_path / "a.wav", x, 44100, subtype="FLOAT")
    got = audio.load_audio(str(tmp_path / "a.wav"), 22050)
    np.testing.assert_array_equal(got, np.clip(resample(x, 44100, 22050), -1, 1))
    assert got.max() == 1


def test_load_faults(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("this is no audio")
    (tmp_path / "text.raw").write_text("this is no audio")
    (tmp_path / "nothing.wav").write_bytes(b"")
    (tmp_path / "noise.mp3").write_bytes(bytes(range(256)) * 8)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 22050)
    soundfile.write(tmp_path / "short.wav", np.zeros(2204, np.float32), 22050)
    soundfile.write(tmp_path / "slow.wav", np.zeros(5000, np.float32), 500)
    soundfile.write(tmp_path / "fast.flac", np.zeros(70000, np.float32), 655350)
    soundfile.write(tmp_path / "many.wav", np.zeros((3000, 33), np.float32), 22050)
    soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan] * 3000, np.float32), 22050, subtype="FLOAT")
    faults = {
        "missing.wav": "does not exist",
        ".": "is a folder",
        "text.wav": "cannot be read as audio",
        "text.raw": "cannot be read as audio",
        "nothing.wav": "cannot be read as audio",
        "noise.mp3": "noise.mp3",
        "empty.wav": "is empty",
        "short.wav": "lasts 0.100 s; at least 0.1 s",
        "slow.wav": "sample rate of 500 Hz",
        "fast.flac": "sample rate of 655350 Hz",
        "many.wav": "has 33 channels; 1 to 32",
        "nan.wav": "3000 samples that are not finite",
    }
    for name, message in faults.items():
        with pytest.raises(AudioError, match=message):
            audio.load_audio(tmp_path / name, 22050)


def test_three_hours_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(100, np.int16), 8000)
    header = bytearray(path.read_bytes()[:44])
    size = 3 * 3600 * 8000 * 2
    header[4:8], header[40:44] = (size + 36).to_bytes(4, "little"), size.to_bytes(4, "little")
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(44 + size)  # sparse
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("samples were decoded"))
    with pytest.raises(AudioError, match="lasts 180.0 minutes; the limit is 30"):
        audio.load_audio(path, 22050)


def test_samples_of_all_channels_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((5000, 8), np.float32), 22050)
    monkeypatch.setattr(audio, "MAX_VALUES", 39_999)
    with pytest.raises(AudioError, match="has 40000 samples in 8 channels; the limit is 39999"):
        audio.load_audio(tmp_path / "a.wav", 22050)


def test_memory_is_bounded_by_the_seconds(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", np.zeros((20 * 384_000, 2), np.int16), 384_000)  # 61 MB as float32
    tracemalloc.start()
    audio.load_audio(tmp_path / "a.flac", 1000)  # the filter's table is small
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_load_takes_paths_and_rates_only(tmp_path: Path) -> None:
    for path, rate, message in [
        (5, 22050, "not by int"),
        ("a.wav", "22050", "rates are"),
        ("a.wav", 1.5, "rates are"),
    ]:
        with pytest.raises(AudioError, match=message):
            audio.load_audio(path, rate)  # type: ignore[arg-type]


def test_truncated_wav_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1, 22050), 22050)
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(whole[: len(whole) // 2])
    assert 10_000 < len(audio.load_audio(tmp_path / "a.wav", 22050)) < 12_000


def test_check_clip() -> None:
    audio.check_clip(np.zeros(2205, np.float32), 22050, "clip")
    faults: list[tuple[np.ndarray, int, str]] = [
        (np.zeros((1, 22050), np.float32), 22050, "shape"),
        (np.zeros(22050, np.int16), 22050, "int16"),
        (np.zeros(0, np.float32), 22050, "clip is empty"),
        (np.zeros(2204, np.float32), 22050, "at least 0.1 s"),
        (np.zeros(1801 * 100, np.float32), 100, "limit is 30"),
        (np.full(22050, np.inf, np.float32), 22050, "22050 samples that are not finite"),
    ]
    for bad, rate, message in faults:
        with pytest.raises(AudioError, match=message):
            audio.check_clip(bad, rate, "clip")


# --- writing ---


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "A.WAV"])
def test_written_audio_says_that_it_is_synthetic(tmp_path: Path, name: str) -> None:
    x = 3 * tone(0.5, 24000)
    audio.write_wav(tmp_path / name, x.reshape(1, 1, -1), comment="seed 7")
    with soundfile.SoundFile(tmp_path / name) as file:
        assert (file.samplerate, file.channels, file.frames) == (24000, 1, len(x))
        assert file.comment == f"{audio.SYNTHETIC_NOTICE} seed 7"
        assert file.software.startswith("tortoise-rt")
        if "ogg" not in name:
            assert file.subtype == "PCM_16"
            assert np.abs(file.read() - np.clip(x, -1, 1)).max() < 1e-4
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_audio_that_is_not_synthetic(tmp_path: Path) -> None:
    audio.write_wav(tmp_path / "a.wav", tone(0.5, 22050), 22050, synthetic=False)
    with soundfile.SoundFile(tmp_path / "a.wav") as file:
        assert (file.samplerate, file.comment) == (22050, "")


def test_write_faults_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder.wav").mkdir()
    x = tone(0.2, 24000)
    for path, wav, message in [
        (tmp_path / "missing" / "a.wav", x, "missing does not exist"),
        (tmp_path / "folder.wav", x, "is a folder"),
        (tmp_path / "a.mp4", x, "suffix must be one of .wav, .flac, .ogg"),
        (tmp_path / "a.wav", x * np.nan, "not finite"),
        (tmp_path / "a.wav", np.zeros((2, 500)), r"shape \(2, 500\)"),
    ]:
        with pytest.raises(OutputError, match=message):
            audio.write_wav(path, wav)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.wav"]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.wav"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", full)
    with pytest.raises(OutputError, match="No space left"):
        audio.write_wav(path, tone(0.2, 24000))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(
    os.name == "nt" or getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write anywhere"
)
def test_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match=r"a\.wav"):
        audio.write_wav(tmp_path / "a.wav", tone(0.2, 24000))
    tmp_path.chmod(0o700)
