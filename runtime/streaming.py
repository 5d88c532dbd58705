"""Latents as they are drawn -> sound, exactly that of the whole clip, as soon as nothing to come can change it.

HiFi-GAN sees ``HIFIGAN_HALO`` frames to either side, and a frame lies between two codes. So a piece decodes its own
frames and that many beside them, whatever came before: its cost depends on its length alone, and so does memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .config import check_number
from .engine import Array, Engine
from .spec import CODE_RATE, CODE_SAMPLES, codes_to_frames
from .vocoder import HIFIGAN_HALO, certain_frames, codes_seen, hifigan, hifigan_frames, upsample_part

MOST_CODES = 10_000  #: of a piece: more than any clip has
MOST_GROWN = 60  #: codes to which pieces grow
CODES_STEP = 4  #: of which sizes are multiples, where drawing is quicker than speech,
FRAMES_STEP = 8  #: and of which pieces are: pieces of several streams, of few shapes, run as one
REFERENCE_FIRST = 60  #: codes that the reference waits for before its first piece, at least
REFERENCE_SIZE = 40  #: of its other pieces, by default
MOST_OVERLAP = 24_000  #: samples over which pieces fade
CODE_SECONDS = CODE_SAMPLES / CODE_RATE  #: sound of a code


class Decoder(Protocol):
    """What makes the pieces of a stream."""

    def feed(self, latents: Array) -> None: ...

    def take(self, *, ended: bool = False) -> Array: ...


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
        certain = (total - HIFIGAN_HALO - self._frames) // FRAMES_STEP * FRAMES_STEP
        end = total if ended else self._frames + certain
        if end <= self._frames:
            return np.zeros(0, np.float32)
        seen = range(max(0, self._frames - HIFIGAN_HALO), min(end + HIFIGAN_HALO, total))
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


class FadingDecoder:
    """The reference's way, for comparison: decodes all codes so far for each piece and fades over from the last piece's end.

    Its work grows with the square of the clip's length, and the clip's last ``overlap`` samples are not given.
    """

    def __init__(self, engine: Engine, voice: Array, overlap: int) -> None:
        """voice: the autoregressive voice latent (1, dim); overlap: samples."""
        self._engine, self._voice = engine, voice
        self._latents = np.zeros((0, engine.dims["hifigan.in_dim"]), np.float32)
        self._rising, self._falling = (np.linspace(n, 1 - n, overlap, dtype=np.float32) for n in (0, 1))
        self._before = np.zeros(0, np.float32)  #: all of the latest rendering

    def feed(self, latents: Array) -> None:
        """The latents (codes, dim) of the next codes."""
        self._latents = np.concatenate([self._latents, latents])

    def take(self, *, ended: bool = False) -> Array:
        """The sound (samples,) of what was fed since, all but the end over which the next piece fades."""
        return self.fade(hifigan(self._engine, self._latents[None], self._voice)[0])

    def fade(self, wav: Array) -> Array:
        """The next piece of renderings (samples,), each longer than the last."""
        overlap = len(self._rising)
        start = max(0, len(self._before) - overlap)
        piece = wav[start : max(start, len(wav) - overlap)].copy()
        shared = min(len(piece), len(self._before) - start)
        before = self._before[start : start + shared] * self._falling[:shared]
        piece[:shared] = before + piece[:shared] * self._rising[:shared]
        self._before = wav
        return piece


@dataclass(frozen=True)
class Chunks:
    """How many codes a piece of a stream waits for.

    By default few at first, then as many as there is sound in hand for: large pieces cost less, as the frames beside
    them are seen for each piece.
    """

    first: int = 8  #: codes of the first piece
    then: int | None = None  #: codes of each other piece; None: what :meth:`size` finds
    overlap: int = 0  #: more than 0: samples of the reference's cross-fade, see FadingDecoder

    HASTE = 0.7  #: share of the sound in hand that making the next piece may take
    GAP = 0.5  #: seconds of silence that it may bring where speech is the quicker

    def __post_init__(self) -> None:
        check_number("first_chunk", self.first, 1, MOST_CODES, integer=True)
        if self.then is not None:
            check_number("stream_chunk_size", self.then, 1, MOST_CODES, integer=True)
        check_number("overlap_wav_len", self.overlap, 0, MOST_OVERLAP, integer=True)

    def size(self, in_hand: float, code_seconds: float, last: int) -> int:
        """Codes of the next piece, at most twice as many as the ``last`` one's.

        in_hand: seconds of sound that was given and not yet heard; code_seconds: what a code of the last piece has
        taken, drawn and decoded.
        """
        if self.then is not None:
            return self.then
        # Slower than speech no size keeps up: the larger the quicker, and the longer the gaps.
        quick = code_seconds < CODE_SECONDS
        seconds = self.HASTE * in_hand if quick else in_hand + self.GAP
        size = int(min(seconds / code_seconds, MOST_GROWN, 2 * last))
        return max(size - size % CODES_STEP if quick else size, min(self.first, Chunks.first))

    def decoder(self, engine: Engine, voice: Array) -> Decoder:
        """Makes the pieces, from the autoregressive voice latent (1, dim)."""
        return FadingDecoder(engine, voice, self.overlap) if self.overlap else StreamDecoder(engine, voice)


@dataclass
class Pace:
    """How a stream keeps up with a listener, who hears it from the first piece on.

    Time in which nothing could be made, since no text was there or nobody took the pieces, counts nowhere: see :meth:`rest`.
    Times are seconds since the start.
    """

    first: float = 0.0  #: seconds to the first sound
    sound: float = 0.0  #: seconds of sound given so far
    gap: float = 0.0  #: the longest silence for want of sound, seconds
    spent: float = 0.0  #: seconds of work to the last piece
    idle: float = 0.0  #: seconds in which nothing could be made
    code_seconds: float = 0.0  #: what a code of the last piece has taken, drawn and decoded; 0 before
    complete: bool = False  #: whether the voice stopped by itself, rather than at the limit of codes
    _ends: float = 0.0  #: when the listener has heard all that was given
    _resumed: float = 0.0  #: when something could be made again

    def rest(self, start: float, end: float) -> None:
        """Nothing could be made from ``start`` to ``end``, since the last piece."""
        self.idle += end - start
        self._resumed = end

    def add(self, now: float, seconds: float) -> None:
        """A piece of ``seconds`` is made."""
        if self.sound == 0:
            self._ends, self.first = now, now - self.idle
        self.gap = max(self.gap, now - max(self._ends, self._resumed))
        self._ends = max(self._ends, now) + seconds
        self.spent = max(self.spent, now - self.idle)
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
