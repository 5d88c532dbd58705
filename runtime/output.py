"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:
        raise OutputError(
            f"cannot write {path} ({error}): check the folder's permissions and free space"
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
