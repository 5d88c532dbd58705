"""Engine bundles as the runtime reads them: a directory with manifest.json, tokenizer.json and the graph files.

Sub-folders are no part of a bundle: they are not looked into, and an export leaves them where they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from reprlib import repr as short
from typing import Any

from .engine import EngineInfo
from .errors import BundleError
from .spec import DIM_KEYS, GRAPHS

MANIFEST = "manifest.json"
FORMAT = 2
SECTIONS = ("model", "target", "precision", "graphs", "files", "dims", "defaults")  #: of every format so far
MAX_MANIFEST = 4 << 20  #: bytes
MAX_DIM = 1 << 20  #: far above every dimension of the model family
LITTER = re.compile(
    r"\.DS_Store|Thumbs\.db|desktop\.ini|\._.*|\.nfs.*"
)  #: what file managers and systems leave
_CHUNK = 1 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})*")

Identity = list[int]  #: inode, size and times of a file: while they are the same, so is its content


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest is well-formed and whose files are those it was written with."""

    folder: Path
    manifest: Mapping[str, Any]
    verified: dict[str, Identity] = field(default_factory=dict)  #: file -> what it was when it was verified

    @property
    def graphs(self) -> Mapping[str, str]:
        """Graph -> file name in the folder."""
        return self.manifest["graphs"]

    @property
    def dims(self) -> Mapping[str, int]:
        return self.manifest["dims"]

    @property
    def tokenizer(self) -> Path | None:
        return self.folder / "tokenizer.json" if "tokenizer.json" in self.manifest["files"] else None

    @property
    def source_folder(self) -> Path:
        """The checkpoints it was exported from; raises BundleError when the manifest names none."""
        folder = self.manifest["model"].get("folder")
        if not folder:
            raise BundleError(f"{self.folder} does not name its checkpoints: give --checkpoints DIR")
        return Path(folder)

    def engine_info(self, backend: str, device: str) -> EngineInfo:
        """What an engine over the bundle says of itself."""
        manifest = self.manifest
        return EngineInfo(
            backend=backend,
            device=device,
            source=str(self.folder),
            dims=self.dims,
            graphs=frozenset(self.graphs),
            tokenizer=self.tokenizer,
            defaults=manifest["defaults"],
            notice=manifest["model"].get("notice", ""),
            fingerprint=manifest["model"].get("fingerprint", ""),
            precision=manifest["precision"],
        )

    def check_unchanged(self) -> None:
        """Raise BundleError when a file is no longer what was verified; nothing was, nothing is checked."""
        try:
            for name, identity in list(self.verified.items()):
                self.verified[name] = _verify_file(self, name, identity)
        except BundleError as error:
            raise BundleError(f"{self.folder} changed since it was opened. {error}") from None


def cache_folder() -> Path:
    """Where tortoise-rt keeps what it can make again: $TORTOISE_RT_CACHE, else the user's cache folder."""
    if own := os.environ.get("TORTOISE_RT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or home_folder() / ".cache") / "tortoise-rt"


def home_folder() -> Path:
    """The user's home; a folder that does not exist where there is none (a bare service account)."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(os.sep, "nonexistent")


def demo_folder() -> Path:
    """The bundle that ships with the package."""
    from tortoise_rt import engines

    return engines.folder() / "demo"


def read_bundle(folder: str | Path, verify: bool = True) -> Bundle:
    """Read and check a bundle; raises BundleError for anything missing, damaged, edited or of another format.

    Checksums of files that have not changed since they were last verified are not computed again.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    if problem := next(_problems(manifest), None):
        raise BundleError(
            f"{folder / MANIFEST}: {problem}. Export the bundle again with this version of tortoise-rt"
        )
    bundle = Bundle(folder, manifest)
    return replace(bundle, verified=verify_files(bundle)) if verify else bundle


def load_manifest(folder: Path) -> dict[str, Any]:
    """A manifest of any format, its fields not checked; raises BundleError for what cannot be one."""
    path = folder / MANIFEST
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_MANIFEST:
            raise BundleError(f"{path} is no file of at most {MAX_MANIFEST} bytes: not a manifest")
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{folder} is not an engine bundle: it has no {MANIFEST}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}. Export the bundle again") from None
    if not isinstance(manifest, dict) or type(manifest.get("format")) is not int:
        raise BundleError(f"{path} is not the manifest of an engine bundle")
    for key in SECTIONS:
        if not isinstance(manifest.get(key), dict):
            raise BundleError(f'{path} is not the manifest of an engine bundle: "{key}" is missing')
    return manifest


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """Checksum of a manifest without its own "sha256", independent of layout and order."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _problems(manifest: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a manifest; each check relies on those before it."""
    if manifest["format"] != FORMAT:
        yield f"format {short(manifest['format'])}; this version reads {FORMAT}"
    try:
        if manifest.get("sha256") != manifest_sha256(manifest):
            yield "it does not match its own checksum: it was edited or damaged"
    except RecursionError:
        yield "it is nested too deeply"
    model, target, files, graphs = (manifest[key] for key in ("model", "target", "files", "graphs"))
    for key in ("name", "folder", "notice", "fingerprint"):
        if not isinstance(value := model.get(key, ""), str) or "\0" in value:
            yield f"model.{key} is {short(value)}, not a text"
    for key in ("backend", "device"):
        if not isinstance(target.get(key), str):
            yield f"target.{key} is {short(target.get(key))}, not a text"
    if not isinstance(requires := target.get("requires", {}), dict):
        yield f"target.requires is {short(requires)}"
    for package, version in requires.items():
        if not isinstance(version, str) or not _VERSION.fullmatch(version):
            yield f"target.requires.{package} is {short(version)}, not a version"
    yield from _file_problems(files)
    if unknown := sorted(set(graphs) - set(GRAPHS)):
        yield f"unknown graphs {', '.join(unknown)}"
    for graph, name in graphs.items():
        if not isinstance(name, str) or name not in files:
            yield f"graphs.{graph} is {short(name)}, which is none of the files"
    if set(manifest["precision"]) != set(graphs):
        yield "precision does not name the graphs"
    for graph, precision in manifest["precision"].items():
        if not isinstance(precision, str):
            yield f"precision.{graph} is {short(precision)}, not a text"
    dims = manifest["dims"]
    needed = {key for graph in graphs for key in DIM_KEYS[GRAPHS[graph].network]}
    for key in sorted(needed | set(dims)):
        if type(dims.get(key)) is not int or not 0 <= dims[key] <= MAX_DIM:
            yield f"dimension {key} is {short(dims.get(key))}; it must be an integer from 0 to {MAX_DIM}"
    for key, value in manifest["defaults"].items():
        if not isinstance(value, str if key in ("preset", "decoder", "voice") else (str, int, float)):
            yield f"defaults.{key} is {short(value)}"


