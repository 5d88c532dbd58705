"""A bundle's folder put in place: under a lock, whole or not at all, and what was there put back when that fails."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tortoise_rt.bundle import MANIFEST, load_manifest, unlisted
from tortoise_rt.errors import OutputError
from tortoise_rt.spec import GRAPHS


def publish(bundle: Path, output: Path) -> None:
    """Move a bundle's folder to ``output`` on the same disk, an older one being set aside until it is in place.

    Sub-folders of the older one stay: its files are then exchanged one by one, and all of them put back when that
    fails; when the process is killed meanwhile, the next call or export puts them back first.
    """
    for path in bundle.iterdir():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    _sync_folder(bundle)
    restore(output)
    old = _aside(output)
    if output.exists():  # else what lies at ``old`` is all there is: a run was killed between the two renames
        shutil.rmtree(old, ignore_errors=True)
    if output.exists() and any(path.is_dir() for path in output.iterdir()):
        old.mkdir()
        away = [(path, old / path.name) for path in bundle_files(output)]
        _move_all(away + [(path, output / path.name) for path in reversed(bundle_files(bundle))])
        _sync_folder(output)
    else:
        aside = [(output, old)] if output.exists() else []
        _move_all([*aside, (bundle, output)])
    _sync_folder(output.parent)
    shutil.rmtree(old, ignore_errors=True)


def _aside(output: Path) -> Path:
    """Where ``publish`` puts the older bundle meanwhile."""
    return output.parent / f".{output.name}.old"


def restore(output: Path) -> None:
    """Put back the files of a bundle whose exchange was cut short: its manifest is set aside, and no newer one in place.

    Files of the bundle that was to come go, where the older one had none of that name. The manifest is last to
    return, so that this can be cut short as well.
    """
    old = _aside(output)
    if not output.is_dir() or (output / MANIFEST).exists() or not (old / MANIFEST).is_file():
        return
    for name in unlisted(output, load_manifest(old)):
        if name.partition(".")[0] in {*GRAPHS, "tokenizer"}:
            (output / name).unlink()
    for path in reversed(bundle_files(old)):
        path.replace(output / path.name)
    _sync_folder(output)


def bundle_files(folder: Path) -> list[Path]:
    """A bundle's files, the manifest first: without it they are no bundle."""
    files = [path for path in folder.iterdir() if not path.is_dir()]
    return sorted(files, key=lambda path: (path.name != MANIFEST, path.name))


def _move_all(moves: list[tuple[Path, Path]]) -> None:
    """Rename each to the other in turn; when one fails, rename back those before it."""
    begun: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            begun.append((source, target))
            source.rename(target)
    except BaseException:  # a signal between two of them, too
        for source, target in reversed(begun):
            if not source.exists():
                target.rename(source)
        raise


def _sync_folder(folder: Path) -> None:
    """Put a folder's entries on disk, where the system can."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Holds the lock of ``output``; raises OutputError when another process is exporting to it."""
    try:
        import fcntl
    except ImportError:  # Windows: renaming still keeps bundles whole
        yield
        return
    path = output.parent / f".{output.name}.lock"
    while True:
        try:
            file = path.open("w")
        except OSError as error:
            raise OutputError(f"cannot write into {output.parent}: {error}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise OutputError(f"another process is exporting to {output}: wait for it") from None
            if not _is_open_at(path, file.fileno()):
                continue  # its holder finished and removed it after it was opened here
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_open_at(path: Path, number: int) -> bool:
    """Whether the open file is the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except FileNotFoundError:
        return False
