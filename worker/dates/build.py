"""Build dates: measure their sources, choose one, read, process, stage. The caller records the results."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from gated_backfill.common.errors import HostError, ProcessFailed, Retryable
from gated_backfill.common.ledger import DateRow, DateState
from gated_backfill.common.ledger.rows import DateColumns, entity_columns
from gated_backfill.common.model.arrow.frames import to_arrow
from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.coverage import DateExpectation, Judgement, Verdict, judge_expectation
from gated_backfill.common.model.job import SOURCE_COLUMN, Batch, Job
from gated_backfill.common.model.judging_rules import RULES_PART, hash_judging_rules
from gated_backfill.common.model.publication import StagedFile
from gated_backfill.common.model.query import Query
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.warehouse.input_fingerprints import (
    InputParts,
    combine_parts,
    input_fingerprints,
    quick_fingerprints,
)
from gated_backfill.common.warehouse.prerequisites import measure_prerequisites
from gated_backfill.common.warehouse.protocol import ABSENT, QueryStaging, Warehouse
from gated_backfill.common.warehouse.table_checks import target_types
from gated_backfill.worker.dates.frames import frame_entities
from gated_backfill.worker.dates.separation import check_dates_not_mixed, check_dates_returned, check_separation
from gated_backfill.worker.dates.sources import (
    SourceCheck,
    choose_sources,
    chosen_columns,
    entities_counted,
    group_by_source,
    log_checks,
    measure_sources,
    read_batches,
    read_inputs,
)
from gated_backfill.worker.dependencies import Deps
from gated_backfill.worker.host.checks import confirm_staging

RECENT_CLAIM_AGE = timedelta(seconds=0.1)  #: of a claim this young, a pause or cancellation is not checked again
END_STATES = {Verdict.SKIPPED: DateState.SKIPPED, Verdict.BLOCKED: DateState.BLOCKED}


@dataclass(frozen=True, kw_only=True)
class BuiltDate:
    """A date that was staged, or that ended without rows, with its columns for the ledger."""

    day: date
    state: DateState  #: staged, skipped or blocked
    columns: DateColumns
    reason: str  #: the source of its rows, or the reason it has none
    staged: StagedFile | None = None


def build_dates(job: Job, options: RunOptions, claimed: Sequence[DateRow], deps: Deps) -> list[BuiltDate]:
    """Build dates that this worker has claimed; dates that were paused or cancelled meanwhile may be missing.

    Raises the errors of the job and of the warehouse, after deleting the files that it staged.
    """
    days = [row.day for row in claimed]
    target = TableName.parse(job.target.table)
    warehouse = deps.warehouse
    before, read, quick_inputs = warehouse.together(
        lambda: warehouse.fingerprints(target, job.target.date_column, days),
        lambda: measure_sources(warehouse, job, options, days),
        lambda: quick_fingerprints(warehouse, job, days),  # before the others: they may only be older than these
    )
    published = {day for day, fingerprint in before.items() if fingerprint != ABSENT}
    checks = choose_sources(job, options, days, read, published=published)
    log_checks(checks)
    active = _still_claimed(claimed, deps)
    expectations = {
        row.day: checks[row.day].expectation.with_floor(row.floor, row.floor_reason)
        for row in claimed
        if row.day in active
    }
    ended = {
        day: judgement
        for day, expectation in expectations.items()
        if (judgement := _judge_unbuilt(options, checks[day], expectation)) is not None
    }
    buildable = {day: checks[day] for day in active if day not in ended}
    inputs, lacking = warehouse.together(
        lambda: input_fingerprints(warehouse, job, active),
        lambda: _judge_prerequisites(job, buildable, deps) if options.forced_because is None else {},
    )
    ended |= lacking
    buildable = {day: check for day, check in buildable.items() if day not in lacking}
    rules = {RULES_PART: hash_judging_rules(job)}
    staged = _stage(job, buildable, [row for row in claimed if row.day in buildable], deps)
    return [
        *(_ended_date(day, judgement, checks[day]) for day, judgement in ended.items()),
        *(
            _staged_date(
                job, checks[file.day], file, before[file.day], inputs[file.day], quick_inputs[file.day] | rules
            )
            for file in staged
        ),
    ]


def _still_claimed(claimed: Sequence[DateRow], deps: Deps) -> list[date]:
    """The dates whose run was not paused or cancelled since they were claimed."""
    days = [row.day for row in claimed]
    if _is_recent(claimed[0].started_at):
        return days
    confirmed = deps.ledger.orders.confirm_claims(claimed[0].run_id, days, deps.owner)
    return [day for day in days if day in confirmed]


def _is_recent(claimed_at: datetime | None) -> bool:
    return claimed_at is not None and timedelta(0) <= utcnow() - claimed_at < RECENT_CLAIM_AGE


def _judge_unbuilt(options: RunOptions, check: SourceCheck, expectation: DateExpectation) -> Judgement | None:
    """The verdict on a date that ends without being built; None for a date to build."""
    is_forced = options.forced_because is not None and bool(check.covered_entities)
    return None if is_forced else judge_expectation(expectation)


def _judge_prerequisites(job: Job, checks: Mapping[date, SourceCheck], deps: Deps) -> dict[date, Judgement]:
    """A verdict for each date that lacks rows of a required input or of a lookback."""
    chosen = {name for check in checks.values() for name in (check.choice.source, check.choice.fill_from)}
    prerequisites = measure_prerequisites(deps.warehouse, job, checks.keys(), sources=chosen)
    return {
        day: Judgement(verdict=Verdict.BLOCKED, reason=problem)
        for day, check in checks.items()
        if (problem := prerequisites.problem_with(check.choice, day))
    }


def compute_rows(
    job: Job, checks: Mapping[date, SourceCheck], days: tuple[date, ...], warehouse: Warehouse
) -> dict[date, pa.Table]:
    """Process dates that have the same sources; returns the rows by date, in the order of the target's key."""
    rows_by_date: dict[date, pa.Table] = {}
    if isinstance(job.process, Query):
        for day, parts in _query_by_date(job, job.process, checks, days, warehouse):
            rows_by_date[day] = pa.concat_tables([_no_rows(job), *parts])
        return rows_by_date
    for batch_days, rows in read_batches(warehouse, job, checks, days).items():
        batch = Batch(days=batch_days, rows=rows, inputs=read_inputs(warehouse, job, batch_days))
        columns = chosen_columns(job, checks[batch_days[0]])
        # before the call, as `process` may change the frame
        entities_read = frame_entities(batch.rows, columns) if len(batch_days) > 1 else None
        rows_by_date |= _separate(job, _convert(job, job.process(batch), batch_days), batch_days, entities_read)
    return rows_by_date


