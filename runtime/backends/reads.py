"""What ``ar_step`` reads, cut into calls of few shapes, for engines that compile or record each shape that comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..engine import Array
from ..profiles import SPAN_STEP
from ..spec import Dims, cache_capacity


@dataclass(frozen=True)
class Read:
    """One call of the graph."""

    inputs: dict[str, Array]  #: of ``ar_step``, of all rows
    lengths: Array  #: (rows,) positions held before
    new: int  #: positions that are added, those of padding as well
    codes: int  #: of its latents how many are wanted, from the first


def cut(inputs: Mapping[str, Array], lengths: Array, dims: Dims) -> list[Read]:
    """What appends ``inputs`` to rows that hold ``lengths`` positions; the last call has the logits that are wanted.

    Each call but the last, of one code, is padded behind what it appends. Nothing sees that: attention ends at a
    row's own positions, and the next call writes over it. There must be room for it, else it is left out.
    """
    rows, codes = inputs["codes"].shape
    held = np.asarray(lengths, np.int64)
    room = cache_capacity(dims) - int(held.max())
    calls = []
    if before := inputs["voice"].shape[1] + inputs["text_ids"].shape[1]:
        text = _padded(inputs["text_ids"], min(dims["ar.text_positions"], room - 2))
        one = np.zeros((rows, 1), np.int64)  # a graph takes no text without a code
        given = {"voice": inputs["voice"], "text_ids": text, "codes": one, "code_positions": one}
        calls.append(Read(given, held, inputs["voice"].shape[1] + text.shape[1] + 1, 0))
        held, room = held + before, room - before
    nothing = {"voice": inputs["voice"][:, :0], "text_ids": inputs["text_ids"][:, :0]}
    several, last = (
        {name: inputs[name][:, part] for name in ("codes", "code_positions")}
        for part in (slice(-1), slice(-1, None))
    )
    if codes > 1:
        given = {name: _padded(a, min(dims["ar.mel_positions"], room)) for name, a in several.items()}
        calls.append(Read({**nothing, **given}, held, given["codes"].shape[1], codes - 1))
        held = held + codes - 1
    return [*calls, Read({**nothing, **last}, held, 1, 1)]


def _padded(array: Array, most: int) -> Array:
    """(rows, n) -> (rows, the next multiple of SPAN_STEP), with 0; at most ``most``, but never fewer than there are."""
    count = array.shape[1]
    wanted = max(min(-(-count // SPAN_STEP) * SPAN_STEP, most), count)
    return np.pad(array, ((0, 0), (0, wanted - count)))
