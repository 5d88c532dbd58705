"""What the scheduler is worth: row-steps and time of many samples, throughput and latency of many requests.

    python benchmarks/scheduler.py rows [--engine BUNDLE] [-o results.jsonl]     # ragged samples through a pool of rows
    python benchmarks/scheduler.py load [--engine BUNDLE] [-o results.jsonl]     # 1, 2, 4 and 8 requests at a time

``rows`` forces the lengths of the samples (mean 200 codes, deviation 60), so that any weights will do: those of the
official size come from python -m tortoise_rt.export.random_checkpoint and tortoise-rt export. It verifies first that codes and
latents are those of the runtime without the scheduler, which decodes fixed batches. ``load`` has clients each of which
asks for the next sentence when it has got the last.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tortoise_rt import autoregressive
from tortoise_rt.bench import time_load
from tortoise_rt.cli.progress import table
from tortoise_rt.config import ARSettings, make_settings
from tortoise_rt.defaults import settings_for
from tortoise_rt.engine import Array, Engine, KVCache
from tortoise_rt.machine import environment, peak_mib
from tortoise_rt.pipeline import Pipeline
from tortoise_rt.proxy_engine import ProxyEngine
from tortoise_rt.scheduler import Scheduler
from tortoise_rt.tts import choose_engine
from tortoise_rt.voice import VoiceLatents

sys.path.insert(0, str(Path(__file__).parent))
from judge import reference
from judge.forcing import Forced, force_lengths

Row = dict[str, Any]
SENTENCES = Path(__file__).parent / "sentences" / "everyday.txt"


class Counting(ProxyEngine):
    """An engine that counts the rows of its autoregressive steps."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.steps: list[tuple[int, int]] = []  #: rows and new positions of each
        self.waiting: Callable[[], bool] = lambda: False  #: whether samples wait for rows
        self.while_waiting: list[int] = []  #: rows of the steps of one position taken meanwhile

    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        new = sum(inputs[name].shape[1] for name in ("voice", "text_ids", "codes"))
        self.steps.append((cache.rows, new))
        if new == 1 and self.waiting():
            self.while_waiting.append(cache.rows)
        return super()._ar_step(cache, inputs)


def lengths_of(samples: int, longest: int) -> Array:
    drawn = np.random.default_rng(5).normal(200, 60, samples)
    return np.clip(np.rint(drawn), 20, longest).astype(int)


def ragged(
    opened: Engine,
    samples: int,
    rows: int,
    repeats: int,
    beside: reference.Reference | None = None,
    batches: int = 1,
) -> Iterator[Row]:
    """``samples`` of forced lengths by the runtime alone and by the scheduler; ``batches`` of them by the reference."""
    force_lengths()
    engine = Counting(opened)
    lengths = lengths_of(samples, autoregressive.code_limit(ARSettings(), engine.dims))
    rng = np.random.default_rng(1)
    voice = 0.3 * rng.standard_normal((1, engine.dims["ar.dim"]), np.float32)
    ids = rng.integers(3, 200, 40).tolist()
    settings = make_settings(
        num_autoregressive_samples=samples, k=samples, decoder="hifigan", batch_rows=rows
    )
    text, rand = autoregressive.text_row(ids, engine.dims), Forced(lengths)

    parts = [lengths[i : i + rows] for i in range(0, samples, rows)]
    # a row's last code is never read
    fixed = sum((batch.max() - 1) * len(batch) for batch in parts)
    needed = int((lengths - 1).sum())
    base = {"kind": "rows", "samples": samples, "rows": rows, "needed": needed, "codes": int(lengths.sum())}
    if beside is not None:
        some = lengths[: batches * rows]
        drawn = beside.ask("rows", lengths=some.tolist(), batch=rows, ids=ids)
        again = beside.ask("latents", ids=ids)
        seconds = round(sum(drawn.pop("seconds")), 2)
        # it decodes padded rows, and its prompts are of all rows of a batch
        yield {
            **base, "how": "the reference, the first of the samples", **drawn, "samples": len(some),
            "codes": int(some.sum()), "needed": int((some - 1).sum()), "seconds": seconds,
            "seconds_per_code": round(seconds / some.sum(), 4), "prompts": drawn["prompts"] * rows,
            "second_pass_s": round(statistics.median(again["seconds"]), 3),
        }  # fmt: skip
    yield {**base, "how": "fixed batches, by count", "row_steps": int(fixed)}

    made: dict[str, Any] = {}

    def decode(self: Pipeline, result: Any, number: int, *_: Any) -> None:
        made["codes"], made["latents"] = result.codes, dict(zip(result.chosen, result.latents, strict=True))

    Pipeline._hifigan = decode  # type: ignore[method-assign]  # the vocoder's time is not what is measured

    def without() -> Array:
        """Codes, and then the latents of all, as the decoder needs those."""
        codes = autoregressive.sample_codes(engine, voice, text, settings.ar, rand)
        stop = engine.dims["ar.stop_code"]
        wanted = [autoregressive.codes_to_decode(row, stop, settings.decoder) for row in codes]
        made["alone"] = codes, autoregressive.code_latents(engine, voice, text, wanted)
        return codes

    seconds: dict[str, list[float]] = {"alone": [], "together": []}
    steps: dict[str, list[tuple[int, int]]] = {}
    waiting: dict[str, list[int]] = {}
    with Scheduler(engine, rows=rows) as scheduler:
        engine.waiting = lambda: scheduler.policy.waiting
        arms = {
            "alone": without,
            "together": lambda: scheduler.submit(ids, VoiceLatents(voice), settings, rand).result(),
        }
        for number in range(repeats):
            for arm in list(arms)[:: -1 if number % 2 else 1]:  # by turns, as the machine's speed drifts
                engine.steps.clear()
                engine.while_waiting.clear()
                began = time.perf_counter()
                arms[arm]()
                seconds[arm].append(time.perf_counter() - began)
                steps[arm] = list(engine.steps)
                waiting[arm] = list(engine.while_waiting)
        kv_bytes = 0 if scheduler.rows is None else scheduler.rows.count * scheduler.rows.capacity
        count = scheduler.policy.rows
    expected, passes = made["alone"]
    different = int((made["codes"] != expected).any(axis=1).sum())
    if different > samples // 16:  # a draw may fall within rounding of an interval's edge, but not often
        raise SystemExit(f"{different} of {samples} samples are not those of the runtime alone")
    same = [i for i in range(samples) if (made["codes"][i] == expected[i]).all()]
    worst = max(np.abs(made["latents"][i] - passes[i]).max() / np.ptp(passes[i]) for i in same)
    if worst > 1e-4:
        raise SystemExit(f"latents differ by {worst:.1e} of their range")

    decoding = {arm: [r for r, new in found if new == 1] for arm, found in steps.items()}
    full = decoding["together"]
    meanwhile = waiting["together"]
    for arm, how in (("alone", "without the scheduler"), ("together", "scheduler")):
        yield {
            **base, "how": f"{how}, codes and latents", "row_steps": sum(decoding[arm]), "steps": len(decoding[arm]),
            "prompts": sum(new == len(ids) + 5 for _, new in steps[arm]),
            "seconds": [round(value, 2) for value in seconds[arm]],
            "seconds_per_code": round(statistics.median(seconds[arm]) / lengths.sum(), 4),
        }  # fmt: skip
    faster = [one / other for one, other in zip(seconds["alone"], seconds["together"], strict=True)]
    yield {
        **base, "how": "so", "occupied_while_samples_wait": round(sum(meanwhile) / (len(meanwhile) * count), 4),
        "fewer_than_fixed": round(fixed / sum(full), 3), "samples_that_differ": different,
        "faster_than_without": [round(value, 3) for value in faster],
        "latents_differ": float(worst),
        "kv_bytes": kv_bytes * engine.position_bytes(), "kv_budget": scheduler.kv_budget,
        "peak_rss_mib": peak_mib(),
    }  # fmt: skip


