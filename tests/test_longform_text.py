"""Texts, Markdown and EPUBs become chapters, and those clips; nothing that could be said is lost on the way."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scheduling import TOKENIZER

from tortoise_rt.backends.fake import FakeEngine
from tortoise_rt.errors import MissingDependency, TextError
from tortoise_rt.longform import Chapter, Document, fitting, plan, read_document
from tortoise_rt.longform import epub as epubs
from tortoise_rt.longform.document import Block, plain_document
from tortoise_rt.longform.epub import html_blocks
from tortoise_rt.longform.plan import heard
from tortoise_rt.redaction import split_outside
from tortoise_rt.text import Tokenizer, clean_english, split_and_recombine_text

FITS = fitting(FakeEngine(), Tokenizer(TOKENIZER))
OPF = "http://www.idpf.org/2007/opf"
CONTAINER = (
    '<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>'
    '<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
)


def write_epub(path: Path, package: str, **files: str | bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr("META-INF/container.xml", CONTAINER)
        archive.writestr("OEBPS/book.opf", package)
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def book_package(*documents: tuple[str, str], prefix: str = "") -> str:
    """An OPF whose spine is the documents: (href, further attributes of its item)."""
    items = "".join(
        f'<item id="i{n}" href="{href}" media-type="application/xhtml+xml" {more}/>'
        for n, (href, more) in enumerate(documents)
    )
    spine = "".join(f'<itemref idref="i{n}"/>' for n in range(len(documents)))
    return (
        f'<?xml version="1.0"?>{prefix}<package xmlns="{OPF}" version="3.0"><manifest>{items}</manifest>'
        f"<spine>{spine}</spine></package>"
    )


def texts(text: str, cast: tuple[str, ...] = (), length: int = 200) -> list[tuple[str, str, str]]:
    return [(p.speaker, p.text, p.ends) for p in plan(plain_document("t", text), FITS, cast, length)]


def letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


# plan


def test_a_text_is_cut_as_the_original_cuts() -> None:
    text = " ".join(
        f"Sentence number {n} says that the boat came in. Was it late?\n\nIt was." for n in range(40)
    )
    assert [said for _, said, _ in texts(text)] == split_and_recombine_text(text)


def test_pauses_follow_paragraphs_and_chapters() -> None:
    long = "The boat came in with the tide and nobody on it. " * 5
    found = texts(f"{long}\n\n{long} It ends here.\n\nThe End\n\nNot quite.")
    assert [ends for *_, ends in found] == ["paragraph", "clip", "paragraph", "paragraph", "chapter"]
    assert [said for _, said, _ in found][2:] == ["It ends here.", "The End", "Not quite."]


def test_bars_cut_where_the_writer_wants() -> None:
    assert [said for _, said, _ in texts("One. Two | and three.|\n|Four")] == [
        "One. Two",
        "and three.",
        "Four",
    ]
    kept = "A first sentence of some length here. " * 7
    assert [said for _, said, _ in texts(kept + "| Two.")] == [kept.strip(), "Two."], (
        "266 characters are no two clips"
    )
    assert len(texts("No end in sight. " * 100 + "| Two.")) > 5, (
        "a stray bar does not make clips that are too long"
    )


def test_an_open_quotation_ends_with_its_paragraph() -> None:
    rest = "One more sentence that is said there. " * 20
    cut = texts(f"He was 6'2\" tall.\n\n{rest}")
    assert cut[0][1] == "He was 6'2\" tall." and all(said.endswith(".") for _, said, _ in cut)


def test_the_cast_speaks_its_lines() -> None:
    play = "Enter two people: late.\nAlice: Good evening.\nIs it: late?\n Bob : It is.\n\nThey leave. Carol: is absent."
    assert texts(play, ("Alice", "Bob")) == [
        ("", "Enter two people: late.", "clip"),
        ("Alice", "Good evening. Is it: late?", "clip"),
        ("Bob", "It is.", "paragraph"),
        ("", "They leave. Carol: is absent.", "chapter"),
    ]
    assert {speaker for speaker, *_ in texts(play)} == {""}


def test_clips_have_as_many_tokens_as_the_model_takes() -> None:
    found = texts("7 " * 140 + "\u200b. " + "9" * 290)
    assert len(found) > 4 and letters("".join(said for _, said, _ in found)) == "7" * 140 + "9" * 290
    assert all(FITS(said) == 1 for _, said, _ in found)


def test_brackets_stay_whole() -> None:
    found = texts(
        "The boat came in at last. " * 6 + "[I am so very sad. And so very tired.] Please feed me. " * 3
    )
    assert all(said.count("[") == said.count("]") for _, said, _ in found)


@pytest.mark.parametrize("text", ["", " \n ", "\u200b", "...", "| |"])
def test_nothing_to_say(text: str) -> None:
    with pytest.raises(TextError, match="nothing to say"):
        texts(text)


CHARACTERS = st.one_of(
    st.characters(codec="utf-8"),
    st.sampled_from("[](){}|\"“”'.!?,;:… \n\t\r\x00\x07\x1b\u2028\u00a0£$€%&@#/\\-—"),
    st.sampled_from("0123456789"),
    st.sampled_from("abcdefghijklmnopqrstuvwxyzABCÄÖßéждλ漢字한"),
)
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=60),
    st.builds(
        lambda parts, times: "".join(parts * times)[:5000],
        st.lists(st.text(CHARACTERS, max_size=30), max_size=12),
        st.sampled_from([1, 2, 3, 10, 60]),
    ),
)


@hypothesis_settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS, length=st.sampled_from([20, 200]), brackets=st.booleans())
def test_no_letter_or_digit_is_lost(text: str, length: int, brackets: bool) -> None:
    clean = functools.lru_cache(None)(clean_english)  # of pieces that come many times
    cleaned = clean(text)
    pieces = split_and_recombine_text(cleaned, length, length * 3 // 2)
    assert letters("".join(pieces)) == letters(cleaned)
    try:
        document = plain_document("t", text)
        found = plan(document, lambda piece: bool(clean(piece).strip()), (), length, brackets)
    except TextError:
        assert not letters(cleaned)
        return
    # What cannot be said is passed over; of all else each letter is in its place.
    unsaid = {c for c in set(letters(text)) if not clean(c).strip()}
    said = letters("".join(passage.text for passage in found))
    assert [c for c in said if c not in unsaid] == [c for c in letters(text) if c not in unsaid]
    assert found[-1].ends == "chapter"
    assert brackets or all(len(p.text) <= length * 3 // 2 for p in found)


# files


def test_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffOne\r\nline.\r\n \t\r\nTwo — dashes.".encode())
    assert read_document(path) == Document("a.txt", (Chapter("", ("One\nline.", "Two — dashes.")),))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.txt", b"caf\xe9", "not valid UTF-8"),
        ("a.txt", b" \n ", "is empty"),
        ("a.md", b"", "is empty"),
        ("a.epub", b"text", "not a sound EPUB"),
        ("missing.txt", None, "does not exist"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, problem: str) -> None:
    pytest.importorskip("markdown_it")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=problem):
        read_document(tmp_path / name)


def test_texts_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tortoise_rt.longform.document.MAX_BYTES", 10)
    (tmp_path / "a.txt").write_text("12345678901")
    with pytest.raises(TextError, match="a.txt is over 0 MiB"):
        read_document(tmp_path / "a.txt")


@pytest.mark.parametrize(("name", "package"), [("a.md", "markdown_it"), ("a.epub", "defusedxml")])
def test_packages_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    (tmp_path / "a.md").write_text("One.")
    write_epub(tmp_path / "a.epub", "")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=r"pip install 'tortoise-rt\[books\]'"):
        read_document(tmp_path / name)


def test_markdown_keeps_chapters(tmp_path: Path) -> None:
    pytest.importorskip("markdown_it")
    path = tmp_path / "a.md"
    path.write_text(
        "Before.\n\n# The *Book*\n\n## One\n\nA [link](http://x) and `code`,\nsoft.\n\n```\nx = 1\n```\n\n- item ![pic](p.png)\n\n"
        "### Deeper\n\n<b>Bold</b> &amp; **loud**.\n\n## Two\n\n| a | b |\n|---|---|\n| c | d |\n"
    )
    assert read_document(path).chapters == (
        Chapter("", ("Before.",)),
        Chapter("The Book", ("The Book",)),
        Chapter("One", ("One", "A link and code,\nsoft.", "item", "Deeper", "Bold & loud.")),
        Chapter("Two", ("Two", "a", "b", "c", "d")),
    )


def test_epub_keeps_chapters(tmp_path: Path) -> None:
    pytest.importorskip("defusedxml")
    path = write_epub(
        tmp_path / "a.epub",
        book_package(("nav.xhtml", 'properties="nav"'), ("text/one%20two.xhtml", ""), ("plain.html", "")),
        **{
            "OEBPS/nav.xhtml": "<html><body>Contents</body></html>",
            "OEBPS/text/one two.xhtml": (
                '<?xml version="1.0" encoding="iso-8859-1"?><!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml">'
                "<head><title/><script src='x'/><style>p {}</style></head><body><h1>Caf\xe9 <i>One</i></h1><p>It&rsquo;s a"
                " <b>b</b>oat<a epub:type='noteref'>12</a>.<br/>New\n line.</p><p><ruby>a<rt>kan</rt></ruby>".replace(
                    "漢", "a"
                )
                + "<svg><text>no</text></svg> end.</p><hr/>Loose<div>words</div></body></html>"
            ).encode("latin-1"),
            "OEBPS/plain.html": "<html><head><body><h2>Two</h2>Unclosed<p>tags &nbsp;&#8212; here",
        },
    )
    assert read_document(path).chapters == (
        Chapter("Café One", ("Café One", "It’s a boat.\nNew line.", "a end.", "Loose", "words")),
        Chapter("Two", ("Two", "Unclosed", "tags — here")),
    )


BOMB = '<!DOCTYPE p [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'  # of which there might be more


@pytest.mark.parametrize(
    ("spine", "files", "problem"),
    [
        (book_package(("one.xhtml", "")), {}, "lacks OEBPS/one.xhtml"),
        (book_package(("../../../etc/passwd", "")), {}, "lacks ../../etc/passwd"),
        (book_package(("one.xhtml", ""), prefix=BOMB), {}, "not sound XML"),
        ("<package", {}, "not sound XML"),
        (
            book_package(("one.xhtml", "")),
            {
                "OEBPS/one.xhtml": "<p>Secret</p>",
                "META-INF/encryption.xml": '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><e:CipherReference '
                'xmlns:e="http://www.w3.org/2001/04/xmlenc#" URI="OEBPS/one.xhtml"/></encryption>',
            },
            "protected against copying",
        ),
        (
            book_package(("big.xhtml", ""), ("big.xhtml", "")),
            {"OEBPS/big.xhtml": "<p>" + "a" * 3000},
            "MiB of text",
        ),
        (book_package(), {}, "is empty"),
    ],
)
def test_epubs_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spine: str, files: dict[str, str], problem: str
) -> None:
    pytest.importorskip("defusedxml")
    monkeypatch.setattr(epubs, "MAX_BYTES", 4000)
    path = write_epub(tmp_path / "a.epub", spine, **files)
    with pytest.raises(TextError, match=re.escape(problem)):
        read_document(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """300 MB of zeros in 300 KB: what is read ends at the limit."""
    pytest.importorskip("defusedxml")
    path = tmp_path / "a.epub"
    write_epub(path, book_package(("big.xhtml", "")))
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("OEBPS/big.xhtml", "w") as big,
    ):
        for _ in range(80):
            big.write(bytes(1 << 20))
    with pytest.raises(TextError, match="over 64 MiB of text"):
        read_document(path)


def test_damaged_archives(tmp_path: Path) -> None:
    pytest.importorskip("defusedxml")
    path = write_epub(
        tmp_path / "a.epub", book_package(("one.xhtml", "")), **{"OEBPS/one.xhtml": "<p>" + "word " * 500}
    )
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(TextError):
            read_document(path)
    for end in range(0, len(whole), 50):
        path.write_bytes(whole[:end])
        with pytest.raises(TextError):
            read_document(path)


def test_what_is_all_in_brackets_is_passed_over() -> None:
    document = plain_document("t", "The boat came in.\n\n[Illustration]\n\nNobody was on it.\n\n[The end]")
    kept = heard(plan(document, FITS))
    assert [(p.text, p.ends) for p in kept] == [
        ("The boat came in.", "paragraph"), ("Nobody was on it.", "chapter"),
    ]  # fmt: skip
    with pytest.raises(TextError, match="all of the text is in brackets"):
        heard(plan(plain_document("t", "[Nothing]"), FITS))


def test_a_mark_in_brackets_cuts_nothing() -> None:
    assert [said for _, said, _ in texts("Intro [see note|below] and more.|The end.")] == [
        "Intro [see note|below] and more.", "The end.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "html", ["<a " * 20_000, "<a b='" * 20_000, "<head>" + "<b>" * 40_000 + "</z>" * 40_000]
)
def test_markup_that_never_ends_takes_no_time(html: str) -> None:
    began = time.perf_counter()
    with contextlib.suppress(ValueError):
        assert html_blocks(f"<p>Hello.</p>{html}") == [Block("Hello.", 0)]
    assert time.perf_counter() - began < 2


def test_bars_beside_brackets_take_no_square_of_time() -> None:
    bars = "| a | b [not | here] | c ] d [ e\n" * 6000  # 200 KB
    began = time.monotonic()
    found = split_outside(bars, "|")
    assert time.monotonic() - began < 2  # each bar used to look for a bracket up to the end
    assert len(found) == 3 * 6000 + 1 and found[2] == " b [not | here] " and "|".join(found) == bars
