"""Work that is shared with forked processes: many small steps, between which threads only wait for each other."""

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

MOST_PROCESSES = 4
INTERRUPTING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  #: meant for the parent, which ends those it forked

Item = TypeVar("Item")
Made = TypeVar("Made")


def usable_processes() -> int:
    """By how many processes work can be done: 1 where this one can't be forked safely, or has one core alone.

    Forking goes wrong where another thread holds a lock just then. Threads of Python's may; those that Arrow and numpy
    keep wait for work without one.
    """
    if sys.platform != "linux" or threading.active_count() > 1:
        return 1
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


def map_in_forks(work: Callable[[Item], Made], items: Sequence[Item], processes: int) -> list[Made]:
    """What the work makes of each item, in their order, where every process takes one item in so many.

    The work changes nothing, and what it makes can be pickled. A share that its process does not answer for, whatever
    happened to it, is done here: what the work raises is raised by this process.
    """
    shares = [items[first::processes] for first in range(processes)]
    with _helped(work, shares[1:]) as helpers:
        done = [[work(item) for item in shares[0]]]
        for helper, others in zip(helpers, shares[1:], strict=True):
            try:
                done.append(helper.recv())
            except (EOFError, OSError):  # it ended before its answer, or in the middle of it
                done.append([work(item) for item in others])
    return [done[at % processes][at // processes] for at in range(len(items))]


@contextmanager
def _helped(work: Callable[[Item], Made], shares: Sequence[Sequence[Item]]) -> Generator[list[Connection[Any, Any]]]:
    """A process for each share, and where its answer is to be received. None of them outlives the context."""
    fork = multiprocessing.get_context("fork")
    helpers: list[ForkProcess] = []
    answers: list[Connection[Any, Any]] = []
    try:
        for one in shares:
            receiving, sending = fork.Pipe(duplex=False)
            answers.append(cast("Connection[Any, Any]", receiving))
            helper = fork.Process(target=_help, args=(work, one, receiving, sending), daemon=True)
            with sending, suppress(OSError), _uninterrupted(), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # there are threads: see `processes_to_share`
                helper.start()  # where none can be had, nobody answers for its share
                helpers.append(helper)
        yield answers
    finally:
        for helper in helpers:
            helper.kill()
        for helper in helpers:
            helper.join()
        for answer in answers:
            answer.close()


@contextmanager
def _uninterrupted() -> Generator[None]:
    """What interrupts waits for the end of this, and for ever in a process that is forked in here."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _help(
    work: Callable[[Item], Made], items: Sequence[Item], receiving: Connection[Any, Any], sending: Connection[Any, Any]
) -> None:
    """Answer the parent, and end with it: before the kernel is told to see to that, it may have ended already."""
    die_with_parent()
    parent = multiprocessing.parent_process()
    if parent is None or os.getppid() != parent.pid:
        os._exit(1)
    receiving.close()  # or this process would count as somebody who reads
    try:
        sending.send([work(item) for item in items])
    except Exception:  # noqa: BLE001 - the parent meets it itself, where it can be told
        os._exit(1)
