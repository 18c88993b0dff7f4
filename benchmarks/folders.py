"""Folders for measured runs."""

from __future__ import annotations

import tempfile
from pathlib import Path


def fresh_folder(place: Path) -> Path:
    """Make a folder that is kept until the end, because ext4 is slow after thousands of deletions."""
    return Path(tempfile.mkdtemp(dir=place))
