"""Figures of ``tortoise-rt bench`` as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
STAGES = ("voice", "sampling", "ranking", "latents", "diffusion", "vocoder")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Graphs against the ceilings, stages of presets, throughput and waiting: .png or .svg by the suffix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in ("graph", "synthesis", "load")}
    present = [kind for kind, found in by_kind.items() if found]
    figure, axes = pyplot.subplots(
        1, max(1, len(present)), figsize=(6.5 * max(1, len(present)), 5), squeeze=False
    )
    for axis, kind in zip(axes[0], present, strict=False):
        {"graph": _graphs, "synthesis": _stages, "load": _load}[kind](axis, by_kind[kind])
    about = rows[0]
    figure.suptitle(f"{Path(about['engine']).name} on {about['device']}, {about['cores']} cores")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _graphs(axis: Any, rows: Sequence[Row]) -> None:
    names = [f"{row['graph']}, {row['what']} ({row['precision']})" for row in rows]
    places = range(len(rows))
    for offset, key, label in (
        (-0.2, "share_of_arithmetic", "of float32 arithmetic"),
        (0.2, "share_of_memory", "of memory reads"),
    ):
        shares = [100 * row.get(key, 0) for row in rows]
        axis.barh([place + offset for place in places], shares, height=0.4, label=label)
    for place, row in zip(places, rows, strict=True):
        axis.annotate(f" {row['ms']:g} ms", (0, place), va="center", fontsize=7)
    axis.set_yticks(places, names, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("% of what this machine reaches")
    axis.set_title("graphs")
    axis.legend(fontsize=7)


def _stages(axis: Any, rows: Sequence[Row]) -> None:
    names = [f"{row['preset']}\n{row['samples']} samples, {row['audio_s']:g} s" for row in rows]
    below = [0.0] * len(rows)
    for stage in STAGES:
        seconds = [row["stages"].get(stage, 0.0) for row in rows]
        if any(seconds):
            axis.bar(names, seconds, bottom=below, label=stage)
            below = [b + s for b, s in zip(below, seconds, strict=True)]
    axis.set_ylabel("seconds")
    axis.set_title("presets")
    axis.legend(fontsize=8)


def _load(axis: Any, rows: Sequence[Row]) -> None:
    clients = [row["clients"] for row in rows]
    axis.plot(clients, [row["audio_per_second"] for row in rows], "o-", color="tab:blue")
    axis.set_xlabel("requests at a time")
    axis.set_ylabel("seconds of audio a second", color="tab:blue")
    axis.set_ylim(bottom=0)
    waiting = axis.twinx()
    waiting.plot(clients, [row["p50_s"] for row in rows], "s--", color="tab:orange")
    waiting.set_ylabel("seconds until half of them are there", color="tab:orange")
    waiting.set_ylim(bottom=0)
    axis.set_title("many at once")
