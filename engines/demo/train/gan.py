"""Losses of the vocoders: spectra at several resolutions, and a small discriminator of the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import bands, magnitudes

SIZES = (512, 1024, 2048)  #: of the Fourier transforms


def spectral_loss(made: Tensor, real: Tensor) -> Tensor:
    """Distance of spectra at three resolutions (Yamamoto et al. 2020) and of log mels. (rows, samples) each."""
    total = made.new_zeros(())
    for size in SIZES:
        a, b = (magnitudes(wav, size, size // 4).clamp_min(1e-5) for wav in (made, real))
        convergence = torch.norm(a - b) / torch.norm(b).clamp_min(1e-3)
        total = total + (convergence + (a.log() - b.log()).abs().mean()) / len(SIZES)
        if size == 1024:
            mel = bands("vocoder").to(made.device)
            total = total + ((mel @ a + 1e-5).log() - (mel @ b + 1e-5).log()).abs().mean()
    return total


class Discriminator(nn.Module):
    """Looks at magnitudes at three resolutions, as UnivNet's (Jang et al. 2021), with fewer channels."""

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        conv = nn.utils.parametrizations.weight_norm
        self.stacks = nn.ModuleList(
            nn.ModuleList(
                [
                    conv(nn.Conv2d(1, channels, (9, 3), stride=(3, 1), padding=(4, 1))),
                    conv(nn.Conv2d(channels, channels, (9, 3), stride=(3, 1), padding=(4, 1))),
                    conv(nn.Conv2d(channels, channels, (9, 3), stride=(3, 1), padding=(4, 1))),
                    conv(nn.Conv2d(channels, channels, (3, 3), padding=1)),
                    conv(nn.Conv2d(channels, 1, (3, 3), padding=1)),
                ]
            )
            for _ in SIZES
        )

    def forward(self, wav: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(rows, samples) -> scores and inner features."""
        scores: list[Tensor] = []
        features: list[Tensor] = []
        stacks: Iterable[Any] = self.stacks
        for size, stack in zip(SIZES, stacks, strict=True):
            x = magnitudes(wav, size, size // 4).clamp_min(1e-5).log()[:, None] * 0.3 + 0.5
            for layer in stack[:-1]:
                x = F.leaky_relu(layer(x), 0.2)
                features.append(x)
            scores.append(stack[-1](x))
        return scores, features


def discriminator_loss(judge: Discriminator, made: Tensor, real: Tensor) -> Tensor:
    """Least squares (Mao et al. 2017)."""
    good, bad = judge(real)[0], judge(made.detach())[0]
    terms = [((g - 1) ** 2).mean() + (b**2).mean() for g, b in zip(good, bad, strict=True)]
    return torch.stack(terms).mean()


def critic_step(judge: Discriminator, critic: torch.optim.Optimizer, made: Tensor, real: Tensor) -> float:
    """Let the discriminator learn to tell made from real, (rows, samples) each; -> its loss before."""
    loss = discriminator_loss(judge, made, real)
    critic.zero_grad()
    loss.backward()
    critic.step()
    return loss.item()


def adversarial_loss(judge: Discriminator, made: Tensor, real: Tensor) -> Tensor:
    """The generator's part: be taken for real, with features like the real ones."""
    scores, features = judge(made)
    with torch.no_grad():
        wanted = judge(real)[1]
    fooled = torch.stack([((score - 1) ** 2).mean() for score in scores]).mean()
    alike = torch.stack([(a - b).abs().mean() for a, b in zip(features, wanted, strict=True)]).mean()
    return fooled + 2 * alike
