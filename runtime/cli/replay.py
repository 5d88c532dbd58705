"""``tortoise-rt replay``: a run once more, from its debug state."""

from __future__ import annotations

import json
from pathlib import Path

import click

from . import options

DIFFERENT = 1  #: exit code when other codes were drawn


@click.command()
@click.argument("folder", type=options.FOLDER, metavar="FOLDER")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the clip too: .wav, .flac or .ogg; for K candidates NAME_0.wav, ...",
)
@options.engine_options
@options.tokenizer_option
@click.option("--basic-cleaners", is_flag=True, help="As in the run.")
@click.option("--json", "as_json", is_flag=True, help="Print the differences as one line of JSON.")
@options.verbosity_options
def replay(
    folder: Path,
    output: Path | None,
    engine: Path | None,
    checkpoints: Path | None,
    backend: str,
    device: str,
    precision: str | None,
    tokenizer: Path | None,
    basic_cleaners: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Do the run in FOLDER, as "say --debug-state" wrote it, once more and say how it differs.

    It runs on the engine that made it, where that is still there, or on the one that is named. Exit code: 0 when the
    same codes were drawn, 1 when others were.

    \b
    tortoise-rt say "Hello there." --debug-state run/ -o hello.wav
    tortoise-rt replay run/ -o again.wav
    """
    options.set_up_log(quiet, verbose)
    from ..audio import write_wav
    from ..debug_state import differences, load_debug_state
    from ..debug_state import replay as run_again
    from ..tts import choose_engine, choose_tokenizer
    from .say import check_output, clip_paths

    if output is not None:
        check_output(output)
    state = load_debug_state(folder)
    made_by = str(state.engine.get("source", ""))
    reduced = set(state.engine["precision"].values()) - {"fp32"}
    if engine is None and checkpoints is None and Path(made_by).is_dir():
        engine = Path(made_by)
        backend = str(state.engine.get("backend", "auto")) if backend == "auto" else backend
        if backend == "torch" and precision is None and len(reduced) == 1:
            precision = str(reduced.pop())
    opened = choose_engine(engine, checkpoints, backend, device, precision)
    result = run_again(state, opened, choose_tokenizer(opened, tokenizer, basic_cleaners))
    if output is not None:
        for number, path in enumerate(clip_paths(output, len(result.wavs))):
            write_wav(path, result.wavs[number], comment=result.made_with(number))
    found = differences(state, result)
    if as_json:
        click.echo(json.dumps({"engine": str(opened.info.source), "seed": state.seed, **found}))
    elif not quiet:
        click.echo(
            f"{opened.info.source}: {result.made_with()}, {state.codes.shape[0]} samples; codes "
            + ("are the same" if found["codes"] == 0 else f"differ in {found['codes']:.0f} places")
            + f", scores by at most {found['scores']:.2g}, latents by at most {found['latents']:.2g}"
        )
    if found["codes"]:
        raise SystemExit(DIFFERENT)
