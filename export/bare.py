"""Modules without values, on the device "meta": their weights come from a file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _NotDrawn(TorchFunctionMode):
    """An embedding's random values are left out: there, torch would import 800 modules to draw them."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if func is nn.init.normal_ else func(*args, **kwargs)


@contextlib.contextmanager
def bare() -> Iterator[None]:
    """What is built within has shapes alone."""
    with torch.device("meta"), _NotDrawn():
        yield
