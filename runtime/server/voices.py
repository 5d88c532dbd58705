"""The voices of a server: those that it knows, and those that callers make of clips."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile

from ..audio import AUDIO_SUFFIXES
from ..errors import AudioError, InputError, Refused, TortoiseError, VoiceError
from ..latents import LATENT_SUFFIXES
from ..voice import RANDOM, user_folder, voices_in
from ..voice_store import add_voice, check_name, remove_voice
from .service import Service

log = logging.getLogger("tortoise_rt.server")
MOST_FILES = 50  #: of a voice
MOST_VOICES = 1000  #: that callers may have made


def listed(service: Service) -> list[dict[str, Any]]:
    """All voices, as JSON."""
    made = _made()
    found = [_listed(name, name in made) for name in service.voices()]
    return [*found, *([_listed(RANDOM, False)] if service.engine.has("rlg_auto") else [])]


def _listed(name: str, own: bool) -> dict[str, Any]:
    return {"id": name, "name": name, "object": "voice", "deletable": own}


def _made() -> dict[str, Path]:
    folder = user_folder()
    return voices_in(folder) if folder.is_dir() else {}


def create(name: str, files: Sequence[UploadFile]) -> dict[str, Any]:
    """Make a voice of clips, or of one file of latents. Raises InputError, or Refused where there is one of that name."""
    check_name(name)
    if not files:
        raise VoiceError("a voice needs clips: send them as files, 3 to 5 of about 10 s")
    made = _made()
    if name in made:
        raise Refused(f'there is a voice "{name}" already: delete it first, or choose another name', 409)
    if len(made) >= MOST_VOICES:
        raise Refused(f"there are {len(made)} voices, as many as are kept: delete one first", 409)
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            _saved(file, Path(folder), number): file.filename or "" for number, file in enumerate(files, 1)
        }
        try:
            add_voice(name, [*paths])
        except InputError as error:
            message = str(error)
            for path, called in paths.items():  # the caller knows nothing of this machine's files
                message = message.replace(repr(str(path)), str(path)).replace(str(path), repr(called[:80]))
            raise type(error)(message.replace(folder, "the files")) from None
        except TortoiseError as error:
            log.error("a voice could not be kept", exc_info=error)
            raise Refused("the voice could not be kept: the server's log says why", 507) from error
    return _listed(name, True)


def _saved(file: UploadFile, folder: Path, number: int) -> Path:
    """A file under a name of our own."""
    suffix = Path(file.filename or "").suffix.lower()
    if suffix not in (*AUDIO_SUFFIXES, *LATENT_SUFFIXES):
        known = ", ".join((*AUDIO_SUFFIXES, *LATENT_SUFFIXES))
        raise AudioError(
            f"{(file.filename or 'a file')[:80]!r} is none of {known}: convert it to wav or flac"
        )
    path = folder / f"{number:03}{suffix}"
    with path.open("wb") as target:
        while block := file.file.read(1 << 20):
            target.write(block)
    return path


def delete(service: Service, name: str) -> None:
    """Raises Refused for a voice that callers have not made, or that is not there."""
    try:
        made = check_name(name) in _made()
    except VoiceError:
        made = False
    if not made:
        if name in service.voices() or name == RANDOM:
            raise Refused(
                f'the voice "{name}" is the server\'s: only those that were made here can be deleted', 403
            )
        raise Refused(f"there is no voice {name[:80]!r}", 404)
    remove_voice(name)
