"""Training of CLVP, which ranks the candidates of one text: how well do these codes say it?

Candidates differ in small mistakes, so beside the other sentences of the batch every row has to be told from itself
with mistakes: in its codes (as sampling makes them) and in its text (where no splice of codes gives them away).
Two helpers that only training needs make every position learn: the speech tower names its phonemes, and each code
finds the text id that it speaks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tortoise_rt.autoregressive import fix_codes
from tortoise_rt.export.models.layers import RotaryAttention, RotaryEncoder, rotate
from tortoise_rt.export.models.ranking import CLVP
from tortoise_rt.spec import STOP_TEXT

from . import loop, muon, vqvae
from .autoregressive import CODE_POSITIONS, STOP, codebook, disturbed
from .examples import Example, prepare, split
from .mistakes import MISTAKES, misread, stretched
from .tokens import ENTRIES
from .vqvae import CODES, PHONEMES

STAGE = "clvp"
DIM, LATENT = 128, 128
TEXT = dict(dim=DIM, depth=2, heads=2, inner=256)
SPEECH = dict(dim=DIM, depth=4, heads=2, inner=256)
MOST_SCALE = math.log(100)  #: of the temperature
SPEECH_MISTAKES, TEXT_MISTAKES = 2, 4  #: drawn for every row
WHOLE = 0.15  #: share of batches padded to all the positions there are, as the runtime does
NEARBY = 1.0  #: text ids that a code may miss its own by
_FAR = -1e4
WEIGHTS = (0.3, 0.3)

# --- the network ---


def build() -> CLVP:
    """The network at its first step."""
    model = CLVP(text_ids=ENTRIES + 1, codes=CODES, latent_dim=LATENT, text=TEXT, speech=SPEECH)
    nn.init.constant_(model.temperature, math.log(1 / 0.07))
    return model


class Helpers(nn.Module):
    """What only training needs: reads the phonemes of both halves of a code from its place in the speech tower."""

    def __init__(self) -> None:
        super().__init__()
        self.phonemes = nn.Linear(DIM, 2 * PHONEMES)


def towers(encoder: RotaryEncoder, x: Tensor, missing: Tensor | None = None) -> Tensor:
    """The same as the encoder's forward, for rows of different lengths: (rows, time, dim) -> same.

    ``missing``: (rows, time), true behind the end of a row.
    """
    rows, time, _ = x.shape
    inv_freq = encoder.attn_layers.rotary_pos_emb.inv_freq
    angles = torch.outer(torch.arange(time, device=x.device).float(), inv_freq).repeat(1, 2)
    layers: Iterable[Any] = encoder.attn_layers.layers
    for layer in layers:
        h, block = layer[0][0](x), layer[1].wrap
        if not isinstance(block, RotaryAttention):
            x = x + block(h)
            continue
        q, k, v = (
            rotate(project(h).unflatten(-1, (block.heads, -1)).transpose(1, 2), angles)
            for project in (block.to_q, block.to_k, block.to_v)
        )
        look = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if missing is not None:
            look = look.masked_fill(missing[:, None, None], _FAR)
        x = x + block.to_out((look.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2))
    return encoder.norm(x)


def text_positions(model: CLVP, texts: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Text ids of each row -> latents of every position, the stop's too (rows, time, latent), and which are missing."""
    lengths = np.array([len(text) + 1 for text in texts])
    ids = np.full((len(texts), lengths.max()), STOP_TEXT)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    device = model.temperature.device
    missing = torch.from_numpy(np.arange(lengths.max()) >= lengths[:, None]).to(device)
    x = towers(model.text_transformer.transformer, model.text_emb(torch.from_numpy(ids).to(device)), missing)
    return model.to_text_latent(x), missing


def pooled(latents: Tensor, missing: Tensor) -> Tensor:
    """Mean over the positions that are there, of unit length."""
    return F.normalize(latents.float().masked_fill(missing[..., None], 0).sum(1), dim=-1)


def candidates(rows: Sequence[np.ndarray], room: int) -> np.ndarray:
    """Codes as the runtime ranks them: (rows, room), from the stop on silence."""
    drawn = np.full((len(rows), room), STOP, np.int64)
    for row, codes in zip(drawn, rows, strict=True):
        row[: min(len(codes), room)] = codes[:room]
    return fix_codes(drawn, STOP)


