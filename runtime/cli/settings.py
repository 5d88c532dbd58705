"""The options of ``tortoise-rt say`` that are settings of a synthesis, named as arguments of ``tts()``."""

from __future__ import annotations

from typing import Any

import click

from ..config import DECODERS, KV_POSITIONS, PRESETS, SAMPLERS
from .options import apply


def _number(*names: str, kind: type, metavar: str, help: str) -> Any:
    return click.option(*names, type=kind, metavar=metavar, help=help)


_choose = click.Choice
settings_options = apply(
    [
        click.option(
            "--preset",
            type=_choose(list(PRESETS)),
            help="Samples and diffusion steps: 16 and 30 without guidance (ultra_fast), 96 and 80 (fast), 256 and 200 "
            "(standard), 256 and 400 (high_quality), as TorToiSe has them. With the sampler dpm++2m, which needs fewer "
            "steps: 16 and 10 without guidance (turbo), 96 and 20, the last 15 guided (swift). Options below "
            "override it. [default: the engine's, else fast]",
        ),
        click.option(
            "--decoder",
            type=_choose(DECODERS),
            help="From codes to sound: diffusion (best) or hifigan (fast). [default: the engine's, else diffusion]",
        ),
        _number(
            "--candidates",
            "k",
            kind=int,
            metavar="K",
            help="Clips to return, best first; for K > 1 they are NAME_0.wav, NAME_1.wav, ... [default: 1]",
        ),
        _number(
            "--samples",
            "num_autoregressive_samples",
            kind=int,
            metavar="N",
            help="How often the text is spoken in codes, the best being kept; 1 to 4096. More is better and slower.",
        ),
        _number(
            "--temperature",
            kind=float,
            metavar="X",
            help="Variety of the speech; above 0. Low is even, high is lively and risky. [default: 0.8]",
        ),
        _number(
            "--top-p",
            kind=float,
            metavar="P",
            help="Draw from the most likely codes that together have this probability; above 0, at most 1. [default: 0.8]",
        ),
        _number(
            "--top-k",
            kind=int,
            metavar="K",
            help="Draw from the K most likely codes; 0 for all. [default: 50]",
        ),
        _number(
            "--repetition-penalty",
            kind=float,
            metavar="X",
            help="Above 1: discourages codes already used (stutter, long silence). [default: 2.0]",
        ),
        _number(
            "--length-penalty",
            kind=float,
            metavar="X",
            help="Accepted as in TorToiSe, where it has no effect when codes are drawn. [default: 1.0]",
        ),
        click.option(
            "--typical/--no-typical",
            "typical_sampling",
            default=None,
            help="Locally typical sampling. [default: off]",
        ),
        _number(
            "--typical-mass",
            kind=float,
            metavar="P",
            help="Its probability; above 0, at most 1. [default: 0.9]",
        ),
        click.option(
            "--greedy",
            is_flag=True,
            default=None,
            help="Always the most likely code: nothing is drawn in this stage.",
        ),
        _number(
            "--max-mel-tokens",
            kind=int,
            metavar="N",
            help="Longest clip in codes of 46 ms. [default: 500, or what the model has room for]",
        ),
        _number(
            "--cvvp-amount",
            kind=float,
            metavar="X",
            help="Rank samples by likeness to the voice (1), to the text (0) or both; needs clips. [default: 0]",
        ),
        _number(
            "--diffusion-iterations",
            kind=int,
            metavar="N",
            help="Denoising steps, 1 to 4000; above 250 little is gained.",
        ),
        click.option(
            "--sampler",
            type=_choose(SAMPLERS),
            help="Denoising rule: ancestral (TorToiSe's); ddim, for about 30 steps and more; dpm++2m, for about 10 and "
            "more, or dpm++2m_sde, the same with noise. [default: ancestral]",
        ),
        _number("--eta", kind=float, metavar="X", help="ddim only: its noise, 0 to 1. [default: 0]"),
        click.option(
            "--cond-free/--no-cond-free",
            default=None,
            help="Guidance: a second, unconditioned pass in every step. Better and twice as slow. [default: on]",
        ),
        _number(
            "--cond-free-k", kind=float, metavar="X", help="Strength of guidance; 0 or more. [default: 2.0]"
        ),
        _number(
            "--cond-free-share",
            kind=float,
            metavar="X",
            help="Share of the steps, the last ones, that are guided, 0 to 1: guidance is weak in the first. [default: 1]",
        ),
        _number(
            "--diffusion-temperature",
            kind=float,
            metavar="X",
            help="Noise that diffusion starts from, 0 to 1; less is smoother and duller. [default: 1.0]",
        ),
        _number(
            "--batch-rows",
            kind=int,
            metavar="N",
            help="Samples drawn at once; bounds memory, changes no result. [default: 16]",
        ),
        click.option(
            "--check",
            is_flag=True,
            default=None,
            help="Let an aligner compare each clip with the text: words missing, said twice or added, a tail, no stop. A bad "
            "one is drawn again with the next seed, and the best is kept. Needs an engine with an aligner, as the demo is.",
        ),
        _number("--max-retries", kind=int, metavar="N", help="Of --check: how often at most. [default: 2]"),
        click.option(
            "--kv-positions",
            type=_choose(KV_POSITIONS),
            help="upstream reproduces a position fault of TorToiSe's cache, for comparison. [default: trained]",
        ),
    ]
)
