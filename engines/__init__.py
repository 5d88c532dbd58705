"""Engine bundles that ship with the package; what users export goes to their cache folder."""

from pathlib import Path


def folder() -> Path:
    """The folder that holds them."""
    return Path(__file__).parent
