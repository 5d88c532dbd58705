"""Downloads of the official checkpoint files and tokenizer: resumed where they broke off, checked when complete."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from ._version import __version__
from .bundle import Bundle, cache_folder, file_sha256, identity, remember_verified, remembered
from .errors import FetchError, suggest
from .output import locked_folder
from .spec import CHECKPOINT_FILES

HUB = "https://huggingface.co"
#: The folder of the official files that the original's package downloads from (tortoise-tts 3.0.0, api_fast.py).
SOURCE = f"{HUB}/Manmay/tortoise-tts/resolve/main"
TOKENIZER = "tokenizer.json"
#: Where the original keeps its tokenizer, and what it is.
TOKENIZER_URL = "https://raw.githubusercontent.com/neonbjb/tortoise-tts/main/tortoise/data/tokenizer.json"
TOKENIZER_SHA256 = "d1fa6e9b4741bb75b284331b833347c166ba8b0518e187f7370f123149ed87bb"
#: networks of CHECKPOINT_FILES that are not among TorToiSe's own
OTHERS = ("aligner", "wav2vec2")
FILES = (*(file for network, file in CHECKPOINT_FILES.items() if network not in OTHERS), TOKENIZER)
#: The original's package on PyPI, whose voices are files in it, and what it is.
PACKAGE = "tortoise-tts-3.0.0.tar.gz"
PACKAGE_SOURCE = "https://files.pythonhosted.org/packages/45/05/f94a930f3316c5714e5332234fda5ba3ccecf2206ecc19394873f77b7dc8"
PACKAGE_SHA256 = "8684aac23976ffa9813a4ec074b6bff0a348ce82a1923483e57d5d4e27dd21d6"
#: The aligner that the original uses, and the vocabulary that it says which of its outputs is which letter by.
ALIGNER = {
    "config.json": f"{HUB}/jbetker/wav2vec2-large-robust-ft-libritts-voxpopuli/resolve/main",
    "vocab.json": f"{HUB}/jbetker/tacotron-symbols/resolve/main",
    "pytorch_model.bin": f"{HUB}/jbetker/wav2vec2-large-robust-ft-libritts-voxpopuli/resolve/main",
}
ALIGNER_FOLDER = "wav2vec2"  #: beside the checkpoints
OPTIONAL = tuple(CHECKPOINT_FILES[network] for network in ("cvvp", "hifigan", "detector"))

LARGEST = 8 << 30  #: bytes of one file; the official ones have up to 1.7 GB
CHUNK = 1 << 20
TIMEOUT = 30.0  #: seconds without a byte
TRIES = 5  #: in a row without a byte gained
PAUSE = 1.0  #: seconds before the second try, twice as long before each further one
MARGIN = 256 << 20  #: bytes of the disk left free
Progress = Callable[[str, int, int], None]
Note = Callable[[str], None]
_SHA256 = re.compile(r'(?:W/)?"?([0-9a-f]{64})"?$')


@dataclass(frozen=True)
class Remote:
    """A file as its server describes it, by its size or its checksum at least."""

    url: str
    size: int | None  #: bytes, where the server says
    sha256: str | None  #: known beforehand, or as the server says


class _Missing(FetchError):
    """The server does not have the file."""


def checkpoints_folder() -> Path:
    """Where the files are put unless another folder is named, in the user's cache."""
    return cache_folder() / "checkpoints"


def fetch(
    folder: Path,
    names: Sequence[str] = (),
    source: str = SOURCE,
    progress: Progress = lambda name, done, total: None,
    note: Note = lambda text: None,
) -> list[Path]:
    """Download ``names`` into ``folder``, which is made; without names FILES, of which OPTIONAL may be missing.

    A file is written as NAME.part, which a later run goes on with, and renamed once its size and SHA-256 are those
    that the server states; one of the two will do. A file that is there already is compared with them and never
    replaced: one that differs is an error, one that cannot be compared is kept. ``source`` is a folder's address; a
    tokenizer that it does not have comes from where the original keeps it. ``note`` is told what is missing, kept
    unchecked or checked by its size alone. -> the files now in the folder. Raises FetchError.
    """
    for name in set(names) - {*FILES, PACKAGE}:
        raise FetchError(f'no file is called "{name}". {suggest(name, FILES)}')
    sources = dict.fromkeys(names or FILES, source)
    return _fetch_all(folder, sources, () if names else OPTIONAL, progress, note)


