"""The queues, and the choice of the queue for a run's dates.

A queue is first in, first out, so in a single queue each run would wait behind all dates in flight of a ten-year run.
Runs are therefore spread over lanes, which every worker reads in turn, and small runs have a separate queue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

EMBEDDED = "embedded"  #: the host in the names of the workers of one run's own stack

DATES_QUEUE = "backfill"  #: the first lane, and the name by which a worker consumes all of them
LANES = (DATES_QUEUE, "backfill.2", "backfill.3", "backfill.4")  #: of the dates of long runs
EXPRESS_QUEUE = "express"  #: of the dates of small runs: at least one worker does nothing else
GATE_QUEUE = "gate"
MAINTENANCE_QUEUE = "maintenance"  #: short tasks that must not wait: heartbeat, reconciling, post-run reporting
HOUSEKEEPING_QUEUE = "housekeeping"  #: the daily maintenance tasks, which may take an hour
DATES_QUEUES = (*LANES, EXPRESS_QUEUE)
QUEUES = (*DATES_QUEUES, GATE_QUEUE, MAINTENANCE_QUEUE, HOUSEKEEPING_QUEUE)


def choose_queue(dates: int, *, express_dates: int, active_queues: Iterable[str]) -> str:
    """Choose the queue for a run that builds `dates` dates.

    A run of at most `express_dates` uses the express queue. A larger run uses the lane with the fewest active runs;
    `active_queues` lists the queue of each active run.
    """
    if dates <= express_dates:
        return EXPRESS_QUEUE
    runs = Counter(active_queues)
    return min(LANES, key=lambda lane: runs[lane])


def expand_queues(names: Collection[str]) -> frozenset[str]:
    """Return the queues that a worker consumes: the first lane includes all queues of dates."""
    return frozenset(names) | (set(DATES_QUEUES) if DATES_QUEUE in names else set[str]())
