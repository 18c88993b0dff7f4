"""Counting staged rows anew: nothing that a worker said of its own rows is believed."""

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

from gated_backfill.common.model.arrow_types import arrow_schema, pandera_schema
from gated_backfill.common.model.coverage import Recount
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.tables import Column, ColumnType
from gated_backfill.common.warehouse.coverage_queries import (
    ExpectationMatch,
    count_calendar_events,
    match_expectation,
    translate_expectation_errors,
)
from gated_backfill.common.warehouse.protocol import Warehouse

DAY_INDEX = "place of its day"  #: a column of ours: no column of a table has spaces in its name


def preload_schema_checks() -> None:
    """Import what the first check of rows would import, once for all processes that are forked afterwards."""
    columns: dict[str, ColumnType] = {"day": "DATE"}
    no_rows = arrow_schema(columns).empty_table().to_pandas(types_mapper=pd.ArrowDtype)
    pandera_schema({name: Column(type=kind) for name, kind in columns.items()}).validate(no_rows)
    import_module("pyarrow.acero")


def recount(
    warehouse: Warehouse, job: Job, staged: Mapping[date, pa.Table], *, require_calendar: bool = False
) -> dict[date, Recount]:
    """What staged rows hold, by the day they were staged for, against the expectation as it is now.

    `with_calendar`: the calendar was there when the run was planned, so it must be now.

    Raises `ExpectationUnreadable`.
    """
    sound, misshapen = _split(job, staged)
    rows = _Rows(days=tuple(sound), table=_one_table(sound)) if sound else None
    with translate_expectation_errors():
        calendar = count_calendar_events(warehouse, job, list(staged), must_exist=require_calendar)
        matches = match_expectation(warehouse, job, rows.days, rows.table) if rows else {}
    nulls = rows.null_keys(job) if rows else {}
    duplicates = rows.duplicate_keys(job) if rows else {}
    broken = _broken_rows(job, rows) if rows else {}
    nothing = ExpectationMatch(expected=0, matched=0, missing=())

    def counted(day: date) -> Recount:
        match = matches.get(day, nothing)
        return Recount(
            expectation=job.date_expectation(match.expected, day, calendar),
            matched=match.matched,
            missing=match.missing,
            rows=staged[day].num_rows,
            null_keys=nulls.get(day, 0),
            duplicate_keys=duplicates.get(day, 0),
            schema_problem=misshapen.get(day) or broken.get(day),
        )

    return {day: counted(day) for day in staged}


def _split(job: Job, staged: Mapping[date, pa.Table]) -> tuple[dict[date, pa.Table], dict[date, str]]:
    """The days whose rows have exactly the target's columns, and what is wrong with each of the others."""
    wanted = arrow_schema({name: column.type for name, column in job.target.columns.items()})
    sound: dict[date, pa.Table] = {}
    misshapen: dict[date, str] = {}
    for day, rows in staged.items():
        if rows.schema.equals(wanted):
            sound[day] = rows
        else:
            misshapen[day] = f"the columns are {', '.join(f'{f.name} {f.type}' for f in rows.schema)}"
    return sound, misshapen


def _one_table(staged: Mapping[date, pa.Table]) -> pa.Table:
    """All the rows; `PLACE` tells which of the days, as they are listed, each was staged for."""
    places = np.repeat(np.arange(len(staged)), [rows.num_rows for rows in staged.values()])
    return pa.concat_tables(staged.values()).append_column(DAY_INDEX, pa.array(places)).combine_chunks()


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The rows of several days in one table."""

    days: tuple[date, ...]
    table: pa.Table

    def null_keys(self, job: Job) -> dict[date, int]:
        has_null = np.zeros(self.table.num_rows, bool)
        for name in job.target.key:
            has_null |= pc.is_null(self.table[name]).to_numpy()
        return self._by_day(self.places[has_null])

    def duplicate_keys(self, job: Job) -> dict[date, int]:
        counted = self.table.group_by([*job.target.key, DAY_INDEX], use_threads=False).aggregate([([], "count_all")])
        return self._by_day(counted[DAY_INDEX].to_numpy()[counted["count_all"].to_numpy() > 1])

    def days_at(self, positions: Iterable[int]) -> list[date]:
        """The days that the rows at the positions were staged for."""
        places = self.places
        return [self.days[places[int(position)]] for position in positions]

    @property
    def places(self) -> npt.NDArray[np.int64]:
        return self.table[DAY_INDEX].to_numpy()

    def _by_day(self, places: npt.NDArray[np.int64]) -> dict[date, int]:
        counted = np.bincount(places, minlength=len(self.days)).tolist()
        return dict(zip(self.days, counted, strict=True))


def _broken_rows(job: Job, rows: _Rows) -> dict[date, str]:
    """The first rule of the output schema that each day's rows break, for the days that break one."""
    frame = rows.table.drop_columns(DAY_INDEX).to_pandas(types_mapper=pd.ArrowDtype, use_threads=False)
    of_days = np.array(rows.days, "datetime64[D]")[rows.places]
    wrong_day = rows.table[job.target.date_column].to_numpy() != of_days  # as is no date at all
    found = dict.fromkeys(rows.days_at(np.flatnonzero(wrong_day)), "rows of another date")
    try:
        pandera_schema(job.target.columns).validate(frame, lazy=True)
    except (pandera.errors.SchemaErrors, pandera.errors.SchemaError) as exc:
        return _first_failures(exc, rows) | found
    return found


def _first_failures(exc: pandera.errors.SchemaErrors | pandera.errors.SchemaError, rows: _Rows) -> dict[date, str]:
    cases = exc.failure_cases
    if not isinstance(cases, pd.DataFrame) or "index" not in cases.columns or cases["index"].isna().any():
        return dict.fromkeys(rows.days, str(exc).splitlines()[0])
    found: dict[date, str] = {}
    placed = cases.assign(day=rows.days_at(cases["index"].astype(int)))
    for day in dict.fromkeys(placed["day"]):
        of_day = placed[placed["day"] == day]
        first = of_day.iloc[0]
        found[day] = f"{first['column']} fails {first['check']} in {len(of_day)} row(s), e.g. {first['failure_case']}"
    return found
