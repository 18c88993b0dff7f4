"""A lock between processes of one machine that dies with its holder."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

LOCKS = Path("/proc/locks")  #: the kernel's list of file locks, on Linux
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.05  #: seconds between two tries


class LockNotFree(Exception):
    """Another process held the lock for the whole time that was waited for it."""

    def __init__(self, holder: int | None) -> None:
        super().__init__("another process" if holder is None else f"process {holder}")


@contextmanager
def locked(path: Path, *, max_wait_seconds: float | None = None) -> Generator[None]:
    """Hold an exclusive lock on the file; the operating system releases it if the process dies.

    Waits for the lock as long as it takes, or raises `LockNotFree` after that many seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if max_wait_seconds is None:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            _wait_for_lock(file, time.monotonic() + max_wait_seconds)
        yield


def _wait_for_lock(file: TextIO, deadline: float) -> None:
    pause = FIRST_PAUSE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            if time.monotonic() >= deadline:
                raise LockNotFree(_find_holder(file)) from exc
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            return


def _find_holder(file: TextIO) -> int | None:
    """Return the process that holds the lock; None if the system does not tell."""
    inode = str(os.fstat(file.fileno()).st_ino)
    try:
        lines = LOCKS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:  # such as "1: FLOCK  ADVISORY  WRITE 4711 00:2f:1234 0 EOF"
        _, kind, *_, pid, place, _, _ = line.split()
        if kind == "FLOCK" and place.rsplit(":", 1)[1] == inode and int(pid) > 0:
            return int(pid)
    return None
