"""The VQ-VAE that turns mels into codes: 1024 of them, one for four mel frames (46 ms).

It learns from the teacher's own voice only. Besides the mel it must reproduce the phonemes, which keeps the codes
about what is said. Nothing of it is needed to speak.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tortoise_rt.spec import CALM_TOKEN, TAIL_TOKENS

from . import loop, shards
from .features import MEL_MEAN, MEL_SCALE, SILENCE

STAGE = "vqvae"
CODES, PHONEMES = 1024, 180
DECAY = 0.98  #: of the running means that are the codebook
UNUSED = 0.02  #: below this running count a code is given to a random frame


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.layers = nn.Sequential(
            nn.Conv1d(channels, channels, 3, padding=1), nn.GELU(), nn.Conv1d(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(self.norm(x))


class VQVAE(nn.Module):
    """Mel (rows, 80, frames) <-> codes (rows, frames / 4); the codebook follows the encoder by running means."""

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, width: int = 192, code_dim: int = 64) -> None:
        super().__init__()
        down = lambda: nn.Conv1d(width, width, 4, 2, 1)  # noqa: E731
        up = lambda: (nn.Upsample(scale_factor=2), nn.Conv1d(width, width, 3, padding=1))  # noqa: E731
        block = lambda: _Residual(width)  # noqa: E731
        self.encoder = nn.Sequential(
            nn.Conv1d(80, width, 5, padding=2), block(), down(), block(), down(), block(), block(),
            nn.Conv1d(width, code_dim, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv1d(code_dim, width, 3, padding=1),
            block(),
            block(),
            *up(),
            block(),
            *up(),
            block(),
            block(),
        )
        self.to_mel = nn.Conv1d(width, 80, 1)
        self.to_phonemes = nn.Conv1d(width, PHONEMES, 1)
        self.register_buffer("codebook", torch.randn(CODES, code_dim) * 0.1)
        self.register_buffer("counts", torch.ones(CODES))
        self.register_buffer("sums", self.codebook.clone())

    def encode(self, mel: Tensor) -> Tensor:
        """-> codes (rows, frames / 4)."""
        return self._nearest(self.encoder((mel - MEL_MEAN) / MEL_SCALE))

    def _nearest(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            flat = x.float().transpose(1, 2)
            return (self.codebook.pow(2).sum(1) - 2 * flat @ self.codebook.T).argmin(-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised mel -> normalised mel, phoneme logits at every frame, commitment loss."""
        z = self.encoder(x).float()
        codes = self._nearest(z)
        quantised = self.codebook[codes].transpose(1, 2)
        if self.training:
            self._follow(z.transpose(1, 2).reshape(-1, z.shape[1]), codes.reshape(-1))
        h = self.decoder(z + (quantised - z).detach())
        return self.to_mel(h), self.to_phonemes(h), (z - quantised.detach()).pow(2).mean()

    @torch.no_grad()
    def _follow(self, z: Tensor, codes: Tensor) -> None:
        counts = torch.bincount(codes, minlength=CODES).float()
        self.counts.lerp_(counts, 1 - DECAY)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, codes, z), 1 - DECAY)
        self.codebook.copy_(self.sums / (self.counts[:, None] + 1e-5))
        dead = self.counts < UNUSED
        if dead.any():
            fresh = z[torch.randint(len(z), (int(dead.sum()),), device=z.device)]
            self.codebook[dead], self.sums[dead], self.counts[dead] = fresh, fresh * 0.2, 0.2

    @torch.no_grad()
    def place_silence(self) -> None:
        """Give the code of silence, and its nearest, the numbers that the runtime ends a clip with."""
        silent = torch.full((1, 80, 64), SILENCE, device=self.codebook.device)
        code = int(self.encode(silent)[0, 8])
        near = (self.codebook - self.codebook[code]).pow(2).sum(1).argsort().tolist()
        order = list(range(CODES))
        for wanted, found in zip((CALM_TOKEN, *sorted(set(TAIL_TOKENS))), near, strict=False):
            at = order.index(found)
            order[wanted], order[at] = order[at], order[wanted]
        for table in (self.codebook, self.counts, self.sums):
            table.copy_(table[order].clone())