def _file_problems(files: dict[str, Any]) -> Iterator[str]:
    for name, entry in files.items():
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            yield f"{short(name)} is no file name of a bundle"
        if not isinstance(entry, dict):
            yield f"files.{name} is {short(entry)}, not a checksum and a size"
        if not isinstance(checksum := entry.get("sha256"), str) or not _SHA256.fullmatch(checksum):
            yield f"files.{name}.sha256 is {short(checksum)}, not 64 hexadecimal digits"
        if type(size := entry.get("bytes")) is not int or size < 0:
            yield f"files.{name}.bytes is {short(size)}, not a size"


def unlisted(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Files in a bundle's folder beside those that the manifest lists."""
    known = {MANIFEST, *manifest["files"]}
    with os.scandir(folder) as entries:
        strange = [entry.name for entry in entries if entry.name not in known and not entry.is_dir()]
    return sorted(name for name in strange if not LITTER.fullmatch(name))


def verify_files(bundle: Bundle, remember: bool = True) -> dict[str, Identity]:
    """Check that the folder holds the files the manifest lists, with their sizes and sha256, and no others.

    Raises BundleError naming the first that differs; -> the files' identities. With ``remember``, the checksum
    of a file that has not changed since it was last right is not computed again.
    """
    try:
        strangers = unlisted(bundle.folder, bundle.manifest)
    except OSError as error:
        raise BundleError(f"{bundle.folder} cannot be read: {error}") from None
    if strangers:
        raise BundleError(
            f"{bundle.folder} holds {', '.join(map(short, strangers[:5]))}, which its manifest does not list: "
            "move it elsewhere, or export the bundle again"
        )
    known = remembered(bundle) if remember else {}
    verified = {name: _verify_file(bundle, name, known.get(name)) for name in bundle.manifest["files"]}
    if verified != known:
        remember_verified(bundle, verified)
    return verified


def _verify_file(bundle: Bundle, name: str, known: Identity | None) -> Identity:
    """Check one file, its checksum only if it is not as it was ``known`` to be; -> what it is now."""
    path, expected = bundle.folder / name, bundle.manifest["files"][name]
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError
        if status.st_size != expected["bytes"]:
            raise BundleError(
                f"{path} has {status.st_size} bytes where the manifest has {expected['bytes']}: "
                "the file is truncated or changed. Copy or export the bundle again"
            )
        if identity(status) != known and file_sha256(path) != expected["sha256"]:
            raise BundleError(
                f"{path} does not match its checksum in the manifest: the file is damaged or was edited. "
                "Copy or export the bundle again"
            )
    except FileNotFoundError:
        raise BundleError(f"{path} is missing: copy the whole bundle, or export it again") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}") from None
    return identity(status)


def identity(status: os.stat_result) -> Identity:
    """What tells that a file's content may have changed."""
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def remember_verified(bundle: Bundle, verified: Mapping[str, Identity]) -> None:
    """Keep in the user's cache which files had the right checksum, and what they were then."""
    try:
        path = _stamp(bundle)
        temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(verified), "utf-8")
        temporary.replace(path)
    except OSError:
        pass  # a cache that cannot be written costs time at the next start, nothing else


def remembered(bundle: Bundle) -> dict[str, Identity]:
    try:
        known = json.loads(_stamp(bundle).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _stamp(bundle: Bundle) -> Path:
    """Where the cache keeps what is known of a bundle: of this manifest in this folder."""
    text = json.dumps([str(bundle.folder.resolve()), bundle.manifest["files"]], sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    return cache_folder() / "verified" / f"{name}.json"
