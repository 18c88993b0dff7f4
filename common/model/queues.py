"""The queues, and which of them the dates of a run are sent to.

A queue is first in, first out: in one queue, the dates of a run would wait behind all those that a ten-year run has in
flight. So runs are spread over lanes, from which every worker takes in turn, and small runs have a queue of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

DATES_QUEUE = "backfill"  #: the first lane, and the name by which a worker consumes all of them
LANES = (DATES_QUEUE, "backfill.2", "backfill.3", "backfill.4")  #: of the dates of long runs
EXPRESS_QUEUE = "express"  #: of the dates of small runs: at least one worker does nothing else
GATE_QUEUE = "gate"
MAINTENANCE_QUEUE = "maintenance"  #: what takes a moment and must not wait: heartbeat, reconciling, telling
HOUSEKEEPING_QUEUE = "housekeeping"  #: the daily works, which may take an hour
DATES_QUEUES = (*LANES, EXPRESS_QUEUE)
QUEUES = (*DATES_QUEUES, GATE_QUEUE, MAINTENANCE_QUEUE, HOUSEKEEPING_QUEUE)


def choose_queue(dates: int, *, express_dates: int, active_queues: Iterable[str]) -> str:
    """Where a run of so many dates to build sends them; `taken` are the queues of the runs that are active.

    A small run goes to the express queue, any other to the lane with the fewest runs, the first one of several.
    """
    if dates <= express_dates:
        return EXPRESS_QUEUE
    runs = Counter(active_queues)
    return min(LANES, key=lambda lane: runs[lane])


def expand_queues(names: Collection[str]) -> frozenset[str]:
    """What a worker consumes that was told to consume these: who takes dates takes them from every lane."""
    return frozenset(names) | (set(DATES_QUEUES) if DATES_QUEUE in names else set[str]())
