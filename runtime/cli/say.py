"""``tortoise-rt say``: text to a file."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import OutputError, TextError
from . import options
from .progress import Bar
from .settings import settings_options
from .stream import arriving_text, check_stream_options, stream_options, stream_settings, write_stream

if TYPE_CHECKING:
    from ..pipeline import Result


MAX_TEXT_BYTES = 1 << 20  #: read from standard input; far above what one clip can say


@click.command()
@click.argument("text", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the clip goes: .wav, .flac or .ogg. Its folder must exist. - is standard output, as a stream. "
    "[default: output.wav; a stream is played]",
)
@stream_options
@click.option(
    "--voice",
    metavar="VOICE",
    help="A name (see: tortoise-rt voices list), a folder of clips, a clip, a file of latents, several joined as "
    "'a&b' or 'a:0.7&b:0.3', or random. [default: the engine's, else random]",
)
@options.voices_option
@click.option(
    "--seed", type=int, metavar="N", help="Same seed, same clip. [default: a fresh one, printed at the end]"
)
@options.engine_options
@settings_options
@options.text_options
@click.option(
    "--words",
    "words_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where to write when each word is spoken, as the aligner hears it: .srt, .vtt or .json. For K candidates: NAME_0 ...",
)
@click.option("--no-mark", is_flag=True, help="Do not mark the file as synthetic speech in its metadata.")
@click.option(
    "--debug-state",
    type=options.FOLDER,
    metavar="DIR",
    help="Write all of the run there (text, tokens, settings, seed, voice, codes, scores, latents), for tortoise-rt replay.",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Say nothing: print the cleaned text, its tokens, the clips it is cut into, and every setting with where it comes "
    "from. No network runs.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print what was made and what it took as one line of JSON."
)
@options.verbosity_options
def say(
    text: tuple[str, ...],
    output: Path | None,
    voice: str | None,
    voice_dirs: tuple[Path, ...],
    seed: int | None,
    engine: Path | None,
    checkpoints: Path | None,
    backend: str,
    device: str,
    precision: str | None,
    tokenizer: Path | None,
    basic_cleaners: bool,
    no_redaction: bool,
    words_file: Path | None,
    no_mark: bool,
    debug_state: Path | None,
    explain: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    preset: str | None,
    stream: bool,
    raw: bool,
    chunk: int | None,
    first_chunk: int | None,
    pause: float | None,
    **settings: Any,
) -> None:
    """Say TEXT and write it to a file. TEXT "-" reads standard input.

    \b
    tortoise-rt say "Hello there." -o hello.wav
    tortoise-rt say --voice my_clips/ --preset standard --seed 7 -o hello.wav "Hello there."
    tortoise-rt say "[I am so sad,] please feed me." -o feed.wav
    tortoise-rt say --check --words hello.srt -o hello.wav "Hello there."
    cat book.txt | tortoise-rt say --stream - -o - | ffplay -nodisp -autoexit -
    """
    options.set_up_log(quiet, verbose)
    stream = stream or str(output) == "-"
    check_stream_options(stream, output, raw, chunk=chunk, first_chunk=first_chunk, pause=pause)
    settings["enable_redaction"] = not no_redaction
    if words_file is not None:
        check_words_file(words_file, stream)
        if not settings["check"]:  # heard, and left as it is
            settings |= {"check": True, "max_retries": 0}
    live = stream and text == ("-",) and not explain
    words = "" if live else read_text(text)
    if not stream:
        output = output or Path("output.wav")
    if output is not None and str(output) != "-" and not explain:
        check_output(output)

    from ..audio import write_wav
    from ..autoregressive import ROWS
    from ..checking import retried
    from ..conditioning import one_voice
    from ..config import check_number
    from ..debug_state import check_folder, save_debug_state
    from ..defaults import DEFAULT_PRESET, check_settings, default_voice, settings_for, settings_origins
    from ..explain import describe_voice
    from ..explain import explain as explain_request
    from ..fitting import fitting
    from ..pipeline import Pipeline, check_seed
    from ..reading import LONGEST_PAUSE, PAUSE, Reader, sentences_said
    from ..reading import check as check_reading
    from ..redaction import check as check_brackets
    from ..rng import fresh_seed
    from ..scheduler import Scheduler
    from ..sentences import Sentence
    from ..sinks import open_sink, synthetic_comment
    from ..text import Tokenizer
    from ..tts import checked_parts, choose_engine, choose_tokenizer, chunks_of
    from ..voice import check_folders, load_voice
    from ..word_times import write_words

    if debug_state is not None:
        if stream:
            raise OutputError("--debug-state needs a complete clip: leave --stream out")
        check_folder(debug_state)
    # Whatever can be wrong without an engine is found out before one is read, which may take minutes.
    if not no_redaction and not live:
        check_brackets(words)
    seed = fresh_seed() if seed is None else check_seed(seed)
    check_settings(preset, **settings)
    check_folders(voice_dirs)
    speaker = None if voice is None else load_voice(voice, voice_dirs)
    if tokenizer is not None:
        Tokenizer(tokenizer)
    if stream:
        chunks = None if chunk is None and first_chunk is None else chunks_of(chunk, first_chunk)
        check_number("pause", PAUSE if pause is None else pause, 0, LONGEST_PAUSE)
        sink = None if explain else open_sink(output, synthetic_comment(not no_mark, f"seed {seed}"), raw=raw)
    start = time.perf_counter()
    opened = choose_engine(engine, checkpoints, backend, device, precision)
    load_seconds = time.perf_counter() - start
    named = settings
    if stream:
        settings = stream_settings(opened, preset, settings)
    chosen = settings_for(opened, preset, DEFAULT_PRESET, **settings)
    chosen_tokenizer = choose_tokenizer(opened, tokenizer, basic_cleaners)
    voice_named = voice is not None
    if voice is None:
        voice = default_voice(opened)
        speaker = load_voice(voice, voice_dirs, paths=False)
    pipeline = Pipeline(opened, chosen_tokenizer)
    pipeline.check(speaker, chosen)
    if stream:
        check_reading(chosen)
    if not live:
        pipeline.prompt(words, chosen)
    if explain:
        origins = settings_origins(opened, preset, DEFAULT_PRESET, **settings)
        origins |= {
            name: (value, "--stream")
            for name, (value, _) in origins.items()
            if settings.get(name) != named.get(name)
        }
        fits = fitting(opened, chosen_tokenizer)
        sentences = sentences_said(words, fits, chosen.redaction) if stream else [Sentence(words)]
        described = describe_voice(str(voice), speaker, "option" if voice_named else "the engine's default")
        explained = explain_request(pipeline, sentences, described, chosen, origins, seed)
        click.echo(json.dumps(explained.as_json()) if as_json else "\n".join(explained.lines()))
        return
    if not quiet:
        samples = f"{chosen.ar.samples} sample" + "s" * (chosen.ar.samples > 1)
        does = f"speaks (voice {voice}, decoder {chosen.decoder}, {samples})"
        options.introduce(opened, bool(engine or checkpoints), does)
    if stream:
        with Scheduler(opened, chosen_tokenizer) as scheduler:
            reader = Reader(
                scheduler, speaker, chosen, seed, chunks=chunks, pause=PAUSE if pause is None else pause
            )
            said = checked_parts(arriving_text()) if live else words
            assert sink is not None
            write_stream(said, reader, sink, output, as_json=as_json, quiet=quiet, seed=seed)
        return
    assert output is not None
    paths = clip_paths(output, chosen.candidates)
    start = time.perf_counter()
    with (
        Bar(not quiet) as bar,
        Scheduler(opened, chosen_tokenizer, rows=chosen.ar.batch_rows or ROWS) as scheduler,
    ):
        one = one_voice(opened, speaker, chosen, seed)

        def speak(seed: int) -> Result:
            handle = scheduler.submit(words, one, chosen, seed)
            for event in handle.events():
                bar(*event)
            return handle.result()

        result = retried(speak, seed, chosen.max_retries)
    seconds = time.perf_counter() - start
    if debug_state is not None:
        save_debug_state(debug_state, result, opened)
    for number, path in enumerate(paths):
        write_wav(path, result.wavs[number], synthetic=not no_mark, comment=result.made_with(number))
    if words_file is not None:
        for path, spoken in zip(clip_paths(words_file, chosen.candidates), result.words, strict=True):
            write_words(path, spoken)
    if as_json:
        click.echo(json_report(paths, result, seconds, load_seconds))
    elif not quiet:
        click.echo(report(paths, result, seconds))
    if not quiet:
        for path, found in zip(paths, result.reports, strict=False):
            if not found.ok:
                click.echo(f"Warning: {path}: {'; '.join(found.problems)}", err=True)
    if not result.complete and not result.reports and not quiet:
        click.echo(
            f"Warning: the voice did not stop by itself within {result.codes.shape[1]} codes, so words may be "
            "missing: shorten the text, raise --max-mel-tokens or try another --seed",
            err=True,
        )


def read_text(words: tuple[str, ...]) -> str:
    """The words joined, or standard input for "-", stripped; raises TextError when it is empty or not UTF-8."""
    source = "standard input" if words == ("-",) else "the text"
    try:
        if words == ("-",):
            given = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
            if len(given) > MAX_TEXT_BYTES:
                raise TextError(f"standard input is over {MAX_TEXT_BYTES} bytes: split it into sentences")
            text = given.decode("utf-8-sig")
        else:
            text = " ".join(words)
            text.encode("utf-8")
    except UnicodeError as error:
        raise TextError(f"{source} is not valid UTF-8 ({error}): convert it") from None
    if not text.strip():
        raise TextError(f"{source} is empty: there is nothing to say")
    return text.strip()


def check_output(output: Path, suffixes: Collection[str] | None = None) -> None:
    """Raise an OutputError when no clip, or no file of ``suffixes``, can be written as ``output``."""
    from ..audio import WRITABLE

    suffixes = WRITABLE if suffixes is None else suffixes
    if output.suffix.lower() not in suffixes:
        raise OutputError(f"cannot write {output}: its suffix must be one of {', '.join(suffixes)}")
    if output.is_dir():
        raise OutputError(f"{output} is a folder: give the name of a file")
    if not output.parent.is_dir():
        raise OutputError(f"the folder {output.parent} does not exist: create it, or write elsewhere")
    try:  # permissions alone do not tell: the file system may refuse even root
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise OutputError(f"the folder {output.parent} cannot be written: {error.strerror}") from None


def check_words_file(path: Path, stream: bool) -> None:
    """Raise an OutputError when no words can be written as ``path``, or none are known as it is a ``stream``."""
    from ..word_times import FORMATS

    if stream:
        raise OutputError("--words needs a complete clip: leave --stream out")
    check_output(path, FORMATS)


def clip_paths(output: Path, count: int) -> list[Path]:
    """Where ``count`` clips go: ``output``, or NAME_0, NAME_1, ...; raises OutputError for a folder's name."""
    paths = [output]
    if count > 1:
        paths = [output.with_name(f"{output.stem}_{i}{output.suffix}") for i in range(count)]
    for path in paths:
        if path.is_dir():
            raise OutputError(f"{path} is a folder: give the name of a file")
    return paths


def json_report(paths: list[Path], result: Result, seconds: float, load_seconds: float) -> str:
    """What was made and what it took, as one JSON object; stages load their graphs when first used."""
    return json.dumps(
        {
            "files": [str(path) for path in paths],
            "seed": result.seed,
            "tries": result.tries,
            "complete": result.complete,
            "audio_seconds": round(result.audio_seconds, 3),
            "seconds": round(seconds, 3),
            "load_seconds": round(load_seconds, 3),
            "stages": {stage: round(spent, 3) for stage, spent in result.seconds.items()},
            **({"checks": [found.as_json() for found in result.reports]} if result.reports else {}),
        }
    )


def report(paths: list[Path], result: Result, seconds: float) -> str:
    """What was made and what it took, in two lines."""
    audio = result.audio_seconds
    names = ", ".join(map(str, paths))
    stages = ", ".join(f"{stage} {spent:.2f} s" for stage, spent in result.seconds.items())
    factor = seconds / audio if audio else float("inf")
    return (
        f"{names}: {audio:.2f} s of audio in {seconds:.2f} s (real-time factor {factor:.2f}), {result.made_with()}\n"
        f"Time: {stages}"
    )
