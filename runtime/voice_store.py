"""The user's own voices: adding clips or latents to them, from files, from whole folders of voices, from archives."""

from __future__ import annotations

import gzip
import os
import re
import secrets
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .audio import AUDIO_SUFFIXES
from .errors import OutputError, TortoiseError, VoiceError
from .latents import LATENT_SUFFIXES
from .voice import RANDOM, load_files, user_folder, voice_files, voices_in

MAX_NAME = 60  #: characters
MAX_MEMBER = 256 << 20  #: bytes of one file in an archive
MAX_MEMBERS = 2000  #: of them
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:&<>|"?*]')
_SUFFIXES = (*AUDIO_SUFFIXES, *LATENT_SUFFIXES)


@dataclass(frozen=True)
class Imported:
    """What became of one voice of a folder."""

    name: str
    outcome: str  #: what was imported, or why it was not
    failed: bool = False


def check_name(name: str) -> str:
    """``name``, if a voice may be called so; raises VoiceError."""
    problem = ""
    if not name or len(name) > MAX_NAME or name != name.strip():
        problem = f"it must have 1 to {MAX_NAME} characters, none at its ends blank"
    elif name[0] in "._" or name[-1] == "." or _FORBIDDEN.search(name):
        problem = 'it must not begin with "." or "_", end with "." or have one of / \\ : & < > | " ? * in it'
    elif name == RANDOM or Path(name).suffix.lower() in _SUFFIXES:
        problem = "that means something else where a voice is named"
    if problem:
        raise VoiceError(f"a voice cannot be called {name[:80]!r}: {problem}")
    return name


def add_voice(name: str, sources: Sequence[str | Path], *, force: bool = False) -> Path:
    """Copy clips, folders of them, or one file of latents into the user's folder as the voice ``name``; -> where it is.

    Every file is read and checked first, and the voice is there whole or not at all. One of that name is replaced
    with ``force`` only. Raises VoiceError, AudioError or OutputError.
    """
    check_name(name)
    files = [file for source in sources for file in voice_files(Path(source).expanduser())]
    load_files(f'the voice "{name}"', name, files)
    if strange := [file for file in files if file.suffix.lower() not in _SUFFIXES]:
        raise VoiceError(
            f"{strange[0]} would not be found again: convert it to one of {', '.join(_SUFFIXES)}"
        )
    place, there = user_folder(), _own(name)
    if there and not force:
        raise VoiceError(f'there is a voice "{name}" already ({there[0]}): choose another name, or --force')
    unfinished = place / f".{secrets.token_hex(8)}"
    try:
        unfinished.mkdir(parents=True)
        for number, file in enumerate(files, 1):
            shutil.copyfile(file, unfinished / f"{number:03}{file.suffix.lower()}")
        _replace(there, unfinished, place / name)
    except OSError as error:
        raise OutputError(f"cannot write the voice {place / name} ({error}): check the folder") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return place / name


def remove_voice(name: str) -> None:
    """Remove a voice of the user's own; raises VoiceError where there is none, OutputError."""
    there = _own(check_name(name))
    if not there:
        raise VoiceError(f'"{name}" is no voice of your own: only those in {user_folder()} can be removed')
    try:
        _discard(there)
    except OSError as error:
        raise OutputError(f"cannot remove the voice {there[0]} ({error}): check the folder") from error


def _discard(paths: Sequence[Path]) -> None:
    """Remove what is at ``paths``: from its name first, so that nobody finds half of it."""
    for path in paths:
        aside = path.rename(path.with_name(f".{secrets.token_hex(8)}"))
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        else:
            aside.unlink()  # a link, not what it leads to


def _own(name: str) -> list[Path]:
    """What is in the user's folder under the name of a voice."""
    paths = [user_folder() / f"{name}{suffix}" for suffix in ("", *LATENT_SUFFIXES)]
    return [path for path in paths if os.path.lexists(path)]


def _replace(old: Sequence[Path], new: Path, target: Path) -> None:
    """Rename ``new`` to ``target`` and remove what is ``old``, which is put back where that fails."""
    aside = [path.with_name(f".{secrets.token_hex(8)}") for path in old]
    moved: list[tuple[Path, Path]] = []
    try:
        for path, name in zip(old, aside, strict=True):
            path.rename(name)
            moved.append((path, name))
        new.rename(target)
    except OSError:
        for path, name in moved:
            name.rename(path)
        raise
    for name in aside:
        if name.is_dir() and not name.is_symlink():
            shutil.rmtree(name)
        else:
            name.unlink()  # a link, not what it leads to


def import_voices(folder: str | Path, *, force: bool = False) -> Iterator[Imported]:
    """Add every voice in a folder of voices, as the original's: one folder or latent file each; yields what became of it.

    A voice that is there already is left as it is, but with ``force``. Raises VoiceError where there is none at all.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise VoiceError(f"{folder} is no folder: give one that holds voices")
    voices = voices_in(folder)
    if not voices:
        raise VoiceError(
            f"{folder} holds no folders of clips and no latents. To add one voice: tortoise-rt voices add NAME {folder}"
        )
    for name, path in voices.items():
        try:
            if _own(check_name(name)) and not force:
                yield Imported(name, "kept: there is a voice of this name already")
                continue
            added = voice_files(add_voice(name, [path], force=force))
        except TortoiseError as error:
            yield Imported(name, f"not imported: {error}", failed=True)
        else:
            latents = added[0].suffix in LATENT_SUFFIXES
            yield Imported(
                name, "imported: " + ("latents" if latents else f"{len(added)} clip{'s' * (len(added) > 1)}")
            )


def unpack_voices(archive: Path, into: Path) -> None:
    """Write the clips and latents below tortoise/voices/NAME/ of a .tar.gz to ``into``/NAME/.

    Nothing else of it is written, whatever it holds: no links, no other kinds of files, no path of its own. Raises
    VoiceError for one that is damaged, has no voices or unfolds to too much.
    """
    count = 0
    try:
        with tarfile.open(archive, "r:gz") as members:
            for member in members:
                if (target := _target(member, into)) is None:
                    continue
                count += 1
                if member.size > MAX_MEMBER or count > MAX_MEMBERS:
                    raise VoiceError(
                        f"{archive} has more or larger files than voices are: nothing is taken from it"
                    )
                content = members.extractfile(member)
                if content is not None:
                    target.parent.mkdir(exist_ok=True)
                    with content, target.open("wb") as file:
                        shutil.copyfileobj(content, file)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise VoiceError(f"{archive} is no sound .tar.gz ({error}): fetch it again") from error
    if not count:
        raise VoiceError(f"{archive} holds no voices (tortoise/voices/NAME/)")


def _target(member: tarfile.TarInfo, into: Path) -> Path | None:
    """Where a member of an archive goes; None for what is no clip or latent file of a voice."""
    *above, name, file = ("", "", *PurePosixPath(member.name).parts)
    if not member.isreg() or above[-2:] != ["tortoise", "voices"]:
        return None
    if Path(file).suffix.lower() not in _SUFFIXES or _FORBIDDEN.search(file) or file.startswith("."):
        return None
    try:
        return into / check_name(name) / file
    except VoiceError:
        return None
