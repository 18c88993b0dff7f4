"""Map a function over items in forked processes: threads would only wait for each other during many small steps."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

from gated_backfill.common.process.identity import die_with_parent

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess

MAX_PROCESSES = 4
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  #: meant for the parent, which kills its helpers

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_processes() -> int:
    """Return how many processes may share work: 1 if this process cannot be forked safely or has a single core.

    A fork is unsafe while another thread may hold a lock. Python's threads may; the idle threads of Arrow and numpy
    hold none.
    """
    if sys.platform != "linux" or threading.active_count() > 1:
        return 1
    return min(len(os.sched_getaffinity(0)), MAX_PROCESSES)


def map_in_forks(function: Callable[[Item], Result], items: Sequence[Item], processes: int) -> list[Result]:
    """Return the function's result for each item, in order. Item n is computed by process n modulo `processes`.

    The function must have no side effects, and its results must be picklable. This process computes the share of a
    helper that fails, so an error of the function is raised here.
    """
    shares = [items[first::processes] for first in range(processes)]
    with _helpers(function, shares[1:]) as receivers:
        results = [[function(item) for item in shares[0]]]
        for receiver, share in zip(receivers, shares[1:], strict=True):
            try:
                results.append(receiver.recv())
            except (EOFError, OSError):  # the helper ended before or while it sent its results
                results.append([function(item) for item in share])
    return [results[at % processes][at // processes] for at in range(len(items))]


@contextmanager
def _helpers(
    function: Callable[[Item], Result], shares: Sequence[Sequence[Item]]
) -> Generator[list[Connection[Any, Any]]]:
    """Fork a helper for each share, and yield the connections to receive their results. Kill them at the end."""
    fork = multiprocessing.get_context("fork")
    helpers: list[ForkProcess] = []
    receivers: list[Connection[Any, Any]] = []
    try:
        for share in shares:
            receiver, sender = fork.Pipe(duplex=False)
            receivers.append(cast("Connection[Any, Any]", receiver))
            helper = fork.Process(target=_run_helper, args=(function, share, receiver, sender), daemon=True)
            with sender, suppress(OSError), _interrupts_blocked(), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # there are threads: see `usable_processes`
                helper.start()  # if the fork fails, the parent computes the share
                helpers.append(helper)
        yield receivers
    finally:
        for helper in helpers:
            helper.kill()
        for helper in helpers:
            helper.join()
        for receiver in receivers:
            receiver.close()


@contextmanager
def _interrupts_blocked() -> Generator[None]:
    """Block interrupts until the end of this context, and for ever in a process that is forked inside it."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _run_helper(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    receiver: Connection[Any, Any],
    sender: Connection[Any, Any],
) -> None:
    """Send the parent the results, and end when the parent ends."""
    die_with_parent()
    parent = multiprocessing.parent_process()
    if parent is None or os.getppid() != parent.pid:  # the parent ended before `die_with_parent`
        os._exit(1)
    receiver.close()  # while a reader is open, a write after the parent's end does not fail
    try:
        sender.send([function(item) for item in items])
    except Exception:  # noqa: BLE001 - the parent computes the share again and raises the error
        os._exit(1)
