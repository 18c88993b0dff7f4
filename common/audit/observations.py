"""Observe dates for an audit: read coverage, rows, duplicates and checkpoints in a few grouped queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

from gated_backfill.common.audit.findings import DateObservation
from gated_backfill.common.audit.published_rows import NO_ROWS, count_published_rows
from gated_backfill.common.audit.target_proofs import compare_with_target
from gated_backfill.common.ledger import Checkpoint, Ledger
from gated_backfill.common.model.coverage import DateExpectation
from gated_backfill.common.model.dates import enclosing_range
from gated_backfill.common.model.job import CalendarEvents, Job
from gated_backfill.common.warehouse.coverage_queries import (
    count_source_rows,
    expectation_scan,
    find_contradictions,
    read_expectation,
    target_scan,
)
from gated_backfill.common.warehouse.floors import measure_floors
from gated_backfill.common.warehouse.protocol import EntityCounts, TableInfo, Warehouse

PUBLISHED = ("published",)  #: the group of sources that has the published rows


def observe_dates(
    job: Job,
    days: Sequence[date],
    warehouse: Warehouse,
    ledger: Ledger,
    calendar: CalendarEvents | None,
    target: TableInfo | None,
    *,
    candidates: Mapping[date, Checkpoint],
    reads_all: bool = False,
) -> list[DateObservation]:
    """Observe each day. A day that a run published while this was reading is reported with that run as active.

    `calendar` holds the events of these days, `target` describes the target table; None: it does not exist. Of a day
    without a checkpoint, the candidate takes its place. `reads_all`: see `compare_with_target`.
    """
    span = enclosing_range(days)
    checkpoints_before = ledger.checkpoints.list_checkpoints(job.name, span.start, span.through)
    checkpoints = {**candidates, **checkpoints_before}
    undone = ledger.checkpoints.list_undone(job.name, span.start, span.through)
    active_runs = _active_runs(ledger, job, days)
    counts = _count_entities(job, days, warehouse, has_target=target is not None)
    published = {} if target is None else count_published_rows(job, days, warehouse, target)
    expectations = _read_expectations(job, days, warehouse, counts, checkpoints, calendar)
    of_days = {day: checkpoints[day] for day in days if day in checkpoints}
    proofs = compare_with_target(job, of_days, warehouse, reads_all=reads_all)
    # A run that published a date between the first read and the last is still active, or has changed its checkpoint.
    active_runs |= _active_runs(ledger, job, days)
    checkpoints_after = ledger.checkpoints.list_checkpoints(job.name, span.start, span.through)
    active_runs |= _checkpointed_meanwhile(days, checkpoints_before, checkpoints_after)
    return [
        DateObservation(
            day=day,
            expectation=expectations[day],
            matched=0 if target is None else counts.present[PUBLISHED].get(day, 0),
            rows=published.get(day, NO_ROWS).rows,
            duplicates=published.get(day, NO_ROWS).duplicates,
            null_keys=published.get(day, NO_ROWS).null_keys,
            schema_problem=published.get(day, NO_ROWS).schema_problem,
            checkpoint=checkpoints.get(day),
            matches_checkpoint=day in proofs.unchanged,
            renewed_quick=proofs.renewed.get(day),
            undone=undone.get(day),
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
