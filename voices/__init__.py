"""Voices that ship with the package: one folder each, with its clips or latents and where they come from."""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """The folder that holds the voices."""
    return Path(__file__).parent
