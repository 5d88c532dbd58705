"""What stands in for ``torch.cuda`` where an engine is made for a GPU."""

from __future__ import annotations

from typing import Any

import pytest


class Entered:
    """As torch.cuda.device and torch.cuda.stream: what calls run in."""

    def __init__(self, of: Any, now: list[Any]) -> None:
        self._of, self._now = of, now

    def __enter__(self) -> None:
        self._now.append(self._of)

    def __exit__(self, *_: object) -> None:
        assert self._now.pop() is self._of


def entered(monkeypatch: pytest.MonkeyPatch, **others: Any) -> list[Any]:
    """Stand in, with ``others`` as they are named in the module -> the devices and streams that are entered now."""
    import torch

    now: list[Any] = []
    fakes = {
        "device": lambda of: Entered(of, now),
        "stream": lambda of: Entered(of, now),
        "Stream": lambda device: f"stream of {device}",
        "graph_pool_handle": lambda: (0, 1),
    }
    for name, fake in (fakes | others).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return now
