"""Functions of tensors that are called again and again with the same shapes, recorded and replayed as CUDA graphs."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
log = logging.getLogger("tortoise_rt")
_RECORDING = threading.Lock()  #: PyTorch allows one recording at a time in a process, whatever the device
MOST_GRAPHS = 96  #: kept; the one that was not used for longest goes first
MOST_SEEN = 1024  #: shapes remembered that were used once


@dataclass
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Recorder:
    """Records work on one stream. All graphs work in one pool of memory, as large as the largest of them needs.

    Memory that is cached stays so: ``torch.cuda.graph`` would free it each time, and have it allocated anew.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        """What ``work`` queues, to be replayed, and what it returns; nothing is run. Its errors are the caller's.

        It may be called twice: while it is recorded PyTorch gives no cached memory back, so where there is not enough, that
        is done before the second time.
        """
        with _RECORDING:
            try:
                return self._record(work)
            except torch.cuda.OutOfMemoryError:
                pass  # and what the error refers to is let go of
            torch.cuda.empty_cache()
            return self._record(work)

    def _record(self, work: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    result = work()
                except BaseException:
                    with contextlib.suppress(
                        RuntimeError
                    ):  # of what the error broke, which is the one to tell
                        graph.capture_end()
                    raise
                graph.capture_end()
        except BaseException:
            # PyTorch may refuse the pool from now on: as still recorded to, or as that of no graph any more.
            self._pool = torch.cuda.graph_pool_handle()
            raise
        return graph, result


class Replays:
    """The first call with some shapes runs as it is, the second is recorded, later ones are replayed.

    What cannot be recorded always runs as it is, and a warning says so. Graphs share their memory: outputs hold until the next
    call. Not for several threads at a time.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._recorder = Recorder(stream)
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._seen: OrderedDict[Hashable, bool] = OrderedDict()  # once; whether to record it

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
            if not self._seen.get(key):
                self._seen.setdefault(key, True)
                if len(self._seen) > MOST_SEEN:
                    self._seen.popitem(last=False)
                return function(*inputs)
            try:
                self._recorded[key] = self._record(function, inputs)
            except RuntimeError as error:  # as all of PyTorch's
                self._seen[key] = isinstance(
                    error, torch.cuda.OutOfMemoryError
                )  # there may be enough another time
                log.warning("%s is not recorded, and takes longer: %s", name, str(error).partition("\n")[0])
            if key not in self._recorded:  # behind the error, which refers to what the recording had made
                return function(*inputs)
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
        held = tuple(torch.empty_like(tensor) if tensor.is_cuda else tensor for tensor in inputs)
        graph, outputs = self._recorder.record(lambda: function(*held))
        return _Recorded(graph, held, outputs)
