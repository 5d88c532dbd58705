"""What both of the reference's modules share: where checkpoints are kept, and the constructor."""

from __future__ import annotations

import os
from pathlib import Path

from ..rng import fresh_seed
from ..spec import CHECKPOINT_FILES
from ..tts import TextToSpeech, check_path

DEFAULT_MODELS_DIR = os.path.join(os.path.expanduser("~"), ".cache", "tortoise", "models")
MODELS_DIR = os.environ.get("TORTOISE_MODELS_DIR", DEFAULT_MODELS_DIR)
_SNAPSHOTS = "models--*--tortoise-tts*/snapshots/*"  # as huggingface_hub lays out its cache


def models_folder(models_dir: str | Path) -> Path:
    """The folder with the checkpoints: ``models_dir``, or the newest download of the reference in it."""
    check_path("models_dir", models_dir)
    folder = Path(models_dir or MODELS_DIR).expanduser()
    if any((folder / file).is_file() for file in CHECKPOINT_FILES.values()):
        return folder
    snapshots = [s for s in folder.glob(_SNAPSHOTS) if (s / CHECKPOINT_FILES["autoregressive"]).is_file()]
    return max(snapshots, key=lambda s: s.stat().st_mtime, default=folder)


class ReferenceClass:
    """The constructor of the reference's classes; ``_tts`` does the work."""

    # Signatures here and in the subclasses carry no annotations, so that inspect.signature() shows the reference's.
    def __init__(
        self,
        autoregressive_batch_size=None,
        models_dir=MODELS_DIR,
        enable_redaction=True,
        kv_cache=False,
        use_deepspeed=False,
        half=False,
        device=None,
        tokenizer_vocab_file=None,
        tokenizer_basic=False,
    ):
        self._tts = TextToSpeech(
            autoregressive_batch_size,
            models_folder(models_dir),
            enable_redaction,
            kv_cache,
            use_deepspeed,
            half,
            device,
            tokenizer_vocab_file,
            tokenizer_basic,
        )

    def deterministic_state(self, seed=None):
        """``seed``, or a fresh one. Nothing global is seeded: a seed is an argument here."""
        return fresh_seed() if seed is None else seed


def code_limit(max_mel_tokens):
    """The reference's default of 500 as "500, or what the model has room for"; other numbers as they are."""
    return None if max_mel_tokens == 500 else max_mel_tokens
