"""Latents of voices: their files, where they come from, and their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import OutputError, VoiceError
from .output import complete_file
from .pth import MAX_FILE_BYTES, pth_bytes, read_pth

LATENT_SUFFIXES = (".safetensors", ".pth")
MAX_WIDTH = 16384  #: numbers in a latent; beyond it, a row is audio
_FORMAT = "tortoise-rt voice"


@dataclass(frozen=True)
class VoiceLatents:
    """A voice as the networks take it."""

    auto: np.ndarray  #: (1, D) float32, for the autoregressive network and the fast decoder; (D,) is accepted
    diffusion: np.ndarray | None = None  #: (1, 2C) float32, for the diffusion decoder
    fingerprint: str = ""  #: identifies the checkpoints that made it; "" when unknown

    def __post_init__(self) -> None:
        object.__setattr__(self, "auto", _row(self.auto, "autoregressive"))
        if self.diffusion is not None:
            object.__setattr__(self, "diffusion", _row(self.diffusion, "diffusion"))

    def save(self, path: str | Path) -> None:
        """Write .safetensors, or the reference's .pth (a tuple; without a diffusion latent, one tensor; no fingerprint).

        Raises OutputError for another suffix, a missing folder or one that cannot be written.
        """
        path = Path(path)
        present = {n: a for n, a in (("auto", self.auto), ("diffusion", self.diffusion)) if a is not None}
        if path.suffix.lower() == ".pth":
            data = pth_bytes(*present.values())
        elif path.suffix.lower() == ".safetensors":
            import safetensors.numpy

            data = safetensors.numpy.save(
                present, metadata={"format": _FORMAT, "fingerprint": self.fingerprint}
            )
        else:
            raise OutputError(
                f"cannot save a voice as {path}: its suffix must be one of {', '.join(LATENT_SUFFIXES)}"
            )
        with complete_file(path) as unfinished:
            unfinished.write_bytes(data)


def _row(latent: Any, name: str) -> np.ndarray:
    """``latent`` as (1, width) float32, or a VoiceError."""
    array = np.asarray(latent)
    if array.dtype.kind != "f":
        raise VoiceError(f"the {name} latent is of type {array.dtype}; floating-point numbers are needed")
    if array.ndim not in (1, 2) or array.size == 0 or array.size != array.shape[-1]:
        raise VoiceError(f"the {name} latent has the shape {array.shape}; (1, width) is needed")
    if array.size > MAX_WIDTH:
        raise VoiceError(
            f"the {name} latent has {array.size} numbers; at most {MAX_WIDTH} are plausible. If this is a recording, "
            "save it as a .wav file"
        )
    with np.errstate(over="ignore"):
        row = np.ascontiguousarray(array.reshape(1, -1), np.float32)
    if not np.isfinite(row).all():
        raise VoiceError(f"the {name} latent has numbers that are not finite: compute it anew from its clips")
    return row


def load_latents(path: str | Path) -> VoiceLatents:
    """Latents from a .safetensors file or a .pth file as TorToiSe and its forks write them.

    A .pth file holds (autoregressive, diffusion), in forks the mels of the clips behind these (ignored), or the
    autoregressive latent alone. Raises VoiceError when the file is missing, damaged or holds something else, as
    recordings.
    """
    path = Path(path)
    if not path.is_file():
        raise VoiceError(f"there is no file {path}: give a .safetensors or .pth file of voice latents")
    try:
        return _latents_from_pth(read_pth(path)) if path.suffix.lower() == ".pth" else _read_safetensors(path)
    except VoiceError as error:
        if str(path) in str(error):
            raise
        raise VoiceError(f"cannot use {path}: {error}") from error


def _latents_from_pth(content: Any) -> VoiceLatents:
    if problem := _other_content(content):
        raise VoiceError(problem)
    return VoiceLatents(content) if isinstance(content, np.ndarray) else VoiceLatents(*content[:2])


def _other_content(content: Any) -> str:
    """What a .pth file holds instead of latents, and what to do about it; "" for latents."""
    if isinstance(content, dict):
        keys = ", ".join(map(str, list(content)[:4]))
        return f"it is a dictionary ({keys}, ...), as checkpoints are, and no tuple of voice latents"
    if isinstance(content, tuple) and len(content) == 4 and isinstance(content[1], str):
        return (
            "it is a debug state of TorToiSe's (seed, text, clips, latents), and no tuple of voice latents: use the "
            "voice's clips, or save the last of the four by itself"
        )
    parts = content if isinstance(content, (tuple, list)) else [content]
    tensors = [part for part in parts if isinstance(part, np.ndarray)]
    recorded = [t for t in tensors if t.ndim in (1, 2) and t.shape[-1] > MAX_WIDTH]
    # Behind two latents forks keep mels, (1, clips, bands, frames), or nothing; a third row is one more clip.
    if recorded or (len(parts) > 2 and len(tensors) == len(parts) and all(t.ndim < 3 for t in tensors)):
        return (
            f"it holds recordings ({len(tensors)} of up to {max(t.size for t in tensors)} samples), which are no "
            "voice latents: save each as a .wav file of 22050 Hz into one folder, and name the folder"
        )
    pair = content is not parts or (
        len(parts) > 1 and all(isinstance(part, np.ndarray) for part in parts[:2])
    )
    if not tensors or not pair:
        return "it holds no tuple of two tensors (autoregressive latent, diffusion latent)"
    return ""


def _read_safetensors(path: Path) -> VoiceLatents:
    import safetensors

    if path.stat().st_size > MAX_FILE_BYTES:
        raise VoiceError(
            f"it has {path.stat().st_size >> 20} MB; voice latents take less than {MAX_FILE_BYTES >> 20}"
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys() if name in ("auto", "diffusion")}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (
        Exception
    ) as error:  # the library raises its own error, OSError, or TypeError for a dtype NumPy lacks
        raise VoiceError(f"it is not a sound .safetensors file ({error})") from error
    if "auto" not in tensors:
        raise VoiceError('it holds no tensor called "auto", and so no voice latents')
    return VoiceLatents(tensors["auto"], tensors.get("diffusion"), metadata.get("fingerprint", ""))


def same_origin(one: str, other: str) -> bool:
    """Whether two fingerprints (``network=digits,...``) agree on every network that both name."""
    first, second = _networks(one), _networks(other)
    return all(first[network] == second[network] for network in first.keys() & second.keys())


def _networks(fingerprint: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in fingerprint.split(",") if "=" in part)


def blend(latents: Sequence[VoiceLatents], weights: Sequence[float] | None = None) -> VoiceLatents:
    """The mean of latents of one model by ``weights``, whose sum may be any (equal weights by default).

    Raises VoiceError when they differ in width, in having a diffusion latent, or in the checkpoints they come from,
    or when there is not one finite weight above 0 for each.
    """
    shares = np.ones(len(latents)) if weights is None else np.asarray(weights, np.float64)
    if not latents or shares.shape != (len(latents),) or not (np.isfinite(shares) & (shares > 0)).all():
        raise VoiceError(
            f"cannot blend {len(latents)} voices with the weights {weights}: give each a weight above 0"
        )
    diffusion = [v.diffusion for v in latents if v.diffusion is not None]
    if 0 < len(diffusion) < len(latents):
        raise VoiceError(
            f"{len(latents) - len(diffusion)} of the {len(latents)} voices have no diffusion latent: compute them with "
            "an engine that has the diffusion decoder, or use --decoder hifigan"
        )
    widths = [f"{v.auto.size} and {0 if v.diffusion is None else v.diffusion.size}" for v in latents]
    if len(set(widths)) > 1:
        raise VoiceError(
            f"the voices' latents differ in width ({', '.join(widths)}): compute all of them with one model"
        )
    prints = sorted({v.fingerprint for v in latents})
    if not all(same_origin(one, other) for one in prints for other in prints):
        raise VoiceError(
            f"the voices' latents come from different checkpoints ({' / '.join(filter(None, prints))}): compute all of "
            "them with one model"
        )
    networks = {network: digits for one in prints for network, digits in _networks(one).items()}
    merged = prints[0] if len(prints) == 1 else ",".join(f"{n}={d}" for n, d in sorted(networks.items()))
    return VoiceLatents(
        _mean([v.auto for v in latents], shares),
        _mean(diffusion, shares) if diffusion else None,
        merged if all(prints) else "",
    )


def _mean(rows: Sequence[np.ndarray], shares: np.ndarray) -> np.ndarray:
    """(1, width) each -> their mean by ``shares``, (1, width) float32."""
    shares = shares / shares.max()  # whose sum is finite
    return np.tensordot(shares / shares.sum(), np.concatenate(rows), axes=1)[None].astype(np.float32)
