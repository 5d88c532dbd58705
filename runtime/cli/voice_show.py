"""``tortoise-rt voices show``: what is in voices, in words and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import MissingDependency, OutputError, VoiceError
from . import options
from .progress import table

if TYPE_CHECKING:
    import numpy as np

    from ..latents import VoiceLatents
    from ..voice import Voice

PICTURES = (".png", ".svg", ".pdf")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="VOICE...")
@click.option(
    "--plot",
    type=options.FOLDER,
    metavar="FILE",
    help=f"Draw waveforms, mels, latents, and how far the voices are from each other ({', '.join(PICTURES)}).",
)
@options.voices_option
@options.engine_options
def show(
    names: tuple[str, ...],
    plot: Path | None,
    voice_dirs: tuple[Path, ...],
    **opening: Any,
) -> None:
    """Show what each VOICE holds: its clips' lengths and levels, or its latents' sizes, norms and model.

    With --plot the voices named are compared, or the clips of the one voice: the engine computes the latents of clips.

    \b
    tortoise-rt voices show emma tom pat.pth --plot voices.png
    """
    if plot is not None:
        check_picture(plot)
    from ..voice import load_voice

    voices = []
    for name in names:
        voice = load_voice(name, voice_dirs)
        click.echo("random: a voice drawn anew from each seed" if voice is None else describe(voice))
        voices += [] if voice is None else [voice]
    if plot is None:
        return
    if not voices:
        raise VoiceError(
            "there is nothing to draw of a random voice: save one first, by voices latents random"
        )

    from ..conditioning import voice_latents
    from ..output import complete_file
    from ..tts import choose_engine
    from ..voice import Voice
    from ..voice_plot import draw

    compared = voices
    if len(voices) == 1:  # its clips, which should be one person's
        compared = [Voice(f"clip {n}", (clip,)) for n, clip in enumerate(voices[0].clips, 1)]
    rows = [voice.latents for voice in compared if voice.latents is not None]
    if len(compared) > 1 and len(rows) < len(compared):
        opened = choose_engine(**opening)
        options.introduce(opened, bool(opening["engine"] or opening["checkpoints"]), "listens")
        rows = [voice_latents(opened, voice) for voice in compared]
    with complete_file(plot) as unfinished:
        draw(voices, [voice.name for voice in compared], rows, unfinished, plot.suffix[1:].lower())
    click.echo(f"{plot}: drawn")


def check_picture(path: Path) -> None:
    """Raise when no picture can be drawn to ``path``."""
    if path.suffix.lower() not in PICTURES:
        raise OutputError(f"cannot draw {path}: its suffix must be one of {', '.join(PICTURES)}")
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist: create it, or write elsewhere")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingDependency("--plot needs matplotlib: pip install 'tortoise-rt[plot]'") from None


def describe(voice: Voice) -> str:
    """The name of a voice and a table of its clips, its latents, or its parts."""
    from ..spec import CODE_RATE

    lines = [voice.name]
    if voice.latents is not None:
        lines.append(describe_latents(voice.latents))
    if voice.clips:
        rows = [("clip", "seconds", "peak dBFS", "mean dBFS")]
        for number, clip in enumerate(voice.clips, 1):
            peak, mean = _levels(clip)
            rows.append((str(number), f"{len(clip) / CODE_RATE:.2f}", f"{peak:.1f}", f"{mean:.1f}"))
        lines.append(table(rows))
    lines += [f"{part.name}: {part.made_of}, {100 * share:.0f} %" for part, share in voice.shares]
    return "\n".join(lines)


def _levels(clip: np.ndarray) -> tuple[float, float]:
    """Peak and root mean square of a clip in dB below full scale."""
    import numpy as np

    floor = 1e-6
    peak = max(float(np.abs(clip).max()), floor)
    mean = max(float(np.sqrt(np.mean(np.square(clip, dtype=np.float64)))), floor)
    return 20 * float(np.log10(peak)), 20 * float(np.log10(mean))


def describe_latents(made: VoiceLatents) -> str:
    """A table of sizes and norms, and the model that the latents are of."""
    import numpy as np

    rows = [("latent", "width", "norm")]
    for name, latent in (("autoregressive", made.auto), ("diffusion", made.diffusion)):
        if latent is not None:
            rows.append((name, str(latent.shape[-1]), f"{float(np.linalg.norm(latent)):.3f}"))
    return table(rows) + f"\nmodel: {made.fingerprint or 'unknown'}"
