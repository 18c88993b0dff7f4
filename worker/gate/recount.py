"""Recount staged rows in the gate: the counts that a worker reported for its own rows are not used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from importlib import import_module

import numpy as np
import numpy.typing as npt
import pandas as pd
import pandera.errors
import pyarrow as pa
import pyarrow.compute as pc

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.arrow.types import arrow_schema, comparable, nan_as_null, pandera_schema
from gated_backfill.common.model.coverage import Recount
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.output_schema import describe_failure, null_share_problem
from gated_backfill.common.model.tables import Column, ColumnType
from gated_backfill.common.warehouse.coverage_queries import (
    ExpectationMatch,
    count_calendar_events,
    match_expectation,
    translate_expectation_errors,
)
from gated_backfill.common.warehouse.entities import entity_texts
from gated_backfill.common.warehouse.protocol import Warehouse

DAY_INDEX = "place of its day"  #: a column added here; no column of a table has spaces in its name


def preload_schema_checks() -> None:
    """Run a check without rows, so that its imports happen before the worker forks."""
    columns: dict[str, ColumnType] = {"day": "DATE"}
    no_rows = arrow_schema(columns).empty_table().to_pandas(types_mapper=pd.ArrowDtype)
    pandera_schema({name: Column(type=kind) for name, kind in columns.items()}).validate(no_rows)
    import_module("pyarrow.acero")


def recount(
    warehouse: Warehouse,
    job: Job,
    staged: Mapping[date, pa.Table],
    *,
    require_calendar: bool = False,
    target_rows: pa.Table | None = None,
) -> dict[date, Recount]:
    """Count staged rows, by the day they were staged for, against the expectation as it is now.

    `require_calendar`: the calendar existed when the run was planned, so it must exist now. `target_rows`: what the
    target has on days on which the staged rows are compared with it, see `match_expectation`.

    Raises `ExpectationUnreadable`.
    """
    well_formed, problems = _split_by_columns(job, staged)
    well_formed, entity_problems = _split_by_entities(job, well_formed)
    problems |= entity_problems
    rows = _Rows(days=tuple(well_formed), table=_one_table(well_formed)) if well_formed else None
    with translate_expectation_errors():
        calendar = count_calendar_events(warehouse, job, list(staged), must_exist=require_calendar)
        matches = match_expectation(warehouse, job, rows.days, rows.table, target_rows=target_rows) if rows else {}
    nulls = rows.null_keys(job) if rows else {}
    duplicates = rows.duplicate_keys(job) if rows else {}
    schema_problems = _schema_problems(job, rows) if rows else {}
    no_match = ExpectationMatch(expected=0, matched=0, null_entities=0, missing=(), unexpected=())

    def recount_day(day: date) -> Recount:
        match = matches.get(day, no_match)
        return Recount(
            expectation=job.date_expectation(match.expected, day, calendar, null_entities=match.null_entities),
            matched=match.matched,
            missing=match.missing,
            unexpected=match.unexpected,
            target=match.target,
            rows=staged[day].num_rows,
            null_keys=nulls.get(day, 0),
            duplicate_keys=duplicates.get(day, 0),
            schema_problem=problems.get(day) or schema_problems.get(day),
        )

    return {day: recount_day(day) for day in staged}


def _split_by_columns(job: Job, staged: Mapping[date, pa.Table]) -> tuple[dict[date, pa.Table], dict[date, str]]:
    """The rows of days that have exactly the target's columns, and a message for each other day."""
    target_schema = arrow_schema({name: column.type for name, column in job.target.columns.items()})
    well_formed: dict[date, pa.Table] = {}
    problems: dict[date, str] = {}
    for day, rows in staged.items():
        if rows.schema.equals(target_schema):
            well_formed[day] = rows
        else:
            problems[day] = f"the columns are {', '.join(f'{f.name} {f.type}' for f in rows.schema)}"
    return well_formed, problems


def _split_by_entities(job: Job, staged: Mapping[date, pa.Table]) -> tuple[dict[date, pa.Table], dict[date, str]]:
    """The rows of days whose entities can be read, and a message for each other day, which must not block these."""
    names = [name for name in job.target_entity if job.target.columns[name].type == "FLOAT64"]
    if not names:  # any value of another type names an entity
        return dict(staged), {}
    readable: dict[date, pa.Table] = {}
    problems: dict[date, str] = {}
    for day, rows in staged.items():
        try:
            for name in names:
                entity_texts(rows[name], name)
        except SchemaMismatch as exc:
            problems[day] = str(exc)
        else:
            readable[day] = rows
    return readable, problems


