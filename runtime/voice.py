"""Voices: clips or latents, where they are found, and how several become one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .audio import AUDIO_SUFFIXES, load_audio
from .errors import OutputError, VoiceError, suggest
from .output import complete_file
from .pth import MAX_FILE_BYTES, pth_bytes, read_pth
from .spec import CODE_RATE

LATENT_SUFFIXES = (".safetensors", ".pth")
RANDOM = "random"  #: the voice that is drawn anew from the seed
MAX_WIDTH = 16384  #: numbers in a latent; beyond it, a row is audio
MAX_CLIPS = 1000  #: of one voice
MAX_MINUTES = 60  #: of one voice's clips together
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


@dataclass(frozen=True)
class Voice:
    """A named voice: clips that latents are computed from, or the latents."""

    name: str
    clips: tuple[np.ndarray, ...] = field(default=(), repr=False)  #: (samples,) float32 each, 22.05 kHz
    latents: VoiceLatents | None = None


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

    A .pth file holds (autoregressive, diffusion), more after these two (ignored), or the autoregressive latent
    alone. Raises VoiceError when the file is missing, damaged or holds something else.
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
    if isinstance(content, np.ndarray):
        return VoiceLatents(content)
    if isinstance(content, dict):
        keys = ", ".join(map(str, list(content)[:4]))
        raise VoiceError(
            f"it is a dictionary ({keys}, ...), as checkpoints are, and no tuple of voice latents"
        )
    if (
        not isinstance(content, (tuple, list))
        or len(content) < 2
        or not all(isinstance(c, np.ndarray) for c in content[:2])
    ):
        raise VoiceError("it holds no tuple of two tensors (autoregressive latent, diffusion latent)")
    return VoiceLatents(content[0], content[1])


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


def user_folder() -> Path:
    """Where the user's own voices are: $TORTOISE_RT_VOICES, or tortoise-rt/voices in the user's data folder."""
    from .bundle import home_folder

    chosen = os.environ.get("TORTOISE_RT_VOICES")
    if chosen:
        return Path(chosen).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or home_folder() / ".local" / "share"
    return Path(data) / "tortoise-rt" / "voices"


def find_voices(extra_dirs: Iterable[str | Path] = ()) -> dict[str, Path]:
    """Name -> folder or latent file of every voice, sorted by name.

    Looked through are ``extra_dirs``, then the user's folder, then the voices that ship; the first of a name counts.
    Raises VoiceError when one of ``extra_dirs`` is not a folder.
    """
    from .voices import folder as shipped_folder

    found: dict[str, Path] = {}
    for folder in (*check_folders(extra_dirs), user_folder(), shipped_folder()):
        for entry in _entries(folder) if folder.is_dir() else ():
            if entry.name.startswith("_"):
                continue
            if entry.is_dir():
                found.setdefault(entry.name, entry)
            elif entry.suffix.lower() in LATENT_SUFFIXES:
                found.setdefault(entry.stem, entry)
    return dict(sorted(found.items()))


def check_folders(folders: Iterable[str | Path]) -> list[Path]:
    """Folders of voices as paths; raises VoiceError when one is not a folder."""
    paths = [Path(folder).expanduser() for folder in folders]
    for path in paths:
        if not path.is_dir():
            raise VoiceError(f"the voice folder {path} does not exist: create it, or leave it out")
    return paths


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, hidden files apart, sorted by name."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise VoiceError(
            f"cannot look into the voice folder {folder} ({error}): check its permissions"
        ) from error


def load_voice(spec: str, extra_dirs: Sequence[str | Path] = (), *, paths: bool = True) -> Voice | None:
    """The voice that ``spec`` names; None for "random".

    ``spec`` is the name of a voice (:func:`find_voices`), a folder of clips or latents, a clip, a latent file, or
    several of these joined by "&": their clips are pooled, their latents averaged. What has a separator or the suffix
    of a clip or latent file in it is a path first; anything else is a name first, so that a folder which happens to
    be in the working directory takes no voice's place. With ``paths=False`` only names count, for specs from people
    who must not read this machine's files.
    Raises VoiceError for an unknown voice, an empty folder, too much audio or voices that cannot be combined, AudioError
    for a bad clip.
    """
    spec = str(spec)
    if spec == RANDOM:
        check_folders(extra_dirs)
        return None
    if paths and _is_path(spec) and _exists(spec):
        return _load_path(Path(spec).expanduser())
    parts = [part.strip() for part in spec.split("&")]
    if not all(parts):
        raise VoiceError(f'the voice "{spec}" has an empty name in it: write "a&b", or one name')
    if RANDOM in parts:
        raise VoiceError(f'"{spec}" combines "{RANDOM}" with other voices; a random voice stands alone')
    known = find_voices(extra_dirs)
    voices: list[Voice] = []
    for part in parts:
        voices.append(_load_path(_locate(part, known, paths)))
        check_amount([clip for voice in voices for clip in voice.clips], f'the voice "{spec}"')
    return voices[0] if len(voices) == 1 else _combine(spec, voices)


def _is_path(spec: str) -> bool:
    """Whether ``spec`` is written as a path, rather than as a name."""
    separated = any(separator in spec for separator in {"/", os.sep, os.altsep} if separator)
    return separated or spec == "~" or Path(spec).suffix.lower() in (*AUDIO_SUFFIXES, *LATENT_SUFFIXES)


def _exists(spec: str) -> bool:
    return os.path.exists(os.path.expanduser(spec))


def _locate(part: str, known: Mapping[str, Path], paths: bool) -> Path:
    if paths and _is_path(part) and _exists(part):
        return Path(part).expanduser()
    if part in known:
        return known[part]
    if paths and _exists(part):
        return Path(part).expanduser()
    if paths and _is_path(part):
        raise VoiceError(f"there is no file or folder {part}: give an existing one, or the name of a voice")
    raise VoiceError(f'unknown voice "{part}". {suggest(part, [*known, RANDOM])}')


def check_amount(clips: Sequence[np.ndarray], name: str) -> None:
    """Raise a VoiceError when the clips of one voice are too many or last too long together."""
    if len(clips) > MAX_CLIPS:
        raise VoiceError(f"{name} has {len(clips)} clips; the limit is {MAX_CLIPS}, and 3 to 5 are enough")
    minutes = sum(map(len, clips)) / CODE_RATE / 60
    if minutes > MAX_MINUTES:
        raise VoiceError(
            f"the clips of {name} last over {MAX_MINUTES} minutes ({minutes:.0f}): keep a few of about 10 s"
        )


def _load_path(path: Path) -> Voice:
    """The voice in a folder, a latent file or a clip."""
    name = path.stem if path.is_file() else path.resolve().name
    if path.suffix.lower() in LATENT_SUFFIXES and path.is_file():
        return Voice(name, latents=load_latents(path))
    if path.is_file():
        return Voice(name, clips=(load_audio(path, CODE_RATE),))
    files = [f for f in _entries(path) if f.is_file()]
    clips = [f for f in files if f.suffix.lower() in AUDIO_SUFFIXES]
    latents = [f for f in files if f.suffix.lower() in LATENT_SUFFIXES]
    if latents and (clips or len(latents) > 1):
        listed = ", ".join(f.name for f in [*latents, *clips][:5])
        raise VoiceError(
            f"the voice folder {path} holds {len(latents)} latent files and {len(clips)} clips ({listed}): "
            "keep one latent file, or clips alone, or name one file"
        )
    if latents:
        return Voice(name, latents=load_latents(latents[0]))
    if not clips:
        raise VoiceError(
            f"the voice folder {path} holds no audio ({', '.join(AUDIO_SUFFIXES)}) and no latents: "
            "put clips of about 10 s into it"
        )
    if len(clips) > MAX_CLIPS:
        raise VoiceError(
            f"the voice folder {path} holds {len(clips)} clips; the limit is {MAX_CLIPS}, and 3 to 5 are enough"
        )
    loaded: list[np.ndarray] = []
    for file in clips:
        loaded.append(load_audio(file, CODE_RATE))
        check_amount(loaded, str(path))
    return Voice(name, clips=tuple(loaded))


def _combine(name: str, voices: Sequence[Voice]) -> Voice:
    """Pools the clips of voices, or averages their latents; VoiceError when they are of both kinds."""
    latents = [v.latents for v in voices if v.latents is not None]
    if not latents:
        return Voice(name, clips=tuple(clip for v in voices for clip in v.clips))
    if len(latents) < len(voices):
        kinds = ", ".join(f"{v.name}: {'clips' if v.latents is None else 'latents'}" for v in voices)
        raise VoiceError(
            f'"{name}" combines clips and latents ({kinds}): turn the clips into latents first, with '
            '"tortoise-rt voices latents"'
        )
    return Voice(name, latents=blend(latents))


def blend(latents: Sequence[VoiceLatents], weights: Sequence[float] | None = None) -> VoiceLatents:
    """The weighted mean of latents of one model (equal weights by default).

    Raises VoiceError when they differ in width, in having a diffusion latent, or in the checkpoints they come from,
    or when the weights are not as many finite numbers with a positive sum.
    """
    shares = np.ones(len(latents)) if weights is None else np.asarray(weights, np.float64)
    if not latents or shares.shape != (len(latents),) or not np.isfinite(shares).all() or shares.sum() <= 0:
        raise VoiceError(
            f"cannot blend {len(latents)} voices with the weights {weights}: give each a weight, positive in sum"
        )
    if len({(v.auto.shape, None if v.diffusion is None else v.diffusion.shape) for v in latents}) > 1:
        shapes = ", ".join(
            f"{v.auto.shape[1]} and {0 if v.diffusion is None else v.diffusion.shape[1]}" for v in latents
        )
        raise VoiceError(
            f"the voices' latents differ in width ({shapes}): compute all of them with one model"
        )
    prints = {v.fingerprint for v in latents if v.fingerprint}
    if len(prints) > 1:
        raise VoiceError(
            f"the voices' latents come from different checkpoints ({', '.join(sorted(prints))}): recompute them"
        )
    shares = shares / shares.sum()
    known = all(v.fingerprint for v in latents)
    return VoiceLatents(
        _mean([v.auto for v in latents], shares),
        None
        if latents[0].diffusion is None
        else _mean([v.diffusion for v in latents if v.diffusion is not None], shares),
        prints.pop() if known else "",
    )


def _mean(rows: Sequence[np.ndarray], shares: np.ndarray) -> np.ndarray:
    """(1, width) each -> their mean by ``shares``, which sum to 1, (1, width) float32."""
    return np.tensordot(shares, np.concatenate(rows), axes=1)[None].astype(np.float32)
