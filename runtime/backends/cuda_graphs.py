"""Functions of tensors that are called again and again with the same shapes, recorded and replayed as CUDA graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_GRAPHS = 96  #: kept; the one that was not used for longest goes first
MOST_SEEN = 1024  #: shapes remembered that were used once


@dataclass
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Replays:
    """The first call with some shapes runs as it is, the second is recorded, later ones are replayed.

    All graphs work in one pool of memory, as large as the largest of them needs: outputs hold until the next call.
    Not for several threads at a time.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._recorded)

    def __call__(
        self, name: str, function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """``function(*inputs)``, which must depend on their shapes and values alone.

        inputs: on the device; those on the CPU say what is computed, as shapes do, and are replayed for equal values only.
        """
        key = (name, *(tensor.shape if tensor.is_cuda else tuple(tensor.tolist()) for tensor in inputs))
        if key not in self._recorded:
            if key not in self._seen:
                self._seen[key] = None
                if len(self._seen) > MOST_SEEN:
                    self._seen.popitem(last=False)
                return function(*inputs)
            self._recorded[key] = self._record(function, inputs)
            if len(self._recorded) > MOST_GRAPHS:
                self._recorded.popitem(last=False)
        self._recorded.move_to_end(key)
        recorded = self._recorded[key]
        for held, given in zip(recorded.inputs, inputs, strict=True):
            if given.is_cuda:
                held.copy_(given)
        recorded.graph.replay()
        return recorded.outputs

    def _record(self, function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> _Recorded:
        graph = torch.cuda.CUDAGraph()
        held = tuple(torch.empty_like(tensor) if tensor.is_cuda else tensor for tensor in inputs)
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = function(*held)
        return _Recorded(graph, held, outputs)
