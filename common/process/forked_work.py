"""Map a function over items in forked processes: threads would only wait for each other during many small steps."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from gated_backfill.common.process.identity import die_with_parent
from gated_backfill.common.process.signals import defer_signals

MAX_PROCESSES = 4

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
    """Return the function's result for each item, in order. Raises the function's errors.

    The function must have no side effects, and its results must be picklable. If a helper cannot be started, is killed
    or gets an error, this process computes every item.
    """
    if processes > 1:
        with suppress(EOFError, OSError), _started(function, items, min(processes, len(items))) as receivers:
            shares = [receive() for receive in receivers]
            return [shares[n % len(shares)][n // len(shares)] for n in range(len(items))]
    return [function(item) for item in items]


@contextmanager
def _started(
    function: Callable[[Item], Result], items: Sequence[Item], helpers: int
) -> Generator[list[Callable[[], Any]]]:
    """Start helpers, each with a share of the items, and yield what receives their results. Kill them at the end."""
    fork = multiprocessing.get_context("fork")
    with ExitStack() as at_end:
        receivers: list[Callable[[], Any]] = []
        with defer_signals(), warnings.catch_warnings():  # helpers defer for ever the signals meant for the parent
            warnings.simplefilter("ignore", DeprecationWarning)  # there are threads: see `usable_processes`
            for first in range(helpers):
                reader, writer = fork.Pipe(duplex=False)
                receivers.append(at_end.enter_context(reader).recv)
                with writer:  # no other process keeps it open: a helper's death ends its pipe
                    share = items[first::helpers]
                    helper = fork.Process(target=_send_results, args=(function, share, writer, os.getpid()))
                    helper.start()
                at_end.callback(_end, helper)
        yield receivers


def _send_results(
    function: Callable[[Item], Result], share: Sequence[Item], writer: Connection[Any, Any], parent: int
) -> None:
    """Send the results of a helper's share. After an error it sends nothing: the parent computes and raises it."""
    die_with_parent(parent)
    with suppress(Exception):
        writer.send([function(item) for item in share])


def _end(helper: BaseProcess) -> None:
    helper.kill()
    helper.join()
