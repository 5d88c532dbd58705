"""One model on several devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..engine import Engine
from ..errors import EngineError
from ..proxy_engine import ProxyEngine


class EngineGroup(ProxyEngine):
    """Engines of one model, each on a device of its own. A scheduler uses all; whoever else asks is answered by the first."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        super().__init__(engines[0])
        self._members = tuple(engines)
        self.draws_ahead, self.denoises_ahead = self.engine.draws_ahead, self.engine.denoises_ahead
        devices = [engine.info.device for engine in engines]
        if len(set(devices)) < len(devices):
            raise EngineError(f"devices {', '.join(devices)}: name each once")
        if len({device.partition(":")[0] for device in devices}) > 1:
            raise EngineError(
                f"devices {', '.join(devices)}: several must be of one kind, or one seed is several clips"
            )
        self.info = replace(self.engine.info, device=",".join(devices))

    @property
    def members(self) -> tuple[Engine, ...]:
        return self._members

    def release(self, graph: str) -> None:
        for engine in self._members:
            engine.release(graph)
