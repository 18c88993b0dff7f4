"""Audit: compare a job's published rows with the expectation as it is now, and flag the dates to rebuild.

A checkpoint proves that a date was complete when its run ended. Later, rows may be deleted, tables reloaded and
entities added to the expectation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

from gated_backfill.common.audit.findings import AuditedDate, AuditFinding, AuditResult, classify
from gated_backfill.common.audit.observations import observe_dates, read_missing_names
from gated_backfill.common.audit.published_rows import find_unchecked_columns
from gated_backfill.common.audit.staleness import find_stale_dates
from gated_backfill.common.ledger import Checkpoint, Ledger, NewFlag
from gated_backfill.common.model.dates import chunk_dates
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.missing_names import MISSING_NAMES_SHOWN
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.calendar_check import check_calendar_not_lost
from gated_backfill.common.warehouse.coverage_queries import read_calendar
from gated_backfill.common.warehouse.labels import label_work
from gated_backfill.common.warehouse.protocol import TableInfo, Warehouse, require_table

DATES_AT_ONCE = 1000  #: dates observed together
AUDIT_ACTOR = "audit"  #: recorded as the one who cleared a flag


def audit_dates(
    job: Job,
    days: Sequence[date],
    warehouse: Warehouse,
    ledger: Ledger,
    *,
    max_names: int = MISSING_NAMES_SHOWN,
    find_stale: bool = False,
    reads_all: bool = False,
    candidates: Mapping[date, Checkpoint] | None = None,
) -> AuditResult:
    """Audit the days with a few grouped queries. Changes nothing.

    `max_names` limits the names of missing entities that are read for each date; their number is always exact.
    `find_stale`: also compare the job's version, its sources and inputs with those that built the dates.
    `reads_all`: read the published rows of every date, also where quick fingerprints tell that they are unchanged.
    `candidates`: checkpoints to judge as if the ledger had them, of days on which it has none.

    Raises `TableNotFound` when the expectation's table does not exist or the calendar is gone, `SchemaMismatch` when a
    table lacks a column that the job needs, and any error of a query: a date that could not be checked is
    never reported as fine.
    """
    require_table(warehouse, TableName.parse(job.expectation.table))
    check_calendar_not_lost(job, warehouse, ledger)
    target = warehouse.describe(TableName.parse(job.target.table))
    if target is not None:
        target.check_dates(job.target.date_column)
    has_calendar = True
    dates: list[AuditedDate] = []
    for chunk in chunk_dates(sorted(set(days)), DATES_AT_ONCE):
        calendar = read_calendar(warehouse, job, chunk)
        has_calendar = has_calendar and (calendar is not None or job.expectation.calendar is None)
        with label_work(job=job.name):
            observations = observe_dates(
                job, chunk, warehouse, ledger, calendar, target, candidates=candidates or {}, reads_all=reads_all
            )
        audited_dates = [classify(observed, job.policy) for observed in observations]
        if find_stale:
            audited_dates = _add_stale(audited_dates, job, warehouse)
        dates += audited_dates if target is None else _add_missing_names(audited_dates, job, warehouse, max_names)
    return AuditResult(job=job.name, dates=tuple(dates), notes=tuple(_notes(job, target, has_calendar)))


def _notes(job: Job, target: TableInfo | None, has_calendar: bool) -> list[str]:
    notes: list[str] = []
    if target is None:
        notes.append(f"target {job.target.table} does not exist: no date has published rows")
    elif unchecked := find_unchecked_columns(job, target):
        notes.append(
            f"target {job.target.table} does not have the column(s) {', '.join(unchecked)} as the job declares them: "
            "their nulls and bounds were not checked"
        )
    if not has_calendar and job.expectation.calendar is not None:
        table = job.expectation.calendar.table
        notes.append(f"calendar {table} does not exist: a date with nothing expected counts as one without events")
    return notes


def _add_stale(dates: Sequence[AuditedDate], job: Job, warehouse: Warehouse) -> list[AuditedDate]:
    """Add why dates are stale whose rows are those of their checkpoint."""
    proven = {
        audited.day: audited.observed.checkpoint
        for audited in dates
        if audited.observed.checkpoint is not None and audited.observed.matches_checkpoint
    }
    staleness = find_stale_dates(job, proven, warehouse)
    return [
        replace(
            audited, stale=staleness.reasons.get(audited.day), renewed_parts=staleness.renewed_parts.get(audited.day)
        )
        for audited in dates
    ]


def _add_missing_names(
    dates: Sequence[AuditedDate], job: Job, warehouse: Warehouse, max_names: int
) -> list[AuditedDate]:
    not_judged = (AuditFinding.IN_PROGRESS, AuditFinding.SKIPPED)
    days = [audited.day for audited in dates if audited.missing_count and audited.finding not in not_judged]
    names = read_missing_names(job, days, warehouse, max_names) if days else {}
    return [replace(audited, missing=tuple(names.get(audited.day, ()))) for audited in dates]


@dataclass(frozen=True, kw_only=True)
class FlagChanges:
    """How recording an audit changed the flags."""

    flagged: tuple[AuditedDate, ...]  #: every date that the audit flags, also if it was flagged before
    cleared: tuple[date, ...]  #: dates that were flagged and are fine again


def newly_flagged(audit: AuditResult, open_findings: Mapping[date, str]) -> list[AuditedDate]:
    """The dates to flag that have no open flag with the same finding (`open_findings`, by day)."""
    return [audited for audited in audit.dates_to_flag if open_findings.get(audited.day) != audited.finding.value]


def record_audit(audit: AuditResult, ledger: Ledger, by: str) -> FlagChanges:
    """Flag the dates to rebuild in the name of `by`, and clear the flags of dates that are fine. May be repeated.

    What was read and found unchanged is recorded as well, so that the next audit need not read it.
    """
    ledger.checkpoints.renew(audit.renewed_proofs)
    ledger.flags.flag_dates(audit.job, [_new_flag(audited) for audited in audit.dates_to_flag], by)
    fine_days = [audited.day for audited in audit.dates if audited.finding.is_fine]
    cleared = ledger.flags.clear_flags(audit.job, fine_days, AUDIT_ACTOR)
    return FlagChanges(flagged=tuple(audit.dates_to_flag), cleared=tuple(cleared))


def _new_flag(audited: AuditedDate) -> NewFlag:
    return NewFlag(
        day=audited.day,
        finding=audited.finding.value,
        reason=audited.reason,
        expected=audited.expected,
        matched=audited.observed.matched,
    )