def _separate(
    job: Job, ordered: pa.Table, days: tuple[date, ...], entities_read: pa.Table | None
) -> dict[date, pa.Table]:
    """The rows by date. `entities_read` are those of the source rows, by which mixed dates are found out."""
    if len(days) == 1:
        return {days[0]: ordered}
    assert entities_read is not None, "of several dates"
    check_dates_not_mixed(job, entities_read, ordered)
    return split_by_day(ordered, job.target.date_column, days)


def _query_by_date(
    job: Job, process: Query, checks: Mapping[date, SourceCheck], days: tuple[date, ...], warehouse: Warehouse
) -> Generator[tuple[date, Iterable[pa.Table]]]:
    """The rows of a SQL job by date, some at a time: those of a date are to be read before the next one is taken."""
    from gated_backfill.worker.dates.queries import query_rows, statement_groups  # sqlglot is slow to import

    for group in statement_groups(job, checks, days, warehouse):
        tables: Iterable[pa.Table] = query_rows(job, process, checks, group, warehouse)
        if len(group) > 1:
            tables = check_separation(job, entities_counted(checks, group), tables)
        found: set[date] = set()
        for day, parts in groupby(_dated_parts(job, tables, group), key=itemgetter(0)):
            found.add(day)
            yield day, (part for _, part in parts)
        for day in group:
            if day not in found:
                yield day, ()


def _dated_parts(job: Job, tables: Iterable[pa.Table], days: Sequence[date]) -> Generator[tuple[date, pa.Table]]:
    """The parts of the tables by date. Raises `ProcessFailed` for rows of other dates."""
    for rows in tables:
        check_dates_returned(rows[job.target.date_column].unique().to_pylist(), days)
        for day, part in split_by_day(rows, job.target.date_column, days).items():
            if part.num_rows:
                yield day, part


def _no_rows(job: Job) -> pa.Table:
    return arrow_schema(target_types(job)).empty_table()


def _convert(job: Job, result: object, days: tuple[date, ...]) -> pa.Table:
    """The result of `process` in the target's types and in order. Raises `ProcessFailed` if it cannot be published."""
    if not isinstance(result, pd.DataFrame):
        raise ProcessFailed(f"process returned a {type(result).__name__}, not a DataFrame", day=_only(days))
    what = f"the rows of job {job.name}"
    rows = to_arrow(result, job.target.columns, what, ignored_columns=(SOURCE_COLUMN,), day=_only(days))
    return _ordered(job, rows, days)


def _ordered(job: Job, rows: pa.Table, days: Sequence[date]) -> pa.Table:
    """The rows in the order of date and key. Raises `ProcessFailed` for rows of other dates."""
    check_dates_returned(rows[job.target.date_column].unique().to_pylist(), days)
    return rows.sort_by([(name, "ascending") for name in job.target.row_order])


def _only(days: Sequence[date]) -> date | None:
    return days[0] if len(days) == 1 else None


