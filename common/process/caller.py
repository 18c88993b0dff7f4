"""The module that calls a function of ours, for paths that a job's author gives relative to it."""

from __future__ import annotations

import inspect
from pathlib import Path


def calling_folder() -> Path | None:
    """Return the folder of the module that called the function that calls this one; None if it has no file."""
    frame = inspect.currentframe()
    for _ in range(2):
        assert frame is not None, "CPython has frames, and both functions a caller"
        frame = frame.f_back
    module_file = frame.f_globals.get("__file__") if frame is not None else None
    return Path(module_file).parent if module_file is not None else None
