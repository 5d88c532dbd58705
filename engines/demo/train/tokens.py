"""The demo's tokenizer: byte-pair entries learnt from the corpus, in the layout of the original's tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

from tortoise_rt.text import clean_english

from . import corpus

ENTRIES = 255  #: one below the id that starts a text
SPECIAL = ["[STOP]", "[UNK]", "[SPACE]"]
ALPHABET = "!'(),-./:;?abcdefghijklmnopqrstuvwxyz"


def train(sentences: Path, output: Path) -> None:
    """Learn the entries from the corpus; nothing is done where ``output`` exists."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if output.exists():
        return
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES, special_tokens=SPECIAL, initial_alphabet=list(ALPHABET), show_progress=False
    )
    tokenizer.train_from_iterator((clean_english(text) for _, text in corpus.read(sentences)), trainer)
    layout = json.loads(tokenizer.to_str())
    model = layout["model"]
    model["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    for newer in ("byte_fallback", "ignore_merges"):  # unknown to the tokenizers of the original's time
        model.pop(newer, None)
    output.write_text(json.dumps(layout, ensure_ascii=False))