def split_by_day(ordered: pa.Table, date_column: str, days: Sequence[date]) -> dict[date, pa.Table]:
    """The rows of each day, sliced from rows that are sorted by day."""
    values, counts = np.unique(ordered[date_column].to_numpy(), return_counts=True)
    count_by_day: dict[date, int] = dict(zip(values.tolist(), counts.tolist(), strict=True))
    rows_by_day: dict[date, pa.Table] = {}
    begin = 0
    for day in sorted(days):
        count = count_by_day.get(day, 0)
        rows_by_day[day] = ordered.slice(begin, count)
        begin += count
    return rows_by_day


def _stage(job: Job, checks: Mapping[date, SourceCheck], claimed: Sequence[DateRow], deps: Deps) -> list[StagedFile]:
    """Compute the rows of the dates and stage them: those of a SQL job in the warehouse, or in memory in parts only."""
    if isinstance(job.process, Query) and (query_staging := deps.warehouse.query_staging) is not None:
        return _stage_in_warehouse(job, job.process, checks, claimed, deps.warehouse, query_staging)
    row_of = {row.day: row for row in claimed}
    staged: list[StagedFile] = []
    try:
        for days in group_by_source(checks):
            if isinstance(job.process, Query):
                staged.extend(_stage_query(job, job.process, checks, {day: row_of[day] for day in days}, deps))
                continue
            for day, rows in compute_rows(job, checks, days, deps.warehouse).items():
                staged.append(deps.staging.write(row_of[day].run_id, day, row_of[day].attempt, rows))
        if staged:  # a folder that was unmounted meanwhile has taken them, and no gate would find them
            confirm_staging(deps.cached_run(claimed[0].run_id), deps.staging)
    except Exception:
        for row in claimed:
            with suppress(HostError, Retryable):  # what kept them from being written may keep them from being removed
                deps.staging.delete_attempt(row.run_id, row.day, row.attempt)
        raise
    return staged


def _stage_query(
    job: Job, process: Query, checks: Mapping[date, SourceCheck], claimed: Mapping[date, DateRow], deps: Deps
) -> Generator[StagedFile]:
    """Stage the rows of a SQL job's dates with the same sources: as the warehouse writes them, or in parts."""
    from gated_backfill.worker.dates.queries import statement_groups, writable_query  # sqlglot is slow to import

    for group in statement_groups(job, checks, tuple(claimed), deps.warehouse):
        row = claimed[group[0]]
        if len(group) == 1:
            with writable_query(job, process, checks, row.day, deps.warehouse) as write:
                if write is not None:
                    yield deps.staging.write_file(row.run_id, row.day, row.attempt, write)
                    continue
        for day, parts in _query_by_date(job, process, checks, group, deps.warehouse):
            batches = (batch for part in parts for batch in part.to_batches())
            key = (row.run_id, day, claimed[day].attempt)
            yield deps.staging.write_parts(*key, _no_rows(job).schema, batches)


def _stage_in_warehouse(
    job: Job,
    process: Query,
    checks: Mapping[date, SourceCheck],
    claimed: Sequence[DateRow],
    warehouse: Warehouse,
    query_staging: QueryStaging,
) -> list[StagedFile]:
    """Run one statement for all dates with the same sources. Tables that no gate will use expire."""
    from gated_backfill.worker.dates.queries import stage_in_warehouse, statement_groups  # sqlglot is slow to import

    row_of = {row.day: row for row in claimed}
    return [
        staged
        for days in group_by_source(checks)
        for group in statement_groups(job, checks, days, warehouse)
        for staged in stage_in_warehouse(
            job, process, checks, {day: row_of[day] for day in group}, warehouse, query_staging
        )
    ]


def _staged_date(
    job: Job, check: SourceCheck, staged: StagedFile, before: str, inputs: InputParts, further_parts: InputParts
) -> BuiltDate:
    columns = _source_columns(check) | {
        "staged_path": staged.location,
        "checksum": staged.checksum,
        "rows": staged.rows,
        "target_before": before,
        "inputs": combine_parts(inputs),
        "input_parts": {**inputs, **further_parts},
        "job_version": job.version,
        "error": None,
        "error_kind": None,
        "error_place": None,
    }
    return BuiltDate(day=staged.day, state=DateState.STAGED, columns=columns, reason=check.choice.label, staged=staged)


def _ended_date(day: date, judgement: Judgement, check: SourceCheck) -> BuiltDate:
    columns = _source_columns(check) | {"verdict": judgement.verdict.value, "reason": judgement.reason}
    return BuiltDate(day=day, state=END_STATES[judgement.verdict], columns=columns, reason=judgement.reason)


def _source_columns(check: SourceCheck) -> dict[str, Any]:
    return {
        "expected": len(check.expected),
        "found": check.present_counts,
        "source": check.choice.label,
        "source_reason": check.choice.reason,
        "matched": len(check.covered_entities),
        **entity_columns(check.expected - check.covered_entities, check.unexpected),
    }
