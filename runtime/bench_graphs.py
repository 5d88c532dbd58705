"""The machine's ceilings, and each graph of an engine against them."""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .bundle import MANIFEST
from .engine import Array, Engine
from .spec import AR_MELS, MELS, VOCODER_NOISE, codes_to_frames

Row = dict[str, Any]
CONTEXT = 200  #: positions behind which decoding is timed
PROMPT = 64  #: positions of a prompt
CODES = 215  #: of ten seconds, for graphs that take a whole clip
READ_VALUES = 64 << 20  #: float32 read once to measure memory, past any cache
SQUARE = 2048  #: side of the matrices multiplied to measure arithmetic


def ceilings(repeats: int = 5) -> Row:
    """What this machine reaches in NumPy, on as many threads as its library takes: GB/s read and GFLOP/s in float32."""
    rng = np.random.default_rng(0)
    square = rng.standard_normal((SQUARE, SQUARE), np.float32)
    wide, narrow = np.ones((1024, READ_VALUES // 1024), np.float32), np.ones((1, 1024), np.float32)
    product = min(_seconds(lambda: square @ square, repeats))
    read = min(_seconds(lambda: narrow @ wide, repeats))
    return {
        "kind": "ceilings",
        "gflops": round(2 * SQUARE**3 / product / 1e9, 1),
        "gb_per_second": round(4 * READ_VALUES / read / 1e9, 1),
    }


@dataclass(frozen=True)
class Case:
    """A graph at one size."""

    graph: str
    what: str
    prepare: Callable[[Engine], Callable[[], Any]]  #: -> what is timed
    rows: int
    steps: int  #: rows times steps in time
    pairs: int  #: pairs of steps that attention compares
    held: int = 0  #: positions of the cache that are read, of all rows together


def graph_cases(engine: Engine, codes: int = CODES) -> Iterator[Case]:
    """What is worth timing of what the engine has."""
    frames, dims = codes_to_frames(codes), engine.dims
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    if engine.has("ar_step"):
        held = min(CONTEXT, dims["ar.mel_positions"] - 2)
        for rows in (1, 4, 16):
            yield Case(
                "ar_step",
                f"decode, {rows} rows",
                functools.partial(decode_step, rows=rows, held=held),
                rows,
                rows,
                rows * held,
                rows * held,
            )
        yield Case("ar_step", f"prompt of {PROMPT}", _prompt, 1, PROMPT, PROMPT**2 // 2)
    plain: list[tuple[str, int, int, dict[str, Array]]] = []
    if engine.has("clvp_speech"):
        plain.append(("clvp_speech", 4, 500, {"codes": rng.integers(0, dims["clvp.codes"], (4, 500))}))
    if engine.has("cvvp_speech"):
        plain.append(("cvvp_speech", 4, 500, {"codes": rng.integers(0, dims["cvvp.codes"], (4, 500))}))
    if engine.has("diffusion_denoise"):
        dim, timestep = dims["diffusion.dim"], np.full(2, 2000, np.float32)
        condition = {"aligned": normal(2, frames, dim), "timestep": timestep}
        plain.append(("diffusion_condition", 2, frames, condition))
        x = {"x": normal(2, MELS, frames), "condition": normal(2, frames, dim), "timestep": timestep}
        plain.append(("diffusion_denoise", 2, frames, x))
    if engine.has("univnet"):
        mel = {"mel": normal(1, MELS, frames), "noise": normal(1, VOCODER_NOISE, frames)}
        plain.append(("univnet", 1, frames, mel))
    if engine.has("hifigan"):
        latents = normal(1, dims["hifigan.in_dim"], frames)
        plain.append(
            (
                "hifigan",
                1,
                frames,
                {
                    "latents": latents,
                    "voice": normal(1, dims["hifigan.voice_dim"]),
                    "wanted": np.array([0, frames]),
                },
            )
        )
    if engine.has("ar_voice"):
        plain.append(("ar_voice", 1, 517, {"mel": normal(1, AR_MELS, 517)}))
    for graph, rows, steps, inputs in plain:
        run = lambda e, graph=graph, inputs=inputs: lambda: e.run(graph, **inputs)  # noqa: E731
        yield Case(graph, f"{rows} x {steps}", run, rows, rows * steps, rows * steps**2)


def time_graph(engine: Engine, case: Case, repeats: int, limits: Row) -> Row:
    """Median and range of a case, and what share of the machine's ceilings that is."""
    seconds = _seconds(case.prepare(engine), repeats)
    middle = statistics.median(seconds)
    row: Row = {
        "kind": "graph", "graph": case.graph, "what": case.what,
        "precision": engine.info.precision.get(case.graph, "fp32"),
        "ms": round(1e3 * middle, 3), "ms_least": round(1e3 * min(seconds), 3), "ms_most": round(1e3 * max(seconds), 3),
    }  # fmt: skip
    error = _precision_error(engine, case.graph)
    if error is not None:
        row["error"] = error
    properties, weights = _properties(engine, case.graph)
    if properties:
        work = int(properties.get("multiply_adds", 0)) * case.steps
        work += int(properties.get("multiply_adds_of_rows", 0)) * case.rows
        work += int(properties.get("multiply_adds_of_pairs", 0)) * case.pairs
        read = weights + (case.held and case.held * engine.position_bytes())
        row["gflops"] = round(2 * work / middle / 1e9, 1)
        if row["precision"] == "fp32":  # what products of fewer bits could reach was not measured
            row["share_of_arithmetic"] = round(row["gflops"] / limits["gflops"], 3)
        row["gb_per_second"] = round(read / middle / 1e9, 2)  # weights, and the keys and values held
        row["share_of_memory"] = round(row["gb_per_second"] / limits["gb_per_second"], 3)
    return row


def precision_errors(engine: Engine) -> list[Row]:
    """Of each graph in fewer bits: what they cost, by the measure that ``export`` took."""
    errors = {graph: _precision_error(engine, graph) for graph in engine.info.graphs}
    return [
        {"kind": "error", "graph": graph, "precision": engine.info.precision[graph], "error": error}
        for graph, error in errors.items()
        if error is not None
    ]


def _properties(engine: Engine, graph: str) -> tuple[dict[str, str], int]:
    """What the exporter noted about a graph, and the bytes of its weights; nothing where there is no bundle."""
    if engine.info.backend != "onnx":
        return {}, 0
    data = Path(engine.info.source) / f"{graph}.data"
    found = engine.session(graph).get_modelmeta().custom_metadata_map  # type: ignore[attr-defined]
    return dict(found), data.stat().st_size if data.exists() else 0


def _precision_error(engine: Engine, graph: str) -> float | None:
    """What ``export`` measured of a graph in fewer bits, on speech or else against its module; None where it did not."""
    if engine.info.backend != "onnx" or engine.info.precision.get(graph, "fp32") == "fp32":
        return None
    manifest = json.loads((Path(engine.info.source) / MANIFEST).read_text("utf-8"))
    for trial in manifest.get("tuning", ()):
        if trial["graph"] == graph and trial["chosen"]:
            return float(trial["error"])
    found = manifest.get("parity", {}).get(graph)
    return None if found is None else float(f"{found['error']:.3g}")


def decode_step(engine: Engine, rows: int, held: int) -> Callable[[], None]:
    """One code for each of ``rows``, behind ``held`` positions, again and again."""
    cache = engine.new_cache(rows, held + 1)
    codes, positions = np.full((rows, 1), 1), np.full((rows, 1), held)

    def step() -> None:
        cache.lengths[:] = held  # of zeros, which take as long
        engine.ar_step(cache, codes, positions)

    return step


def _prompt(engine: Engine) -> Callable[[], Any]:
    voice, text = np.zeros((1, engine.dims["ar.dim"]), np.float32), np.full((1, PROMPT - 2), 1)
    code, position = np.full((1, 1), 1), np.zeros((1, 1), np.int64)
    return lambda: engine.ar_step(engine.new_cache(1, PROMPT), code, position, voice, text)


def _seconds(run: Callable[[], Any], repeats: int) -> list[float]:
    """Of each of ``repeats`` runs, after one that is not counted."""
    run()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return seconds
