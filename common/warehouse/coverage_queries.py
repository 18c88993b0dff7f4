"""Who is expected on which date, and how much of that each source has. Counts are over the expected set only."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

import pyarrow as pa

from gated_backfill.common.errors import ExpectationUnreadable, QueryFailed, SchemaMismatch, TableNotFound
from gated_backfill.common.model.dates import ONE_DAY, DateRange, consecutive_ranges
from gated_backfill.common.model.job import CalendarEvents, Job, Source
from gated_backfill.common.model.tables import ColumnType, ColumnTypes, TableName
from gated_backfill.common.warehouse.counting import day_entity_rows
from gated_backfill.common.warehouse.protocol import Scan, TableInfo, Warehouse, require_table

SEASON_LOOKBACK_DAYS = 400  #: a season's first date is at most so far back

EVENTS = """
    SELECT day, COUNT(*) AS n FROM calendar GROUP BY day
"""

SEASONS = """
    SELECT season, MIN(day) AS opens FROM calendar WHERE kind = @kind GROUP BY season
"""


@dataclass(frozen=True, kw_only=True)
class MissingTables:
    """Tables that a job names and the warehouse does not have."""

    sources: frozenset[str]  #: names of sources: they count as having nothing
    inputs: frozenset[str]  #: names of optional inputs: `process` gets None for them
    calendar: bool  #: a date with nothing expected is then skipped, not questioned

    def notes(self, job: Job) -> list[str]:
        """One sentence for each absent table."""
        found = [
            f"source {one.name}: table {one.table} does not exist, counted as 0 found"
            for one in job.sources
            if one.name in self.sources
        ]
        found += [
            f"optional input {one.name}: table {one.table} does not exist, done without"
            for one in job.inputs
            if one.name in self.inputs
        ]
        if self.calendar and job.expectation.calendar:
            table = job.expectation.calendar.table
            found.append(f"calendar {table} does not exist: dates with nothing expected are skipped unquestioned")
        return found


def check_tables(warehouse: Warehouse, job: Job) -> MissingTables:
    """Look at every table the job reads.

    Raises `TableNotFound` when the expectation's table or a required input's does not exist, `SchemaMismatch` when a
    table lacks its date column or a column the job reads.
    """
    absent = {need.role for need in table_requirements(job) if not _is_there(warehouse, need)}
    return MissingTables(
        sources=frozenset(one.name for one in job.sources if f"source {one.name}" in absent),
        inputs=frozenset(one.name for one in job.inputs if f"input {one.name}" in absent),
        calendar=job.expectation.calendar is None or "calendar" in absent,
    )


@dataclass(frozen=True, kw_only=True)
class TableRequirement:
    """A table that a job reads, and what it must be like."""

    role: str  #: the part it plays, as `Job.tables` names it
    table: TableName
    date_column: str
    columns: tuple[str, ...] = ()  #: that it must have, in any type
    types: ColumnTypes = field(default_factory=dict[str, ColumnType])  #: of the columns that must be of one
    optional: bool = False

    def mismatches(self, info: TableInfo) -> list[str]:
        """What is wrong with the table, each as the end of a sentence about it."""
        return list(
            dict.fromkeys(
                info.column_mismatches(self.date_column, self.columns)
                + info.column_mismatches(self.date_column, self.types)
            )
        )


def table_requirements(job: Job) -> list[TableRequirement]:
    """Every table the job reads. A source is optional: where its table does not exist it counts as having nothing."""
    truth = job.expectation
    found = [
        TableRequirement(
            role="expectation",
            table=TableName.parse(truth.table),
            date_column=truth.date_column,
            columns=(truth.entity,),
        )
    ]
    for source in job.sources:
        found.append(
            TableRequirement(
                role=f"source {source.name}",
                table=TableName.parse(source.table),
                date_column=source.date_column,
                columns=(job.source_entity_column(source),),
                types=source.columns or {},
                optional=True,
            )
        )
    for one in job.inputs:
        found.append(
            TableRequirement(
                role=f"input {one.name}",
                table=TableName.parse(one.table),
                date_column=one.date_column,
                types=one.columns or {},
                optional=one.optional,
            )
        )
    if (calendar := truth.calendar) is not None:
        named = [calendar.season_column, calendar.season_filter[0] if calendar.season_filter else None]
        found.append(
            TableRequirement(
                role="calendar",
                table=TableName.parse(calendar.table),
                date_column=calendar.date_column,
                columns=tuple(name for name in named if name),
                optional=True,
            )
        )
    return found


def _is_there(warehouse: Warehouse, need: TableRequirement) -> bool:
    """Whether the table exists. Raises `TableNotFound` when it must, `SchemaMismatch` when it is not as needed."""
    info = warehouse.describe(need.table) if need.optional else require_table(warehouse, need.table)
    if info is None:
        return False
    if wrong := need.mismatches(info):
        raise SchemaMismatch("; ".join(wrong), table=str(need.table))
    return True


@contextmanager
def translate_expectation_errors() -> Generator[None]:
    """Turns every lasting failure to read inside it into `ExpectationUnreadable`; a passing one stays `Retryable`."""
    try:
        yield
    except (TableNotFound, SchemaMismatch, QueryFailed) as exc:
        raise ExpectationUnreadable(f"expectation unreadable: {exc}") from exc


def read_entities(warehouse: Warehouse, scan: Scan) -> dict[date, frozenset[str]]:
    """The distinct entities by day, as text. The scan has the columns `day` and `entity`."""
    found: dict[date | None, set[str]] = {}
    for rows in warehouse.read(scan).to_batches():
        days: list[date | None] = rows["day"].unique().to_pylist()
        if len(days) == 1:  # as partitions are read one after the other
            found.setdefault(days[0], set()).update(_texts(rows["entity"].drop_null()))
            continue
        for day, entity in zip(rows["day"].to_pylist(), rows["entity"].to_pylist(), strict=True):
            if entity is not None:
                found.setdefault(day, set()).add(str(entity))
    return {day: frozenset(names) for day, names in found.items() if day is not None and names}


def _texts(names: pa.Array[Any]) -> Iterable[str]:
    found: list[Any] = names.to_pylist()
    return found if pa.types.is_string(names.type) else map(str, found)


def count_calendar_events(
    warehouse: Warehouse, job: Job, days: Sequence[date], *, must_exist: bool = False
) -> CalendarEvents | None:
    """How many events the calendar has on each of the days, and nothing of seasons; None without a calendar.

    With `must_exist`, raises `TableNotFound` when the job names one and the table is not there.
    """
    events = calendar_scan(job, days)
    if events is None or not days:
        return None
    if warehouse.describe(events.table) is None:
        if must_exist:
            raise TableNotFound("the calendar was there when the run was planned and is gone", table=str(events.table))
        return None
    return CalendarEvents(count_by_date=_by_day(warehouse.query(EVENTS, scans={"calendar": events})))


def read_calendar(warehouse: Warehouse, job: Job, days: Sequence[date]) -> CalendarEvents | None:
    """What the calendar says of the days and of the seasons they lie in; None without a calendar."""
    counted = count_calendar_events(warehouse, job, days)
    calendar = job.expectation.calendar
    if counted is None or calendar is None or calendar.season_column is None or calendar.season_filter is None:
        return counted
    kind_column, kind = calendar.season_filter
    seasons = Scan(
        table=TableName.parse(calendar.table),
        date_column=calendar.date_column,
        dates=(DateRange(start=min(days) - ONE_DAY * SEASON_LOOKBACK_DAYS, through=max(days)),),
        columns={"day": calendar.date_column, "season": calendar.season_column, "kind": kind_column},
    )
    opened = warehouse.query(SEASONS, scans={"calendar": seasons}, params={"kind": kind})["opens"].to_pylist()
    return replace(counted, season_starts=tuple(sorted(day for day in opened if day is not None)))


@dataclass(frozen=True, kw_only=True)
class ExpectationMatch:
    """How the staged rows of one date compare with the expectation."""

    expected: int
    matched: int
    missing: tuple[str, ...]


def match_expectation(
    warehouse: Warehouse, job: Job, days: Sequence[date], rows: pa.Table
) -> dict[date, ExpectationMatch]:
    """Compare rows of the target on the days with the expectation, read anew, by entity as text.

    Days with nothing expected are not in it.
    """
    read = day_entity_rows(warehouse.read(expectation_scan(job, days), once=True), "day", "entity")
    truth = read.group_by(["day", "entity"], use_threads=False).aggregate([])  # each of them once
    there = day_entity_rows(rows, job.target.date_column, job.entity_column)
    missing: dict[date, list[str]] = {}
    absent = truth.join(there, ["day", "entity"], join_type="left anti", use_threads=False)
    for row in absent.sort_by([("day", "ascending"), ("entity", "ascending")]).to_pylist():
        missing.setdefault(row["day"], []).append(row["entity"])
    counted = truth.group_by("day", use_threads=False).aggregate([([], "count_all")]).to_pylist()
    found: dict[date, ExpectationMatch] = {}
    for row in counted:
        lacking = tuple(missing.get(row["day"], ()))
        found[row["day"]] = ExpectationMatch(
            expected=row["count_all"], matched=row["count_all"] - len(lacking), missing=lacking
        )
    return found


def calendar_scan(job: Job, days: Iterable[date]) -> Scan | None:
    """The calendar's entries on the days; None without a calendar."""
    calendar = job.expectation.calendar
    if calendar is None:
        return None
    return Scan(
        table=TableName.parse(calendar.table),
        date_column=calendar.date_column,
        dates=tuple(consecutive_ranges(days)),
        columns={"day": calendar.date_column},
    )


