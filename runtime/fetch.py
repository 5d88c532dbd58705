"""Downloads of the official checkpoint files and tokenizer: resumed where they broke off, checked when complete."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit

from ._version import __version__
from .bundle import file_sha256
from .errors import FetchError, suggest
from .spec import CHECKPOINT_FILES

#: The folder of the official files that the original's package downloads from (tortoise-tts 3.0.0, api_fast.py).
SOURCE = "https://huggingface.co/Manmay/tortoise-tts/resolve/main"
TOKENIZER = "tokenizer.json"
#: Where the original keeps its tokenizer, and what it is.
TOKENIZER_URL = "https://raw.githubusercontent.com/neonbjb/tortoise-tts/main/tortoise/data/tokenizer.json"
TOKENIZER_SHA256 = "d1fa6e9b4741bb75b284331b833347c166ba8b0518e187f7370f123149ed87bb"
FILES = (*CHECKPOINT_FILES.values(), TOKENIZER)

LARGEST = 8 << 30  #: bytes of one file; the official ones have up to 1.7 GB
CHUNK = 1 << 20
TIMEOUT = 30.0  #: seconds without a byte
TRIES = 5  #: in a row without a byte gained
PAUSE = 1.0  #: seconds before the second try, twice as long before each further one
MARGIN = 256 << 20  #: bytes of the disk left free
Progress = Callable[[str, int, int], None]

_SHA256 = re.compile(r'(?:W/)?"?([0-9a-f]{64})"?$')
_RANGE = re.compile(r"bytes ([0-9]+)-[0-9]+/([0-9]+)$")


@dataclass(frozen=True)
class Remote:
    """A file as its server describes it."""

    url: str
    size: int | None  #: bytes, where the server says
    sha256: str | None  #: known beforehand, or as the server says


def fetch(
    folder: Path,
    names: Sequence[str] = FILES,
    source: str = SOURCE,
    progress: Progress = lambda name, done, total: None,
) -> list[Path]:
    """Download ``names`` into ``folder``, which is made; what is complete there already is kept. -> the files.

    A file is written as NAME.part and renamed once its size and, where one is known, its SHA-256 are right; a run
    that was interrupted is gone on with. ``source`` is a folder's address; the original's tokenizer, if it is not
    there, comes from where the original keeps it. Raises FetchError.
    """
    for name in names:
        if name not in FILES:
            raise FetchError(f'no file is called "{name}". {suggest(name, FILES)}')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_fetch(folder / name, source, progress) for name in names]
    except OSError as error:
        raise FetchError(f"cannot write into {folder}: {error}") from error


def _fetch(path: Path, source: str, progress: Progress) -> Path:
    if path.is_file():
        progress(path.name, 1, 1)
        return path
    remote = _ask(f"{source.rstrip('/')}/{quote(path.name)}", path.name)
    part = path.with_name(f"{path.name}.part")
    if remote.size is not None:
        missing = remote.size - (part.stat().st_size if part.exists() else 0)
        if shutil.disk_usage(path.parent).free < missing + MARGIN:
            raise FetchError(f"{path.parent} has no room for {path.name}: {missing >> 20} MiB are needed")
    _download(remote, part, lambda done, total: progress(path.name, done, total))
    if remote.sha256 is not None and (found := file_sha256(part)) != remote.sha256:
        part.unlink()
        raise FetchError(
            f"{path.name} from {remote.url} is damaged: its SHA-256 is {found[:16]}..., it should be "
            f"{remote.sha256[:16]}...; it was removed: fetch it again"
        )
    os.replace(part, path)
    return path


def _ask(url: str, name: str) -> Remote:
    """What the server says of a file; of the tokenizer, what is known of it."""
    request = _request(url, method="HEAD")
    try:
        with _open(request) as answer:
            headers = [*request.passed, answer.headers]
    except (FetchError, ConnectionError) as error:
        if name == TOKENIZER and url != TOKENIZER_URL:
            return _ask(TOKENIZER_URL, name)
        raise FetchError(str(error)) from None
    linked = next((h["X-Linked-Size"] for h in headers if h["X-Linked-Size"]), None)
    size = linked or headers[-1]["Content-Length"]
    if size is not None and not (size.isdecimal() and int(size) <= LARGEST):
        raise FetchError(f"{url} says it has {size[:40]} bytes; at most {LARGEST} are taken")
    sums = [_SHA256.match(h[key] or "") for h in headers for key in ("X-Linked-Etag", "ETag")]
    said = next((found[1] for found in sums if found), None)
    return Remote(url, int(size) if size else None, TOKENIZER_SHA256 if url == TOKENIZER_URL else said)


def _download(remote: Remote, part: Path, progress: Callable[[int, int], None]) -> None:
    """All of a file into ``part``, from where that ends on; goes on after connections that break."""
    fruitless = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        if remote.size is not None and before > remote.size:  # of another version
            part.unlink()
            before = 0
        if remote.size is not None and before == remote.size:
            progress(before, before)
            return
        problem = "it ended early"
        try:
            for done in _pieces(remote, part, before):
                progress(done, remote.size or done)
            if remote.size is None or part.stat().st_size == remote.size:
                return
        except (OSError, http.client.HTTPException) as error:
            if (
                isinstance(error, OSError)
                and error.errno is not None
                and not isinstance(error, ConnectionError)
            ):
                raise  # of the disk
            problem = str(error) or type(error).__name__
        fruitless = 0 if part.exists() and part.stat().st_size > before else fruitless + 1
        if fruitless == TRIES:
            raise FetchError(
                f"{remote.url} cannot be downloaded: {problem}, {TRIES} times in a row. "
                "What is there stays: run the same command to go on"
            )
        if fruitless:
            time.sleep(PAUSE * 2 ** (fruitless - 1))


def _pieces(remote: Remote, part: Path, before: int) -> Iterator[int]:
    """Append the rest of a file to ``part``; yields the bytes there are."""
    request = _request(remote.url, headers={"Range": f"bytes={before}-"} if before else {})
    with _open(request) as answer:
        place = _RANGE.match(answer.headers["Content-Range"] or "")
        resumed = answer.status == 206 and place is not None and int(place[1]) == before
        with part.open("ab" if resumed else "wb") as file:
            done = before if resumed else 0
            while piece := answer.read(CHUNK):
                done += len(piece)
                if done > (remote.size or LARGEST):
                    raise FetchError(f"{remote.url} sends more than {remote.size or LARGEST} bytes")
                file.write(piece)
                yield done


class _Request(urllib.request.Request):
    """Keeps the headers of the answers that passed it on to another address."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.passed: list[Any] = []


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        following = _request(newurl, method=req.get_method(), headers=dict(req.header_items()))
        following.passed = req.passed
        req.passed.append(headers)
        return following


def _request(url: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> _Request:
    """Raises FetchError for anything but https, and http to this machine."""
    place = urlsplit(url)
    local = place.hostname in ("localhost", "127.0.0.1", "::1")
    if place.scheme != "https" and not (place.scheme == "http" and local):
        raise FetchError(f"{url[:200]} is not taken: only https addresses are")
    named = {"User-Agent": f"tortoise-rt/{__version__}", **(headers or {})}
    return _Request(url, headers=named, method=method)


@contextlib.contextmanager
def _open(request: _Request) -> Iterator[Any]:
    try:
        with urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        problem = f"{request.full_url}: the server answers {error.code} {error.reason}"
        raise ConnectionError(problem) if error.code >= 500 else FetchError(problem) from None
    except urllib.error.URLError as error:
        raise ConnectionError(f"{request.full_url} cannot be reached: {error.reason}") from None


__all__ = ["FILES", "SOURCE", "fetch"]
