"""The floor of an expectation: the fewest entities that a date may expect. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from functools import lru_cache
from typing import NamedTuple, Protocol

from gated_backfill.common.model.coverage import NO_FLOOR, ExpectationFloor, least_count
from gated_backfill.common.model.dates import ONE_DAY
from gated_backfill.common.model.job import Expectation

DEFAULT_SHARE_OF_RECENT = 0.1  #: without a calendar
NEIGHBOUR_DAYS = 28  #: dates that are further away say nothing about a date
MAX_NEIGHBOURS = 7  #: dates with entities, on each side
MIN_NEIGHBOURS = 3  #: on both sides together; fewer say nothing


class CheckpointedDate(Protocol):
    """The part of a checkpoint that a floor depends on."""

    @property
    def expected(self) -> int: ...

    @property
    def run_id(self) -> str: ...


def share_of_recent(expectation: Expectation, *, has_calendar: bool) -> float:
    """Return the share of the usual number of entities that a date must expect; 0 for none.

    `has_calendar` says whether the calendar's table exists: one that does not exist guards nothing.
    """
    if expectation.floor_share_of_recent is not None:
        return expectation.floor_share_of_recent
    return 0.0 if has_calendar else DEFAULT_SHARE_OF_RECENT


def has_shrunk(checkpoint: CheckpointedDate, expected: int, accept_ratio: float) -> bool:
    """Return whether fewer entities are expected now than a date with this checkpoint may expect."""
    return expected < least_count(checkpoint.expected, accept_ratio)


def neighbour_days(days: Collection[date]) -> list[date]:
    """Return the days that are close enough to one of the days to count for its floor, without the days themselves."""
    asked = set(days)
    # Only the days at the ends of consecutive dates have neighbours that were not asked for.
    edges = [day for day in asked if not {day - ONE_DAY, day + ONE_DAY} <= asked]
    around = {day + ONE_DAY * n for day in edges for n in range(-NEIGHBOUR_DAYS, NEIGHBOUR_DAYS + 1)}
    return sorted(around - asked)


def compute_floors(
    expectation: Expectation,
    days: Sequence[date],
    expected: Mapping[date, int],
    *,
    checkpoints: Mapping[date, CheckpointedDate],
    accept_ratio: float,
    has_calendar: bool,
) -> dict[date, ExpectationFloor]:
    """Return the floor of each day; the largest of those that apply.

    `expected` has the number of entities by day, also of the `neighbour_days`. Where nothing is expected, only what a
    checkpoint expected sets a floor: a date without entities may be a day off.
    """
    share = share_of_recent(expectation, has_calendar=has_calendar)
    recent = _RecentCounts(expected) if share else None

    def floor_of(day: date) -> ExpectationFloor:
        count = expected.get(day, 0)
        if (checkpoint := checkpoints.get(day)) is not None and checkpoint.expected >= count:
            text = f"were expected when run {checkpoint.run_id} checkpointed it"
            largest = _Share(checkpoint.expected, accept_ratio, text)
        elif count:
            largest = _Share(count, accept_ratio, "were expected when the run was planned")
        else:
            return NO_FLOOR
        if not count:
            return _as_floor(largest)
        if recent is not None and share * recent.largest > largest.least() and (counts := recent.counts_around(day)):
            usual = _Share(_median(counts), share, f"are usual on the {len(counts)} dates around it")
            largest = max(largest, usual, key=_Share.least)
        if expectation.floor is not None and expectation.floor > largest.least():
            return ExpectationFloor(count=expectation.floor, reason="the job's floor")
        return _as_floor(largest)

    return {day: floor_of(day) for day in days}


class _Share(NamedTuple):
    """A share of a number of entities, as a possible floor."""

    whole: float
    share: float
    text: str

    def least(self) -> int:
        return least_count(self.whole, self.share)


@lru_cache  # most dates share theirs with others
def _as_floor(share: _Share) -> ExpectationFloor:
    reason = f"{share.whole:g} {share.text}, and {share.share:.0%} of that is required"
    return ExpectationFloor(count=share.least(), reason=reason)


class _RecentCounts:
    """The numbers of expected entities on dates that have any."""

    def __init__(self, expected: Mapping[date, int]) -> None:
        counts = sorted((day.toordinal(), count) for day, count in expected.items() if count)
        self._days = [day for day, _ in counts]  # as ordinals, which compare faster
        self._counts = [count for _, count in counts]
        self.largest = max(self._counts, default=0)

    def counts_around(self, day: date) -> list[int]:
        """Return the counts of the nearest dates on both sides of the day; none if they are too few."""
        ordinal = day.toordinal()
        at = bisect_left(self._days, ordinal)
        after = at + 1 if at < len(self._days) and self._days[at] == ordinal else at
        first = bisect_left(self._days, ordinal - NEIGHBOUR_DAYS, max(at - MAX_NEIGHBOURS, 0), at)
        last = bisect_left(
            self._days, ordinal + NEIGHBOUR_DAYS + 1, after, min(after + MAX_NEIGHBOURS, len(self._days))
        )
        counts = self._counts[first:at] + self._counts[after:last]
        return counts if len(counts) >= MIN_NEIGHBOURS else []


def _median(counts: Sequence[int]) -> float:
    ordered = sorted(counts)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
