"""Taking down what `backfill up` keeps up."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass

import psutil

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.process.identity import is_dead, kill_if_alive
from gated_backfill.producer.stack.state_file import (
    check_not_elsewhere,
    read_stack_state,
    remove_stack_state,
    stack_lock,
)

SHUTDOWN_MARGIN_SECONDS = 10.0  #: that stopping takes beyond the tasks in progress
KILL_TIMEOUT_SECONDS = 10.0  #: that killed processes take to be gone


@dataclass(frozen=True, kw_only=True)
class ShutdownResult:
    """What `down` found and did."""

    was_up: bool
    was_dead: bool = False  #: the process that kept it up had been killed
    killed: bool = False  #: it did not end in time


def shut_down_stack(settings: Settings) -> ShutdownResult:
    """Stop the stack of the home; afterwards neither a process nor a state file of it is left.

    Raises `UserError` for one that another machine or container keeps up.
    """
    with stack_lock(settings.home):
        found = read_stack_state(settings.home)
        if found is None or is_dead(found.owner):
            remove_stack_state(settings.home)
            return ShutdownResult(was_up=False, was_dead=found is not None)
        check_not_elsewhere(found, settings.home)
        pid = int(found.owner.rsplit(":", 2)[1])
        processes = _family(pid)
        with suppress(ProcessLookupError):  # it may have ended just now; what it started is seen off all the same
            os.kill(pid, signal.SIGTERM)
        killed = not _ends(found.owner, settings.stop_seconds + SHUTDOWN_MARGIN_SECONDS)
        if killed:
            processes += _family(pid)
            kill_if_alive(found.owner)
        _see_off(processes)
        remove_stack_state(settings.home)
    return ShutdownResult(was_up=True, killed=killed)


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _ends(owner: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not is_dead(owner):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _see_off(processes: list[psutil.Process]) -> None:
    """What the kernel has not ended with its parent is killed; psutil makes sure that each is still the same."""
    _, left = psutil.wait_procs(processes, timeout=1)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=KILL_TIMEOUT_SECONDS)
