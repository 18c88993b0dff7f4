"""Shut down the stack that `backfill up` started."""

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

SHUTDOWN_MARGIN_SECONDS = 10.0  #: allowed for stopping after the tasks in progress have finished
KILL_TIMEOUT_SECONDS = 10.0  #: allowed for killed processes to end


@dataclass(frozen=True, kw_only=True)
class ShutdownResult:
    """The result of `backfill down`."""

    was_up: bool
    was_dead: bool = False  #: its supervisor had been killed
    killed: bool = False  #: it did not end in time, and was killed


def shut_down_stack(settings: Settings) -> ShutdownResult:
    """Stop the stack of this home, and remove its processes and its state file.

    Raises `UserError` when another machine or container runs it.
    """
    with stack_lock(settings.home):
        stack = read_stack_state(settings.home)
        if stack is None or is_dead(stack.owner):
            remove_stack_state(settings.home)
            return ShutdownResult(was_up=False, was_dead=stack is not None)
        check_not_elsewhere(stack, settings.home)
        pid = int(stack.owner.rsplit(":", 2)[1])
        processes = _descendants(pid)
        with suppress(ProcessLookupError):  # it ended meanwhile; its descendants are killed below
            os.kill(pid, signal.SIGTERM)
        killed = not _wait_for_end(stack.owner, settings.stop_seconds + SHUTDOWN_MARGIN_SECONDS)
        if killed:
            processes += _descendants(pid)
            kill_if_alive(stack.owner)
        _kill_remaining(processes)
        remove_stack_state(settings.home)
    return ShutdownResult(was_up=True, killed=killed)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _wait_for_end(owner: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not is_dead(owner):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _kill_remaining(processes: list[psutil.Process]) -> None:
    """Kill the processes that did not end with their parent; psutil checks that no process id was reused."""
    _, remaining = psutil.wait_procs(processes, timeout=1)
    for process in remaining:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(remaining, timeout=KILL_TIMEOUT_SECONDS)
