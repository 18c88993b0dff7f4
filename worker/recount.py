"""Counting staged rows anew: nothing that a worker said of its own rows is believed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date

import pandas as pd
import pandera.errors
import pyarrow as pa
import pyarrow.compute as pc

from common.coverage import Recount
from common.job import Job
from common.measure import Match, calendar_events, match_staged, reading_expectation
from common.schema import arrow_schema, pandera_schema
from common.warehouse.base import StagedFile, Warehouse
from common.warehouse.staged import read_staged


def recount(
    warehouse: Warehouse, job: Job, files: Sequence[StagedFile], *, with_calendar: bool = False
) -> dict[date, Recount]:
    """What the staged files hold, against the expectation as it is now; one entry for each file's day.

    `with_calendar`: the calendar was there when the run was planned, so it must be now.

    Raises `ExpectationUnreadable`, `StagedFileLost`.
    """
    if not files:
        return {}
    days = [staged.day for staged in files]
    tables = {staged.day: read_staged(staged) for staged in files}
    sound, misshapen = _split(job, files, tables)
    with reading_expectation():
        matches = match_staged(warehouse, job, sound) if sound else {}
        calendar = calendar_events(warehouse, job, days, must_exist=with_calendar)
    rows = {staged.day: tables[staged.day] for staged in sound}
    broken = _broken_rows(job, rows)
    nothing = Match(expected=0, matched=0, missing=())

    def counted(staged: StagedFile) -> Recount:
        match = matches.get(staged.day, nothing)
        found = rows.get(staged.day)
        return Recount(
            truth=job.truth(match.expected, staged.day, calendar),
            matched=match.matched,
            missing=match.missing,
            rows=staged.rows if found is None else found.num_rows,
            null_keys=0 if found is None else _null_keys(job, found),
            duplicate_keys=0 if found is None else _duplicate_keys(job, found),
            schema_problem=misshapen.get(staged.day) or broken.get(staged.day),
        )

    return {staged.day: counted(staged) for staged in files}


def _split(
    job: Job, files: Sequence[StagedFile], tables: Mapping[date, pa.Table]
) -> tuple[list[StagedFile], dict[date, str]]:
    """The files that have exactly the target's columns, and what is wrong with each of the others."""
    wanted = arrow_schema({name: column.type for name, column in job.target.columns.items()})
    sound: list[StagedFile] = []
    misshapen: dict[date, str] = {}
    for staged in files:
        schema = tables[staged.day].schema
        if schema.equals(wanted):
            sound.append(staged)
        else:
            misshapen[staged.day] = f"the columns are {', '.join(f'{f.name} {f.type}' for f in schema)}"
    return sound, misshapen


def _broken_rows(job: Job, rows: Mapping[date, pa.Table]) -> dict[date, str]:
    """The first rule of the output schema that each day's rows break, for the days that break one."""
    if not rows:
        return {}
    frame = pa.concat_tables(rows.values()).to_pandas(types_mapper=pd.ArrowDtype)
    dates = frame[job.target.date_column]
    wrong_day = dates.ne(pd.Series(_days(rows), dtype=dates.dtype))
    found = dict.fromkeys(_at(rows, frame.index[wrong_day]), "rows of another date")
    try:
        pandera_schema(job.target.columns).validate(frame, lazy=True)
    except (pandera.errors.SchemaErrors, pandera.errors.SchemaError) as exc:
        return _first_failures(exc, rows) | found
    return found


def _first_failures(
    exc: pandera.errors.SchemaErrors | pandera.errors.SchemaError, rows: Mapping[date, pa.Table]
) -> dict[date, str]:
    cases = exc.failure_cases
    if not isinstance(cases, pd.DataFrame) or "index" not in cases.columns or cases["index"].isna().any():
        return dict.fromkeys(rows, str(exc).splitlines()[0])
    found: dict[date, str] = {}
    placed = cases.assign(day=_at(rows, cases["index"].astype(int)))
    for day in dict.fromkeys(placed["day"]):
        of_day = placed[placed["day"] == day]
        first = of_day.iloc[0]
        found[day] = f"{first['column']} fails {first['check']} in {len(of_day)} row(s), e.g. {first['failure_case']}"
    return found


def _days(rows: Mapping[date, pa.Table]) -> list[date]:
    return [day for day, table in rows.items() for _ in range(table.num_rows)]


def _at(rows: Mapping[date, pa.Table], positions: Iterable[int]) -> list[date]:
    days = _days(rows)
    return [days[int(position)] for position in positions]


def _null_keys(job: Job, rows: pa.Table) -> int:
    return rows.num_rows - rows.select(list(job.target.key)).drop_null().num_rows


def _duplicate_keys(job: Job, rows: pa.Table) -> int:
    counted = rows.group_by(list(job.target.key)).aggregate([([], "count_all")])
    return counted.filter(pc.field("count_all") > 1).num_rows
