"""Stopping of a worker: its tasks have a time to end, then they release what they claimed, and the worker ends.

Celery waits for tasks in progress as long as they take, and for a broker that does not answer.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

import psutil
import structlog
from celery.signals import worker_shutting_down

from gated_backfill.common.config.settings import read_settings

log = structlog.get_logger()

TASKS_SHARE = 0.75  #: of the time for stopping, in which tasks in progress may end by themselves
PROCESSES_SHARE = 0.95  #: of the time for stopping, after which the worker ends, whatever it waits for


def end_in_time() -> None:
    """Have this worker end within `BACKFILL_STOP_SECONDS` of the signal that stops it."""
    worker_shutting_down.connect(_begin, weak=False)


def _begin(**_: object) -> None:
    if not any(thread.name == __name__ for thread in threading.enumerate()):  # a second signal changes nothing
        seconds = read_settings().stop_seconds
        threading.Thread(target=_end_after, args=(seconds,), name=__name__, daemon=True).start()


def _end_after(seconds: float) -> None:
    started = time.monotonic()
    time.sleep(TASKS_SHARE * seconds)
    _signal_processes(signal.SIGTERM)
    time.sleep(max(started + PROCESSES_SHARE * seconds - time.monotonic(), 0))
    log.warning("worker_stop_forced", seconds=seconds)
    _signal_processes(signal.SIGKILL)
    os._exit(os.EX_OK)


def _signal_processes(number: signal.Signals) -> None:
    """Send the signal to the processes that run tasks."""
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
