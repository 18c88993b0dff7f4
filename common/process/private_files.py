"""Folders and files that only their owner can read, whatever the umask."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER_MODE = 0o700
FILE_MODE = 0o600
OF_OTHERS = 0o077  #: the rights of everybody but the owner
ENTERED_BY_OTHERS = 0o011


def make_private_folder(folder: Path) -> None:
    """Create the folder and its missing parents for their owner only. Existing folders keep their rights."""
    for missing in [path for path in reversed(folder.parents) if not path.exists()]:
        missing.mkdir(mode=FOLDER_MODE, exist_ok=True)
    folder.mkdir(mode=FOLDER_MODE, exist_ok=True)


def private_opener(path: str, flags: int) -> int:
    """Open a file as `open(..., opener=private_opener)`: a new one is for its owner only."""
    return os.open(path, flags, FILE_MODE)


def is_open_to_others(path: Path) -> bool:
    """Return whether users other than the owner have rights on the path, and can reach it; False if it is missing."""
    path = path.resolve()
    if not path.exists() or not path.stat().st_mode & OF_OTHERS:
        return False
    return all(parent.stat().st_mode & ENTERED_BY_OTHERS for parent in path.parents)