def load(engine: Engine, clients: int, requests: int, arguments: Row, strict: bool = False) -> Row:
    """``clients`` at a time, until ``requests`` sentences are said."""
    sentences = SENTENCES.read_text("utf-8").split("\n")[:-1]
    settings = settings_for(engine, **arguments)
    return {**time_load(engine, settings, clients, requests, sentences, strict), "settings": arguments}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["rows", "load"])
    parser.add_argument("--engine", type=Path, help="a bundle [default: the demo]")
    parser.add_argument("--samples", type=int, default=48, help="rows: samples in all")
    parser.add_argument("--rows", type=int, default=16, help="rows: of the pool")
    parser.add_argument("--batches", type=int, default=1, help="rows: of those, how many by the reference")
    parser.add_argument("--requests", type=int, default=48, help="load: sentences for each number of clients")
    parser.add_argument(
        "--codes",
        type=int,
        help="load: most codes of a sample, by HiFi-GAN; for random weights, which never end",
    )
    parser.add_argument(
        "--draws", type=int, nargs="+", default=[1, 8], help="load: samples of a sentence [default: 1 8]"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of each number of clients, or of all rows")
    parser.add_argument("-o", "--output", type=Path, help="append JSON lines to this file")
    reference.add_options(parser)
    options = parser.parse_args()
    engine = choose_engine(options.engine)
    rows: list[Row] = [{**environment(), "benchmark": "scheduler", "notice": engine.info.notice}]
    if options.what == "rows":
        with contextlib.nullcontext() if options.reference is None else reference.chosen(options) as beside:
            rows += ragged(engine, options.samples, options.rows, options.repeats, beside, options.batches)
    else:
        more = {"max_mel_tokens": options.codes, "decoder": "hifigan"} if options.codes else {}
        for samples in options.draws:
            arguments = {"num_autoregressive_samples": samples, **more}
            for clients in (1, 2, 4, 8):
                for _ in range(options.repeats):  # by turns, as the machine's speed drifts
                    for strict in (False, True):
                        rows.append(load(engine, clients, options.requests, arguments, strict))
    print(report(rows[1:]))
    if options.output:
        with options.output.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def report(rows: list[Row]) -> str:
    if rows[0]["kind"] == "rows":
        return "\n".join(
            ", ".join(f"{key} {value}" for key, value in row.items() if key != "kind") for row in rows
        )
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row["settings"]["num_autoregressive_samples"], row["strict"], row["clients"])
        groups.setdefault(key, []).append(row)
    lines = [("samples", "strict", "at a time", "audio s/s", "spread", "p50 s", "p90 s", "p99 s")]
    for (samples, strict, clients), found in groups.items():
        speeds = [row["audio_per_second"] for row in found]
        middle = [statistics.median(row[key] for row in found) for key in ("p50_s", "p90_s", "p99_s")]
        lines.append(
            (
                str(samples), "yes" if strict else "no", str(clients), f"{statistics.median(speeds):.1f}",
                f"{min(speeds):.1f} to {max(speeds):.1f}", *(f"{value:.2f}" for value in middle),
            )
        )  # fmt: skip
    return table(lines)


if __name__ == "__main__":
    main()
