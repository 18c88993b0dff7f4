"""Importing much at once without looking for garbage, on the way or ever again, in what is imported: it all stays."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Generator
from contextlib import contextmanager

# What ends with the process is looked through after all: libraries tell of what is left of theirs then.
atexit.register(gc.unfreeze)


@contextmanager
def freeze_imports() -> Generator[None]:
    """Import in here what stays.

    Whatever else is there at the end of it counts as staying too. To look through it once would take as long as a
    tenth of the imports, in each process that is forked afterwards besides, which would get a copy of it all by that.
    """
    looked = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if looked:
            gc.enable()
