"""Signal handlers that raise: install them, defer them, and recognise the errors they cause."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from _signal import getsignal  # pyright: ignore - `signal.getsignal` looks up an enum and takes 100 times as long
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Signals that stop a process or end its time limit; Celery's soft time limit is SIGUSR1.
HANDLED_SIGNALS = (*STOP_SIGNALS, signal.SIGUSR1, signal.SIGALRM)
HANDLER_PACKAGES = ("billiard", "celery", "kombu", "gated_backfill")  #: install handlers of signals


@contextmanager
def interrupt_on_signals() -> Generator[None]:
    """Raise `KeyboardInterrupt` for SIGINT, SIGTERM and SIGHUP, also when a shell had SIGINT ignored."""

    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def find_interruption(exc: BaseException) -> BaseException | None:
    """Return the interruption that a signal handler raised and that led to the error, or None for any other error.

    A library that cleans up after an interruption may fail on its half-changed state and hide the interruption.
    """
    cause: BaseException | None = exc
    while cause is not None and not _is_interruption(cause):
        cause = cause.__cause__ or cause.__context__
    return cause


def is_raised_by_handler(exc: BaseException) -> bool:
    """Return whether a signal's handler raised the error, and not the code that it interrupted."""
    *_, innermost = raising_frames(exc)
    return str(innermost.f_globals.get("__name__")).partition(".")[0] in HANDLER_PACKAGES


def raising_frames(exc: BaseException) -> list[FrameType]:
    """Return the frames through which the error was raised, the innermost last, without the one of `sys.exit`.

    In its processes, billiard replaces `sys.exit` by a function of its own, so that a job that calls it would look like
    a handler of billiard.
    """
    own_exit = getattr(sys.exit, "__code__", None)
    return [frame for frame, _ in traceback.walk_tb(exc.__traceback__) if frame.f_code is not own_exit]


def _is_interruption(exc: BaseException) -> bool:
    if isinstance(exc, (SystemExit, KeyboardInterrupt)):
        return True
    limits = sys.modules.get("billiard.exceptions")  # only Celery's workers import it
    return limits is not None and isinstance(exc, limits.SoftTimeLimitExceeded)


class _Deferred:
    """The process's deferred signals and the depth of nested contexts that defer them."""

    depth = 0
    waiting: list[Callable[[], Any]] = []  # noqa: RUF012 - per process, as signals are


class _DeferrableHandler:
    """A handler that runs at once, or at the end of the outermost context that defers signals."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self._handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _Deferred.depth:
            _Deferred.waiting.append(lambda: self._handler(number, frame))
        else:
            self._handler(number, frame)


class defer_signals:  # noqa: N801 - used like a function
    """Defer signal handlers to the end of this context.

    For short work that must complete: a handler that raises while another context is entered or left can leave it
    open, and its resource then stays locked as long as the exception's traceback exists.
    """

    def __enter__(self) -> None:
        self._applies = threading.current_thread() is threading.main_thread()  # only the main thread runs handlers
        if not self._applies:
            return
        for number in HANDLED_SIGNALS:
            handler = getsignal(number)
            if callable(handler) and not isinstance(handler, _DeferrableHandler):
                signal.signal(number, _DeferrableHandler(handler))
        _Deferred.depth += 1  # from here on handlers are deferred

    def __exit__(self, *_: object) -> None:
        if not self._applies:
            return
        _Deferred.depth -= 1
        while _Deferred.waiting and not _Deferred.depth:
            _Deferred.waiting.pop(0)()