def fetch_aligner(
    folder: Path,
    source: str | None = None,
    progress: Progress = lambda name, done, total: None,
    note: Note = lambda text: None,
) -> list[Path]:
    """Download the aligner's files into a folder of their own in ``folder``, as :func:`fetch` does.

    ``source``: the address of a folder that has all of them; by default they come from where the original has them.
    """
    sources = {name: source or place for name, place in ALIGNER.items()}
    return _fetch_all(folder / ALIGNER_FOLDER, sources, (), progress, note)


def _fetch_all(
    folder: Path, sources: Mapping[str, str], optional: Sequence[str], progress: Progress, note: Note
) -> list[Path]:
    """Download or check each file of ``sources``, name -> address of its folder; -> those there now."""
    paths, reachable = [folder / name for name in sources], True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        busy = FetchError(f"another process is downloading into {folder}: wait for it")
        # Two runs would append to the same NAME.part.
        with locked_folder(folder, busy):
            for path, source in zip(paths, map(_on_mirror, sources.values()), strict=True):
                try:
                    if not path.is_file():
                        _fetch(path, source, progress, note)
                    elif reachable:  # else every further file would wait for its timeout
                        reachable = _compare(path, source, progress, note)
                except _Missing as error:
                    if path.name not in optional:
                        raise
                    note(f"{path.name}, which is optional, is missing: {error}")
    except OSError as error:
        raise FetchError(f"cannot read or write in {folder}: {error}") from error
    return [path for path in paths if path.is_file()]


def _on_mirror(source: str) -> str:
    """An address of the hub on the mirror that $HF_ENDPOINT names, as the hub's own library has it; others as they are."""
    return source.replace(HUB, os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUB, 1)


def _compare(path: Path, source: str, progress: Progress, note: Note) -> bool:
    """Raise FetchError if a file that is there is not what its server states; -> whether that could be reached."""
    progress(path.name, 1, 1)
    try:
        remote = _ask(path.name, source)
    except (ConnectionError, FetchError) as error:
        others = " and all else that is there already" if isinstance(error, ConnectionError) else ""
        note(f"{path.name}{others} is kept unchecked: {error}")
        return not others
    if problem := _difference(path, remote, note):
        raise FetchError(f"{path} differs from {remote.url}: {problem}. Remove it to download that one")
    return True


def _fetch(path: Path, source: str, progress: Progress, note: Note) -> None:
    """Download a file, anew where that breaks off, until TRIES in a row make NAME.part no longer than it was."""
    part = path.with_name(f"{path.name}.part")
    longest, fruitless, remote = _size(part), 0, None
    while remote is None:
        try:
            remote = _download(part, source, progress)
        except ConnectionError as error:
            fruitless = 0 if _size(part) > longest else fruitless + 1
            longest = max(longest, _size(part))
            if fruitless == TRIES:
                raise FetchError(f"{error}, {TRIES} times in a row. To go on, run the same command") from None
            time.sleep(PAUSE * 2 ** (fruitless - 1) if fruitless else 0)
    if problem := _difference(part, remote, note):
        part.unlink()
        raise FetchError(f"{remote.url} is damaged: {problem}; it was removed: fetch it again")
    os.replace(part, path)


def _download(part: Path, source: str, progress: Progress) -> Remote:
    """Append to ``part`` what it lacks. Raises ConnectionError when that breaks off, other OSErrors of the disk."""
    remote, done = _ask(part.stem, source), _size(part)
    missing = (remote.size or done) - done
    if shutil.disk_usage(part.parent).free < missing + MARGIN:
        raise FetchError(f"{part.parent} has no room for {part.stem}: {missing >> 20} MiB are needed")
    if done == remote.size:
        return remote
    answer, _ = _open(remote.url, headers={"Range": f"bytes={done}-"} if done else {})
    with answer:
        if answer.status == 416:  # ``part`` is complete, where no size is known, or of another version
            part.unlink(missing_ok=True)
            raise ConnectionError(f"{remote.url} does not go on from byte {done}")
        if not f"{answer.headers['Content-Range']}".startswith(f"bytes {done}-"):
            done = 0  # the server sends all of it
        with part.open("ab" if done else "wb") as file:
            while piece := _read(answer):
                done += len(piece)
                if done > (remote.size or LARGEST):
                    raise FetchError(f"{remote.url} sends more than {remote.size or LARGEST} bytes")
                file.write(piece)
                progress(part.stem, done, remote.size or done)
    if remote.size not in (None, done) or answer.length:
        raise ConnectionError(f"{remote.url} cannot be downloaded: it ended early")
    return remote