def expectation_scan(job: Job, days: Iterable[date]) -> Scan:
    truth = job.expectation
    return Scan(
        table=TableName.parse(truth.table),
        date_column=truth.date_column,
        dates=tuple(consecutive_ranges(days)),
        columns={"day": truth.date_column, "entity": truth.entity},
    )


def source_scan(job: Job, source: Source, days: Iterable[date]) -> Scan:
    """The source's entities on the days themselves: what its coverage is counted over."""
    return Scan(
        table=TableName.parse(source.table),
        date_column=source.date_column,
        dates=tuple(consecutive_ranges(days)),
        columns={"day": source.date_column, "entity": job.source_entity_column(source)},
    )


def source_scans(job: Job, days: Sequence[date]) -> dict[str, Scan]:
    """By source, the scan of who it has; none for one that is the expectation's own table: it has who is expected."""
    truth = expectation_scan(job, days)
    return {one.name: scan for one in job.sources if (scan := source_scan(job, one, days)) != truth}


def source_entities(
    warehouse: Warehouse, job: Job, days: Sequence[date], expected: dict[date, frozenset[str]]
) -> dict[str, dict[date, frozenset[str]]]:
    """By source, the distinct entities that it has by day, given who is expected; none of one without a table."""
    held = dict.fromkeys((source.name for source in job.sources), expected)
    for name, scan in source_scans(job, days).items():
        held[name] = {} if warehouse.describe(scan.table) is None else read_entities(warehouse, scan)
    return held