def train(work: loop.Work, steps: int = 1600, tokens: int = 9000) -> None:
    """``tokens``: of a batch in the speech tower, padding included."""
    source = vqvae.fingerprint(work)
    if work.finished(STAGE, source):
        return
    torch.set_num_threads(work.threads)
    torch.manual_seed(work.seed)
    examples, held_out = split(prepare(work))
    vectors, near = codebook(work)
    model, helpers = build(), Helpers().to(work.device)
    with torch.no_grad():  # similar codes start similar
        model.speech_emb.weight.copy_(
            vectors[:CODES] @ torch.randn(vectors.shape[1], DIM) * vectors.shape[1] ** -0.5
        )
    model.to(work.device)
    matrices = [p for n, p in model.named_parameters() if "attn_layers" in n and p.ndim == 2]
    optimizers, others = muon.optimizers(matrices, (model, helpers))

    def step(number: int, rng: np.random.Generator) -> dict[str, float]:
        batch, room = _draw(examples, tokens, rng)
        found = losses(model, helpers, batch, room, near, rng)
        total = (
            found["speech"] + found["text"] + WEIGHTS[0] * found["phonemes"] + WEIGHTS[1] * found["aligned"]
        )
        total.backward()
        nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            model.temperature.clamp_(max=MOST_SCALE)
        return {name: value.item() for name, value in found.items()}

    def evaluate() -> dict[str, float]:
        return judged(model, held_out)

    modules = {"model": model, "helpers": helpers}
    loop.run(
        work, STAGE, step, steps, modules, optimizers, loop.late_decay(), evaluate, evaluate_every=400, source=source
    )  # fmt: skip


