"""``tortoise-rt read``: a book to a folder of clips, and one file."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import TortoiseError
from . import options
from .progress import Bar
from .settings import settings_options

if TYPE_CHECKING:
    from ..longform import Book, Document, Joining
    from ..longform.join import Joined

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")  # of longform.FORMATS, which is not imported for --help


def _numbered(
    context: click.Context, option: click.Parameter, given: tuple[str, ...]
) -> dict[int, int | None]:
    """ "3,7=99" -> {3: None, 7: 99}."""
    found: dict[int, int | None] = {}
    for entry in ",".join(given).split(",") if given else ():
        matched = re.fullmatch(r"\s*(\d{1,9})\s*(?:=\s*(\d{1,19})\s*)?", entry)
        if not matched:
            raise click.BadParameter(f"{entry!r} is no number of a clip, as in {option.metavar}")
        found[int(matched[1])] = int(matched[2]) if matched[2] else None
    return found


def _takes(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[int, int]:
    """ "3=1" -> {3: 1}."""
    found = {}
    for number, take in _numbered(context, option, given).items():
        if take is None:
            raise click.BadParameter(f"which take of clip {number}? For its second: {number}=1")
        found[number] = take
    return found


def _cast(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """ "alice=alto" -> {"alice": "alto"}."""
    found = {}
    for entry in given:
        name, equals, voice = (part.strip() for part in entry.partition("="))
        if not (name and equals and voice) or ":" in name:
            raise click.BadParameter(f"{entry!r} is no name and voice, as in alice=alto")
        found[name] = voice
    return found


@click.command()
@click.argument("textfile", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "-o",
    "--output",
    type=options.FOLDER,
    required=True,
    metavar="FOLDER",
    help="Where the clips, the manifest and the joined file go; made where its parent exists.",
)
@click.option(
    "--voice",
    metavar="VOICE",
    help="As for say: a name, a folder of clips, a clip, latents, 'a&b' or random. [default: the engine's, else random]",
)
@click.option(
    "--cast",
    multiple=True,
    callback=_cast,
    metavar="NAME=VOICE",
    help='Who else speaks, once for each: a line that begins with "NAME:" is said in VOICE, without the name, up to the '
    "next such line or the paragraph's end. Other colons mean nothing.",
)
@options.voices_option
@click.option(
    "--seed",
    type=int,
    metavar="N",
    help="Clip n is said with seed N + n. [default: the folder's, else a fresh one]",
)
@click.option(
    "--update",
    is_flag=True,
    help="Where the text, a voice, a setting or the engine is not what the folder was made with: make the clips that "
    "differ anew. Otherwise that is an error.",
)
@click.option(
    "--regenerate",
    multiple=True,
    callback=_numbered,
    metavar="N[=SEED],...",
    help="Make these clips anew, with another seed each: a fresh one, or the one given. Numbers are those of the files.",
)
@click.option(
    "--take",
    "takes",
    multiple=True,
    callback=_takes,
    metavar="N=TAKE,...",
    help="Of clip N, join this take; with --candidates K there are the takes 0 (the best, the default) to K - 1.",
)
@click.option(
    "--format",
    "suffix",
    type=click.Choice([suffix[1:] for suffix in SUFFIXES]),
    default="wav",
    show_default=True,
    help="Of the joined file.",
)
@click.option(
    "--by-chapter",
    is_flag=True,
    help="Join to a file for each chapter, chapter_01 and so on, instead of one.",
)
@click.option(
    "--subtitles",
    type=click.Choice(["srt", "vtt"]),
    help="Write beside the joined file when each clip is heard.",
)
@click.option(
    "--clip-length",
    type=int,
    metavar="N",
    help="Characters of a clip, about; half as many more at most. [default: the engine's, else 200]",
)
@click.option("--pause", type=float, metavar="S", help="Seconds of silence between clips. [default: 0.25]")
@click.option(
    "--paragraph-pause",
    type=float,
    metavar="S",
    help="Where a clip ends with a paragraph. [default: 2.5 pauses]",
)
@click.option("--chapter-pause", type=float, metavar="S", help="Between chapters. [default: 6 pauses]")
@click.option(
    "--match-loudness/--no-match-loudness",
    default=True,
    show_default=True,
    help="Bring the speech of each joined clip to the median loudness of all, by 4 dB at most. The clips stay as they are.",
)
@options.engine_options
@settings_options
@options.text_options
@click.option(
    "--no-mark", is_flag=True, help="Do not mark the joined file as synthetic speech in its metadata."
)
@click.option("--json", "as_json", is_flag=True, help="Print what was made as one line of JSON.")
@options.verbosity_options
def read(
    textfile: Path,
    output: Path,
    voice: str | None,
    cast: dict[str, str],
    voice_dirs: tuple[Path, ...],
    seed: int | None,
    update: bool,
    regenerate: dict[int, int | None],
    takes: dict[int, int],
    suffix: str,
    by_chapter: bool,
    subtitles: str | None,
    clip_length: int | None,
    pause: float | None,
    paragraph_pause: float | None,
    chapter_pause: float | None,
    match_loudness: bool,
    engine: Path | None,
    checkpoints: Path | None,
    backend: str,
    device: str,
    precision: str | None,
    tokenizer: Path | None,
    basic_cleaners: bool,
    no_redaction: bool,
    no_mark: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    preset: str | None,
    **settings: Any,
) -> None:
    """Read TEXTFILE aloud into a folder: clips of a few sentences, then one file of all.

    TEXTFILE is plain text, Markdown (.md) or an EPUB (.epub), whose chapters are kept; "-" is plain text from standard
    input. Whatever ends it, the same command goes on: clips that are in the folder are not made again.

    Sentences are cut and joined to about 200 characters a clip; a "|" in the text cuts where you want.

    \b
    tortoise-rt read book.txt -o book/ --voice alice --preset fast
    tortoise-rt read book.epub -o book/ --format mp3 --by-chapter
    tortoise-rt read play.txt -o play/ --cast "Alice=alto" --cast "Bob=tenor"
    tortoise-rt read book.txt -o book/ --regenerate 3,7      # two clips did not come out well
    """
    options.set_up_log(quiet, verbose)

    from ..defaults import DEFAULT_PRESET, check_settings, default_voice, settings_for
    from ..longform import Book
    from ..longform.join import check_format
    from ..pipeline import check_seed
    from ..sinks import synthetic_comment
    from ..text import Tokenizer
    from ..tts import choose_engine, choose_tokenizer
    from ..voice import check_folders, load_voice

    # Whatever can be wrong without an engine is found out before one is read, which may take minutes.
    joining = _joining(
        pause, paragraph_pause, chapter_pause,
        match_loudness=match_loudness, by_chapter=by_chapter, subtitles=subtitles and f".{subtitles}",
        comment=synthetic_comment(not no_mark, ""),
    )  # fmt: skip

    check_format(f".{suffix}")
    if seed is not None:
        check_seed(seed)
    check_settings(preset, **settings)
    check_folders(voice_dirs)
    document = _document(textfile)
    speakers = {name: load_voice(spec, voice_dirs) for name, spec in cast.items()}
    speaker = None if voice is None else load_voice(voice, voice_dirs)
    if tokenizer is not None:
        Tokenizer(tokenizer)
    opened = choose_engine(engine, checkpoints, backend, device, precision)
    settings["enable_redaction"] = not no_redaction
    chosen = settings_for(opened, preset, DEFAULT_PRESET, **settings)
    if voice is None:
        voice = default_voice(opened)
        speaker = load_voice(voice, voice_dirs, paths=False)
    if not quiet:
        options.introduce(
            opened, bool(engine or checkpoints), f"reads (voice {voice}, decoder {chosen.decoder})"
        )
    start = time.perf_counter()
    with Book(
        output, document, opened, speaker, chosen, seed, cast=speakers,
        tokenizer=choose_tokenizer(opened, tokenizer, basic_cleaners), length=clip_length, update=update,
    ) as book, Bar(not quiet) as bar:  # fmt: skip
        book.again(regenerate)
        book.choose(takes)
        made = _render(book, bar, quiet)
        joined = book.join(f".{suffix}", joining, bar)
        _report(book, made, joined, time.perf_counter() - start, as_json, quiet)


def _document(textfile: Path) -> Document:
    """What is to be read; raises a TextError when it is missing, empty or not UTF-8."""
    from ..longform import read_document
    from ..longform.document import MAX_BYTES, decoded, plain_document

    if str(textfile) == "-":
        return plain_document(
            "standard input", decoded(sys.stdin.buffer.read(MAX_BYTES + 1), "standard input")
        )
    return read_document(textfile)


def _joining(pause: float | None, paragraph: float | None, chapter: float | None, **options: Any) -> Joining:
    """How clips are joined; longer pauses follow ``pause`` where they are not named."""
    from ..longform import Joining
    from ..longform.join import CHAPTERS, LONGER
    from ..reading import PAUSE

    pause = PAUSE if pause is None else pause
    longer = pause * LONGER if paragraph is None else paragraph
    return Joining(pause, longer, pause * CHAPTERS if chapter is None else chapter, **options)


def _render(book: Book, bar: Bar, quiet: bool) -> int:
    """Make the clips; whatever stops it, say how to go on."""
    began, first = time.monotonic(), len(book.manifest.clips) - len(book.missing())

    def progress(stage: str, done: int, total: int) -> None:
        if done > first:
            left = (time.monotonic() - began) / (done - first) * (total - done)
            stage = f"{stage}, {_duration(left)} left"
        bar(stage, done, total)

    try:
        return book.render(progress)
    except (KeyboardInterrupt, TortoiseError):
        done, total = len(book.manifest.clips) - len(book.missing()), len(book.manifest.clips)
        if not quiet:
            click.echo(
                f"\n{done} of {total} clips are in {book.folder}: the same command (without --regenerate) goes on from there",
                err=True,
            )
        raise


def _duration(seconds: float) -> str:
    """As a person says it: "40 s", "12 min", "3 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def _report(book: Book, made: int, joined: list[Joined], seconds: float, as_json: bool, quiet: bool) -> None:
    total, doubtful = len(book.manifest.clips), book.doubtful()
    audio = sum(file.seconds for file in joined)
    if as_json:
        report = {
            "files": [str(file.path) for file in joined],
            "clips": total,
            "made": made,
            "doubtful": doubtful,
            "seed": book.manifest.seed,
            "audio_seconds": round(audio, 3),
            "seconds": round(seconds, 3),
        }
        click.echo(json.dumps(report))
    elif not quiet:
        names = ", ".join(str(file.path) for file in joined[:3]) + (", ..." if len(joined) > 3 else "")
        click.echo(
            f"{names}: {audio:.1f} s of audio, {total} clips, of which {made} were made now in {seconds:.1f} s, seed "
            f"{book.manifest.seed}"
        )
    if doubtful and not quiet:
        listed = ",".join(map(str, doubtful[:20]))
        click.echo(
            f"Warning: {len(doubtful)} clips may not say their text: listen to them in "
            f"{book.folder / 'clips'}, or make them anew: --regenerate {listed}",
            err=True,
        )
