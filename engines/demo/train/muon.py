"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): momentum whose update is made orthogonal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from .loop import fast_dtype

# Coefficients of the quintic Newton-Schulz iteration, from the source above.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For two-dimensional weights (in, out). One three times as wide as high is three matrices: queries, keys, values."""

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, decay: float = 0.02
    ) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, decay=decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
            for weight in group["params"]:
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(state["momentum"], group["momentum"])
                parts = 3 if weight.shape[1] == 3 * weight.shape[0] else 1
                for piece, change in zip(weight.chunk(parts, 1), update.chunk(parts, 1), strict=True):
                    shapes.setdefault(tuple(sorted(change.shape)), []).append((piece, change))
            for pieces in shapes.values():
                tall = [change.shape[0] > change.shape[1] for _, change in pieces]
                wide = [change.T if t else change for (_, change), t in zip(pieces, tall, strict=True)]
                for (piece, _), t, change in zip(pieces, tall, _orthogonal(torch.stack(wide)), strict=True):
                    size = max(1, piece.shape[1] / piece.shape[0]) ** 0.5
                    piece.mul_(1 - group["lr"] * group["decay"]).add_(
                        change.T if t else change, alpha=-group["lr"] * size
                    )


def optimizers(
    matrices: Sequence[nn.Parameter], modules: Iterable[nn.Module]
) -> tuple[list[torch.optim.Optimizer], list[nn.Parameter]]:
    """Muon for ``matrices``, AdamW for whatever else ``modules`` have; -> both, and those others."""
    chosen = {id(p) for p in matrices}
    others = [p for module in modules for p in module.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, 0.02),
        torch.optim.AdamW(others, 2e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ], others


def _orthogonal(x: Tensor) -> Tensor:
    """(n, rows, columns) with rows <= columns -> singular values near 1."""
    x = x.to(fast_dtype(x.device))
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.float()
