"""Programs as they are written for the original, with the import changed only; small random engines."""

from __future__ import annotations

import difflib
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT

from tortoise_rt import tts
from tortoise_rt.alignment import hear
from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.compat import api, api_fast, base, utils
from tortoise_rt.compat import tensors as compat_tensors
from tortoise_rt.errors import CheckpointError, SettingsError, TextError, VoiceError
from tortoise_rt.voice import VoiceLatents

TOKENIZER = ROOT / "tests" / "data" / "tokenizer.json"
TEXT = "Hello there."


def write_clip(path: Path, seconds: float = 1.0, rate: int = 22050) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = (0.1 * np.sin(np.arange(int(rate * seconds)) * 0.05)).astype(np.float32)
    soundfile.write(path, np.stack([samples, -samples], 1), rate, subtype="PCM_16")
    return path


@pytest.fixture
def models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with voices, where an engine with all networks is found as the models."""
    engine = FakeEngine()
    engine.info = engine.info.__class__(**{**vars(engine.info), "tokenizer": TOKENIZER})
    monkeypatch.setattr(tts, "open_engine", lambda *_: engine)
    for i in range(2):
        write_clip(folder / ".voices" / "mol" / f"{i}.wav", 1 + i)
    write_clip(folder / ".voices" / "tom" / "0.wav", 1.5, 24000)
    rng = np.random.default_rng(0)
    for name in ("pat", "emma"):
        (folder / ".voices" / name).mkdir()
        part = rng.standard_normal((2, 1, 16)).astype(np.float32)
        VoiceLatents(*part).save(folder / ".voices" / name / f"{name}.pth")
    return folder


SETUP = """
from tortoise_rt.compat import api, api_fast, utils
from tortoise_rt.compat.utils.audio import load_audio, load_voice, load_voices, get_voices
from tortoise_rt.compat.utils.text import split_and_recombine_text
QUICK = dict(num_autoregressive_samples=2, diffusion_iterations=2)
"""

#: what the original's README and scripts show, in their calls
PROGRAMS = {
    "api": """
clips_paths = ['.voices/mol/0.wav', '.voices/mol/1.wav']
reference_clips = [utils.audio.load_audio(p, 22050) for p in clips_paths]
tts = api.TextToSpeech()
pcm_audio = tts.tts_with_preset("your text here", voice_samples=reference_clips, preset='ultra_fast')
assert pcm_audio.shape[:2] == (1, 1) and reference_clips[1].shape == (1, 44100)
""",
    "faster": """
reference_clips = [utils.audio.load_audio('.voices/mol/0.wav', 22050)]
tts = api.TextToSpeech(use_deepspeed=True, kv_cache=True, half=True)
pcm_audio = tts.tts_with_preset("your text here", voice_samples=reference_clips, preset='ultra_fast')
assert pcm_audio.squeeze(0).cpu().shape[0] == 1
""",
    "presets": """
reference_clips = [utils.audio.load_audio('.voices/mol/0.wav', 22050)]
for preset in ('ultra_fast', 'fast', 'standard', 'high_quality'):
    tts = api.TextToSpeech()
    pcm_audio = tts.tts_with_preset("a", voice_samples=reference_clips, preset=preset)
    assert pcm_audio.shape[:2] == (1, 1)
""",
    "prompt": """
tts = api.TextToSpeech()
assert tts.enable_redaction
gen = tts.tts_with_preset("[I am really sad,] Please feed me.", preset='ultra_fast', **QUICK)
assert gen.shape[:2] == (1, 1)
""",
    "average": """
clips = [load_audio(path, 22050) for name in ('mol', 'tom') for path in get_voices()[name]]
tts = api.TextToSpeech()
voice_samples, conditioning_latents = load_voices(['mol', 'tom'])
assert conditioning_latents is None and len(voice_samples) == len(clips) == 3
gen = tts.tts("Both of us.", voice_samples=voice_samples, use_deterministic_seed=1, **QUICK)
assert (gen == tts.tts("Both of us.", conditioning_latents=tts.get_conditioning_latents(clips), use_deterministic_seed=1, **QUICK)).all()
assert not (gen.shape == (one := tts.tts("Both of us.", voice_samples=clips[:2], use_deterministic_seed=1, **QUICK)).shape
    and (gen == one).all())
""",
    "do_tts": """
