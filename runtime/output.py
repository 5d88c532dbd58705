"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .errors import OutputError


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """The name of an unfinished file beside ``path`` to write to; it becomes ``path`` unless the block raises.

    Raises OutputError when the folder does not exist (it is never created), when ``path`` is a folder, and in place
    of the OSError or RuntimeError (libsndfile's) of a failed write.
    """
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist: create it, or write elsewhere")
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a file")
    # Not made from the file's own name, which may already be as long as names can be.
    unfinished = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield unfinished
        _sync(unfinished)
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:
        raise OutputError(
            f"cannot write {path} ({error}): check the folder's permissions and free space"
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Put a file on disk, or after a loss of power its new name could stand for nothing."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def locked_folder(folder: Path, busy: Exception) -> Iterator[None]:
    """Holds the lock of ``folder``; raises ``busy`` where another process does. Windows and NFS lock no folders."""
    with ExitStack() as held:
        with suppress(ImportError, OSError):
            import fcntl

            number = os.open(folder, os.O_RDONLY)
            held.callback(os.close, number)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy from None
        yield
