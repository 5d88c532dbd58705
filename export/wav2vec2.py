"""A wav2vec2 CTC checkpoint in Hugging Face's layout: config.json, vocab.json and the weights, in one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tortoise_rt.errors import CheckpointError
from tortoise_rt.spec import SYMBOLS

#: what must stand in config.json, as the networks that are built have it; where it is missing this is the default
SUPPORTED: Mapping[str, Any] = {
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "add_adapter": False,
}
DEFAULTS: Mapping[str, Any] = {**SUPPORTED, "do_stable_layer_norm": False, "feat_extract_norm": "group"}
UNUSED = "wav2vec2.masked_spec_embed"  #: what stands for masked frames in training
WORD_ENDS = ("|", " ")  #: what vocabularies have for the space between words
_POSITIONS = "wav2vec2.encoder.pos_conv_embed.conv."


def section(folder: Path) -> dict[str, Any]:
    """What config.json says that tensors cannot; raises CheckpointError for another kind of network."""
    config = _read(folder / "config.json")
    for key, wanted in SUPPORTED.items():
        if (found := config.get(key, DEFAULTS[key])) != wanted:
            raise CheckpointError(
                f"{folder / 'config.json'} says {key} {found!r}; only wav2vec2 networks with {wanted!r} are supported, "
                "as wav2vec2-large-robust"
            )
    strides = config.get("conv_stride", (5, 2, 2, 2, 2, 2, 2))
    numbers = {
        "num_attention_heads": config.get("num_attention_heads", 12),
        "num_conv_pos_embedding_groups": config.get("num_conv_pos_embedding_groups", 16),
        "pad_token_id": config.get("pad_token_id", 0),
    }
    valid = (
        isinstance(strides, (list, tuple)) and all(_whole(n, 1) for n in strides) and 0 < len(strides) < 20
    )
    if not valid or not all(_whole(n, int(key != "pad_token_id")) for key, n in numbers.items()):
        raise CheckpointError(
            f"{folder / 'config.json'} has unusable numbers: {numbers}, conv_stride {strides!r}"
        )
    return {**numbers, "conv_stride": list(strides)}


def prepared(folder: Path, weights: Mapping[str, Tensor], blank: int) -> dict[str, Tensor]:
    """The weights as the module takes them: weight norm folded, with ``folding`` from vocab.json."""
    ready = {key: tensor for key, tensor in weights.items() if key != UNUSED}
    for magnitude, direction in (
        ("weight_g", "weight_v"),
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ):
        g, v = ready.get(_POSITIONS + magnitude), ready.get(_POSITIONS + direction)
        if g is not None and v is not None and v.ndim == 3 and g.shape == (1, 1, v.shape[2]):
            del ready[_POSITIONS + magnitude], ready[_POSITIONS + direction]
            ready[f"{_POSITIONS}weight"] = torch._weight_norm(v.float(), g.float(), 2)
    head = ready.get("lm_head.weight")
    if head is not None:
        ready["folding"] = folding(folder / "vocab.json", len(head), blank)
    return ready


def folding(path: Path, count: int, blank: int) -> Tensor:
    """(count, SYMBOLS): 1 where a symbol of the vocabulary is one of SYMBOLS; what is none of them is as good as the blank."""
    vocabulary = _read(path)
    found = torch.zeros(count, len(SYMBOLS))
    for symbol, number in vocabulary.items():
        if not _whole(number, 0) or number >= count:
            raise CheckpointError(f"{path} numbers {symbol!r} as {number!r}; the network has {count} symbols")
        letter = " " if symbol in WORD_ENDS else symbol.lower()
        if letter in SYMBOLS[1:] and number != blank:
            found[number, SYMBOLS.index(letter)] = 1
    lacking = [letter for letter in SYMBOLS[2:] if not found[:, SYMBOLS.index(letter)].any()]
    if lacking:
        raise CheckpointError(
            f"{path} lacks {', '.join(map(repr, lacking))}: it is no vocabulary of English letters"
        )
    found[found.sum(1) == 0, 0] = 1
    return found


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and least <= value < 1 << 20


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: tortoise-rt fetch --aligner gets it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} must hold an object")
    return found
