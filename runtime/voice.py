"""Voices: clips or latents, where they are found, and how several become one."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .audio import AUDIO_SUFFIXES, load_audio
from .errors import VoiceError, suggest
from .latents import LATENT_SUFFIXES, VoiceLatents, blend, load_latents
from .spec import CODE_RATE

RANDOM = "random"  #: the voice that is drawn anew from the seed
MAX_CLIPS = 1000  #: of one voice
MAX_MINUTES = 60  #: of one voice's clips together
MAX_VOICES = 100  #: that become one


@dataclass(frozen=True)
class Voice:
    """A named voice: clips that latents are computed from, or voices whose latents are averaged; the latents, if known."""

    name: str
    clips: tuple[np.ndarray, ...] = field(default=(), repr=False)  #: (samples,) float32 each, 22.05 kHz
    latents: VoiceLatents | None = None
    parts: tuple[tuple[Voice, float], ...] = ()  #: each with its weight, above 0

    @property
    def all_clips(self) -> tuple[np.ndarray, ...]:
        """Its clips, or those of all its parts; none where one of these has none."""
        if self.parts and all(part.clips for part, _ in self.parts):
            return tuple(clip for part, _ in self.parts for clip in part.clips)
        return self.clips

    @property
    def shares(self) -> list[tuple[Voice, float]]:
        """Its parts, each with its share of the whole."""
        most = max((weight for _, weight in self.parts), default=1.0)
        whole = sum(weight / most for _, weight in self.parts)  # finite, however large they are
        return [(part, weight / most / whole) for part, weight in self.parts]

    @property
    def made_of(self) -> str:
        """What it is, in words."""
        if self.parts:
            return "; ".join(
                f"{part.name}, {100 * share:.0f} %: {part.made_of}" for part, share in self.shares
            )
        if not self.clips:
            return "latents"
        several, seconds = len(self.clips) > 1, sum(map(len, self.clips)) / CODE_RATE
        return f"{len(self.clips)} clip{'s' * several} of {seconds:.1f} s{' together' * several}"


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
        found = {**(voices_in(folder) if folder.is_dir() else {}), **found}
    return dict(sorted(found.items()))


def voices_in(folder: Path) -> dict[str, Path]:
    """Name -> folder or latent file of each voice in a folder of voices; what begins with "_" or "." is none."""
    found: dict[str, Path] = {}
    for entry in _entries(folder):
        if entry.is_dir() and not entry.name.startswith("_"):
            found.setdefault(entry.name, entry)
        elif entry.suffix.lower() in LATENT_SUFFIXES and not entry.name.startswith("_"):
            found.setdefault(entry.stem, entry)
    return found


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
    several of these joined by "&", each with a weight behind a colon ("a:0.7&b:0.3") or none of them. What has a
    separator or the suffix of a clip or latent file in it is a path first; anything else is a name first, so that a
    folder which happens to be in the working directory takes no voice's place. With ``paths=False`` only names count,
    for specs from people who must not read this machine's files.
    Raises VoiceError for an unknown voice, an empty folder, too much audio, weights that are none or voices that
    cannot be combined, AudioError for a bad clip.
    """
    return load_voices([str(spec)], extra_dirs, paths=paths)