import os
tts = api.TextToSpeech(models_dir=api.MODELS_DIR, use_deepspeed=False, kv_cache=True, half=False)
for k, selected in enumerate('random,mol,pat,pat&emma,mol&tom'.split(',')):
    voice_samples, conditioning_latents = load_voices(selected.split('&'))
    gen, state = tts.tts_with_preset("I'm going to speak this", k=2, voice_samples=voice_samples,
        conditioning_latents=conditioning_latents, preset='ultra_fast', use_deterministic_seed=3,
        return_deterministic_state=True, cvvp_amount=.0, **QUICK)
    seed, text, samples, latents = state
    assert (seed, text) == (3, "I'm going to speak this") and samples is voice_samples and latents is conditioning_latents
    assert isinstance(gen, list) and len(gen) == 2
    for g in gen:
        audio = g.squeeze(0).cpu()
        assert audio.shape[0] == 1 and audio.numpy().dtype == 'float32'
""",
    "read": """
text = 'The first sentence is said here. ' * 12
texts = split_and_recombine_text(text)
tts = api.TextToSpeech()
voice_samples, conditioning_latents = load_voices(['mol'])
all_parts = []
import torch
for j, part in enumerate(texts):
    gen = tts.tts_with_preset(part, voice_samples=voice_samples, conditioning_latents=conditioning_latents,
        preset='ultra_fast', k=1, use_deterministic_seed=1, max_mel_tokens=30, **QUICK)
    all_parts.append(gen.squeeze(0).cpu())
full_audio = torch.cat(all_parts, dim=-1)
assert len(texts) > 1 and full_audio.shape == (1, sum(p.shape[-1] for p in all_parts))
""",
    "read_fast": """
tts = api_fast.TextToSpeech()
voice_samples, conditioning_latents = load_voices(['mol'])
gen = tts.tts("A line.", voice_samples=voice_samples, use_deterministic_seed=5)
audio_ = gen.squeeze(0).cpu()
assert audio_.shape[1] / 24000 > 0
pieces = [piece.cpu().numpy() for piece in tts.tts_stream("A line.", voice_samples=voice_samples, use_deterministic_seed=5)]
assert sum(map(len, pieces)) == audio_.shape[1]
""",
    "detect": """
clip = load_audio('.voices/mol/1.wav', 24000)
clip = clip[:, :220000]
prob = api.classify_audio_clip(clip)
assert clip.shape == (1, 48000) and 0 < prob < 1
print(f"This classifier thinks there is a {prob*100}% chance that this clip was generated from Tortoise.")
""",
    "latents": """
import os, torch
tts = api.TextToSpeech()
voices = get_voices()
conds = [load_audio(path, 22050) for path in voices['mol']]
conditioning_latents = tts.get_conditioning_latents(conds)
os.makedirs('.voices/mine')
torch.save(conditioning_latents, '.voices/mine/mine.pth')
clips, latents = load_voice('mine')
assert clips is None and all(torch.equal(a, b) for a, b in zip(latents, conditioning_latents))
gen = tts.tts("As before.", conditioning_latents=latents, use_deterministic_seed=1, **QUICK)
assert torch.equal(gen, tts.tts("As before.", voice_samples=conds, use_deterministic_seed=1, **QUICK))
auto, diffusion = tts.get_random_conditioning_latents()
average = (auto + latents[0]) / 2, (diffusion + latents[1]) / 2
assert tts.tts("Between the two.", conditioning_latents=average, **QUICK).shape[:2] == (1, 1)
""",
    "knobs": """
tts = api.TextToSpeech(autoregressive_batch_size=api.pick_best_batch_size_for_gpu(), enable_redaction=False)
gen = tts.tts("[I am really sad,] Please feed me.", None, None, 1, False, 4, False, 2, .7, 1, 2.0, .9, 40, .0, 2,
    True, 2, .5, typical_sampling=True, typical_mass=.8, top_k=10)
assert gen.shape[:2] == (1, 1)
assert tts.deterministic_state(seed=9) == 9
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_of_the_original_run(models: Path, name: str) -> None:
    pytest.importorskip("torch")
    exec(SETUP + PROGRAMS[name], {})


PROMPT = "[I am really sad,] Please feed me."


