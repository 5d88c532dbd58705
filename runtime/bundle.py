"""Engine bundles as the runtime reads them: a directory with manifest.json, tokenizer.json and the graph files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import BundleError
from .spec import DIM_KEYS, GRAPHS

MANIFEST = "manifest.json"
FORMAT = 1
MAX_MANIFEST = 4 << 20  #: bytes
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest is well-formed and whose files are those it was written with."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def graphs(self) -> Mapping[str, str]:
        """Graph -> file name in the folder."""
        return self.manifest["graphs"]

    @property
    def dims(self) -> Mapping[str, int]:
        return self.manifest["dims"]

    @property
    def tokenizer(self) -> Path | None:
        path = self.folder / "tokenizer.json"
        return path if path.is_file() else None

    @property
    def source_folder(self) -> Path:
        """The checkpoints it was exported from; raises BundleError when the manifest names none."""
        folder = self.manifest["model"].get("folder")
        if not folder:
            raise BundleError(f"{self.folder} does not name its checkpoints: give --checkpoints DIR")
        return Path(folder)


def cache_folder() -> Path:
    """Where tortoise-rt keeps what it can make again: $TORTOISE_RT_CACHE, else the user's cache folder."""
    if own := os.environ.get("TORTOISE_RT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tortoise-rt"


def demo_folder() -> Path:
    """The bundle that ships with the package."""
    from tortoise_rt import engines

    return engines.folder() / "demo"


def read_bundle(folder: str | Path, verify: bool = True) -> Bundle:
    """Read and check a bundle; raises BundleError for anything missing, damaged, edited or of another format.

    Checksums of files that have not changed since they were last verified are not computed again.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise BundleError(f"{path} is larger than {MAX_MANIFEST} bytes: not a manifest")
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{folder} is not an engine bundle: it has no {MANIFEST}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}. Export the bundle again") from None
    _check_manifest(path, manifest)
    bundle = Bundle(folder, manifest)
    if verify:
        verify_files(bundle)
    return bundle


def _check_manifest(path: Path, manifest: Any) -> None:
    def fail(problem: str) -> None:
        raise BundleError(f"{path}: {problem}. Export the bundle again with this version of tortoise-rt")

    if not isinstance(manifest, dict) or "format" not in manifest:
        fail("not a manifest")
    if manifest["format"] != FORMAT:
        fail(f"format {manifest['format']!r}; this version reads {FORMAT}")
    for key in ("model", "target", "precision", "graphs", "files", "dims", "defaults"):
        if not isinstance(manifest.get(key), dict):
            fail(f'"{key}" is missing')
    if unknown := sorted(set(manifest["graphs"]) - set(GRAPHS)):
        fail(f"unknown graphs {', '.join(unknown)}")
    for name in (*manifest["files"], *manifest["graphs"].values()):
        pure = PurePosixPath(str(name))
        if pure.is_absolute() or len(pure.parts) != 1 or pure.parts[0] in ("..", "."):
            fail(f"file name {name!r} leaves the bundle")
    if stray := sorted(set(manifest["graphs"].values()) - set(manifest["files"])):
        fail(f"no checksum for {', '.join(stray)}")
    dims = manifest["dims"]
    for network in {GRAPHS[graph].network for graph in manifest["graphs"]}:
        for key in DIM_KEYS[network]:
            if not isinstance(dims.get(key), int) or dims[key] < 0:
                fail(f"dimension {key} is missing")


def verify_files(bundle: Bundle, remember: bool = True) -> None:
    """Check size and sha256 of every file the manifest lists; raises BundleError naming the first that differs.

    With ``remember``, the checksum of a file that has not changed since it was last right is not computed again.
    """
    stamp = _Stamp(bundle)
    for name, expected in bundle.manifest["files"].items():
        path = bundle.folder / name
        try:
            status = path.stat()
        except OSError:
            raise BundleError(f"{path} is missing: copy the whole bundle, or export it again") from None
        if status.st_size != expected["bytes"]:
            raise BundleError(
                f"{path} has {status.st_size} bytes where the manifest has {expected['bytes']}: "
                "the file is truncated or changed. Copy or export the bundle again"
            )
        if not (remember and stamp.knows(name, status)) and file_sha256(path) != expected["sha256"]:
            raise BundleError(
                f"{path} does not match its checksum in the manifest: the file is damaged or was edited. "
                "Copy or export the bundle again"
            )
        stamp.add(name, status)
    stamp.save()


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class _Stamp:
    """Remembers, in the user's cache, which files had the right checksum: by manifest, inode, size and time."""

    def __init__(self, bundle: Bundle) -> None:
        text = json.dumps([str(bundle.folder.resolve()), bundle.manifest["files"]], sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        self.path = cache_folder() / "verified" / f"{name}.json"
        self.now: dict[str, list[int]] = {}
        try:
            known = json.loads(self.path.read_text("utf-8"))
            self.known = known if isinstance(known, dict) else {}
        except (OSError, ValueError):
            self.known = {}

    def knows(self, name: str, status: os.stat_result) -> bool:
        return self.known.get(name) == _identity(status)

    def add(self, name: str, status: os.stat_result) -> None:
        self.now[name] = _identity(status)

    def save(self) -> None:
        if self.now == self.known:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(self.now), "utf-8")
            temporary.replace(self.path)
        except OSError:
            pass  # a cache that cannot be written costs time at the next start, nothing else


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
