"""Measure the coverage of each date's sources, choose one, and read its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow as pa
import structlog

from gated_backfill.common.model.coverage import DateExpectation, SourceChoice, choose_source
from gated_backfill.common.model.dates import consecutive_ranges
from gated_backfill.common.model.job import SOURCE_COLUMN, Input, Job, Source
from gated_backfill.common.model.missing_names import MISSING_NAMES_SHOWN
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.model.tables import ColumnTypes, TableName
from gated_backfill.common.warehouse.coverage_queries import (
    count_calendar_events,
    expectation_scan,
    read_entities,
    source_entities,
    translate_expectation_errors,
)
from gated_backfill.common.warehouse.protocol import Scan, Warehouse

log = structlog.get_logger()

MAX_SINGLE_THREADED_ROWS = 20_000  #: up to here, a thread per column costs more than it saves
PANDAS_TYPES: dict[pa.DataType, Any] = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}


@dataclass(frozen=True, kw_only=True)
class SourceCheck:
    """The coverage of one date's sources, and the source that was chosen."""

    expectation: DateExpectation
    expected: frozenset[str]
    present_by_source: Mapping[str, frozenset[str]]  #: by source, the expected entities it has
    choice: SourceChoice
    unexpected: frozenset[str]  #: the entities of the chosen source that are not expected

    @property
    def present_counts(self) -> dict[str, int]:
        return {name: len(names) for name, names in self.present_by_source.items()}

    @cached_property
    def covered_entities(self) -> frozenset[str]:
        """The expected entities that the chosen source has, with the one it is filled from."""
        fill = self.present_by_source[self.choice.fill_from] if self.choice.fill_from else frozenset[str]()
        return self.present_by_source[self.choice.source] | fill


def check_sources(warehouse: Warehouse, job: Job, options: RunOptions, days: Sequence[date]) -> dict[date, SourceCheck]:
    """Measure every source of each date against the expectation and choose one. Logs `source_check` for each date.

    Raises `ExpectationUnreadable`.
    """
    with translate_expectation_errors():
        expected = read_entities(warehouse, expectation_scan(job, days))
        calendar = count_calendar_events(warehouse, job, days, must_exist=options.calendar)
    entities_by_source = source_entities(warehouse, job, days, expected)
    checks: dict[date, SourceCheck] = {}
    for day in days:
        entities = expected.get(day, frozenset[str]())
        present = {name: by_day.get(day, frozenset[str]()) & entities for name, by_day in entities_by_source.items()}
        choice = _choose(job, options, entities, present)
        checks[day] = SourceCheck(
            expectation=job.date_expectation(len(entities), day, calendar),
            expected=entities,
            present_by_source=present,
            choice=choice,
            unexpected=entities_by_source[choice.source].get(day, frozenset[str]()) - entities,
        )
        _log_check(checks[day], day)
    return checks


def _choose(
    job: Job, options: RunOptions, expected: frozenset[str], present: Mapping[str, frozenset[str]]
) -> SourceChoice:
    order = [source.name for source in job.sources]
    return choose_source(
        order,
        {name: len(names) for name, names in present.items()},
        len(expected),
        policy=options.policy,
        fallback=options.fallback,
        with_fill={name: len(present[name] | present[order[0]]) for name in order[1:]},
    )


def _log_check(check: SourceCheck, day: date) -> None:
    count = len(check.expected)
    missing = sorted(check.expected - check.covered_entities)
    log.info(
        "source_check",
        day=day.isoformat(),
        expected=count,
        found=check.present_counts,
        coverage={name: round(n / count, 4) if count else None for name, n in check.present_counts.items()},
        chosen=check.choice.label,
        reason=check.choice.reason,
        missing=missing[:MISSING_NAMES_SHOWN],
        missing_count=len(missing),
    )


def group_by_source(checks: Mapping[date, SourceCheck]) -> list[tuple[date, ...]]:
    """Groups of dates that have the same sources and are therefore read and processed together."""
    groups: dict[tuple[str, str | None], list[date]] = {}
    for day, check in checks.items():
        groups.setdefault((check.choice.source, check.choice.fill_from), []).append(day)
    return [tuple(days) for days in groups.values()]


