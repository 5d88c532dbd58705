"""Engine bundles that ship with the package; what users export goes to their cache folder.

NOTICE.md says what they were made from. Folders inside a bundle's (its training) are not installed.
"""

from pathlib import Path


def folder() -> Path:
    """The folder that holds them."""
    return Path(__file__).parent
