"""What is compared with the recordings, one module per group of files. ``SECTIONS`` names them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import autoregressive, diffusion, fast, frontend, ranking, sampling, text, vocoder, whole
from .recording import Check

#: section -> the checks of its file of recordings (text.json, otherwise SECTION.npz)
SECTIONS: Mapping[str, Sequence[Check]] = {
    "text": text.CHECKS,
    "frontend": frontend.CHECKS,
    "ar": autoregressive.CHECKS,
    "generate": sampling.GENERATE_CHECKS,
    "processors": sampling.PROCESSOR_CHECKS,
    "rank": ranking.CHECKS,
    "diffusion": diffusion.CHECKS,
    "schedule": diffusion.SCHEDULE_CHECKS,
    "vocoder": vocoder.CHECKS,
    "misc": vocoder.MISC_CHECKS,
    "e2e": whole.CHECKS,
    "e2e_fast": fast.CHECKS,
}
