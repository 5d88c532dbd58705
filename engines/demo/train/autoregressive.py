"""Training of the autoregressive network: codes from text, with what the teacher knows about timing.

Beside the codes (cross entropy) it learns: to read the text in step with the speech (one head of some layers must look
at the text id being spoken), to keep the phonemes in its latents, and to keep the code it has just read in them and
what that sounds like, so that a vocoder can be fed with them. The voice encoder must tell the voices apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tortoise_rt.export.models.autoregressive import UnifiedVoice
from tortoise_rt.spec import AR_MELS, CALM_TOKEN

from . import loop, muon, shards, vqvae
from .examples import Example, prepare, split
from .features import MEL_MEAN, MEL_SCALE, SILENCE, mel_norms
from .shards import FRAMES_PER_CODE
from .teacher import VOICES
from .tokens import ENTRIES
from .vqvae import CODES, PHONEMES

STAGE = "autoregressive"
START_TEXT, START, STOP = ENTRIES, CODES, CODES + 1
TEXT_POSITIONS, CODE_POSITIONS = 202, 254  # of 200 text ids and 250 codes, as the original counts them
DIM, LAYERS, HEADS, VOICE_BLOCKS = 256, 6, 4, 2
READING_LAYERS = (1, 2, 3, 4)  #: whose first head is taught where to look
READING_WIDTH = 1.0  #: text ids
CLIP_FRAMES = 517  #: mel frames of a voice clip: 6 s
_FAR = -1e4


def build() -> UnifiedVoice:
    """The network at its first step."""
    model = UnifiedVoice(
        dim=DIM, layers=LAYERS, heads=HEADS, inner=4 * DIM, voice_blocks=VOICE_BLOCKS, text_ids=ENTRIES + 1,
        text_positions=TEXT_POSITIONS, mel_codes=CODES + 2, mel_positions=CODE_POSITIONS,
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if name.startswith("gpt.h.") and parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * LAYERS) if "c_proj" in name else 1))
        elif name.startswith("gpt.h.") and name.endswith(("c_attn.bias", "c_fc.bias", "c_proj.bias")):
            nn.init.zeros_(parameter)
        elif "embedding" in name:
            nn.init.normal_(parameter, std=0.02)
        elif "conditioning_encoder" in name and "proj_out" in name:
            nn.init.zeros_(parameter)
    return model


class Judges(nn.Module):
    """What only training needs: reads from a latent the phonemes, the code just read and its mel, and the voice from its own."""

    def __init__(self, code_dim: int = 64) -> None:
        super().__init__()
        self.phonemes = nn.Linear(DIM, 2 * PHONEMES)
        self.code = nn.Linear(DIM, code_dim)
        self.voice = nn.Linear(DIM, len(VOICES))
        self.mel = nn.Linear(DIM, FRAMES_PER_CODE * AR_MELS)


@dataclass
class Batch:
    """Rows of voice, start, text, two stops, start code, codes, and padding behind."""

    ids: Tensor  #: (rows, time) of the joint table: texts, then codes
    positions: Tensor  #: (rows, time) of the joint table of positions
    is_code: Tensor  #: (rows, time) bool: start code and codes, what latents are of
    is_text: Tensor
    reads: Tensor  #: (rows, time) bool: positions whose reading is known
    reading: Tensor  #: (rows, time, time): weight of each text id in what should be looked at
    next_codes: Tensor  #: (latents,) targets, in the order of is_code
    next_text: Tensor
    phonemes: Tensor  #: (latents, 2)
    read_codes: Tensor  #: (latents,) the code each latent has read last; silence for the first
    read_mels: (
        Tensor  #: (latents, 320) the normalised mel frames of that code; empty where they are not given
    )

    def to(self, device: str) -> Batch:
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


def collate(
    examples: Sequence[Example],
    inputs: Sequence[np.ndarray] | None = None,
    texts: Sequence[np.ndarray] | None = None,
    mels: Sequence[Tensor] = (),
) -> Batch:
    """``inputs``: the codes to read where they differ from those to predict; ``texts``: likewise.

    ``mels``: (codes, 320) of each row, see Mels.
    """
    texts = [e.text for e in examples] if texts is None else texts
    inputs = [e.codes for e in examples] if inputs is None else inputs
    rows, time = len(examples), max(len(t) + len(e.codes) + 5 for t, e in zip(texts, examples, strict=True))
    ids, positions = np.zeros((rows, time), np.int64), np.zeros((rows, time), np.int64)
    is_code, is_text, reads = (np.zeros((rows, time), bool) for _ in range(3))
    reading = np.zeros((rows, time, time), np.float32)
    next_codes, next_text, phonemes, read_codes = [], [], [], []
    for row, (example, text, codes) in enumerate(zip(examples, texts, inputs, strict=True)):
        start, count = len(text) + 4, len(codes)
        ids[row, 1], ids[row, 2 : 2 + len(text)] = START_TEXT, text
        positions[row, 1:start] = np.arange(start - 1)
        ids[row, start], ids[row, start + 1 : start + 1 + count] = ENTRIES + 1 + START, ENTRIES + 1 + codes
        positions[row, start : start + 1 + count] = TEXT_POSITIONS + np.arange(count + 1)
        is_code[row, start : start + 1 + count] = True
        is_text[row, 1 : start - 2] = True
        reads[row, start : start + count] = True
        distance = np.arange(len(text)) + 0.5 - example.reading[:, None]
        reading[row, start : start + count, 2 : 2 + len(text)] = np.exp(
            -(distance**2) / (2 * READING_WIDTH**2)
        )
        next_codes.append(np.append(example.codes, STOP))
        next_text.append(np.append(text, 0))
        phonemes.append(np.concatenate([example.phonemes, example.phonemes[-1:]]))
        read_codes.append(np.append(CALM_TOKEN, codes))
    t = torch.from_numpy
    before = torch.full((1, FRAMES_PER_CODE * AR_MELS), (SILENCE - MEL_MEAN) / MEL_SCALE)
    read_mels = [part for mel in mels for part in (before, mel)] or [torch.empty(0, before.shape[1])]
    return Batch(
        t(ids), t(positions), t(is_code), t(is_text), t(reads), t(reading), t(np.concatenate(next_codes)),
        t(np.concatenate(next_text)), t(np.concatenate(phonemes)), t(np.concatenate(read_codes)),
        torch.cat(read_mels),
    )  # fmt: skip


def hidden(
    model: UnifiedVoice, batch: Batch, voice: Tensor, taught: Sequence[int] = ()
) -> tuple[Tensor, list[Tensor]]:
    """The network over whole rows: voice (rows or 1, dim) -> (rows, time, dim) normed, and how badly the taught heads look.

    The same as UnifiedVoice.hidden, with matrix products that autocast likes.
    """
    table = torch.cat([model.text_embedding.weight, model.mel_embedding.weight])
    places = torch.cat([model.text_pos_embedding.emb.weight, model.mel_pos_embedding.emb.weight])
    x = table[batch.ids] + places[batch.positions]
    rows, time, dim = x.shape
    x = torch.cat([voice[:, None].expand(rows, 1, dim), x[:, 1:]], 1)
    mask_type = torch.bfloat16 if torch.is_autocast_enabled(x.device.type) else x.dtype
    future = torch.full((time, time), _FAR, device=x.device, dtype=mask_type).triu(1)
    badness = []
    blocks: Iterable[Any] = model.gpt.h
    for number, block in enumerate(blocks):
        heads = block.attn.heads
        qkv = block.attn.c_attn(block.ln_1(x)).view(rows, time, 3, heads, dim // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).reshape(3, rows * heads, time, dim // heads)
        # written out: for rows this short plain products beat the fused kernel's backward on a CPU
        look = torch.baddbmm(future, q, k.transpose(1, 2), alpha=(dim // heads) ** -0.5).softmax(-1)
        seen = (look.to(v.dtype) @ v).view(rows, heads, time, -1).transpose(1, 2).reshape(rows, time, dim)
        if number in taught:
            first = look.view(rows, heads, time, time)[:, 0].float()
            badness.append(-torch.log((first * batch.reading).sum(-1)[batch.reads] + 1e-4).mean())
        x = x + block.attn.c_proj(seen)
        x = x + block.mlp(block.ln_2(x))
    return model.final_norm(model.gpt.ln_f(x.float())), badness


class VoiceClips:
    """Six-second mels of a voice, cut from its spoken sentences."""

    def __init__(self, work: loop.Work, rows: int = 200) -> None:
        self.mels: dict[str, list[Tensor]] = {voice: [] for voice in VOICES}
        for number, row in enumerate(shards.rows(work.data, 1)):
            if number == rows:
                break
            for voice in VOICES:
                self.mels[voice].append(row["mel"][voice].float())

    def draw(self, voice: str, rng: np.random.Generator) -> Tensor:
        """(80, 517), normalised as the voice encoder expects it."""
        parts: list[Tensor] = []
        while sum(part.shape[1] for part in parts) < CLIP_FRAMES + 100:
            parts.append(self.mels[voice][rng.integers(len(self.mels[voice]))])
        mel = torch.cat(parts, 1)
        start = int(rng.integers(mel.shape[1] - CLIP_FRAMES))
        return mel[:, start : start + CLIP_FRAMES] / mel_norms()[:AR_MELS, None]


class Mels:
    """What the codes of every example sound like in the teacher's voice."""

    def __init__(self, work: loop.Work) -> None:
        self.kept = {
            (number, index): row["mel"]["alto"]
            for number, path in enumerate(shards.paths(work.data))
            for index, row in enumerate(shards.read(path))
        }

    def of(self, example: Example) -> Tensor:
        """(codes, 320), normalised."""
        mel = (shards.padded(self.kept[example.shard, example.row]) - MEL_MEAN) / MEL_SCALE
        return mel.T.reshape(-1, FRAMES_PER_CODE * AR_MELS)


