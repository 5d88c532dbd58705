"""Training of the aligner: characters and word boundaries from mels, of both voices, through all that harms sound.

Beside CTC, which knows no time, the teacher's timing says what may be heard when: the letters of the word being spoken,
or the space between two words, which is silence as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tortoise_rt.alignment import best_path
from tortoise_rt.export.models.aligner import Aligner
from tortoise_rt.spec import ALIGNER_STRIDE, AR_MELS, CODE_RATE, HOP, SAMPLE_RATE, SYMBOLS
from tortoise_rt.text import clean_english

from . import hifigan, latents, loop, shards
from .features import MEL_MEAN, MEL_SCALE, SILENCE, mel_norms
from .shards import CODE_SECONDS
from .teacher import code_mel

STAGE = "aligner"
DIM, BLOCKS, INNER, KERNEL = 128, 5, 256, 15
SPACE = len(SYMBOLS) - 1
HELD_OUT = 96  #: last rows of every voice, never trained on
HELD_OUT_EVERY = 16  #: decoded sentences, of which one is never trained on
OUTPUT_SECONDS = ALIGNER_STRIDE * HOP / CODE_RATE
LENIENT = 1.2  #: outputs that a letter or a space may miss its word or gap by
DECODED = 800  #: sentences of a voice that are heard from the fast decoder as well
SHARE_DECODED = 0.3  #: of the batches
_GAPS = " ,.?!;:"  #: phonemes between words


@dataclass(frozen=True)
class Spoken:
    """A sentence as training hears it."""

    mel: Tensor  #: (80, frames) log mel
    symbols: np.ndarray  #: its letters and spaces, a space at either end
    words: (
        np.ndarray | None
    )  #: (words, 2) seconds from start to end, where the teacher's words are the text's
    place: tuple[int, int] = (0, 0)  #: its shard and its row there


def symbols_of(text: str) -> list[list[int]]:
    """Words of a text as symbols; what has none (hyphens, say) is left out."""
    words = (
        [SYMBOLS.index(c) for c in word if c in SYMBOLS[1:SPACE]] for word in clean_english(text).split()
    )
    return [word for word in words if word]


def sentence_of(words: Sequence[Sequence[int]]) -> np.ndarray:
    """Words with spaces between and around them."""
    return np.array([SPACE, *(symbol for word in words for symbol in (*word, SPACE))])


def times_of(phonemes: str, starts: np.ndarray) -> np.ndarray:
    """(words, 2): start and end of each spoken word in seconds."""
    gap = np.array([True, *(p in _GAPS for p in phonemes), True])
    first = np.flatnonzero(~gap & np.roll(gap, 1))
    last = np.flatnonzero(~gap & np.roll(gap, -1))
    return np.stack([starts[first], starts[last + 1]], 1) / SAMPLE_RATE


def read(work: loop.Work, limit: int | None = None) -> dict[str, list[Spoken]]:
    """voice -> its sentences."""
    found: dict[str, list[Spoken]] = {}
    for shard, path in enumerate(shards.paths(work.data)[:limit]):
        for number, row in enumerate(shards.read(path)):
            words, times = symbols_of(row["text"]), times_of(row["phonemes"], row["starts"])
            if not words:
                continue
            timing = times if len(times) == len(words) else None
            for voice, mel in row["mel"].items():
                found.setdefault(voice, []).append(Spoken(mel, sentence_of(words), timing, (shard, number)))
    return found


def build() -> Aligner:
    """The network at its first step."""
    model = Aligner(DIM, BLOCKS, INNER, KERNEL)
    with torch.no_grad():  # mels come divided by the bands' norms
        model.bands.gain.copy_(mel_norms()[:AR_MELS, None] / MEL_SCALE)
        model.bands.offset.fill_(-MEL_MEAN / MEL_SCALE)
    return model


def allowed(spoken: Spoken, outputs: int) -> np.ndarray:
    """(outputs, symbols) bool: what may be heard when. Of sentences without timing everything, always."""
    if spoken.words is None:
        return np.ones((outputs, len(SYMBOLS)), bool)
    time = np.arange(outputs) * OUTPUT_SECONDS
    slack = LENIENT * OUTPUT_SECONDS
    may = np.zeros((outputs, len(SYMBOLS)), bool)
    gaps = np.concatenate([[-np.inf], spoken.words.ravel(), [np.inf]]).reshape(-1, 2)
    for first, end in gaps:
        may[(time > first - slack) & (time < end + slack), SPACE] = True
    spaces = np.flatnonzero(spoken.symbols == SPACE)
    for (first, end), a, b in zip(spoken.words, spaces[:-1] + 1, spaces[1:], strict=True):
        inside = (time > first - slack) & (time < end + slack)
        for symbol in (0, *spoken.symbols[a:b]):
            may[inside, symbol] = True
    return may


# --- what sound goes through ---


def paced(spoken: Spoken, rng: np.random.Generator) -> Spoken:
    """Faster or slower, in another register, with more or less silence at the ends."""
    pace, register = float(np.exp(rng.normal() * 0.1)), float(np.exp(rng.normal() * 0.06))
    frames = max(8, round(spoken.mel.shape[1] / pace))
    mel = F.interpolate(spoken.mel.float()[None], frames, mode="linear", align_corners=False)[0]
    band = (torch.arange(AR_MELS) * register).clamp(max=AR_MELS - 1)
    low = band.long().clamp(max=AR_MELS - 2)
    mel = torch.lerp(mel[low], mel[low + 1], (band - low)[:, None])
    before, behind = (int(n) for n in rng.integers(-4, 12, 2))
    mel = F.pad(mel, (before, behind), value=SILENCE)
    words = None if spoken.words is None else spoken.words / pace + before * HOP / CODE_RATE
    return replace(spoken, mel=mel, words=words)


def disguised(mel: Tensor, rng: np.random.Generator) -> Tensor:
    """(80, frames) log mel -> the same through another level, channel, room and machine, with parts missing."""
    bands, frames = mel.shape
    x = torch.arange(bands) / bands

    def curve(depth: float) -> Tensor:
        return sum(
            (rng.normal() * depth / (k + 1) * torch.cos(np.pi * k * x) for k in range(4)), torch.zeros(bands)
        )[:, None]

    def noise(depth: float) -> Tensor:
        return torch.from_numpy(rng.standard_normal((bands, frames), np.float32)) * depth

    mel = mel + float(rng.uniform(-5, 2)) + curve(1.0)
    if rng.random() < 0.4:  # what is not there cannot be restored: smear, as decoders do
        mel = F.avg_pool1d(mel[None], 3, 1, 1, count_include_pad=False)[0]
    if rng.random() < 0.2:
        mel = F.avg_pool1d(mel.T[None], 3, 1, 1, count_include_pad=False)[0].T
    if rng.random() < 0.7:
        mel = mel + noise(float(rng.uniform(0, 0.6)))
    if rng.random() < 0.5:
        loudest = float(mel.mean(0).max())
        mel = torch.logaddexp(mel, loudest - float(rng.uniform(3, 9)) + curve(1.0) + noise(0.6))
    if rng.random() < 0.15:
        mel[int(rng.integers(45, bands)) :] = SILENCE
    mel = mel.clamp(min=SILENCE)
    for _ in range(2):
        band, frame = int(rng.integers(bands)), int(rng.integers(frames))
        mel[band : band + int(rng.integers(0, 12))] = MEL_MEAN
        mel[:, frame : frame + int(rng.integers(0, 8))] = MEL_MEAN
    return mel


@torch.no_grad()
def decoded(
    work: loop.Work, spoken: dict[str, list[Spoken]], sentences: int = DECODED
) -> dict[str, list[Spoken]]:
    """voice -> some of its sentences as the fast decoder says them, one code later; made once, kept in decoded.pt."""
    path = work.folder / "decoded.pt"
    if not path.exists():
        stored, model = latents.read(work), hifigan.load(work).to(work.device)
        made: dict[str, list[tuple[tuple[int, int], Tensor]]] = {}
        for voice, rows in stored["latents"].items():
            latent = stored["voices"][voice].mean(0, keepdim=True).to(work.device)
            made[voice] = []
            for i in np.linspace(0, len(rows) - 1, min(sentences, len(rows))).astype(int):
                said = model(hifigan.upsampled(rows[i][None].float().to(work.device)), latent)
                mel = code_mel(said.flatten().cpu().numpy()).half()
                made[voice].append((tuple(stored["places"][i]), mel))
            print(f"aligner: {len(made[voice])} sentences of {voice} decoded", flush=True)
        loop.save(made, path)
    late = {voice: {row.place: row for row in rows} for voice, rows in spoken.items()}
    return {
        voice: [
            _said_late(late[voice][tuple(place)], mel) for place, mel in rows if tuple(place) in late[voice]
        ]
        for voice, rows in torch.load(path, weights_only=True).items()
    }


def _said_late(row: Spoken, mel: Tensor) -> Spoken:
    return replace(row, mel=mel, words=None if row.words is None else row.words + CODE_SECONDS)


# --- training ---


@dataclass
class Batch:
    mel: Tensor  #: (rows, 80, frames), as the voice encoder hears it, silence behind
    outputs: Tensor  #: (rows,) outputs of each
    symbols: Tensor  #: all of them, one row after the other
    lengths: Tensor  #: (rows,) symbols of each
    allowed: Tensor  #: (rows, outputs, symbols) bool


def collate(rows: Sequence[Spoken]) -> Batch:
    frames = max(row.mel.shape[1] for row in rows)
    mel = torch.stack([F.pad(row.mel.float(), (0, frames - row.mel.shape[1]), value=SILENCE) for row in rows])
    outputs = -(-frames // ALIGNER_STRIDE)
    may = torch.from_numpy(np.stack([allowed(row, outputs) for row in rows]))
    return Batch(
        mel / mel_norms()[:AR_MELS, None],
        torch.tensor([-(-row.mel.shape[1] // ALIGNER_STRIDE) for row in rows]),
        torch.from_numpy(np.concatenate([row.symbols for row in rows])),
        torch.tensor([len(row.symbols) for row in rows]),
        may,
    )


def losses(model: Aligner, batch: Batch) -> dict[str, Tensor]:
    """CTC for each symbol, and how much is heard at a wrong time, for each output."""
    device = model.head.weight.device
    with loop.mixed(device):
        logits = model(batch.mel.to(device))
    heard = logits.float().log_softmax(-1)
    spelt = F.ctc_loss(
        heard.transpose(0, 1),
        batch.symbols.to(device),
        batch.outputs,
        batch.lengths,
        reduction="sum",
        zero_infinity=True,
    )
    there = torch.arange(heard.shape[1])[None] < batch.outputs[:, None]
    timely = heard.masked_fill(~batch.allowed.to(device), -1e4).logsumexp(-1)[there.to(device)]
    return {"ctc": spelt / batch.lengths.sum(), "untimely": -timely.mean()}


def train(work: loop.Work, steps: int = 5000, frames: int = 3600, limit: int | None = None) -> None:
    """``frames``: of a batch. Voices come equally often."""
    if work.finished(STAGE):
        return
    torch.set_num_threads(work.threads)
    torch.manual_seed(work.seed)
    spoken = read(work, limit)
    again = decoded(work, spoken)
    held_out = {voice: rows[-HELD_OUT:] for voice, rows in spoken.items()}
    held_out["decoded"] = [
        row for rows in again.values() for row in rows[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    ]
    unseen = {row.place for row in held_out["decoded"]}
    training = [_by_length(rows[:-HELD_OUT], unseen) for rows in spoken.values()]
    training_decoded = [_by_length(rows, unseen) for rows in again.values()]
    model = build().to(work.device)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.98), weight_decay=0.01)

    def step(number: int, rng: np.random.Generator) -> dict[str, float]:
        source = training_decoded if rng.random() < SHARE_DECODED else training
        rows = source[number % len(source)]
        first = int(rng.integers(len(rows)))
        count = min(len(rows), max(2, frames // rows[first].mel.shape[1]))
        first = min(first, len(rows) - count)
        drawn = [paced(row, rng) for row in rows[first : first + count]]
        found = losses(model, collate([replace(row, mel=disguised(row.mel, rng)) for row in drawn]))
        optimizer.zero_grad()
        (found["ctc"] + 0.5 * found["untimely"]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return {name: value.item() for name, value in found.items()}

    def evaluate() -> dict[str, float]:
        found = {
            f"{voice}_{name}": value
            for voice, rows in held_out.items()
            for name, value in judged(model, rows).items()
        }
        rng = np.random.default_rng(1)
        harmed = [
            replace(row, mel=disguised(row.mel.float(), rng)) for rows in held_out.values() for row in rows
        ]
        return found | {f"harmed_{name}": value for name, value in judged(model, harmed).items()}

    loop.run(
        work,
        STAGE,
        step,
        steps,
        {"model": model},
        [optimizer],
        loop.cosine(200),
        evaluate,
        evaluate_every=500,
    )


def _by_length(rows: Sequence[Spoken], without: set[tuple[int, int]]) -> list[Spoken]:
    return sorted((row for row in rows if row.place not in without), key=lambda row: row.mel.shape[1])


# --- how good it is ---


@torch.no_grad()
def log_probabilities(model: Aligner, mel: Tensor) -> np.ndarray:
    """(80, frames) log mel -> (outputs, symbols)."""
    x = (mel.float() / mel_norms()[:AR_MELS, None])[None].to(model.head.weight.device)
    return model(x)[0].log_softmax(-1).cpu().numpy()


def spell(heard: np.ndarray) -> str:
    """What is most likely heard: (outputs, symbols) -> text."""
    best = heard.argmax(1)
    changed = best[np.append(True, best[1:] != best[:-1])]
    return " ".join("".join(SYMBOLS[i] for i in changed).split())


def align(heard: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """The likeliest outputs at which the symbols are said: (outputs, symbols), (n,) -> (n, 2) first and last of each."""
    path = np.zeros(2 * len(symbols) + 1, np.int64)  # blanks around the symbols
    path[1::2] = symbols
    may_skip = np.zeros(len(path), bool)
    may_skip[3::2] = symbols[1:] != symbols[:-1]
    states = best_path(heard[:, path], may_skip)
    if states is None:
        raise ValueError(f"{len(heard)} outputs are too few for {len(symbols)} symbols")
    own = np.arange(1, len(path), 2)
    return np.stack([np.searchsorted(states, own), np.searchsorted(states, own, "right") - 1], 1)


def word_times(heard: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """(words, 2): start and end of each word in seconds, from the spaces around it."""
    spaces = align(heard, symbols)[symbols == SPACE]
    return np.stack([spaces[:-1, 1] + 0.5, spaces[1:, 0] - 0.5], 1) * OUTPUT_SECONDS


def distance(a: str, b: str) -> int:
    """Edits from one to the other."""
    row = np.arange(len(b) + 1)
    for i, letter in enumerate(a, 1):
        swap = row[:-1] + np.array([letter != other for other in b])
        new = np.append(i, np.minimum(row[1:] + 1, swap))
        row = np.minimum.accumulate(new - np.arange(len(new))) + np.arange(len(new))
    return int(row[-1])


def judged(model: Aligner, rows: Sequence[Spoken]) -> dict[str, float]:
    """Character error rate, and the median and the 90th percentile of how far word boundaries are off, in ms."""
    edits = letters = 0
    misses: list[np.ndarray] = []
    for row in rows:
        heard = log_probabilities(model, row.mel)
        text = "".join(SYMBOLS[i] for i in row.symbols).strip()
        edits, letters = edits + distance(spell(heard), text), letters + len(text)
        if row.words is not None and len(heard) > len(row.symbols):
            misses.append((word_times(heard, row.symbols) - row.words).ravel())
    off = np.abs(np.concatenate(misses)) * 1000
    return dict(errors=edits / letters, off=float(np.median(off)), far_off=float(np.percentile(off, 90)))


def load(work: loop.Work) -> Aligner:
    model = build()
    model.load_state_dict(work.weights(STAGE))
    return model.eval()
