"""Trains the demo's networks: python -m tortoise_rt.engines.demo.train all --work DIR"""

from __future__ import annotations

import functools
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from . import corpus, loop

#: stage -> what it does
ABOUT = {
    "corpus": "write the training sentences",
    "speak": "let the teacher speak them",
    "tokens": "learn the tokenizer",
    "vqvae": "learn the codes",
    "encode": "turn the corpus into codes",
    "autoregressive": "learn codes from text",
    "hifigan_codes": "learn the fast decoder from code vectors",
    "latents": "compute latents",
    "hifigan": "learn the fast decoder from latents",
    "clvp": "learn to rank candidates",
    "univnet": "learn the vocoder",
    "diffusion": "learn the diffusion decoder",
    "aligner": "learn where characters are spoken",
    "clips": "write the clips of the voices that ship: WORK/voices",
    "keep": "round the weights to half precision: WORK/kept",
}
STOPPED = 3  #: exit status of a run that --minutes stopped
VOICES_FOLDER = Path(__file__).resolve().parents[3] / "voices"
TRAINED = ("vqvae", "autoregressive", "hifigan", "clvp", "univnet", "diffusion", "aligner")


def _speak(work: loop.Work, processes: int) -> None:
    from . import teacher

    if processes == 1:
        teacher.speak_corpus(work)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(functools.partial(teacher.speak_corpus, work, step=processes), range(processes), chunksize=1)


def _corpus(work: loop.Work, wordnet: Path) -> None:
    path = work.folder / "corpus.txt.gz"
    if not path.exists():
        corpus.write(corpus.build(wordnet, fraction=work.scale), path)


def _place(work: loop.Work, name: str, checkout: Path | None) -> Path:
    """Where results go: WORK/name or, of a whole training only, ``checkout``."""
    if checkout is None:
        return work.folder / name
    needed = [stage for stage in TRAINED if work.state(stage).exists() or not work.from_kept]
    unfinished = [stage for stage in needed if not work.finished(stage)]
    if unfinished:
        raise loop.Mismatch(f"--install needs a whole training; unfinished: {', '.join(unfinished)}")
    return checkout


def _keep(work: loop.Work, install: bool) -> None:
    folder = _place(work, "kept", loop.KEPT if install else None)
    for stage in TRAINED:
        if work.state(stage).exists():
            print(f"{work.keep(stage, folder)}{'' if work.finished(stage) else ' (unfinished)'}", flush=True)
    if work.state("autoregressive").exists():  # its text ids are this tokenizer's
        shutil.copyfile(work.folder / "tokenizer.json", folder / "tokenizer.json")


def actions(work: loop.Work, wordnet: Path, processes: int, install: bool) -> dict[str, Callable[[], object]]:
    """What each stage does, in the order of a training from nothing."""
    from . import aligner, autoregressive, clips, clvp, diffusion, hifigan, latents, tokens, univnet, vqvae

    return {
        "corpus": lambda: _corpus(work, wordnet),
        "speak": lambda: _speak(work, processes),
        "tokens": lambda: tokens.train(work.folder / "corpus.txt.gz", work.folder / "tokenizer.json"),
        "vqvae": lambda: vqvae.train(work),
        "encode": lambda: vqvae.encode_corpus(work),
        "autoregressive": lambda: autoregressive.train(work),
        "hifigan_codes": lambda: hifigan.train_on_codes(work),
        "latents": lambda: latents.make(work),
        "hifigan": lambda: hifigan.train(work),
        "clvp": lambda: clvp.train(work),
        "univnet": lambda: univnet.train(work),
        "diffusion": lambda: diffusion.train(work),
        "aligner": lambda: aligner.train(work),
        "clips": lambda: clips.write(_place(work, "voices", VOICES_FOLDER if install else None)),
        "keep": lambda: _keep(work, install),
    }


def _epilog() -> str:
    lines = "\n".join(f"  {stage:15} {about}" for stage, about in ABOUT.items())
    status = f"Exit status: 0 done, {STOPPED} stopped by --minutes, 1 failed, 2 called wrongly."
    return f"\b\nStages, in the order of 'all':\n{lines}\n\n{status}"


@click.command(epilog=_epilog(), context_settings={"max_content_width": 110})
@click.argument("stages", nargs=-1, required=True, type=click.Choice(["all", *ABOUT]))
@click.option(
    "--work",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of corpus, states and results (10 GB).",
)
@click.option(
    "--wordnet",
    type=click.Path(path_type=Path),
    default=Path("/usr/share/wordnet"),
    show_default=True,
    help="WordNet's dictionary files (Debian: wordnet-base).",
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--threads", default=1, show_default=True, help="Threads of PyTorch.")
@click.option("--processes", default=1, show_default=True, help="Processes in which the teacher speaks.")
@click.option("--seed", default=0, show_default=True, help="Same seed and machine, same weights.")
@click.option(
    "--scale",
    default=1.0,
    show_default=True,
    help="Of every stage's steps and the corpus; 0.01 tries the whole path out.",
)
@click.option(
    "--minutes",
    type=float,
    help="Stop after this long, with the step or shard at hand (a stage without those: at its end); the same "
    "command goes on later.",
)
@click.option(
    "--from-kept",
    is_flag=True,
    help="For stages that have no state in the work folder take the committed weights.",
)
@click.option(
    "--install",
    is_flag=True,
    help="Let clips and keep replace what is committed. Needs --scale 1 and every network finished; with "
    "--from-kept, every one that has a state.",
)
def main(
    stages: tuple[str, ...],
    folder: Path,
    wordnet: Path,
    device: str,
    threads: int,
    processes: int,
    seed: int,
    scale: float,
    minutes: float | None,
    from_kept: bool,
    install: bool,
) -> None:
    """Train the demo's networks from nothing, or go on where an earlier run stopped.

    Every stage writes its state to the work folder every two minutes and its losses to results.jsonl there. A
    folder belongs to one --scale and one --seed.
    """
    if install and scale != 1:
        raise click.UsageError(f"--install needs a whole training: --scale is {scale:g}, not 1")
    loop.keep_memory()
    until = time.time() + 60 * minutes if minutes else float("inf")
    work = loop.Work(folder, device, threads, seed, scale, until, from_kept)
    todo = actions(work, wordnet, processes, install)
    try:
        work.begin()
        for stage in todo if "all" in stages else stages:
            work.check_time(f"before {stage}")
            print(f"== {stage}: {ABOUT[stage]}", flush=True)
            todo[stage]()
    except loop.OutOfTime as stop:
        print(stop)
        sys.exit(STOPPED)
    except (loop.Mismatch, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