def _read(answer: Any) -> bytes:
    try:
        return answer.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"{answer.url[:200]} broke off: {error!r}") from None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _difference(file: Path, remote: Remote, note: Note) -> str:
    """What is wrong with a file; if its SHA-256 was right and it did not change since, that is not computed again."""
    name, status = file.name.removesuffix(".part"), file.stat()
    if remote.size not in (None, status.st_size):
        return f"it has {status.st_size} bytes, it should have {remote.size}"
    stated, now = Bundle(file.parent, {"files": {name: remote.sha256}}), {name: identity(status)[:3]}
    if remote.sha256 is None:
        note(f"{name} is checked by its size alone: {remote.url} states no SHA-256")
    elif remembered(stated) != now:  # [:3]: without the time at which it got its name
        if file_sha256(file) != remote.sha256:
            return f"its SHA-256 is not {remote.sha256[:16]}..."
        remember_verified(stated, now)
    return ""


def _ask(name: str, source: str) -> Remote:
    """What the server says of a file; of a tokenizer that it does not have, what is known of the original's."""
    try:
        return _head(f"{source.rstrip('/')}/{quote(name)}", PACKAGE_SHA256 if name == PACKAGE else None)
    except _Missing as missing:
        if name != TOKENIZER:
            raise
        try:
            return _head(TOKENIZER_URL, TOKENIZER_SHA256)
        except (ConnectionError, FetchError) as error:
            error.args = (f"{missing}; {error}",)
            raise


def _head(url: str, sha256: str | None = None) -> Remote:
    answer, hops = _open(url, "HEAD")
    answer.close()
    size = next((h["X-Linked-Size"] for h in hops if h["X-Linked-Size"]), hops[-1]["Content-Length"])
    if size is not None and not (size.isdecimal() and 0 < int(size) <= LARGEST):
        raise FetchError(f"{url} says it has {size[:40]} bytes; from 1 to {LARGEST} are taken")
    # a plain ETag is a server's own affair, even where it looks like a SHA-256
    sums = [_SHA256.match(h["X-Linked-Etag"] or "") for h in hops]
    sha256 = sha256 or next((found[1] for found in sums if found), None)
    if size is None and sha256 is None:
        raise FetchError(f"{url} states neither a size nor a SHA-256 to check it by: use another source")
    return Remote(url, int(size) if size else None, sha256)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Keeps the headers of the answers that passed a request on to another address."""

    def __init__(self) -> None:
        self.hops: list[Any] = []

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.hops.append(headers)
        return _request(newurl, req.get_method(), req.headers)  # header_items() has this server's Host too


def _request(url: str, method: str, headers: Mapping[str, str]) -> urllib.request.Request:
    """Raises FetchError for anything but https, and http to this machine."""
    place = urlsplit(url)
    local = place.hostname in ("localhost", "127.0.0.1", "::1")
    if place.scheme != "https" and not (place.scheme == "http" and local):
        raise FetchError(f"{url[:200]} is not taken: only https addresses are")
    named = {"User-Agent": f"tortoise-rt/{__version__}", **headers}
    return urllib.request.Request(url, headers=named, method=method)


def _open(url: str, method: str = "GET", headers: Mapping[str, str] = {}) -> tuple[Any, list[Any]]:
    """-> the answer, to be closed, and the headers of all that led to it. ConnectionError may pass, FetchError not."""
    redirects = _Redirects()
    try:
        answer = urllib.request.build_opener(redirects).open(_request(url, method, headers), timeout=TIMEOUT)
        return answer, [*redirects.hops, answer.headers]
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error, []
        passing = error.code == 429 or error.code >= 500
        kind = ConnectionError if passing else _Missing if error.code == 404 else FetchError
        raise kind(f"{url}: the server answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"{url} cannot be reached: {error!r}") from None


__all__ = ["FILES", "SOURCE", "fetch", "fetch_aligner"]
