"""Signals whose handlers raise: what of it shows as an error of a library, and what they are not to interrupt."""

from __future__ import annotations

import signal
import sys
import threading
from _signal import getsignal  # pyright: ignore - that of `signal` looks for a name first, a hundred times as long
from collections.abc import Callable
from types import FrameType
from typing import Any

#: Those by which a process is told to stop, or that its time is up: SIGUSR1 is Celery's.
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM)


def find_interruption(exc: BaseException) -> BaseException | None:
    """What a signal's handler raised, if the error came up only while that was on its way; None if it is one by itself.

    Libraries that tidy up after an exception find their state half changed by one that came from nowhere.
    """
    behind: BaseException | None = exc
    while behind is not None and not _is_interruption(behind):
        behind = behind.__cause__ or behind.__context__
    return behind


def _is_interruption(exc: BaseException) -> bool:
    if isinstance(exc, (SystemExit, KeyboardInterrupt)):
        return True
    limits = sys.modules.get("billiard.exceptions")  # where it was not imported, nobody raises its errors
    return limits is not None and isinstance(exc, limits.SoftTimeLimitExceeded)


class _Held:
    """The signals of this process that wait for the end of what is not to be interrupted."""

    depth = 0
    waiting: list[Callable[[], Any]] = []  # noqa: RUF012 - of the process, as signals are


class _Waits:
    """A handler that waits where it must."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self._handler = handler

    def __call__(self, which: int, frame: FrameType | None) -> None:
        if _Held.depth:
            _Held.waiting.append(lambda: self._handler(which, frame))
        else:
            self._handler(which, frame)


class defer_signals:  # noqa: N801 - used as a function is
    """In this context no signal's handler runs; those of signals that came meanwhile run at its end.

    For what is short and must be left whole: an exception that a handler raises on the way into or out of a context
    can leave it open, and what it holds is then held for as long as anybody looks at the exception.
    """

    def __enter__(self) -> None:
        self._applies = threading.current_thread() is threading.main_thread()  # handlers run in no other
        if not self._applies:
            return
        for which in HANDLED:
            handler = getsignal(which)
            if callable(handler) and not isinstance(handler, _Waits):
                signal.signal(which, _Waits(handler))
        _Held.depth += 1  # from here on nothing comes in between

    def __exit__(self, *_: object) -> None:
        if not self._applies:
            return
        _Held.depth -= 1
        while _Held.waiting and not _Held.depth:
            _Held.waiting.pop(0)()
