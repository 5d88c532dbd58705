"""The Python interface: what the reference's class takes, on the fake engine."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tortoise_rt import TextToSpeech, classify_audio_clip, tts
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.compat import api, api_fast, base
from tortoise_rt.errors import AudioError, BundleError, EngineError, SettingsError, TextError, VoiceError
from tortoise_rt.spec import HOP, codes_to_frames
from tortoise_rt.voice import VoiceLatents

TOKENIZER = Path(__file__).parent / "data" / "tokenizer.json"
TEXT = "Hello there."
QUICK: dict[str, Any] = {"num_autoregressive_samples": 3, "diffusion_iterations": 2}
CLIP = (0.1 * np.sin(np.arange(30000) * 0.05)).astype(np.float32)


@pytest.fixture(scope="module")
def speaker() -> TextToSpeech:
    return TextToSpeech(engine=FakeEngine(), tokenizer_vocab_file=TOKENIZER)


def test_one_clip_is_an_array(speaker: TextToSpeech) -> None:
    wav = speaker.tts(TEXT, use_deterministic_seed=1, **QUICK)
    assert isinstance(wav, np.ndarray)
    assert wav.dtype == np.float32
    assert wav.shape[:2] == (1, 1) and wav.shape[2] % HOP == 0


def test_several_clips_are_a_list(speaker: TextToSpeech) -> None:
    clips = speaker.tts(TEXT, k=2, use_deterministic_seed=1, **QUICK)
    assert [clip.shape[:2] for clip in clips] == [(1, 1), (1, 1)]
    np.testing.assert_array_equal(clips[0], speaker.tts(TEXT, use_deterministic_seed=1, **QUICK))


def test_state_makes_the_same_clip_again(speaker: TextToSpeech) -> None:
    wav, state = speaker.tts(TEXT, return_deterministic_state=True, **QUICK)
    seed, text, samples, latents = state
    assert (text, samples, latents) == (TEXT, None, None)
    np.testing.assert_array_equal(
        wav, speaker.tts(text, samples, latents, use_deterministic_seed=seed, **QUICK)
    )
    other = speaker.tts(TEXT, **QUICK)
    assert wav.shape != other.shape or not np.array_equal(wav, other)


def test_presets_are_settings(speaker: TextToSpeech) -> None:
    named = speaker.tts_with_preset(TEXT, "ultra_fast", use_deterministic_seed=1)
    spelt = speaker.tts(
        TEXT,
        use_deterministic_seed=1,
        num_autoregressive_samples=16,
        diffusion_iterations=30,
        cond_free=False,
    )
    np.testing.assert_array_equal(named, spelt)
    with pytest.raises(SettingsError, match='Did you mean "fast"'):
        speaker.tts_with_preset(TEXT, "fst")


def test_voice_samples_and_their_latents_are_one_voice(speaker: TextToSpeech) -> None:
    auto, diffusion = speaker.get_conditioning_latents([CLIP, CLIP[None]])
    assert (auto.shape, diffusion.shape) == ((1, 16), (1, 16))
    settings: dict[str, Any] = {"use_deterministic_seed": 1, **QUICK}
    spoken = speaker.tts(TEXT, voice_samples=[CLIP, CLIP], **settings)
    np.testing.assert_array_equal(
        spoken, speaker.tts(TEXT, conditioning_latents=(auto, diffusion), **settings)
    )
    latents = VoiceLatents(auto, diffusion)
    np.testing.assert_array_equal(spoken, speaker.tts(TEXT, conditioning_latents=latents, **settings))
    np.testing.assert_array_equal(auto, speaker.get_conditioning_latents(CLIP)[0])


def test_mels_come_with_latents(speaker: TextToSpeech) -> None:
    four = speaker.get_conditioning_latents([CLIP, CLIP], return_mels=True)
    _, _, auto_mels, diffusion_mels = four
    assert speaker.tts(TEXT, conditioning_latents=four, use_deterministic_seed=1, diffusion_iterations=2).size
    assert auto_mels.shape == (1, 2, 80, 517)
    assert diffusion_mels.shape == (1, 2, 100, 401)


def test_random_latents_are_decided_by_the_seed(speaker: TextToSpeech) -> None:
    first, again, other = (speaker.get_random_conditioning_latents(seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(*(speaker.get_random_conditioning_latents()[0] for _ in range(2)))


def test_a_stream_is_the_clip_in_pieces(speaker: TextToSpeech) -> None:
    arguments: dict[str, Any] = {"use_deterministic_seed": 1, "num_autoregressive_samples": 1}
    whole = speaker.tts(TEXT, decoder="hifigan", **arguments)[0, 0]
    pieces = list(speaker.tts_stream(TEXT, stream_chunk_size=5, **arguments))
    assert len(pieces) > 1
    frames = {len(piece) // HOP for piece in pieces[1:-1]}  # the first waits for what its end can see
    assert frames <= {16, 24} and codes_to_frames(5) in range(16, 24)
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)
    (piece,) = speaker.tts_stream(TEXT, stream_chunk_size=0, **arguments)
    np.testing.assert_allclose(piece, whole, atol=1e-5)


def test_a_preset_decides_what_a_stream_is(speaker: TextToSpeech) -> None:
    arguments: dict[str, Any] = {
        "preset": "ultra_fast",
        "diffusion_iterations": 2,
        "use_deterministic_seed": 1,
    }
    (piece,) = speaker.tts_stream(TEXT, **arguments)
    np.testing.assert_allclose(piece, speaker.tts(TEXT, **arguments)[0, 0], atol=1e-5)


def test_a_stream_takes_text_as_it_comes(speaker: TextToSpeech) -> None:
    arguments: dict[str, Any] = {"use_deterministic_seed": 1, "pause": 0.1}
    words = (word + " " for word in ["One", "two.", "Three", "four."])
    live = np.concatenate(list(speaker.tts_stream(words, **arguments)))
    whole = np.concatenate(list(speaker.tts_stream("One two. Three four.", **arguments)))
    np.testing.assert_allclose(live, whole, atol=1e-5)
    quick: dict[str, Any] = {"decoder": "hifigan", "num_autoregressive_samples": 1}
    stranger = speaker.get_random_conditioning_latents(seed=1)  # one for the whole stream
    one, other = (
        speaker.tts(text, conditioning_latents=stranger, use_deterministic_seed=seed, **quick)[0, 0]
        for text, seed in (("One two.", 1), ("Three four.", 2))
    )
    np.testing.assert_allclose(live, np.concatenate([one, np.zeros(2400, np.float32), other]), atol=1e-5)
    with pytest.raises(TextError, match="text must be a string"):
        list(speaker.tts_stream([1, 2]))  # type: ignore[list-item]
    with pytest.raises(TextError, match="has no partner"):
        list(speaker.tts_stream(["One [s", "ad two."]))


def test_words_of_hugging_face(speaker: TextToSpeech) -> None:
    latents = speaker.get_random_conditioning_latents(1)
    drawn = [
        speaker.tts(
            TEXT, conditioning_latents=latents, do_sample=False, decoder="hifigan", use_deterministic_seed=s
        )
        for s in (1, 2)
    ]
    np.testing.assert_array_equal(*drawn)
    speaker.tts(TEXT, do_sample=True, top_k=5, typical_sampling=True, typical_mass=0.5, **QUICK)
    with pytest.raises(SettingsError, match="unknown setting 'typical_mas'. Did you mean \"typical_mass\""):
        speaker.tts(TEXT, typical_mas=0.5)


def test_samples_that_cannot_be_used(speaker: TextToSpeech) -> None:
    with pytest.raises(AudioError, match="voice sample 2 has 1 samples that are not finite"):
        speaker.tts(TEXT, voice_samples=[CLIP, np.append(CLIP, np.float32("nan"))])
    with pytest.raises(AudioError, match=r"lasts 0\.010 s"):
        speaker.get_conditioning_latents([CLIP[:220]])
    with pytest.raises(AudioError, match="one channel"):
        speaker.get_conditioning_latents([np.stack([CLIP, CLIP])])
    with pytest.raises(VoiceError, match="at least one clip"):
        speaker.get_conditioning_latents([])
    with pytest.raises(VoiceError, match="has 3 parts"):
        speaker.tts(TEXT, conditioning_latents=(CLIP, CLIP, CLIP))


def test_the_constructor_takes_one_engine(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="name one of the two"):
        TextToSpeech(engine=FakeEngine(), models_dir=tmp_path)
    with pytest.raises(SettingsError, match="name one of the two"):
        TextToSpeech(engine=FakeEngine(), checkpoints=tmp_path)
    with pytest.raises(BundleError, match="no engine at"):
        TextToSpeech(models_dir=tmp_path / "missing")
    with pytest.raises(EngineError, match='Did you mean "torch"'):
        TextToSpeech(models_dir=tmp_path, backend="troch")


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"text": None}, TextError, "not NoneType"),
    ({"text": 5}, TextError, "not int"),
    ({"text": ["a"]}, TextError, "not list"),
    ({"text": b"hi"}, TextError, "not bytes"),
    ({"use_deterministic_seed": "1"}, SettingsError, "seed is '1'"),
    ({"use_deterministic_seed": 1.5}, SettingsError, "seed is 1.5"),
    ({"preset": ["fast"]}, SettingsError, "unknown preset"),
    ({"do_sample": "no"}, SettingsError, "do_sample must be true or false"),
    ({"k": "2"}, SettingsError, "must be an integer"),
    ({"voice_samples": 3}, AudioError, "voice_samples is of type int"),
    ({"voice_samples": "a.wav"}, AudioError, r"load_audio\(path, 22050\)"),
    ({"voice_samples": [[[0.1], [0.1, 0.2]]]}, AudioError, "voice sample 1 is no array"),
    ({"conditioning_latents": 3}, VoiceError, "floating-point numbers are needed"),
    ({"conditioning_latents": ([[0.1], [0.1, 0.2]], None)}, VoiceError, "no array of numbers"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_arguments_of_the_wrong_kind(
    speaker: TextToSpeech, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        speaker.tts(**{"text": TEXT, **QUICK, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stream_chunk_size": "4"}, "stream_chunk_size must be an integer, not '4'"),
        ({"stream_chunk_size": 1.5}, "stream_chunk_size must be an integer"),
        ({"stream_chunk_size": -1}, "stream_chunk_size is -1"),
        ({"k": 2}, "a stream is one clip"),
        ({"preset": "ultra_fast", "stream_chunk_size": 40}, "here a piece is a sentence"),
    ],
)
def test_streams_that_cannot_be(speaker: TextToSpeech, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):  # at once, before any sound is asked for
        speaker.tts_stream(TEXT, **arguments)


def test_numbers_may_be_numpys(speaker: TextToSpeech) -> None:
    plain = speaker.tts(TEXT, use_deterministic_seed=3, temperature=0.5, **QUICK)
    numpys = speaker.tts(
        TEXT, use_deterministic_seed=np.int64(3), temperature=np.float32(0.5), k=np.int64(1), **QUICK
    )
    np.testing.assert_array_equal(plain, numpys)
    next(speaker.tts_stream(TEXT, stream_chunk_size=np.int64(4)))


@pytest.mark.parametrize("name", ["engine", "checkpoints", "models_dir"])
def test_an_engine_is_named_by_a_path(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} must be the path of a folder, not 3"):
        TextToSpeech(**{name: 3})  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="batch_rows"):
        TextToSpeech("16", engine=FakeEngine())  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="path of a folder"):
        api.TextToSpeech(models_dir=3)
    with pytest.raises(SettingsError, match="engine must be"):
        classify_audio_clip(CLIP, [3])  # type: ignore[arg-type]


def test_an_engine_names_voices_not_files(tmp_path: Path) -> None:
    engine = FakeEngine()
    (tmp_path / "voice.wav").write_text("secret")
    engine.info = dataclasses.replace(engine.info, defaults={"voice": str(tmp_path / "voice.wav")})
    with pytest.raises(VoiceError, match="unknown voice"):
        TextToSpeech(engine=engine, tokenizer_vocab_file=TOKENIZER).tts(TEXT, **QUICK)


def test_the_tokenizer_of_the_references_package_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    engine.info = dataclasses.replace(engine.info, tokenizer=None)
    monkeypatch.setattr(tts, "find_reference_tokenizer", lambda: TOKENIZER)
    assert TextToSpeech(engine=engine).tts(TEXT, **QUICK).size > 0
    monkeypatch.setattr(tts, "find_reference_tokenizer", lambda: None)
    with pytest.raises(TextError, match="tokenizer.json"):
        TextToSpeech(engine=engine).tts(TEXT, **QUICK)


def test_half_has_no_effect_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    tts._warn_about_half.cache_clear()
    with caplog.at_level(logging.WARNING, "tortoise_rt"):
        for _ in range(2):
            TextToSpeech(engine=FakeEngine(), half=True, kv_cache=True, use_deepspeed=True)
    assert [record.message.split(":")[0] for record in caplog.records] == ["half=True has no effect"]


def test_verbose_logs_the_seed(speaker: TextToSpeech, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tortoise_rt"):
        speaker.tts(TEXT, use_deterministic_seed=41, verbose=False, **QUICK)
        assert "seed 41" not in caplog.text
        speaker.tts(TEXT, use_deterministic_seed=41, **QUICK)
    assert "seed 41" in caplog.text


def test_clips_are_classified() -> None:
    probability = classify_audio_clip(CLIP, FakeEngine())
    assert isinstance(probability, float) and 0 < probability < 1
    assert classify_audio_clip(CLIP[None], FakeEngine()) == probability
    assert classify_audio_clip(CLIP * 5, FakeEngine()) != probability
    assert TextToSpeech(engine=FakeEngine()).classify_audio_clip(CLIP) == probability
    without = FakeEngine(frozenset(FakeEngine().info.graphs - {"detector"}))
    with pytest.raises(EngineError, match="classifier.pth"):
        TextToSpeech(engine=without).classify_audio_clip(CLIP)


def test_tensors_are_returned_when_given(speaker: TextToSpeech) -> None:
    torch = pytest.importorskip("torch")
    clip = torch.from_numpy(CLIP)[None]
    latents = speaker.get_conditioning_latents([clip])
    assert all(isinstance(part, torch.Tensor) for part in latents)
    arguments: dict[str, Any] = {"use_deterministic_seed": 1, **QUICK}
    wav = speaker.tts(TEXT, voice_samples=[clip], **arguments)
    assert isinstance(wav, torch.Tensor) and wav.dtype == torch.float32
    np.testing.assert_array_equal(wav.numpy(), speaker.tts(TEXT, voice_samples=[CLIP], **arguments))
    np.testing.assert_array_equal(wav, speaker.tts(TEXT, conditioning_latents=latents, **arguments))
    assert isinstance(next(speaker.tts_stream(TEXT, conditioning_latents=latents)), torch.Tensor)
    assert isinstance(classify_audio_clip(clip, FakeEngine()), torch.Tensor)


# The reference's modules


@pytest.fixture
def fake_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tts, "open_engine", lambda *_: FakeEngine())


def test_the_references_class(fake_models: None) -> None:
    speaker = api.TextToSpeech(tokenizer_vocab_file=TOKENIZER)
    clips = speaker.tts_with_preset(TEXT, "ultra_fast", k=2, use_deterministic_seed=1)
    assert [clip.shape[:2] for clip in clips] == [(1, 1), (1, 1)]
    wav = speaker.tts(
        TEXT,
        num_autoregressive_samples=16,
        diffusion_iterations=30,
        cond_free=False,
        use_deterministic_seed=1,
    )
    np.testing.assert_array_equal(wav, clips[0])
    assert len(speaker.get_conditioning_latents([CLIP])) == 2
    assert len(speaker.get_random_conditioning_latents()) == 2
    assert speaker.deterministic_state(5) == 5


def test_the_references_fast_class(fake_models: None) -> None:
    speaker = api_fast.TextToSpeech(tokenizer_vocab_file=TOKENIZER)
    latent = speaker.get_conditioning_latents([CLIP])
    assert latent.shape == speaker.get_random_conditioning_latents().shape == (1, 16)
    wav = speaker.tts(TEXT, voice_samples=[CLIP], use_deterministic_seed=1)
    pieces = speaker.tts_stream(TEXT, voice_samples=[CLIP], use_deterministic_seed=1)
    np.testing.assert_array_equal(np.concatenate(list(pieces)), wav[0, 0])
    (clip,) = speaker.tts_with_preset(
        TEXT, voice_samples=[CLIP], diffusion_iterations=5, use_deterministic_seed=1
    )
    np.testing.assert_array_equal(clip, wav[0])
    assert len(speaker.tts(TEXT, voice_samples=[CLIP], k=2)) == 2


def test_downloads_of_the_reference_are_found(tmp_path: Path) -> None:
    assert base.models_folder(tmp_path) == tmp_path
    snapshot = tmp_path / "models--Manmay--tortoise-tts" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "autoregressive.pth").touch()
    assert base.models_folder(tmp_path) == snapshot
    (tmp_path / "autoregressive.pth").touch()
    assert base.models_folder(tmp_path) == tmp_path


def test_checkpoints_speak(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    for file in ("config.json", "autoregressive.pth", "hifidecoder.pth", "rlg_auto.pth"):
        shutil.copy(data / file, tmp_path)
    shutil.copy(TOKENIZER, tmp_path / "tokenizer.json")
    speaker = TextToSpeech(models_dir=tmp_path, device="cpu")
    first, again = (speaker.tts("Hi.", max_mel_tokens=12, use_deterministic_seed=3) for _ in range(2))
    assert 0 < first.size <= codes_to_frames(12) * HOP
    np.testing.assert_array_equal(first, again)