def load_voices(
    specs: Sequence[str], extra_dirs: Sequence[str | Path] = (), *, paths: bool = True
) -> Voice | None:
    """One voice of all that ``specs`` name, each as in :func:`load_voice`.

    Clips alone, without weights, are pooled as one voice's. Otherwise each voice has latents of its own, and these
    are averaged by the weights, of which only the ratios count.
    """
    spec = "&".join(specs)
    known = find_voices(extra_dirs)
    parts = [
        _weighted(part, known, paths)
        for one in specs
        for part in ([one] if paths and _is_path(one) and _exists(one) else one.split("&"))
    ]
    if not all(name for name, _ in parts):
        raise VoiceError(f'the voice "{spec}" has an empty name in it: write "a&b", or one name')
    if len(parts) > MAX_VOICES:
        raise VoiceError(f"{len(parts)} voices are combined; the limit is {MAX_VOICES}")
    if parts == [(RANDOM, None)]:
        return None
    if any(name == RANDOM for name, _ in parts):
        raise VoiceError(
            f'"{spec}" weighs or combines "{RANDOM}"; a random voice stands alone. To combine one, save it first: '
            "tortoise-rt voices latents random --seed 7 -o FILE.safetensors"
        )
    weights = [1.0 if weight is None else weight for _, weight in parts]
    plain = [weight is None for _, weight in parts]
    if any(plain) and not all(plain):
        raise VoiceError(f'"{spec}" has weights for some voices only: give all of them one, or none')
    voices: list[Voice] = []
    for name, _ in parts:
        voices.append(_load_path(_locate(name, known, paths)))
        check_amount([clip for voice in voices for clip in voice.clips], f'the voice "{spec}"')
    if len(voices) == 1:
        return voices[0]
    if all(plain) and all(voice.latents is None for voice in voices):
        return Voice(spec, clips=tuple(clip for voice in voices for clip in voice.clips))
    latents = [voice.latents for voice in voices if voice.latents is not None]
    blended = blend(latents, weights) if len(latents) == len(voices) else None
    return Voice(spec, latents=blended, parts=tuple(zip(voices, weights, strict=True)))


def _weighted(part: str, known: Mapping[str, Path], paths: bool) -> tuple[str, float | None]:
    """``NAME:WEIGHT`` -> (name, weight); a voice that has a colon in its own name or path -> (name, None)."""
    part = part.strip()
    name, colon, number = part.rpartition(":")
    if not colon or part in known or (paths and _is_path(part) and _exists(part)):
        return part, None
    try:
        weight = float(number)
    except ValueError:
        if name in known:
            raise VoiceError(
                f'the weight "{number}" of the voice "{name}" is no number: write "{name}:0.5"'
            ) from None
        return part, None  # as C:\voices\emma
    if not 0 < weight < math.inf:
        raise VoiceError(f'the weight of the voice "{name}" is {number}; it must be a finite number above 0')
    return name.strip(), weight


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
    return load_files(f"the voice folder {path}", name, voice_files(path))


def files_in(path: Path) -> list[Path]:
    """The clips and latent files in a folder, sorted by name; a file itself."""
    if path.is_file():
        return [path]
    return [
        f for f in _entries(path) if f.is_file() and f.suffix.lower() in (*AUDIO_SUFFIXES, *LATENT_SUFFIXES)
    ]


def voice_files(path: Path) -> list[Path]:
    """As :func:`files_in`; raises VoiceError where there are none."""
    if not path.exists():
        raise VoiceError(
            f"there is no file or folder {path}: give clips, folders of them, or a file of latents"
        )
    found = files_in(path)
    if not found:
        raise VoiceError(
            f"the voice folder {path} holds no audio ({', '.join(AUDIO_SUFFIXES)}) and no latents: "
            "put clips of about 10 s into it"
        )
    return found


def load_files(what: str, name: str, files: Sequence[Path]) -> Voice:
    """The voice of clips or of one latent file; ``what`` they are, for a VoiceError's text."""
    latents = [f for f in files if f.suffix.lower() in LATENT_SUFFIXES]
    clips = len(files) - len(latents)
    if latents and len(files) > 1:
        listed = ", ".join(f.name for f in [*latents, *(f for f in files if f not in latents)][:5])
        raise VoiceError(
            f"{what} holds {len(latents)} latent files and {clips} clips ({listed}): "
            "keep one latent file, or clips alone, or name one file"
        )
    if latents:
        return Voice(name, latents=load_latents(latents[0]))
    if clips > MAX_CLIPS:
        raise VoiceError(f"{what} holds {clips} clips; the limit is {MAX_CLIPS}, and 3 to 5 are enough")
    loaded: list[np.ndarray] = []
    for file in files:
        loaded.append(load_audio(file, CODE_RATE))
        check_amount(loaded, what)
    return Voice(name, clips=tuple(loaded))
