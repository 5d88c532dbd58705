"""How likely a clip came from TorToiSe."""

from __future__ import annotations

import numpy as np

from .engine import Array, Engine
from .sampling import softmax

MAX_SAMPLES = 220_000  #: at 24 kHz; the reference's command looks at this much of a clip


def detect(engine: Engine, wav: Array) -> float:
    """24 kHz wav (samples,) -> probability that TorToiSe made it."""
    (logits,) = engine.run("detector", wav=np.asarray(wav, np.float32)[None, None])
    return float(softmax(logits)[0, 0])
