"""Latents as they are drawn -> sound, exactly that of the whole clip, as soon as nothing to come can change it.

HiFi-GAN sees ``HIFIGAN_HALO`` frames to either side, and a frame lies between two codes. So a piece decodes its own
frames and that many beside them, whatever came before: its cost depends on its length alone, and so does memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .config import check_number
from .engine import Array, Engine
from .spec import CODE_RATE, CODE_SAMPLES, codes_to_frames
from .vocoder import HIFIGAN_HALO, certain_frames, codes_seen, hifigan_frames, upsample_part

MOST_CODES = 10_000  #: of a piece: more than any clip has
CODE_SECONDS = CODE_SAMPLES / CODE_RATE  #: sound of a code


class StreamDecoder:
    """HiFi-GAN on a clip that is still being drawn. Keeps the latents that sound to come can see, and no others."""

    def __init__(self, engine: Engine, voice: Array) -> None:
        """voice: the autoregressive voice latent (1, dim)."""
        self._engine, self._voice = engine, voice
        self._latents: list[Array] = []  #: (dim,) each
        self._first = 0  #: the code of the first of them
        self._frames = 0  #: given so far
        self.decoded = 0  #: frames that the vocoder has computed, those beside each piece as well

    @property
    def codes(self) -> int:
        """Codes known so far."""
        return self._first + len(self._latents)

    def feed(self, latents: Array) -> None:
        """The latents (codes, dim) of the next codes."""
        self._latents.extend(latents)

    def take(self, *, ended: bool = False) -> Array:
        """The sound (samples,) that is certain and was not taken yet; all of it where no code follows any more."""
        codes = self.codes
        total = codes_to_frames(codes) if ended else certain_frames(codes)
        end = total if ended else total - HIFIGAN_HALO
        if end <= self._frames:
            return np.zeros(0, np.float32)
        seen = range(max(0, self._frames - HIFIGAN_HALO), total)
        needed = codes_seen(codes, seen)
        latents = np.stack(self._latents[needed.start - self._first :])[None]
        fine = upsample_part(latents, needed.start, codes, seen)
        wav = hifigan_frames(
            self._engine, fine, self._voice, range(self._frames - seen.start, end - seen.start)
        )
        self.decoded += len(seen)
        self._frames = end
        keep = codes_seen(codes, range(max(0, end - HIFIGAN_HALO), max(1, end))).start
        del self._latents[: keep - self._first]
        self._first = keep
        return wav[0]


@dataclass
class Chunks:
    """How many codes a piece of a stream waits for: few at first, then as many as there is sound in hand for.

    Large pieces cost less, as the frames beside them are decoded for each piece. ``grow`` off: all are ``first``.
    """

    first: int = 8  #: codes of the first piece
    most: int = 60
    grow: bool = True

    HASTE = 0.7  #: share of the sound in hand that making the next piece may take

    def __post_init__(self) -> None:
        check_number("first_chunk", self.first, 1, MOST_CODES, integer=True)
        self.most = max(self.most, self.first)

    def size(self, in_hand: float, code_seconds: float) -> int:
        """Codes of the next piece.

        in_hand: seconds of sound that was given and not yet heard; code_seconds: what a code of the last piece has
        taken, drawn and decoded.
        """
        if not self.grow:
            return self.first
        # Slower than speech no size keeps up, and large pieces are the quickest.
        able = self.HASTE * in_hand / code_seconds if code_seconds < CODE_SECONDS else self.most
        return int(min(max(able, self.first), self.most))


@dataclass
class Pace:
    """How a stream keeps up with a listener, who hears it from the first piece on."""

    first: float = 0.0  #: seconds to the first sound
    sound: float = 0.0  #: seconds of sound given so far
    gap: float = 0.0  #: the longest silence for want of sound, seconds
    spent: float = 0.0  #: seconds to the last piece
    complete: bool = False  #: whether the voice stopped by itself, rather than at the limit of codes
    _ends: float = 0.0  #: when the listener has heard all that was given

    def add(self, now: float, seconds: float) -> None:
        """A piece of ``seconds`` is given, ``now`` seconds after the start."""
        if self.sound == 0:
            self.first = self._ends = now
        self.gap = max(self.gap, now - self._ends)
        self._ends = max(self._ends, now) + seconds
        self.spent = now
        self.sound += seconds

    def in_hand(self, now: float) -> float:
        """Seconds of sound that are not yet heard."""
        return max(0.0, self._ends - now)

    @property
    def factor(self) -> float:
        """Real-time factor: seconds of work for a second of sound."""
        return self.spent / self.sound if self.sound else 0.0

    def report(self) -> str:
        """For a person, in one line."""
        gap = f", longest gap {self.gap:.2f} s" if self.gap > 0.005 else ", no gap"
        return f"first sound after {self.first:.2f} s, {self.sound:.2f} s of sound, real-time factor {self.factor:.2f}{gap}"
