"""Signals that stop a command."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NoReturn


@contextmanager
def interrupt_on_signals() -> Generator[None]:
    """Raise `KeyboardInterrupt` for SIGINT, SIGTERM and SIGHUP, also when a shell had SIGINT ignored."""

    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
