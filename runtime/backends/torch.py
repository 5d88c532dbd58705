"""The fallback and the judge: PyTorch modules straight from checkpoints, on CPU, CUDA or MPS."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tortoise_rt.export.checkpoints import Checkpoints
from tortoise_rt.export.models.graphs import GRAPH_FUNCTIONS

from ..engine import Array, Engine, EngineInfo, KVCache
from ..errors import EngineError
from ..spec import GRAPHS


def pick_device(device: str) -> torch.device:
    """The torch device for "auto" (CUDA, else MPS, else CPU) or a name; raises EngineError if it is not there."""
    if device == "auto":
        device = (
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise EngineError(f"unknown device {device!r}. Use auto, cpu, cuda, cuda:N or mps") from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(picked.type):
        there = ", ".join(name for name, yes in available.items() if yes)
        raise EngineError(f"PyTorch {torch.__version__} has no device {device!r} here. Available: {there}")
    return picked


class TorchEngine(Engine):
    """Runs the graphs as torch modules. Networks are loaded when first used and stay on the device."""

    def __init__(self, folder: str | Path, device: str = "auto") -> None:
        self.checkpoints = Checkpoints(folder)
        self.device = pick_device(device)
        if self.device.type == "cuda":  # fp32 means fp32; PyTorch lets convolutions use TF32 by default
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self._modules: dict[str, torch.nn.Module] = {}
        self._lock = threading.Lock()
        tokenizer = self.checkpoints.folder / "tokenizer.json"
        self.info = EngineInfo(
            backend="torch",
            device=str(self.device),
            source=str(self.checkpoints.folder),
            dims=self.checkpoints.dims(),
            graphs=frozenset(g.name for g in GRAPHS.values() if g.network in self.checkpoints.networks),
            tokenizer=tokenizer if tokenizer.is_file() else None,
            defaults=self.checkpoints.config.get("defaults", {}),
            notice=self.checkpoints.config.get("notice", ""),
            fingerprint=self.checkpoints.fingerprint(),
            precision=dict.fromkeys(GRAPHS, "fp32"),
        )

    def module(self, network: str) -> Any:
        """The network's module on the device."""
        with self._lock:
            if network not in self._modules:
                self._modules[network] = self.checkpoints.load(network).to(self.device)
            return self._modules[network]

    def _to_device(self, array: Array) -> torch.Tensor:
        # Torch warns of arrays that cannot be written to, such as broadcast ones.
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self.device)

    @torch.inference_mode()
    def _run(self, graph: str, inputs: dict[str, Array]) -> tuple[Array, ...]:
        module = self.module(GRAPHS[graph].network)
        outputs = GRAPH_FUNCTIONS[graph](module, *(self._to_device(a) for a in inputs.values()))
        return tuple(o.float().cpu().numpy() for o in outputs)

    @torch.inference_mode()
    def _new_cache(self, rows: int, capacity: int) -> torch.Tensor:
        return self.module("autoregressive").new_cache(rows, capacity)

    @torch.inference_mode()
    def _take_rows(self, cache: KVCache, rows: Array, capacity: int) -> torch.Tensor:
        taken = self.module("autoregressive").new_cache(len(rows), capacity)
        filled = int(cache.lengths[rows].max())
        taken[..., :filled, :] = cache.state[:, :, self._to_device(rows), :, :filled]
        return taken

    @torch.inference_mode()
    def _put_rows(self, target: KVCache, places: Array, source: KVCache, rows: Array) -> None:
        filled = int(source.lengths[rows].max())
        taken = source.state[:, :, self._to_device(rows), :, :filled]
        target.state[:, :, self._to_device(places), :, :filled] = taken
        target.state[:, :, self._to_device(places), :, filled:] = (
            0  # attention weighs it with 0, and 0 * NaN is NaN
        )

    def _first_rows(self, cache: KVCache, count: int) -> torch.Tensor:
        return cache.state[:, :, :count]

    @torch.inference_mode()
    def _ar_step(self, cache: KVCache, inputs: dict[str, Array]) -> tuple[Array, Array]:
        tensors = {name: self._to_device(array) for name, array in inputs.items()}
        past = self._to_device(np.asarray(cache.lengths))
        logits, latents = self.module("autoregressive").step(cache.state, past, **tensors)
        return logits.float().cpu().numpy(), latents.float().cpu().numpy()
