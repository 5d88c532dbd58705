"""EPUB (W3C EPUB 3.3, and 2) -> chapters: the documents of its spine in their order.

Nothing of the archive is unpacked to disk. XML that declares entities is refused, and what is read of the archive is
bounded, whatever its headers claim.
"""

from __future__ import annotations

import posixpath
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import MissingDependency, TextError
from .document import Block, Chapter

MAX_ENTRIES = 20_000  #: of the archive
MAX_DEPTH = 1000  #: of elements of which nothing is said
MAX_BYTES = 64 << 20  #: of all documents together, unpacked
CONTAINER = "META-INF/container.xml"
ENCRYPTION = "META-INF/encryption.xml"
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    AssertionError,  # html.parser's, for unknown marked sections
)  #: what zipfile and html.parser raise
_DOCUMENTS = ("application/xhtml+xml", "text/html")
_PARAGRAPH = re.compile(
    "address|article|aside|blockquote|body|caption|center|d[dlt]|div|figcaption|figure|footer|h[1-6]|header|hr|li|main|ol|"
    "p|pre|section|table|tbody|t[dhr]|thead|ul"
)
_UNSAID = {"head", "script", "style", "svg", "math", "nav", "rt", "rp", "template"}
_NEVER_CLOSED = {
    "area",
    "base",
    "br",
    "col",
    "embed",
    "hr",
    "img",
    "input",
    "link",
    "meta",
    "param",
    "source",
    "wbr",
}


def read_epub(path: Path) -> list[Chapter]:
    """The chapters of a book. Raises a TextError when it is damaged, protected or too large, MissingDependency."""
    try:
        with zipfile.ZipFile(path) as archive:
            if len(archive.infolist()) > MAX_ENTRIES:
                raise TextError(f"{path} holds over {MAX_ENTRIES} files: it is no book that can be read")
            return list(_chapters(_Archive(archive, path)))
    except TextError:
        raise
    except _DAMAGE as error:
        raise TextError(f"{path} is not a sound EPUB ({error}): convert it, or give its text") from None


class _Archive:
    """Reads members, MAX_BYTES of them in all."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self.path, self._archive, self._left = path, archive, MAX_BYTES

    def read(self, name: str) -> bytes:
        entry = self._archive.NameToInfo.get(name)
        if entry is None:
            raise TextError(f"{self.path} lacks {name}: it is damaged; convert it, or give its text")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # all that an EPUB may have
            raise TextError(
                f"{self.path}: {name} is packed in a way that EPUBs do not have: convert the book"
            )
        with self._archive.open(name) as file:
            data = file.read(self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise TextError(
                f"{self.path} has over {MAX_BYTES >> 20} MiB of text: split it into several readings"
            )
        return data

    def xml(self, name: str) -> Any:
        """The root of an XML member."""
        try:
            from defusedxml import DefusedXmlException
            from defusedxml.ElementTree import ParseError, fromstring
        except ImportError:
            raise MissingDependency(
                "EPUBs are read with defusedxml: pip install 'tortoise-rt[books]'"
            ) from None
        try:
            return fromstring(self.read(name))
        except (ParseError, DefusedXmlException, ValueError) as error:
            raise TextError(f"{self.path}: {name} is not sound XML ({error}): convert the book") from None

    def protected(self) -> set[str]:
        """Members that are encrypted."""
        if ENCRYPTION not in self._archive.NameToInfo:
            return set()
        return {
            unquote(element.get("URI", ""))
            for element in self.xml(ENCRYPTION).iterfind(".//{*}CipherReference")
        }


def _chapters(archive: _Archive) -> Iterator[Chapter]:
    """The chapters in the spine, tables of contents and what stands outside the order of reading left out."""
    rootfile = archive.xml(CONTAINER).find(".//{*}rootfile")
    if rootfile is None:
        raise TextError(f"{archive.path} names no package document: it is damaged; convert it")
    package_name = rootfile.get("full-path", "")
    package, protected = archive.xml(package_name), archive.protected()
    items = {item.get("id"): item for item in package.iterfind("{*}manifest/{*}item")}
    for reference in package.iterfind("{*}spine/{*}itemref"):
        item = items.get(reference.get("idref"))
        if item is None or reference.get("linear") == "no" or item.get("media-type") not in _DOCUMENTS:
            continue
        if "nav" in item.get("properties", "").split():
            continue
        name = _resolve(package_name, item.get("href", ""))
        if name in protected:
            raise TextError(f"{archive.path} is protected against copying (DRM): its text cannot be read")
        blocks = html_blocks(_decoded(archive.read(name)))
        title = next((block.text for block in blocks if block.level), "")
        yield Chapter(title, tuple(block.text for block in blocks))


def _resolve(base: str, reference: str) -> str:
    """The member that ``reference`` in the member ``base`` names."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(base), unquote(urlsplit(reference).path)))


def _decoded(data: bytes) -> str:
    """A document's text by its byte order mark or XML declaration, else UTF-8; what does not decode is replaced."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    declared = re.match(rb"(?:\xef\xbb\xbf)?\s*<\?xml[^>]*encoding=[\"']([\w.-]+)", data)
    try:
        return data.decode(declared[1].decode() if declared else "utf-8-sig", "replace").lstrip("\ufeff")
    except LookupError:
        return data.decode("utf-8-sig", "replace")


def html_blocks(html: str) -> list[Block]:
    """The headings and paragraphs of a document in (X)HTML, without scripts, pictures, readings and note marks."""
    parser = _Blocks()
    # A tag that never ends is looked for again and again: what stands behind the last end holds none.
    end = html.rfind(">") + 1
    parser.feed(html[:end] + html[end:].split("<", 1)[0])
    parser.close()
    parser.end_block()
    return parser.blocks


class _Blocks(HTMLParser):
    """Takes tags as they come, closed or not."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self._parts: list[str] = []
        self._level = 0
        self._unsaid: list[str] = []  #: open elements of which nothing is said, and those in them

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "body":  # which ends a head that nobody closed
            self._unsaid.clear()
        note_mark = tag == "a" and dict(attributes).get("epub:type") == "noteref"
        if self._unsaid or tag in _UNSAID or note_mark:
            if tag not in _NEVER_CLOSED:
                self._unsaid.append(tag)
                if len(self._unsaid) > MAX_DEPTH:
                    raise ValueError(f"elements are nested more than {MAX_DEPTH} deep")
        elif tag == "br":
            self._parts.append("\n")
        elif _PARAGRAPH.fullmatch(tag):
            self.end_block()
            self._level = int(tag[1]) if re.fullmatch("h[1-6]", tag) else 0

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in _NEVER_CLOSED:
            self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._unsaid:
            while self._unsaid.pop() != tag:
                pass
        elif not self._unsaid and _PARAGRAPH.fullmatch(tag):
            self.end_block()

    def handle_data(self, data: str) -> None:
        if not self._unsaid:
            self._parts.append(re.sub(r"\s+", " ", data))

    def end_block(self) -> None:
        """What was said so far is a paragraph."""
        text = "\n".join(line.strip() for line in "".join(self._parts).split("\n")).strip()
        if text:
            self.blocks.append(Block(text, self._level))
        self._parts, self._level = [], 0
