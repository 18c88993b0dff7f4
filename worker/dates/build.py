"""Building dates: measure their sources, choose among them, read, process, stage. The ledger is left to others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from gated_backfill.common.errors import ProcessFailed
from gated_backfill.common.ledger import DateRow, DateState
from gated_backfill.common.ledger.rows import DateColumns
from gated_backfill.common.model.arrow_types import to_arrow
from gated_backfill.common.model.coverage import MISSING_NAMES_STORED, Judgement, Verdict, judge_expectation
from gated_backfill.common.model.job import SOURCE_COLUMN, Batch, Job
from gated_backfill.common.model.publication import StagedFile
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.warehouse.coverage_queries import input_fingerprints
from gated_backfill.worker.dates.separation import check_dates_not_mixed, day_entities
from gated_backfill.worker.dates.sources import (
    SourceCheck,
    check_sources,
    date_and_entity_columns,
    group_by_source,
    read_inputs,
    read_rows,
)
from gated_backfill.worker.dependencies import Deps

RECENT_CLAIM_AGE = timedelta(seconds=0.1)  #: an order that came within it might as well have come a little later
END_STATES = {Verdict.SKIPPED: DateState.SKIPPED, Verdict.BLOCKED: DateState.BLOCKED}


@dataclass(frozen=True, kw_only=True)
class BuiltDate:
    """What became of a date, and what the ledger is to know of it."""

    day: date
    state: DateState  #: staged, or ended without
    columns: DateColumns
    reason: str  #: the source it was built from, or why it was not
    staged: StagedFile | None = None


def build_dates(job: Job, options: RunOptions, claimed: Sequence[DateRow], deps: Deps) -> list[BuiltDate]:
    """Build dates that this worker holds; those that an order has taken from it meanwhile may be missing.

    What was staged is removed again when it raises: the job's and the warehouse's errors.
    """
    days = [row.day for row in claimed]
    target = TableName.parse(job.target.table)
    before = deps.warehouse.fingerprints(target, job.target.date_column, days)
    checks = check_sources(deps.warehouse, job, options, days)
    wanted = _obeying(claimed, deps)
    inputs = input_fingerprints(deps.warehouse, job, wanted)
    ended = {day: found for day in wanted if (found := _without_rows(options, checks[day])) is not None}
    building = {day: checks[day] for day in wanted if day not in ended}
    rows = {day: table for days in group_by_source(building) for day, table in _rows(job, building, days, deps).items()}
    staged = _stage([row for row in claimed if row.day in rows], rows, deps)
    return [
        *(_end(day, judgement, checks[day]) for day, judgement in ended.items()),
        *(_staged(checks[file.day], file, before[file.day], inputs[file.day]) for file in staged),
    ]


def _obeying(claimed: Sequence[DateRow], deps: Deps) -> list[date]:
    """Those of the days that are still wanted: their run may have been paused or cancelled since they were taken."""
    days = [row.day for row in claimed]
    if _just_taken(claimed):
        return days
    held = deps.ledger.orders.confirm_claims(claimed[0].run_id, days, deps.owner)
    return [day for day in days if day in held]


def _just_taken(claimed: Sequence[DateRow]) -> bool:
    taken = claimed[0].started_at
    return taken is not None and timedelta(0) <= utcnow() - taken < RECENT_CLAIM_AGE


def _without_rows(options: RunOptions, check: SourceCheck) -> Judgement | None:
    """Why a date ends without being built; None for one that is built."""
    forced = options.forced_because is not None and bool(check.covered_entities)
    return None if forced else judge_expectation(check.expectation)


def _rows(job: Job, checks: Mapping[date, SourceCheck], days: tuple[date, ...], deps: Deps) -> dict[date, pa.Table]:
    """The rows of dates that have the same sources, by date; each in the order of the target's key."""
    batch = Batch(
        days=days,
        rows=read_rows(deps.warehouse, job, checks, days),
        inputs=read_inputs(deps.warehouse, job, days),
    )
    if len(days) == 1:
        return {days[0]: _checked(job, job.process(batch), days)}
    given = day_entities(batch.rows, *date_and_entity_columns(job, checks[days[0]]))  # before `process` may alter it
    rows = _checked(job, job.process(batch), days)
    check_dates_not_mixed(job, given, rows)
    return split_by_day(rows, job.target.date_column, days)


def _checked(job: Job, made: object, days: tuple[date, ...]) -> pa.Table:
    """What `process` returned, in the target's types and in order. Raises `ProcessFailed` for what it must not be."""
    if not isinstance(made, pd.DataFrame):
        raise ProcessFailed(f"process returned a {type(made).__name__}, not a DataFrame", day=_only(days))
    rows = to_arrow(made, job.target.columns, f"the rows of job {job.name}", ignored_columns=(SOURCE_COLUMN,))
    dated = job.target.date_column
    strangers = set(rows[dated].unique().to_pylist()) - set(days)
    if strangers:
        raise ProcessFailed(f"process returned rows of other dates: {sorted(map(str, strangers))[:3]}", day=_only(days))
    return rows.sort_by([(name, "ascending") for name in dict.fromkeys((dated, *job.target.key))])


def _only(days: Sequence[date]) -> date | None:
    return days[0] if len(days) == 1 else None


def split_by_day(ordered: pa.Table, dated: str, days: Sequence[date]) -> dict[date, pa.Table]:
    """The rows of each day, cut out of rows in the order of their days."""
    values, counts = np.unique(ordered[dated].to_numpy(), return_counts=True)
    counted: dict[date, int] = dict(zip(values.tolist(), counts.tolist(), strict=True))
    found: dict[date, pa.Table] = {}
    begin = 0
    for day in sorted(days):
        found[day] = ordered.slice(begin, counted.get(day, 0))
        begin += counted.get(day, 0)
    return found


def _stage(claimed: Sequence[DateRow], rows: Mapping[date, pa.Table], deps: Deps) -> list[StagedFile]:
    staged: list[StagedFile] = []
    try:
        for row in claimed:
            staged.append(deps.staging.write(row.run_id, row.day, row.attempt, rows[row.day]))
    except Exception:
        for row in claimed:
            deps.staging.delete_attempt(row.run_id, row.day, row.attempt)
        raise
    return staged


def _staged(check: SourceCheck, staged: StagedFile, before: str, inputs: str) -> BuiltDate:
    facts = _facts(check) | {
        "staged_path": staged.location,
        "checksum": staged.checksum,
        "rows": staged.rows,
        "target_before": before,
        "inputs": inputs,
        "error": None,
        "error_kind": None,
    }
    return BuiltDate(day=staged.day, state=DateState.STAGED, columns=facts, reason=check.choice.label, staged=staged)


def _end(day: date, judgement: Judgement, check: SourceCheck) -> BuiltDate:
    facts = _facts(check) | {"verdict": judgement.verdict.value, "reason": judgement.reason}
    return BuiltDate(day=day, state=END_STATES[judgement.verdict], columns=facts, reason=judgement.reason)


def _facts(check: SourceCheck) -> dict[str, Any]:
    return {
        "expected": len(check.expected),
        "found": check.present_counts,
        "source": check.choice.label,
        "source_reason": check.choice.reason,
        "matched": len(check.covered_entities),
        "missing": sorted(check.expected - check.covered_entities)[:MISSING_NAMES_STORED],
    }