def input_fingerprints(warehouse: Warehouse, job: Job, days: Sequence[date]) -> dict[date, str]:
    """By day, a value that changes when anything the date is built from changes, or the job's version does."""
    parts: dict[date, list[str]] = {day: [job.version] for day in days}
    truth = job.expectation
    lookbacks: dict[tuple[str, str], int] = {(truth.table, truth.date_column): 0}
    columns: dict[tuple[str, str], set[str] | None] = {(truth.table, truth.date_column): {truth.entity}}
    for one in (*job.sources, *job.inputs):
        key = (one.table, one.date_column)
        lookbacks[key] = max(lookbacks.get(key, 0), one.lookback_days)
        known = columns.setdefault(key, set())
        columns[key] = None if known is None or one.columns is None else {*known, *one.columns}
    for source in job.sources:
        if (read := columns[source.table, source.date_column]) is not None:
            read.add(job.source_entity_column(source))
    for (table, date_column), lookback in sorted(lookbacks.items()):
        read = [one for stretch in consecutive_ranges(days, lookback=lookback) for one in stretch.days()]
        found = warehouse.fingerprints(TableName.parse(table), date_column, read, columns=columns[table, date_column])
        for day in days:
            parts[day] += [table, *(found[day - ONE_DAY * n] for n in range(lookback, -1, -1))]
    return {day: hashlib.sha256("\n".join(told).encode()).hexdigest() for day, told in parts.items()}


def _by_day(counted: pa.Table) -> dict[date, int]:
    return {row["day"]: row["n"] for row in counted.to_pylist()}