def _one_table(staged: Mapping[date, pa.Table]) -> pa.Table:
    """All rows in one table; the column `DAY_INDEX` is the position of the day that each row was staged for."""
    indexes = np.repeat(np.arange(len(staged)), [rows.num_rows for rows in staged.values()])
    rows = pa.concat_tables(staged.values()).append_column(DAY_INDEX, pa.array(indexes)).combine_chunks()
    return pa.Table.from_arrays([nan_as_null(values) for values in rows.columns], schema=rows.schema)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The rows of several days in one table."""

    days: tuple[date, ...]
    table: pa.Table

    def null_keys(self, job: Job) -> dict[date, int]:
        has_null = np.zeros(self.table.num_rows, bool)
        for name in job.target.key:
            has_null |= pc.is_null(self.table[name]).to_numpy()
        return self._count_by_day(self.day_indexes[has_null])

    def nulls_by_day(self, column: str) -> dict[date, int]:
        return self._count_by_day(self.day_indexes[pc.is_null(self.table[column]).to_numpy()])

    def rows_by_day(self) -> dict[date, int]:
        return self._count_by_day(self.day_indexes)

    def duplicate_keys(self, job: Job) -> dict[date, int]:
        columns = [*job.target.key, DAY_INDEX]
        keys = pa.Table.from_arrays([comparable(self.table[name]) for name in columns], names=columns)
        key_counts = keys.group_by(columns, use_threads=False).aggregate([([], "count_all")])
        return self._count_by_day(key_counts[DAY_INDEX].to_numpy()[key_counts["count_all"].to_numpy() > 1])

    def days_at(self, positions: Iterable[int]) -> list[date]:
        """The days that the rows at the positions were staged for."""
        indexes = self.day_indexes
        return [self.days[indexes[int(position)]] for position in positions]

    @property
    def day_indexes(self) -> npt.NDArray[np.int64]:
        return self.table[DAY_INDEX].to_numpy()

    def _count_by_day(self, indexes: npt.NDArray[np.int64]) -> dict[date, int]:
        counts = np.bincount(indexes, minlength=len(self.days)).tolist()
        return dict(zip(self.days, counts, strict=True))


def _schema_problems(job: Job, rows: _Rows) -> dict[date, str]:
    """For each day whose rows break a rule of the output schema: the first such rule."""
    frame = rows.table.drop_columns(DAY_INDEX).to_pandas(types_mapper=pd.ArrowDtype, use_threads=False)
    expected_days = np.array(rows.days, "datetime64[D]")[rows.day_indexes]
    wrong_day = rows.table[job.target.date_column].to_numpy() != expected_days  # true for null dates, too
    problems = dict.fromkeys(rows.days_at(np.flatnonzero(wrong_day)), "rows of another date")
    problems = _null_share_problems(job, rows) | problems
    try:
        pandera_schema(job.target.columns).validate(frame, lazy=True)
    except (pandera.errors.SchemaErrors, pandera.errors.SchemaError) as exc:
        return _first_failures(exc, rows) | problems
    return problems


def _null_share_problems(job: Job, rows: _Rows) -> dict[date, str]:
    """For each day with more nulls in a column than its `max_null_share` allows: the first such column."""
    limited = {name: column for name, column in job.target.columns.items() if column.max_null_share is not None}
    if not limited:
        return {}
    row_counts = rows.rows_by_day()
    problems: dict[date, str] = {}
    for name, column in limited.items():
        for day, nulls in rows.nulls_by_day(name).items():
            if problem := null_share_problem(name, column, nulls, row_counts[day]):
                problems.setdefault(day, problem)
    return problems


def _first_failures(exc: pandera.errors.SchemaErrors | pandera.errors.SchemaError, rows: _Rows) -> dict[date, str]:
    cases = exc.failure_cases
    if not isinstance(cases, pd.DataFrame) or "index" not in cases.columns:
        return dict.fromkeys(rows.days, " ".join(str(exc).split()))
    if (undated := cases["index"].isna()).any():  # a check that could not be made, or one of the table as a whole
        first = cases[undated].iloc[0]
        what = "the table" if pd.isna(first["column"]) else first["column"]
        return dict.fromkeys(rows.days, f"{what} fails {first['check']}: {first['failure_case']}")
    problems: dict[date, str] = {}
    dated_cases = cases.assign(day=rows.days_at(cases["index"].astype(int)))
    for day in dict.fromkeys(dated_cases["day"]):
        day_cases = dated_cases[dated_cases["day"] == day]
        first = day_cases.iloc[0]
        same_check = (day_cases["column"] == first["column"]) & (day_cases["check"] == first["check"])
        problems[day] = describe_failure(first["column"], first["check"], int(same_check.sum()), first["failure_case"])
    return problems