def date_and_entity_columns(job: Job, check: SourceCheck) -> tuple[str, str]:
    """The names of the date and entity columns in the rows that `read_rows` returns."""
    chosen = job.source(check.choice.source)
    return chosen.date_column, job.source_entity_column(chosen)


def read_rows(warehouse: Warehouse, job: Job, checks: Mapping[date, SourceCheck], days: Sequence[date]) -> pd.DataFrame:
    """Read the rows to process of dates that have the same sources, sorted by date and entity.

    The column `_source` names the source of each row.
    """
    choice = checks[days[0]].choice
    chosen = job.source(choice.source)
    date_column, entity = date_and_entity_columns(job, checks[days[0]])
    rows = _rows_of(warehouse, job, chosen, days)
    if chosen.derive is None and choice.fill_from is None:
        return rows  # already sorted
    if choice.fill_from is not None:
        fill = job.source(choice.fill_from)
        fill_rows = _rows_of(warehouse, job, fill, days)
        fill_rows = fill_rows.rename(columns={job.source_entity_column(fill): entity, fill.date_column: date_column})
        missing = {
            (pd.Timestamp(day), name)
            for day in days
            for name in checks[day].present_by_source[fill.name] - checks[day].present_by_source[chosen.name]
        }
        is_missing = [
            pair in missing for pair in zip(fill_rows[date_column], fill_rows[entity].astype(str), strict=True)
        ]
        rows = pd.concat([rows, fill_rows[is_missing]])
    return rows.sort_values([date_column, entity], kind="stable", ignore_index=True)


def _rows_of(warehouse: Warehouse, job: Job, source: Source, days: Sequence[date]) -> pd.DataFrame:
    """The source's rows, sorted by date and entity unless they are derived."""
    needed = _columns_to_read(source.columns, source.date_column, job.source_entity_column(source))
    if warehouse.describe(TableName.parse(source.table)) is None:
        empty = pd.DataFrame({name: pd.Series(dtype="object") for name in needed or {}})
        return empty.assign(**{SOURCE_COLUMN: pd.Series(dtype="str")})
    rows = _read_table(warehouse, source, days, needed)
    if source.derive is not None:
        return source.derive(_frame(rows), days).assign(**{SOURCE_COLUMN: source.name})
    ordered = rows.sort_by([(source.date_column, "ascending"), (job.source_entity_column(source), "ascending")])
    return _frame(ordered.append_column(SOURCE_COLUMN, pa.repeat(source.name, ordered.num_rows)))


def read_inputs(warehouse: Warehouse, job: Job, days: Sequence[date]) -> dict[str, pd.DataFrame | None]:
    """Read the job's inputs for the days; None for an optional table that does not exist."""
    frames: dict[str, pd.DataFrame | None] = {}
    for job_input in job.inputs:
        is_absent = job_input.optional and warehouse.describe(TableName.parse(job_input.table)) is None
        needed = _columns_to_read(job_input.columns, job_input.date_column)
        frames[job_input.name] = None if is_absent else _frame(_read_table(warehouse, job_input, days, needed))
    return frames


def _read_table(
    warehouse: Warehouse, table: Source | Input, days: Sequence[date], columns: Mapping[str, str] | None
) -> pa.Table:
    scan = Scan(
        table=TableName.parse(table.table),
        date_column=table.date_column,
        dates=tuple(consecutive_ranges(days, lookback=table.lookback_days)),
        columns=columns,
    )
    return warehouse.read(scan)


def _frame(rows: pa.Table) -> pd.DataFrame:
    """A frame of the columns; pandas metadata that a file may carry is ignored."""
    threads = rows.num_rows > MAX_SINGLE_THREADED_ROWS
    return rows.to_pandas(
        types_mapper=PANDAS_TYPES.get, date_as_object=False, ignore_metadata=True, use_threads=threads
    )


def _columns_to_read(columns: ColumnTypes | None, *always: str) -> dict[str, str] | None:
    return None if columns is None else {name: name for name in dict.fromkeys((*always, *columns))}
