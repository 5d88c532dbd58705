"""What tests of several trainings share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tortoise_rt.engines.demo.train import loop


def trained_twice(
    work: Callable[[str], loop.Work], stage: str, train: Callable[[loop.Work], None]
) -> tuple[Any, Any]:
    """States of a run that went through and of one that stopped after its first step."""
    whole, parts = work("whole"), work("parts")
    train(whole)
    parts.until = 0
    with pytest.raises(loop.OutOfTime):
        train(parts)
    parts.until = time.time() + 600
    train(parts)
    return whole.read_state(stage), parts.read_state(stage)


def assert_same_states(one: Any, other: Any) -> None:
    assert one["step"] == other["step"] == one["steps"]
    for name, weights in one["modules"].items():
        for key, value in weights.items():
            torch.testing.assert_close(other["modules"][name][key], value, rtol=0, atol=0, msg=key)
