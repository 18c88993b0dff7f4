"""Observe dates for an audit: read coverage, rows, duplicates and checkpoints in a few grouped queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import LiteralString

from gated_backfill.common.audit.findings import DateObservation
from gated_backfill.common.errors import UserError
from gated_backfill.common.ledger import Checkpoint, Ledger
from gated_backfill.common.model.coverage import DateExpectation
from gated_backfill.common.model.dates import enclosing_range
from gated_backfill.common.model.job import CalendarEvents, Job
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.coverage_queries import (
    count_source_rows,
    expectation_scan,
    find_contradictions,
    read_expectation,
    target_scan,
)
from gated_backfill.common.warehouse.floors import measure_floors
from gated_backfill.common.warehouse.protocol import EntityCounts, Warehouse
from gated_backfill.common.warehouse.table_checks import target_types

PUBLISHED = ("published",)  #: the group of sources that has the published rows
KEY_ALIASES: tuple[LiteralString, ...] = ("k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7", "k8", "k9", "k10", "k11")


def observe_dates(
    job: Job,
    days: Sequence[date],
    warehouse: Warehouse,
    ledger: Ledger,
    calendar: CalendarEvents | None,
    *,
    has_target: bool,
) -> list[DateObservation]:
    """Observe each day. A day that a run published while this was reading is reported with that run as active.

    `calendar` holds the events of these days, `has_target` says whether the target table exists.
    """
    span = enclosing_range(days)
    checkpoints = ledger.checkpoints.list_checkpoints(job.name, span.start, span.through)
    active_runs = _active_runs(ledger, job, days)
    counts = _count_entities(job, days, warehouse, has_target=has_target)
    row_counts = _read_row_counts(job, days, warehouse) if has_target else {}
    expectations = _read_expectations(job, days, warehouse, counts, checkpoints, calendar)
    checksums = {day: checkpoints[day].checksum for day in days if day in checkpoints}
    unchanged = warehouse.matching_dates(TableName.parse(job.target.table), job.target.date_column, checksums)
    # A run that published a date between the first read and the last is still active, or has changed its checkpoint.
    active_runs |= _active_runs(ledger, job, days)
    checkpoints_after = ledger.checkpoints.list_checkpoints(job.name, span.start, span.through)
    active_runs |= _checkpointed_meanwhile(days, checkpoints, checkpoints_after)
    return [
        DateObservation(
            day=day,
            expectation=expectations[day],
            matched=counts.present[PUBLISHED].get(day, 0) if has_target else 0,
            rows=row_counts.get(day, (0, 0))[0],
            duplicates=row_counts.get(day, (0, 0))[1],
            checkpoint=checkpoints.get(day),
            matches_checkpoint=day in unchanged,
            skip_reason=job.skip_reason(day, calendar),
            active_run=active_runs.get(day),
        )
        for day in days
    ]


def _read_expectations(
    job: Job,
    days: Sequence[date],
    warehouse: Warehouse,
    counts: EntityCounts,
    checkpoints: Mapping[date, Checkpoint],
    calendar: CalendarEvents | None,
) -> dict[date, DateExpectation]:
    """The expectation of each day, with what speaks against it."""
    floors = measure_floors(
        warehouse,
        job,
        days,
        counts.expected,
        checkpoints=checkpoints,
        accept_ratio=job.policy.accept_ratio,
        has_calendar=calendar is not None,
    )
    idle_days = [day for day in days if not counts.expected.get(day)]
    source_rows = count_source_rows(warehouse, job, idle_days)
    contradictions = find_contradictions(warehouse, job, idle_days, source_rows)

    def expectation_of(day: date) -> DateExpectation:
        return job.date_expectation(
            counts.expected.get(day, 0),
            day,
            calendar,
            null_entities=counts.null_entities.get(day, 0),
            contradicted_by=contradictions.get(day),
            floor=floors[day],
        )

    return {day: expectation_of(day) for day in days}


def read_missing_names(job: Job, days: Sequence[date], warehouse: Warehouse, max_names: int) -> dict[date, list[str]]:
    """The names of up to `max_names` missing entities of each day, sorted."""
    scan = target_scan(job, days)
    expected = read_expectation(warehouse, job, days)
    present = expected.present_in(warehouse.read_entities(scan), scan.columns.rule)
    return {day: names[:max_names] for day, names in expected.names_by_day(~present).items()}


def _active_runs(ledger: Ledger, job: Job, days: Sequence[date]) -> dict[date, str]:
    return {day: run for run, run_days in ledger.runs.find_conflicting_runs(job.name, days).items() for day in run_days}


def _checkpointed_meanwhile(
    days: Sequence[date], before: Mapping[date, Checkpoint], after: Mapping[date, Checkpoint]
) -> dict[date, str]:
    """The days whose checkpoint was written, replaced or removed between the two reads, with the run of it."""
    changed = {day: after.get(day) or before.get(day) for day in days if after.get(day) != before.get(day)}
    return {day: checkpoint.run_id for day, checkpoint in changed.items() if checkpoint is not None}


def _count_entities(job: Job, days: Sequence[date], warehouse: Warehouse, *, has_target: bool) -> EntityCounts:
    """Count the expected entities of each day and, of these, the published ones."""
    published = {"published": target_scan(job, days)} if has_target else {}
    return warehouse.count_entities(expectation_scan(job, days), published, [PUBLISHED] if has_target else [])


def _read_row_counts(job: Job, days: Sequence[date], warehouse: Warehouse) -> dict[date, tuple[int, int]]:
    """The number of published rows and of duplicated keys by day."""
    key = [name for name in job.target.key if name != job.target.date_column]
    if len(key) > len(KEY_ALIASES):
        raise UserError(
            f"job {job.name}: an audit supports keys of up to {len(KEY_ALIASES)} columns, its target's has {len(key)}"
        )
    aliases = KEY_ALIASES[: len(key)]
    columns = {"day": job.target.date_column, **dict(zip(aliases, key, strict=True))}
    # Other programs may have written times at midnight, or whole floats: the rows are those of the job's types.
    scan = replace(target_scan(job, days).rows(), columns=columns, types=target_types(job))
    rows = warehouse.query(row_counts_sql(aliases), scans={"published": scan}).to_pylist()
    return {row["day"]: (row["row_count"], row["duplicates"]) for row in rows}


def row_counts_sql(key: Sequence[LiteralString]) -> LiteralString:
    """The query that counts, by day, the rows of `published` and the keys (these columns) that appear repeatedly."""
    columns = ", ".join(("day", *key))
    return f"""
        SELECT day, CAST(SUM(n) AS INT64) AS row_count, COUNTIF(n > 1) AS duplicates
        FROM (SELECT {columns}, COUNT(*) AS n FROM published GROUP BY {columns}) AS keyed
        GROUP BY day
    """  # noqa: S608 - made of literals only, which the type checker enforces
