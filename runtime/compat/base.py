"""What both of the reference's modules share: where checkpoints are kept, and the constructor."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ..autoregressive import ROWS
from ..errors import CheckpointError, SettingsError, suggest
from ..fetch import SOURCE, checkpoints_folder
from ..rng import fresh_seed
from ..spec import CHECKPOINT_FILES
from ..text import find_reference_tokenizer
from ..tts import TextToSpeech, check_path
from .utils.tokenizer import VoiceBpeTokenizer

DEFAULT_MODELS_DIR = os.path.join(os.path.expanduser("~"), ".cache", "tortoise", "models")
MODELS_DIR = os.environ.get("TORTOISE_MODELS_DIR", DEFAULT_MODELS_DIR)
_SNAPSHOTS = "models--*--tortoise-tts*/snapshots/*"  # as huggingface_hub lays out its cache
log = logging.getLogger("tortoise_rt")


def models_folder(models_dir: str | Path) -> Path:
    """The folder with the checkpoints: ``models_dir``, or the newest download of the reference in it."""
    check_path("models_dir", models_dir)
    folder = Path(models_dir or MODELS_DIR).expanduser()
    if any((folder / file).is_file() for file in CHECKPOINT_FILES.values()):
        return folder
    snapshots = [s for s in folder.glob(_SNAPSHOTS) if (s / CHECKPOINT_FILES["autoregressive"]).is_file()]
    return max(snapshots, key=lambda s: s.stat().st_mtime, default=folder)


def engine_folder(models_dir: str | Path) -> Path | None:
    """As :func:`models_folder`. Where nothing is named and nothing lies: what ``fetch`` has got, else None (the demo)."""
    folder = models_folder(models_dir)
    if str(models_dir or MODELS_DIR) != str(MODELS_DIR) or folder.is_dir():
        return folder
    fetched = checkpoints_folder()
    if (fetched / CHECKPOINT_FILES["autoregressive"]).is_file():
        return fetched
    log.warning(
        "no models in %s: the demo engine speaks. For TorToiSe itself: tortoise-rt fetch, or models_dir=DIR",
        folder,
    )
    return None


def model_path(model_name: str, models_dir: str | Path, known: dict[str, str]) -> str:
    """The path of one of ``known`` checkpoints; raises SettingsError for another name, CheckpointError when it is missing."""
    if model_name not in known:
        raise SettingsError(f"unknown model {model_name!r}. {suggest(model_name, known)}")
    folder = engine_folder(models_dir)
    path = None if folder is None else folder / model_name
    if path is None or not path.is_file():
        raise CheckpointError(
            f"there is no {model_name} in {folder or models_dir}: download it with tortoise-rt fetch"
        )
    return str(path)


def hub_urls(*networks: str) -> dict[str, str]:
    """File name -> where it is published, of the checkpoints of some networks."""
    return {CHECKPOINT_FILES[network]: f"{SOURCE}/{CHECKPOINT_FILES[network]}" for network in networks}


def pick_best_batch_size_for_gpu() -> int:
    """Samples that decode side by side where nothing is said; it bounds memory and changes no result."""
    return ROWS


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
            engine_folder(models_dir),
            enable_redaction,
            kv_cache,
            use_deepspeed,
            half,
            device,
            tokenizer_vocab_file,
            tokenizer_basic,
        )
        self.models_dir = models_dir
        self.autoregressive_batch_size = autoregressive_batch_size or pick_best_batch_size_for_gpu()
        self.enable_redaction = enable_redaction
        self.half = half
        self.device = self._tts.engine.info.device
        file = tokenizer_vocab_file or self._tts.engine.info.tokenizer or find_reference_tokenizer()
        self.tokenizer = None if file is None else VoiceBpeTokenizer(file, tokenizer_basic)

    def deterministic_state(self, seed=None):
        """``seed``, or a fresh one. Nothing global is seeded: a seed is an argument here."""
        return fresh_seed() if seed is None else seed


def code_limit(max_mel_tokens):
    """The reference's default of 500 as "500, or what the model has room for"; other numbers as they are."""
    return None if max_mel_tokens == 500 else max_mel_tokens
