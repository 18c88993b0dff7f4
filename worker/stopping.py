"""Stopping of a worker: its tasks have a time to end, then they release what they claimed, and the worker ends.

Celery waits for tasks in progress as long as they take, and for a broker that does not answer.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import psutil
import structlog
from celery.signals import worker_shutting_down

from gated_backfill.common.config.settings import read_settings

log = structlog.get_logger()

RESERVE_SECONDS = 6.0  #: of the time for stopping, for what follows when tasks in progress have not ended by themselves
RESERVE_SHARE = 0.4  #: of the time for stopping, which the reserve may be at most


def end_in_time(on_end: Callable[[], object]) -> None:
    """Have this worker end within `BACKFILL_STOP_SECONDS` of the signal that stops it.

    `on_end` is called before the worker is ended although Celery waits for something; it may not succeed.
    """

    def begin(**_: object) -> None:
        if not any(thread.name == __name__ for thread in threading.enumerate()):  # a second signal changes nothing
            arguments = (read_settings().stop_seconds, on_end)
            threading.Thread(target=_end_after, args=arguments, name=__name__, daemon=True).start()

    worker_shutting_down.connect(begin, weak=False)


def _end_after(seconds: float, on_end: Callable[[], object]) -> None:
    reserve = min(RESERVE_SECONDS, RESERVE_SHARE * seconds)
    time.sleep(seconds - reserve)
    processes = psutil.Process().children()  # those that run tasks
    _signal(processes, signal.SIGTERM)
    psutil.wait_procs(processes, timeout=reserve / 2)  # while they release their claims
    time.sleep(reserve / 6)  # Celery may end the worker now, but often waits without end
    log.warning("worker_stop_forced", seconds=seconds)
    _signal(processes, signal.SIGKILL)
    last = threading.Thread(target=on_end, daemon=True)
    last.start()
    last.join(reserve / 8)
    os._exit(os.EX_OK)


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