def test_prompts_in_brackets(random_bundle: Path) -> None:
    """The original's prompt in brackets, on an engine in its folder that has its aligner's network."""
    quick = dict(num_autoregressive_samples=2, diffusion_iterations=2, max_mel_tokens=12)
    for redaction in (True, False):
        speaker = api.TextToSpeech(models_dir=str(random_bundle), enable_redaction=redaction)
        assert tuple(speaker.tts_with_preset(PROMPT, preset="ultra_fast", **quick).shape[:2]) == (1, 1)


def test_words_in_brackets_are_not_heard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the engine that ships, which speaks and hears: what is left is shorter, and more like the rest alone."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(base, "MODELS_DIR", str(folder / "none"))
    quick = dict(num_autoregressive_samples=4, diffusion_iterations=10)
    lengths, likeness = {}, {}
    for redaction in (True, False):
        speaker = api.TextToSpeech(models_dir=str(folder / "none"), enable_redaction=redaction)
        wav = np.asarray(
            speaker.tts_with_preset(PROMPT, preset="ultra_fast", use_deterministic_seed=1, **quick)
        ).ravel()
        letters = hear(speaker._tts.engine, wav).reading().replace(" ", "")
        likeness[redaction] = difflib.SequenceMatcher(None, "pleasefeedme", letters).ratio()
        lengths[redaction] = len(wav) / 24000
    assert lengths[True] < lengths[False] - 0.4 and likeness[True] > likeness[False]


REAL = ROOT.parent / "shared" / "reference" / "voices"