def load(work: loop.Work) -> VQVAE:
    """The trained model; without the decoder where the weights are the committed ones, which do not have it."""
    model = VQVAE()
    missing, strange = model.load_state_dict(work.weights(STAGE), strict=False)
    if strange or any(not key.startswith(loop.LEFT_OUT[STAGE]) for key in missing):
        raise ValueError(f"these are no weights of stage {STAGE}: missing {missing}, unknown {strange}")
    return model.eval()


def train(work: loop.Work, steps: int = 9000, limit: int = 16, batch: int = 16, frames: int = 128) -> None:
    torch.set_num_threads(work.threads)
    torch.manual_seed(work.seed)
    model = VQVAE().to(work.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 8e-4, betas=(0.9, 0.98), weight_decay=0.01)
    if work.finished(STAGE):
        return
    rows = [row for row in shards.rows(work.data, limit) if row["mel"]["alto"].shape[1] + 8 >= frames]
    mels = [shards.padded(row["mel"]["alto"]) for row in rows]
    labels = [
        torch.from_numpy(shards.phonemes_at(row, np.arange(m.shape[1]) + 0.0))
        for row, m in zip(rows, mels, strict=True)
    ]

    def step(number: int, rng: np.random.Generator) -> dict[str, float]:
        xs, ys = [], []
        for i in rng.integers(len(mels), size=batch):
            start = int(rng.integers(0, mels[i].shape[1] - frames + 1))
            xs.append(mels[i][:, start : start + frames])
            ys.append(labels[i][start : start + frames])
        x = (torch.stack(xs).to(work.device) - MEL_MEAN) / MEL_SCALE
        y = torch.stack(ys).to(work.device)
        with loop.mixed(work.device):
            mel, phonemes, commitment = model(x)
        error = (mel.float() - x).abs().mean()
        spoken = F.cross_entropy(phonemes.float(), y)
        optimizer.zero_grad()
        (2 * error + 0.5 * commitment + 0.25 * spoken).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        right = (phonemes.argmax(1) == y).float().mean()
        return dict(
            mel=error.item(), phonemes=spoken.item(), accuracy=right.item(), commitment=commitment.item()
        )

    def finish() -> None:
        model.eval()
        model.place_silence()

    loop.run(work, STAGE, step, steps, {"model": model}, [optimizer], loop.cosine(floor=0.03), finish=finish)


def fingerprint(work: loop.Work) -> str:
    """Tells what the codes mean: the ``digest`` of the codebook."""
    return loop.digest(work.weights(STAGE)["codebook"])


def read_codes(work: loop.Work) -> dict[str, list[Tensor]]:
    """What encode_corpus wrote: shard's name -> (codes,) int16 of each of its rows."""
    path = work.folder / "codes.pt"
    codes: dict[str, Any] = torch.load(path, weights_only=True)
    if codes.pop("codebook", None) not in (None, fingerprint(work)):  # None: of earlier versions
        raise loop.Mismatch(f"{path} is of another codebook than {STAGE} has now: run the stage encode")
    return codes


@torch.no_grad()
def encode_corpus(work: loop.Work) -> None:
    """-> codes.pt: for every shard the codes of its rows, with two codes of silence behind each.

    ``codebook`` there is the fingerprint of the VQ-VAE; codes of another one, or of an unknown one, are made anew.
    """
    path = work.folder / "codes.pt"
    done: dict[str, Any] = torch.load(path, weights_only=True) if path.exists() else {}
    mine = fingerprint(work)
    if done.get("codebook") != mine:
        done = {"codebook": mine}
    torch.set_num_threads(work.threads)
    model = load(work).to(work.device)
    for shard in shards.paths(work.data):
        if shard.name in done:
            continue
        work.check_time(f"encode, before {shard.name}")
        mels = [shards.padded(row["mel"]["alto"]) for row in shards.read(shard)]
        codes: list[Tensor] = [torch.empty(0)] * len(mels)
        lengths: dict[int, list[int]] = {}
        for i, mel in enumerate(mels):  # equal lengths together: padding would change the norms
            lengths.setdefault(mel.shape[1], []).append(i)
        for group in lengths.values():
            stacked = torch.stack([mels[i] for i in group]).to(work.device)
            with loop.mixed(work.device):  # as in training
                found = model.encode(stacked).short().cpu()
            for i, row in zip(group, found, strict=True):
                codes[i] = row.clone()
        done[shard.name] = codes
        loop.save(done, path)
        print(f"encoded {shard.name}", flush=True)
