"""How large the inputs of each graph are: the least, the usual and the most, for engines that are built for ranges.

Longer inputs are refused there; more rows take turns. What the host asks for fits: voices of at most the seconds that
are heard, clips of as many codes as the model has positions for, vocoders in windows.
"""

from __future__ import annotations

from collections.abc import Mapping

from .detect import MAX_SAMPLES
from .spec import (
    CODE_RATE,
    CODE_SAMPLES,
    DIFFUSION_VOICE_SAMPLES,
    GRAPHS,
    HOP,
    VOICE_SAMPLES,
    WAV2VEC2_RATE,
    Dims,
    cache_capacity,
    codes_to_frames,
)
from .vocoder import HIFIGAN_HALO, UNIVNET_HALO, WINDOW

Range = tuple[int, int, int]  #: least, usual, most
SPAN_STEP = 64  #: the positions of a cache that are attended to are rounded up to a multiple of this
MOST_ROWS = 16  #: samples ranked in one call
DECODED, MOST_DECODED = 16, 64  #: samples that read a code each in one call, usually and at most
GUIDED_ROWS = 2  #: of a diffusion step, for clips of the usual length; those of longer ones take turns
MOST_FEW_ROWS = 4  #: rows of everything else
USUAL_TEXT, USUAL_CODES = 60, 230  #: a sentence, ten seconds of it


def few_rows(rows: int, room: int) -> int:
    """How many rows read a code together where ``rows`` are wanted and there are ``room``: few numbers, as each is recorded."""
    if rows <= 4:
        step = 1 << (rows - 1).bit_length()
    else:
        step = 4 if rows <= DECODED else DECODED if rows <= MOST_DECODED else MOST_DECODED
    return min(-(-rows // step) * step, room)


def profiles(graph: str, dims: Dims) -> tuple[Mapping[str, Range], ...]:
    """Free dimension -> its sizes; several where a graph is used in ways so different that each is tuned apart."""
    if graph == "ar_step":
        return _step_profiles(dims)
    few = (1, 1, MOST_FEW_ROWS)
    sizes = {
        "rows": few,
        "clips": few,
        "text": _text(dims),
        "codes": _codes(dims),
        "frames": _frames(graph, dims),
        "samples": _samples(graph, dims),
    }
    used = {dim for tensor in GRAPHS[graph].inputs for dim in tensor.dims}
    if graph in ("clvp_speech", "cvvp_speech"):
        sizes["rows"] = (1, MOST_ROWS, MOST_ROWS)
    sizes = {dim: sizes[dim] for dim in sizes if dim in used}
    if not graph.startswith("diffusion_") or graph == "diffusion_voice":
        return (sizes,)
    # Attention over a long clip takes memory as the square of its length: 4.5 GB for two of 28 s.
    least, usual, most = sizes["frames"]
    guided = {"rows": (1, GUIDED_ROWS, GUIDED_ROWS), "frames": (least, usual, usual)}
    if usual == most:
        return ({**sizes, **guided},)
    return {**sizes, **guided}, {**sizes, "rows": (1, 1, 1), "frames": (usual, usual, most)}


def wanted_values(graph: str, dims: Dims) -> tuple[tuple[int, int], ...]:
    """Least, usual and most of hifigan's "wanted", the one input that says what is computed."""
    _, usual, most = _frames(graph, dims)
    return (0, 1), (0, usual), (most - 1, most)


def _step_profiles(dims: Dims) -> tuple[Mapping[str, Range], ...]:
    """Of ar_step: a code of one row, of several, of many; a prompt; codes behind one."""
    none, one, few = (0, 0, 0), (1, 1, 1), (1, 1, MOST_FEW_ROWS)
    capacity = cache_capacity(dims)
    span = (SPAN_STEP, min(512, capacity), capacity)
    decode = {"voices": none, "text": none, "codes": one, "span": span}
    return (
        {"rows": one, **decode},
        {"rows": (2, DECODED, DECODED), **decode},
        {"rows": (DECODED + 1, MOST_DECODED, MOST_DECODED), **decode},
        {"rows": few, "voices": one, "text": _text(dims), "codes": one, "span": span},
        {"rows": few, "voices": none, "text": none, "codes": _codes(dims), "span": span},
    )


def _text(dims: Dims) -> Range:
    most = dims.get("ar.text_positions", 404)
    return 1, min(USUAL_TEXT, most), most


def _codes(dims: Dims) -> Range:
    most = dims.get("ar.mel_positions", 608)
    return 1, min(USUAL_CODES, most), most


def _frames(graph: str, dims: Dims) -> Range:
    if graph in ("univnet", "hifigan"):
        most = WINDOW + 2 * (UNIVNET_HALO if graph == "univnet" else HIFIGAN_HALO)
        return (4 if graph == "univnet" else 1), most, most  # UnivNet reflects three frames at its ends
    if graph.endswith("_voice"):
        most = (DIFFUSION_VOICE_SAMPLES if graph == "diffusion_voice" else VOICE_SAMPLES) // HOP + 1
        return 1, most, most
    _, usual, most = _codes(dims)
    if graph == "aligner":  # mels of 22.05 kHz
        return 1, usual * CODE_SAMPLES // HOP, most * CODE_SAMPLES // HOP + 1
    return 1, codes_to_frames(usual), codes_to_frames(most)


def _samples(graph: str, dims: Dims) -> Range:
    if graph == "detector":
        return 64, MAX_SAMPLES // 2, MAX_SAMPLES
    seconds = (codes * CODE_SAMPLES / CODE_RATE for codes in _codes(dims)[1:])
    usual, most = (int(WAV2VEC2_RATE * length) for length in seconds)
    return 400, usual, most