def disturbed(
    codes: np.ndarray, near: np.ndarray, rng: np.random.Generator, share: float = 0.10, wild: float = 0.03
) -> np.ndarray:
    """Codes as sampling would give them: some replaced by a similar one, few by any."""
    codes, chance = codes.copy(), rng.random(len(codes))
    similar, any_code = chance < share, chance > 1 - wild
    codes[similar] = near[codes[similar], rng.integers(0, near.shape[1], similar.sum())]
    codes[any_code] = rng.integers(0, CODES, any_code.sum())
    return codes


def codebook(work: loop.Work) -> tuple[Tensor, np.ndarray]:
    """-> (1026, dim) normalised code vectors (start and stop are zero), and (1024, 8) the codes nearest to each."""
    table = work.weights(vqvae.STAGE)["codebook"]
    near = torch.cdist(table, table).topk(9, largest=False).indices[:, 1:].numpy()
    normalised = (table - table.mean(0)) / table.std()
    return torch.cat([normalised, torch.zeros(2, table.shape[1])]), near


def train(work: loop.Work, steps: int = 4300, tokens: int = 3600) -> None:
    source = vqvae.fingerprint(work)
    if work.finished(STAGE, source):
        return
    torch.set_num_threads(work.threads)
    torch.manual_seed(work.seed)
    examples, held_out = split(prepare(work))
    lengths = np.array([len(e) for e in examples])
    vectors, near = codebook(work)
    vectors = vectors.to(work.device)
    clips, mels = VoiceClips(work), Mels(work)
    model, judges = build().to(work.device), Judges(vectors.shape[1]).to(work.device)
    matrices = [p for n, p in model.named_parameters() if n.startswith("gpt.h.") and p.ndim == 2]
    optimizers, others = muon.optimizers(matrices, (model, judges))

    def losses(batch: Batch, voice: Tensor, taught: Sequence[int]) -> dict[str, Tensor]:
        with loop.mixed(work.device):
            x, badness = hidden(model, batch, voice, taught)
            latents = x[batch.is_code]
            codes, text = model.mel_head(latents), model.text_head(x[batch.is_text])
            phonemes, read = judges.phonemes(latents).float().view(-1, 2, PHONEMES), judges.code(latents)
            mel = judges.mel(latents)
        found = dict(
            codes=F.cross_entropy(codes.float(), batch.next_codes),
            text=F.cross_entropy(text.float(), batch.next_text),
            phonemes=F.cross_entropy(phonemes.transpose(1, 2), batch.phonemes),
            read=F.mse_loss(read.float(), vectors[batch.read_codes]),
            accuracy=(phonemes.argmax(-1) == batch.phonemes).float().mean(),
        )
        if len(batch.read_mels):
            found["mel"] = F.l1_loss(mel.float(), batch.read_mels)
        if badness:
            found["reading"] = torch.stack(badness).mean()
        return found

    def step(number: int, rng: np.random.Generator) -> dict[str, float]:
        done = number / max(1, round(steps * work.scale))
        optimizers[0].param_groups[0]["momentum"] = min(0.95, 0.85 + number / 3000)
        longest = 35 + 900 * done  # short sentences first
        choice = max(2000, int(np.searchsorted(lengths, longest)))
        first = int(rng.integers(0, min(choice, len(examples))))
        count = max(4, tokens // int(lengths[min(first + 20, len(examples) - 1)]))
        first = min(first, len(examples) - count)
        drawn = examples[first : first + count]
        inputs = [disturbed(e.codes, near, rng) for e in drawn]
        batch = collate(drawn, inputs, mels=[mels.of(e) for e in drawn]).to(work.device)
        which = int(rng.integers(len(VOICES)))
        mel = clips.draw(list(VOICES)[which], rng)[None].to(work.device)
        learn_voice = number < 300 or number % 8 == 0
        with torch.set_grad_enabled(learn_voice):
            voice = model.conditioning_encoder(mel)
        found = losses(batch, voice, READING_LAYERS)
        total = found["codes"] + 0.02 * found["text"] + 0.3 * found["phonemes"] + 0.2 * found["read"]
        total = total + 0.5 * found["mel"]
        total = total + (0.3 if done < 0.3 else 0.1) * found["reading"]
        if learn_voice:
            target = torch.tensor([which], device=work.device)
            total = total + 0.1 * F.cross_entropy(judges.voice(voice).float(), target)
        total.backward()
        nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return {name: value.item() for name, value in found.items()}

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        voice = model.conditioning_encoder(clips.draw("alto", np.random.default_rng(1))[None].to(work.device))
        sums: dict[str, float] = {}
        order = sorted(held_out, key=len)
        for first in range(0, len(order), 32):
            part = order[first : first + 32]
            found = losses(collate(part).to(work.device), voice, ())
            texts = [e.text for e in part[1:] + part[:1]]
            found["codes_of_wrong_text"] = losses(collate(part, texts=texts).to(work.device), voice, ())[
                "codes"
            ]
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value.item() * len(part) / len(order)
        return {name: sums[name] for name in ("codes", "codes_of_wrong_text", "accuracy")}

    modules = {"model": model, "judges": judges}
    loop.run(
        work, STAGE, step, steps, modules, optimizers, loop.late_decay(), evaluate, evaluate_every=500, source=source
    )  # fmt: skip


def load(work: loop.Work) -> UnifiedVoice:
    model = build()
    model.load_state_dict(work.weights(STAGE))
    return model.eval()
