"""Taking down what `backfill up` keeps up."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass

import psutil

from gated_backfill.common.config.settings import Settings
from gated_backfill.common.process.identity import is_dead, kill_if_same
from gated_backfill.producer.stack.state_file import (
    forget_standing,
    read_standing,
    refuse_elsewhere,
    starting_or_stopping,
)

CLOSING_SECONDS = 10.0  #: that stopping takes beyond the tasks in progress
ENDING_SECONDS = 10.0  #: that killed processes take to be gone


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """What `down` found and did."""

    was_up: bool
    was_dead: bool = False  #: the process that kept it up had been killed
    killed: bool = False  #: it did not end in time


def take_down(settings: Settings) -> Stopped:
    """Stop the stack of the home; afterwards neither a process nor a state file of it is left.

    Raises `UserError` for one that another machine or container keeps up.
    """
    with starting_or_stopping(settings.home):
        found = read_standing(settings.home)
        if found is None or is_dead(found.owner):
            forget_standing(settings.home)
            return Stopped(was_up=False, was_dead=found is not None)
        refuse_elsewhere(found, settings.home)
        pid = int(found.owner.rsplit(":", 2)[1])
        processes = _family(pid)
        with suppress(ProcessLookupError):  # it may have ended just now; what it started is seen off all the same
            os.kill(pid, signal.SIGTERM)
        killed = not _ends(found.owner, settings.stop_seconds + CLOSING_SECONDS)
        if killed:
            processes += _family(pid)
            kill_if_same(found.owner)
        _see_off(processes)
        forget_standing(settings.home)
    return Stopped(was_up=True, killed=killed)


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
    psutil.wait_procs(left, timeout=ENDING_SECONDS)
