"""Figures that blocks of the graphs are built by."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("torch")

from tortoise_rt.export.onnx.blocks import group_count, relative_buckets


def test_relative_buckets() -> None:
    buckets = relative_buckets()
    assert buckets[0] == 15 and buckets[64] == 0 and buckets[-1] == 31
    assert list(buckets[65:73]) == [17, 18, 19, 20, 21, 22, 23, 24]
    assert (np.diff(buckets[:65]) <= 0).all() and (np.diff(buckets[65:]) >= 0).all()


@pytest.mark.parametrize("channels, groups", [(16, 8), (48, 16), (64, 16), (96, 32), (1024, 32), (2048, 32)])
def test_group_count(channels: int, groups: int) -> None:
    assert group_count(channels) == groups
