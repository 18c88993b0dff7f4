"""The line with which a background process answers the command that started it."""

from __future__ import annotations

import os
import sys


def send_startup_answer(line: str) -> None:
    """Write the one line that the command that started this process reads, and redirect stdout to the null device."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
