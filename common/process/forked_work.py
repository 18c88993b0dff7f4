"""Map a function over items in forked processes: threads would only wait for each other during many small steps."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from gated_backfill.common.process.identity import die_with_parent
from gated_backfill.common.process.signals import defer_signals

MAX_PROCESSES = 4

Item = TypeVar("Item")
Result = TypeVar("Result")

_run_function: Callable[[Any], Any]  #: set in a helper


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

    The function must have no side effects, and its results must be picklable and small: that a helper was killed while
    it wrote a result of more than 16 KB is not noticed. If a helper cannot be started or is killed at another time,
    this process computes every item.
    """
    if processes > 1:
        with suppress(BrokenProcessPool, OSError), _submitted(function, items, processes) as futures:
            return [future.result() for future in futures]
    return [function(item) for item in items]


@contextmanager
def _submitted(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Generator[list[Future[Result]]]:
    """Start a process pool with the items. Kill its processes at the end."""
    earlier_children = multiprocessing.active_children()
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _prepare_helper, (function, os.getpid()))
    try:
        with defer_signals(), warnings.catch_warnings():  # helpers defer for ever the signals meant for the parent
            warnings.simplefilter("ignore", DeprecationWarning)  # there are threads: see `usable_processes`
            futures = [pool.submit(_run, item) for item in items]
        yield futures
    finally:
        for helper in set(multiprocessing.active_children()).difference(earlier_children):
            helper.kill()
        pool.shutdown()


def _prepare_helper(function: Callable[[Any], Any], parent: int) -> None:
    """End this process when the parent ends, and keep the function, which need not be picklable."""
    global _run_function
    die_with_parent(parent)
    _run_function = function


def _run(item: Any) -> Any:
    return _run_function(item)
