"""Being told to stop."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NoReturn


@contextmanager
def interrupt_on_signals() -> Generator[None]:
    """Inside it, SIGTERM and SIGHUP end the command as a Ctrl-C does, also where a shell had SIGINT ignored."""

    def stop(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = {which: signal.signal(which, stop) for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
