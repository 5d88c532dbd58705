"""The public surface: names, signatures, what importing costs, and which packages are installed."""

from __future__ import annotations

import configparser
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import tortoise_rt
from tortoise_rt.compat import api, api_fast

ROOT = Path(__file__).resolve().parent.parent
NAMES = """
ARSettings AudioError BundleError BundleMismatch CheckpointError DiffusionSettings EngineError FetchError InputError
MissingDependency OutputError PRESETS Pipeline Result Settings SettingsError TextError TextToSpeech TortoiseError
Voice VoiceError VoiceLatents __version__ classify_audio_clip load_audio load_voice make_settings open_engine
"""


def test_names_are_these() -> None:
    assert sorted(tortoise_rt.__all__) == NAMES.split()
    for name in tortoise_rt.__all__:
        assert getattr(tortoise_rt, name) is not None
        assert name in dir(tortoise_rt)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'TextToSpeach'"):
        tortoise_rt.TextToSpeach  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    [
        "import tortoise_rt",
        "import tortoise_rt.cli",
        "from tortoise_rt import Pipeline, TextToSpeech, open_engine",
    ],
)
def test_importing_loads_no_heavy_package(statement: str) -> None:
    code = f"import sys; {statement}; print(*{{'torch', 'onnx', 'onnxruntime'}}.intersection(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == ""


def test_importing_is_quick() -> None:
    code = "import time; start = time.perf_counter(); import tortoise_rt; print(time.perf_counter() - start)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(times) < 0.3


def test_installed_packages_are_the_folders_on_disk() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    homes = dict(line.split(" = ") for line in config["options"]["package_dir"].split("\n") if line)
    on_disk = set()
    for package, folder in homes.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            on_disk.add(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    assert sorted(config["options"]["packages"].split()) == sorted(on_disk)


_CONSTRUCTOR = (
    "autoregressive_batch_size=None, models_dir={models_dir!r}, enable_redaction=True, kv_cache=False, "
    "use_deepspeed=False, half=False, device=None, tokenizer_vocab_file=None, tokenizer_basic=False"
)
_AUTOREGRESSIVE = (
    "num_autoregressive_samples=512, temperature=0.8, length_penalty=1, repetition_penalty=2.0, top_p=0.8, "
    "max_mel_tokens=500, cvvp_amount=0.0"
)
_DIFFUSION = "diffusion_iterations=100, cond_free=True, cond_free_k=2, diffusion_temperature=1.0"
_STATE = "k=1, verbose=True, use_deterministic_seed=None"

#: signatures of tortoise-tts 3.0.0, as inspect prints them
SIGNATURES = [
    (api.TextToSpeech.__init__, f"(self, {_CONSTRUCTOR})"),
    (api.TextToSpeech.get_conditioning_latents, "(self, voice_samples, return_mels=False)"),
    (api.TextToSpeech.get_random_conditioning_latents, "(self)"),
    (api.TextToSpeech.tts_with_preset, "(self, text, preset='fast', **kwargs)"),
    (
        api.TextToSpeech.tts,
        f"(self, text, voice_samples=None, conditioning_latents=None, {_STATE}, "
        f"return_deterministic_state=False, {_AUTOREGRESSIVE}, {_DIFFUSION}, **hf_generate_kwargs)",
    ),
    (api.TextToSpeech.deterministic_state, "(self, seed=None)"),
    (api.classify_audio_clip, "(clip)"),
    (api_fast.TextToSpeech.__init__, f"(self, {_CONSTRUCTOR})"),
    (api_fast.TextToSpeech.get_conditioning_latents, "(self, voice_samples, return_mels=False)"),
    (api_fast.TextToSpeech.get_random_conditioning_latents, "(self)"),
    (api_fast.TextToSpeech.tts_with_preset, "(self, text, preset='fast', **kwargs)"),
    (
        api_fast.TextToSpeech.tts_stream,
        f"(self, text, voice_samples=None, conditioning_latents=None, {_STATE}, "
        f"return_deterministic_state=False, overlap_wav_len=1024, stream_chunk_size=40, {_AUTOREGRESSIVE}, "
        f"{_DIFFUSION}, **hf_generate_kwargs)",
    ),
    (
        api_fast.TextToSpeech.tts,
        f"(self, text, voice_samples=None, {_STATE}, {_AUTOREGRESSIVE}, **hf_generate_kwargs)",
    ),
    (api_fast.TextToSpeech.deterministic_state, "(self, seed=None)"),
    (api_fast.classify_audio_clip, "(clip)"),
]


@pytest.mark.parametrize(("function", "signature"), SIGNATURES, ids=lambda x: getattr(x, "__qualname__", ""))
def test_signatures_are_the_references(function: object, signature: str) -> None:
    wanted = signature.replace("{models_dir!r}", repr(api.MODELS_DIR))
    assert str(inspect.signature(function)) == wanted  # type: ignore[arg-type]
