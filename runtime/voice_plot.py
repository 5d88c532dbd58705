"""Voices as a picture: their clips' waveforms and mels, their latents, and how far these are from each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import VoiceError
from .latents import VoiceLatents
from .mel import univnet_mel
from .resample import resample
from .spec import CODE_RATE, HOP, SAMPLE_RATE
from .voice import Voice

MOST_ROWS = 8  #: clips and latents that are drawn; the map has all
MOST_SECONDS = 12  #: of a clip
MOST_NUMBERS = 16  #: voices of a map whose distances are written into it
_ENVELOPE = 1500  # columns of a waveform
_DARK, _LIGHT = "#1f4e79", "#9dbbd8"


def draw(
    voices: Sequence[Voice], names: Sequence[str], latents: Sequence[VoiceLatents], path: Path, kind: str
) -> None:
    """A row for each clip or latent of ``voices``, and a map of ``latents``, if there are two or more, called ``names``.

    ``kind``: png, svg or pdf. Raises VoiceError for latents that cannot be compared.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    each = [_rows(voice) for voice in voices]
    most = max(1, MOST_ROWS // len(voices))
    shown = [row for rows in each for row in rows[:most]][:MOST_ROWS]
    mapped = len(latents) > 1
    side = 0.45 * len(latents) + 3 if mapped else 0
    height = max(1.55 * len(shown), side + 0.3) + 0.6
    figure = pyplot.figure(figsize=(11 + side, height), layout="constrained")
    parts: Any = figure.subfigures(1, 1 + mapped, width_ratios=(11, side)[: 1 + mapped], squeeze=False)[0]
    axes = parts[0].subplots(len(shown), 2, squeeze=False)
    for (left, right), (name, row) in zip(axes, shown, strict=True):
        if isinstance(row, VoiceLatents):
            _latent(left, f"{name}: autoregressive latent", row.auto)
            _latent(right, "diffusion latent", row.diffusion)
        else:
            _wave(left, name, row)
            _mel(right, row)
    for axis in axes[-1]:
        axis.set_xlabel("values" if isinstance(shown[-1][1], VoiceLatents) else "seconds", fontsize=8)
    if hidden := sum(map(len, each)) - len(shown):
        parts[0].suptitle(f"{len(shown)} shown, {hidden} more are there", fontsize=9)
    if mapped:
        _map(parts[1].subplots(), parts[1], names, distances(latents))
    figure.savefig(path, dpi=120, format=kind)
    pyplot.close(figure)


def distances(latents: Sequence[VoiceLatents]) -> np.ndarray:
    """(voices, voices): 1 - cosine of the angle between their autoregressive latents; 0 for the same direction."""
    widths = sorted({v.auto.size for v in latents})
    if len(widths) > 1:
        raise VoiceError(
            f"latents of {' and '.join(map(str, widths))} values cannot be compared: they are of different models "
            "(clips are heard by the demo engine unless you name one with --engine)"
        )
    rows = np.concatenate([v.auto for v in latents]).astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return np.clip(1 - rows @ rows.T, 0, 2).round(7)  # what float64 rounds off is no distance


def _rows(voice: Voice) -> list[tuple[str, np.ndarray | VoiceLatents]]:
    """(title, clip or latents); of a blend, those of its parts."""
    found = [row for part, _ in voice.parts for row in _rows(part)]
    found += [] if voice.latents is None else [(voice.name, voice.latents)]
    many = len(voice.clips) > 1
    found += [(f"{voice.name}, clip {n}" if many else voice.name, c) for n, c in enumerate(voice.clips, 1)]
    return found


def _wave(axis: Any, name: str, clip: np.ndarray) -> None:
    seconds = len(clip) / CODE_RATE
    clip = clip[: MOST_SECONDS * CODE_RATE]
    step = -(-len(clip) // _ENVELOPE)
    blocks = np.pad(clip, (0, -len(clip) % step), mode="edge").reshape(-1, step)
    times = np.arange(len(blocks)) * (step / CODE_RATE)
    axis.fill_between(times, blocks.min(1), blocks.max(1), color=_DARK, linewidth=0.4, edgecolor=_DARK)
    axis.set_xlim(0, len(clip) / CODE_RATE)
    axis.set_ylim(-1, 1)
    shown = f", the first {MOST_SECONDS} shown" if seconds > MOST_SECONDS else ""
    _title(axis, f"{name}: {seconds:.1f} s{shown}")


def _mel(axis: Any, clip: np.ndarray) -> None:
    clip = resample(clip[: MOST_SECONDS * CODE_RATE], CODE_RATE, SAMPLE_RATE)
    mel = univnet_mel(clip[None])[0]
    top = float(mel.max())
    axis.imshow(
        mel, origin="lower", aspect="auto", interpolation="nearest", cmap="magma", vmin=max(top - 9, float(mel.min())),
        vmax=top, extent=(0, mel.shape[1] * HOP / SAMPLE_RATE, 0, len(mel)),
    )  # fmt: skip
    _title(axis, "log mel, 100 bands to 12 kHz")


def _latent(axis: Any, title: str, latent: np.ndarray | None) -> None:
    if latent is None:
        axis.axis("off")
        return _title(axis, f"no {title}")
    axis.vlines(np.arange(latent.size), 0, latent[0], color=_DARK, linewidth=0.5)
    axis.axhline(0, color=_LIGHT, linewidth=0.6)
    axis.set_xlim(0, latent.size)
    _title(axis, f"{title}, {latent.size} values")


def _title(axis: Any, text: str) -> None:
    axis.set_title(text, fontsize=9, loc="left")
    axis.tick_params(labelsize=7)


def _map(axis: Any, figure: Any, names: Sequence[str], apart: np.ndarray) -> None:
    top = max(float(apart.max()), 1e-6)
    image = axis.imshow(apart, cmap="viridis_r", vmin=0, vmax=top)
    short = [name if len(name) <= 18 else name[:17] + "\u2026" for name in names]
    axis.set_xticks(range(len(names)), short, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(len(names)), short, fontsize=8)
    if len(names) <= MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(apart):
            color = "white" if value > 0.55 * top else "black"
            axis.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7, color=color)
    axis.set_title("distance of autoregressive latents\n(1 - cosine; 0: the same)", fontsize=9)
    figure.colorbar(image, ax=axis, fraction=0.046, pad=0.04).ax.tick_params(labelsize=7)
