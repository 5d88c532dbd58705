"""Trains the demo's networks: python -m tortoise_rt.engines.demo.train all --work DIR"""

from __future__ import annotations

import multiprocessing
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
    "clips": "write the clips of the voices that ship",
    "keep": "round the weights to half precision and put them where they are committed",
}
VOICES_FOLDER = Path(__file__).resolve().parents[3] / "voices"
TRAINED = ("vqvae", "autoregressive", "hifigan", "clvp", "univnet", "diffusion", "aligner")


def _speak(work: loop.Work, processes: int) -> None:
    from . import teacher

    sentences = work.folder / "corpus.txt.gz"
    if processes == 1:
        teacher.speak_corpus(sentences, work.data)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        parts = [
            pool.apply_async(teacher.speak_corpus, (sentences, work.data), dict(first=i, step=processes))
            for i in range(processes)
        ]
        for part in parts:
            part.get()


def _corpus(work: loop.Work, wordnet: Path) -> None:
    path = work.folder / "corpus.txt.gz"
    if not path.exists():
        corpus.write(corpus.build(wordnet, fraction=work.scale), path)


def _keep(work: loop.Work) -> None:
    import shutil

    for stage in TRAINED:
        if work.state(stage).exists():
            print(f"{work.keep(stage)}", flush=True)
    shutil.copyfile(work.folder / "tokenizer.json", loop.KEPT / "tokenizer.json")


def actions(work: loop.Work, wordnet: Path, processes: int) -> dict[str, Callable[[], object]]:
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
        "clips": lambda: clips.write(VOICES_FOLDER),
        "keep": lambda: _keep(work),
    }


def _epilog() -> str:
    lines = "\n".join(f"  {stage:15} {about}" for stage, about in ABOUT.items())
    return f"\b\nStages, in the order of 'all':\n{lines}"


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
@click.option("--minutes", type=float, help="Stop after this long; the same command goes on later.")
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
) -> None:
    """Train the demo's networks from nothing, or go on where an earlier run stopped.

    Every stage writes its state to the work folder every two minutes and its losses to results.jsonl there.
    """
    loop.keep_memory()
    folder.mkdir(parents=True, exist_ok=True)
    until = time.time() + 60 * minutes if minutes else float("inf")
    work = loop.Work(folder, device, threads, seed, scale, until)
    todo = actions(work, wordnet, processes)
    for stage in todo if "all" in stages else stages:
        print(f"== {stage}: {ABOUT[stage]}", flush=True)
        try:
            todo[stage]()
        except loop.OutOfTime as stop:
            print(stop)
            return


if __name__ == "__main__":
    main()