def _draw(examples: list[Example], tokens: int, rng: np.random.Generator) -> tuple[list[Example], int]:
    """-> examples of similar length and how many codes to pad them to."""
    first = int(rng.integers(len(examples)))
    longest = max(len(e.codes) for e in examples[first : first + 60])
    room = CODE_POSITIONS if rng.random() < WHOLE else min(CODE_POSITIONS, longest + int(rng.integers(8, 32)))
    count = min(len(examples), max(4, tokens // room // (1 + SPEECH_MISTAKES)))
    first = min(first, len(examples) - count)
    return examples[first : first + count], room


def losses(
    model: CLVP, helpers: Helpers, batch: list[Example], room: int, near: np.ndarray, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Of one batch: among all its codes and their mistakes each text finds its own, and the other way round."""
    said = [stretched(e, rng) for e in batch]
    another = [said[i - 1] for i in range(len(said))]
    names = list(MISTAKES.values())
    codes = [e.codes for e in said] + [
        names[rng.integers(len(names))](e, other, rng)
        for _ in range(SPEECH_MISTAKES)
        for e, other in zip(said, another, strict=True)
    ]
    texts = [e.text for e in said] + [
        misread(e, other, rng) for _ in range(TEXT_MISTAKES) for e, other in zip(said, another, strict=True)
    ]
    device = model.temperature.device
    ids = torch.from_numpy(candidates([disturbed(c, near, rng, 0.1, 0.01) for c in codes], room)).to(device)
    with loop.mixed(device):
        hidden = towers(model.speech_transformer.transformer, model.speech_emb(ids))
        speech_latents = model.to_speech_latent(hidden)
        text_latents, missing = text_positions(model, texts)
        there = [min(len(e.codes), room) for e in said]
        mine = torch.from_numpy(np.arange(room) < np.array(there)[:, None]).to(device)
        own = len(batch)
        logits = helpers.phonemes(hidden[:own][mine]).float().view(-1, 2, PHONEMES)
    phonemes = torch.from_numpy(
        np.concatenate([e.phonemes[:n] for e, n in zip(said, there, strict=True)])
    ).to(device)
    speech, text = (
        pooled(speech_latents, torch.zeros_like(ids, dtype=torch.bool)),
        pooled(text_latents, missing),
    )
    scale, right = model.temperature.exp(), torch.arange(own, device=device)
    by_text, by_speech = scale * text[:own] @ speech.T, scale * speech[:own] @ text.T
    return dict(
        speech=F.cross_entropy(by_text, right),
        text=F.cross_entropy(by_speech, right),
        phonemes=F.cross_entropy(logits.transpose(1, 2), phonemes),
        aligned=_aligned(speech_latents[:own][mine], text_latents[:own], missing[:own], said, there),
        best=(by_text.argmax(1) == right).float().mean(),
        best_text=(by_speech.argmax(1) == right).float().mean(),
        heard=(logits.argmax(-1) == phonemes).float().mean(),
    )


def _aligned(
    codes: Tensor, texts: Tensor, missing: Tensor, said: Sequence[Example], there: Sequence[int]
) -> Tensor:
    """How badly codes (codes, latent) find the id they speak among all of the batch's (rows, time, latent)."""
    rows, time, _ = texts.shape
    reading = torch.from_numpy(np.concatenate([e.reading[:n] for e, n in zip(said, there, strict=True)]))
    row = torch.from_numpy(np.repeat(np.arange(rows), there))
    some = slice(None, None, 2)
    reading, row = reading[some].to(codes.device), row[some].to(codes.device)
    similar = F.normalize(codes[some].float(), dim=-1) @ F.normalize(texts.float(), dim=-1).flatten(0, 1).T
    look = (20 * similar).masked_fill(missing.flatten(), _FAR).softmax(-1).view(-1, rows, time)
    distance = torch.arange(time, device=codes.device) + 0.5 - reading[:, None]
    near = torch.exp(-(distance**2) / (2 * NEARBY**2))
    return -torch.log((look[torch.arange(len(row)), row] * near).sum(-1) + 1e-4).mean()


# --- how good it is ---


@torch.no_grad()
def of_texts(model: CLVP, texts: Sequence[np.ndarray]) -> Tensor:
    """Text ids of each row -> (rows, latent) of unit length, as the runtime computes them."""
    device = model.temperature.device
    rows = [torch.from_numpy(np.append(text, STOP_TEXT))[None].to(device) for text in texts]
    return F.normalize(torch.cat([model.encode_text(row) for row in rows]), dim=-1)


@torch.no_grad()
def of_codes(model: CLVP, rows: Sequence[np.ndarray], room: int = CODE_POSITIONS) -> Tensor:
    """Codes of each row -> (rows, latent) of unit length, as the runtime computes them."""
    padded = torch.from_numpy(candidates(rows, room)).to(model.temperature.device)
    return F.normalize(torch.cat([model.encode_speech(part) for part in padded.split(32)]), dim=-1)


def judged(model: CLVP, held_out: Sequence[Example], among: int = 64, pairs: int = 96) -> dict[str, float]:
    """Share of codes whose text is the first among ``among`` of similar length, and of pairs with a mistake told apart."""
    rng = np.random.default_rng(1)
    held_out = sorted(held_out, key=len)
    text, speech = of_texts(model, [e.text for e in held_out]), of_codes(model, [e.codes for e in held_out])
    groups = [slice(i, i + among) for i in range(0, len(held_out) - among + 1, among)] or [slice(None)]
    hits = [
        (text[g] @ speech[g].T).argmax(1) == torch.arange(len(text[g]), device=text.device) for g in groups
    ]
    found = {"top": float(torch.cat(hits).float().mean())}
    some = np.linspace(0, len(held_out) - 1, min(pairs, len(held_out))).astype(int)
    text, speech = text[some], speech[some]
    own = (text * speech).sum(-1)
    cases = [(held_out[i], held_out[i - 1]) for i in some]
    for name, mistake in MISTAKES.items():
        false = of_codes(model, [mistake(*case, rng) for case in cases])
        found[name] = float((own > (text * false).sum(-1)).float().mean())
    false = of_texts(model, [misread(*case, rng) for case in cases])
    found["misread"] = float((own > (false * speech).sum(-1)).float().mean())
    return found


def load(work: loop.Work) -> CLVP:
    model = build()
    model.load_state_dict(work.weights(STAGE))
    return model.eval()
