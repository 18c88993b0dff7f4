"""Measure the floor of each date's expectation, for plan and audit alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

from gated_backfill.common.model.coverage import ExpectationFloor
from gated_backfill.common.model.expectation_floor import (
    CheckpointedDate,
    compute_floors,
    neighbour_days,
    share_of_recent,
)
from gated_backfill.common.model.job import Job
from gated_backfill.common.warehouse.coverage_queries import expectation_scan
from gated_backfill.common.warehouse.protocol import Warehouse


def measure_floors(
    warehouse: Warehouse,
    job: Job,
    days: Sequence[date],
    expected: Mapping[date, int],
    *,
    checkpoints: Mapping[date, CheckpointedDate],
    accept_ratio: float,
    has_calendar: bool,
) -> dict[date, ExpectationFloor]:
    """Compute the floor of each day; counts the expected entities of the dates around the days as well.

    `expected` has the number of expected entities of the days themselves; `has_calendar` says whether the calendar's
    table exists.
    """
    if share_of_recent(job.expectation, has_calendar=has_calendar):
        neighbours = warehouse.count_entities(expectation_scan(job, neighbour_days(days)), {}, [])
        expected = {**expected, **neighbours.expected}
    return compute_floors(
        job.expectation, days, expected, checkpoints=checkpoints, accept_ratio=accept_ratio, has_calendar=has_calendar
    )