def test_recordings_of_people(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original's own programs with its own voices: clips speak, by the engine that ships; latents are as it wrote them."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    if not REAL.exists():
        pytest.skip(f"no {REAL}: the original's voices are not part of this repository")
    monkeypatch.setattr(base, "MODELS_DIR", str(folder / "none"))
    clips, none = utils.audio.load_voice("lj", [str(REAL)])
    none_either, latents = utils.audio.load_voice("pat_latents", [str(REAL)])
    assert (
        none is None
        and none_either is None
        and [tuple(part.shape) for part in latents] == [(1, 1024), (1, 2048)]
    )
    theirs = torch.load(REAL / "pat_latents" / "pat.pth", map_location="cpu", weights_only=True)
    assert all(torch.equal(one, other) for one, other in zip(latents, theirs, strict=True))
    speaker = api.TextToSpeech(models_dir=str(folder / "none"))
    torch.save(speaker.get_conditioning_latents(clips), folder / "lj.pth")
    quick = dict(use_deterministic_seed=1, num_autoregressive_samples=2, diffusion_iterations=4)
    said = speaker.tts("Hello there.", voice_samples=clips, **quick)
    again = speaker.tts("Hello there.", conditioning_latents=torch.load(folder / "lj.pth"), **quick)
    assert torch.equal(said, again) and said.abs().max() > 0.01


def test_without_torch_arrays_come_back(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat_tensors.importlib.util, "find_spec", lambda name: None)
    clip = utils.audio.load_audio(".voices/mol/0.wav", 22050)
    assert isinstance(clip, np.ndarray) and clip.shape == (1, 22050)
    quick = dict(num_autoregressive_samples=1, diffusion_iterations=2)
    latents = utils.audio.load_voice("pat")[1]
    assert isinstance(api.TextToSpeech().tts(TEXT, voice_samples=[clip], **quick), np.ndarray)
    assert isinstance(api.TextToSpeech().tts(TEXT, conditioning_latents=latents, **quick), np.ndarray)


def test_importing_compat_loads_no_torch() -> None:
    code = "import sys; from tortoise_rt.compat import api, api_fast, utils; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )


# utils


def test_voices_by_name(models: Path) -> None:
    known = utils.audio.get_voices()
    assert [Path(path).name for path in known["mol"]] == ["0.wav", "1.wav"]
    assert [Path(path).name for path in known["pat"]] == ["pat.pth"]
    assert {"alto", "tenor"} <= set(known)
    assert utils.audio.load_voice("random") == (None, None) == utils.audio.load_voices(["mol", "random"])
    write_clip(models / "more" / "extra" / "a.wav")
    clips, latents = utils.audio.load_voices(["mol", "extra"], [str(models / "more")])
    assert [tuple(clip.shape) for clip in clips] == [(1, 22050), (1, 44100), (1, 22050)] and latents is None
    with pytest.raises(VoiceError, match="clips and latents cannot be averaged"):
        utils.audio.load_voices(["mol", "pat"])
    with pytest.raises(VoiceError, match='unknown voice "mool"'):
        utils.audio.load_voice("mool")


def test_latents_are_averaged(models: Path) -> None:
    parts = [utils.audio.load_voice(name)[1] for name in ("pat", "emma")]
    _, mean = utils.audio.load_voices(["pat", "emma"])
    for i in range(2):
        np.testing.assert_allclose(
            mean[i], (np.asarray(parts[0][i]) + np.asarray(parts[1][i])) / 2, rtol=1e-6
        )


def test_mels_as_the_original_scales_them() -> None:
    low, high = -11.512925148010254, 2.3143386840820312  # log(1e-5), and the loudest of the training data
    mel = np.array([[low, high, (low + high) / 2]])
    np.testing.assert_allclose(utils.audio.normalize_tacotron_mel(mel), [[-1, 1, 0]], atol=1e-9)
    np.testing.assert_allclose(utils.audio.denormalize_tacotron_mel(np.array([[-1, 1, 0]])), mel)
    np.testing.assert_allclose(
        utils.audio.dynamic_range_compression(np.array([0.0, 1.0])), [np.log(1e-5), 0], rtol=1e-6
    )
    np.testing.assert_allclose(utils.audio.dynamic_range_decompression(np.array([0.0]), 2), [0.5])


def test_mels_as_recorded(data: Path) -> None:
    torch = pytest.importorskip("torch")
    made = utils.audio.wav_to_univnet_mel(torch.zeros(1, 2560), do_normalization=True)
    assert isinstance(made, torch.Tensor) and made.shape == (1, 100, 11)
    np.testing.assert_allclose(made, -1, atol=1e-6)


def test_the_tokenizers_class() -> None:
    tokenizer = utils.tokenizer.VoiceBpeTokenizer(TOKENIZER)
    assert tokenizer.decode(np.array(tokenizer.encode("It's £5."))) == "it's five pounds."
    basic = utils.tokenizer.VoiceBpeTokenizer(str(TOKENIZER), use_basic_cleaners=True)
    assert basic.preprocess_text("A  B 5") == "a b 5"
    assert utils.tokenizer.english_cleaners("Dr. é") == "doctor e"
    assert utils.tokenizer.transliteration_cleaners("É  5") == "e 5"
    with pytest.raises(TextError, match="give vocab_file"):
        utils.tokenizer.VoiceBpeTokenizer()


# where models are


def test_models_are_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (base, api):
        monkeypatch.setattr(module, "MODELS_DIR", str(folder / "none"))
    with caplog.at_level(logging.WARNING, "tortoise_rt"):
        assert base.engine_folder(str(folder / "none")) is None and "the demo engine speaks" in caplog.text
    assert base.engine_folder(str(folder / "named")) == folder / "named"  # what is named is not replaced
    with pytest.raises(CheckpointError, match="tortoise-rt fetch"):
        api.get_model_path("clvp2.pth", str(folder / "none"))
    fetched = folder / ".cache" / "checkpoints"
    fetched.mkdir(parents=True)
    (fetched / "autoregressive.pth").touch()
    assert base.engine_folder(str(folder / "none")) == fetched
    assert api_fast.get_model_path("autoregressive.pth", str(fetched)) == str(fetched / "autoregressive.pth")
    with pytest.raises(SettingsError, match='unknown model .clvp.pth.. Did you mean "clvp2.pth"'):
        api.get_model_path("clvp.pth")
    assert len(api.MODELS) == 8 and len(api_fast.MODELS) == 4


def test_the_demo_speaks_where_there_are_no_models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(base, "MODELS_DIR", str(folder / "none"))
    speaker = api.TextToSpeech(models_dir=str(folder / "none"))
    assert tuple(speaker.tts(TEXT, num_autoregressive_samples=1, decoder="hifigan").shape[:2]) == (1, 1)
    assert speaker.tokenizer.encode("a") and speaker.device == "cpu"


def test_a_bundle_is_a_models_dir(fast_bundle: Path, folder: Path) -> None:
    shutil.copytree(fast_bundle, folder / "models")
    speaker = api_fast.TextToSpeech(models_dir=str(folder / "models"))
    clip = utils.audio.load_audio(str(write_clip(folder / "a.wav")), 22050)
    assert tuple(speaker.tts(TEXT, voice_samples=[clip], max_mel_tokens=9).shape[:2]) == (1, 1)
