"""Recount staged rows in the gate: the counts that a worker reported for its own rows are not used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.coverage import Recount
from gated_backfill.common.model.job import CalendarEvents, Job
from gated_backfill.common.warehouse.coverage_queries import (
    ExpectationMatch,
    count_calendar_events,
    match_expectation,
    read_expectation,
    target_columns,
    translate_expectation_errors,
)
from gated_backfill.common.warehouse.entities import ExpectedEntities
from gated_backfill.common.warehouse.protocol import StagedScan, Warehouse
from gated_backfill.common.warehouse.rule_counts import RowCounts, count_by_rules, counted_columns
from gated_backfill.common.warehouse.staged_entities import DAY, read_grouped_entities, staged_entities
from gated_backfill.worker.gate.staged_contents import StagedContents

NO_MATCH = ExpectationMatch(expected=0, matched=0, null_entities=0, missing=(), unexpected=())
NO_ROWS = RowCounts()


def recount(
    warehouse: Warehouse,
    job: Job,
    staged: Mapping[date, StagedContents],
    *,
    require_calendar: bool = False,
    target_rows: pa.Table | None = None,
) -> dict[date, Recount]:
    """Count staged rows where they lie, by the day they were staged for, against the expectation as it is now.

    `require_calendar`: the calendar existed when the run was planned, so it must exist now. `target_rows`: what the
    target has on days on which the staged rows are compared with it, see `match_expectation`.

    Raises `ExpectationUnreadable`, and `StagedFileLost` for a file that was removed or changed meanwhile.
    """
    problems = {day: contents.problem for day, contents in staged.items() if contents.problem is not None}
    well_formed = [contents for day, contents in staged.items() if day not in problems]

    def count_events() -> CalendarEvents | None:
        with translate_expectation_errors():
            return count_calendar_events(warehouse, job, list(staged), must_exist=require_calendar)

    def read_expected() -> ExpectedEntities | None:
        with translate_expectation_errors():
            return read_expectation(warehouse, job, [contents.file.day for contents in well_formed])

    (entities, entity_problems), calendar, expected, counts = warehouse.together(
        lambda: _read_entities(warehouse, job, well_formed),
        count_events,
        lambda: read_expected() if well_formed else None,
        lambda: _count_rows(warehouse, job, well_formed),
    )
    problems |= entity_problems
    days = [day for day in staged if day not in problems]
    matches = match_expectation(job, days, expected, entities, target_rows=target_rows) if days else {}

    def recount_day(day: date) -> Recount:
        match, count = matches.get(day, NO_MATCH), counts.get(day, NO_ROWS)
        return Recount(
            expectation=job.date_expectation(match.expected, day, calendar, null_entities=match.null_entities),
            matched=match.matched,
            missing=match.missing,
            unexpected=match.unexpected,
            target=match.target,
            rows=staged[day].rows,
            null_keys=count.null_keys,
            duplicate_keys=count.duplicates,
            schema_problem=problems.get(day) or count.schema_problem,
        )

    return {day: recount_day(day) for day in staged}


def _read_entities(
    warehouse: Warehouse, job: Job, staged: Sequence[StagedContents]
) -> tuple[pa.Table, dict[date, str]]:
    """Read the entities of the staged rows, without days on which a value names none: of these, a message."""
    columns = target_columns(job)
    groups = [
        read_grouped_entities(warehouse, job, [contents.file for contents in portion])
        for portion in _portions(staged, warehouse.max_rows_per_count)
    ]
    if not groups:
        return pa.table({"day": pa.array([], pa.date32()), "entity": pa.array([], pa.string())}), {}
    grouped = pa.concat_tables(groups)
    problems: dict[date, str] = {}
    while True:
        try:
            return staged_entities(grouped, columns), problems
        except SchemaMismatch:
            for contents in staged:
                is_of_day = pc.equal(grouped[DAY], pa.scalar(contents.file.day, pa.date32()))
                try:
                    staged_entities(grouped.filter(is_of_day), columns)
                except SchemaMismatch as exc:
                    problems[contents.file.day] = str(exc)
            grouped = grouped.filter(pc.invert(pc.is_in(grouped[DAY], pa.array([*problems], pa.date32()))))


def _count_rows(warehouse: Warehouse, job: Job, staged: Sequence[StagedContents]) -> dict[date, RowCounts]:
    """Count the staged rows. Where the warehouse finds more or fewer of them than the file has, that is a problem."""
    columns = counted_columns(job)
    counts: dict[date, RowCounts] = {}
    for portion in _portions(staged, warehouse.max_rows_per_count):
        files = StagedScan(files=tuple(contents.file for contents in portion))
        counted = count_by_rules(warehouse, job, files, columns)
        for contents in portion:
            counts[contents.file.day] = _checked(counted.get(contents.file.day, NO_ROWS), contents)
    return counts


def _portions(staged: Sequence[StagedContents], most_rows: int | None) -> list[list[StagedContents]]:
    """Group the dates that have rows, so that several dates together have at most so many rows."""
    portions: list[list[StagedContents]] = []
    rows = 0
    for contents in staged:
        if not contents.rows:
            continue
        rows += contents.rows
        if not portions or (most_rows is not None and rows > most_rows):
            portions.append([])
            rows = contents.rows
        portions[-1].append(contents)
    return portions


def _checked(count: RowCounts, contents: StagedContents) -> RowCounts:
    if count.rows == contents.rows:
        return count
    problem = f"{contents.rows} row(s) are staged, and the warehouse counts {count.rows}"
    return RowCounts(rows=count.rows, schema_problem=problem)
