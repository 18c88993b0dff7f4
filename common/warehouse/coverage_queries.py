"""Queries for coverage: the expected entities of each date, and the share of them that each source has."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import pyarrow as pa

from gated_backfill.common.errors import ExpectationUnreadable, QueryFailed, SchemaMismatch, TableNotFound
from gated_backfill.common.model.dates import ONE_DAY, DateRange, consecutive_ranges
from gated_backfill.common.model.job import Calendar, CalendarEvents, Expectation, Job, Source
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.counting import day_entity_rows
from gated_backfill.common.warehouse.protocol import Scan, Warehouse

SEASON_LOOKBACK_DAYS = 400  #: the most days between a date and the first date of its season

EVENTS_QUERY = """
    SELECT day, COUNT(*) AS n FROM calendar GROUP BY day
"""

SEASONS_QUERY = """
    SELECT season, MIN(day) AS opens FROM calendar WHERE kind = @kind GROUP BY season
"""


@contextmanager
def translate_expectation_errors() -> Generator[None]:
    """Raise `ExpectationUnreadable` for a permanent failure to read; a transient one stays `Retryable`."""
    try:
        yield
    except (TableNotFound, SchemaMismatch, QueryFailed) as exc:
        raise ExpectationUnreadable(f"expectation unreadable: {exc}") from exc


def read_entities(warehouse: Warehouse, scan: Scan) -> dict[date, frozenset[str]]:
    """Read the distinct entities by day, as text. The scan has the columns `day` and `entity`."""
    entities: dict[date | None, set[str]] = {}
    for rows in warehouse.read(scan).to_batches():
        days: list[date | None] = rows["day"].unique().to_pylist()
        if len(days) == 1:  # the usual case: a batch holds one partition
            entities.setdefault(days[0], set()).update(_texts(rows["entity"].drop_null()))
            continue
        for day, entity in zip(rows["day"].to_pylist(), rows["entity"].to_pylist(), strict=True):
            if entity is not None:
                entities.setdefault(day, set()).add(str(entity))
    return {day: frozenset(names) for day, names in entities.items() if day is not None and names}


def _texts(names: pa.Array[Any]) -> Iterable[str]:
    values: list[Any] = names.to_pylist()
    return values if pa.types.is_string(names.type) else map(str, values)


def count_calendar_events(
    warehouse: Warehouse, job: Job, days: Sequence[date], *, must_exist: bool = False
) -> CalendarEvents | None:
    """Count the calendar's events on each day, without seasons; None without a calendar.

    With `must_exist`, raises `TableNotFound` when the job has a calendar whose table does not exist.
    """
    events = calendar_scan(job, days)
    if events is None or not days:
        return None
    if warehouse.describe(events.table) is None:
        if must_exist:
            raise TableNotFound("the calendar was there when the run was planned and is gone", table=str(events.table))
        return None
    rows = warehouse.query(EVENTS_QUERY, scans={"calendar": events}).to_pylist()
    return CalendarEvents(count_by_date={row["day"]: row["n"] for row in rows})


def read_calendar(warehouse: Warehouse, job: Job, days: Sequence[date]) -> CalendarEvents | None:
    """Count the calendar's events on each day, and read the first dates of their seasons; None without a calendar."""
    events = count_calendar_events(warehouse, job, days)
    calendar = job.expectation.calendar
    if events is None or calendar is None or calendar.season_column is None or calendar.season_filter is None:
        return events
    kind_column, kind = calendar.season_filter
    seasons = Scan(
        table=TableName.parse(calendar.table),
        date_column=calendar.date_column,
        dates=(DateRange(start=min(days) - ONE_DAY * SEASON_LOOKBACK_DAYS, through=max(days)),),
        columns={"day": calendar.date_column, "season": calendar.season_column, "kind": kind_column},
    )
    opened = warehouse.query(SEASONS_QUERY, scans={"calendar": seasons}, params={"kind": kind})["opens"].to_pylist()
    return replace(events, season_starts=tuple(sorted(day for day in opened if day is not None)))


@dataclass(frozen=True, kw_only=True)
class ExpectationMatch:
    """How the staged rows of one date compare with the expectation."""

    expected: int
    matched: int
    missing: tuple[str, ...]  #: sorted
    unexpected: tuple[str, ...]  #: sorted


def match_expectation(
    warehouse: Warehouse, job: Job, days: Sequence[date], rows: pa.Table
) -> dict[date, ExpectationMatch]:
    """Compare rows of the target with the expectation of the days, which is read again. Entities compare as text."""
    expectation = day_entity_rows(warehouse.read(expectation_scan(job, days), once=True), "day", "entity")
    expected = expectation.group_by(["day", "entity"], use_threads=False).aggregate([])  # distinct
    present = day_entity_rows(rows, job.target.date_column, job.entity_column)
    missing, unexpected = _absent_entities(expected, present), _absent_entities(present, expected)
    day_counts = expected.group_by("day", use_threads=False).aggregate([([], "count_all")]).to_pylist()
    counts = {row["day"]: row["count_all"] for row in day_counts}
    return {
        day: ExpectationMatch(
            expected=counts.get(day, 0),
            matched=counts.get(day, 0) - len(missing.get(day, ())),
            missing=tuple(missing.get(day, ())),
            unexpected=tuple(unexpected.get(day, ())),
        )
        for day in days
    }


def _absent_entities(rows: pa.Table, others: pa.Table) -> dict[date, list[str]]:
    """The distinct entities of `rows` that `others` lacks, sorted, by day."""
    absent = rows.join(others, ["day", "entity"], join_type="left anti", use_threads=False)
    distinct = absent.group_by(["day", "entity"], use_threads=False).aggregate([])
    entities: dict[date, list[str]] = {}
    for row in distinct.sort_by([("day", "ascending"), ("entity", "ascending")]).to_pylist():
        entities.setdefault(row["day"], []).append(row["entity"])
    return entities


def _scan(dated: Expectation | Calendar | Source, days: Iterable[date], **columns: str) -> Scan:
    return Scan(
        table=TableName.parse(dated.table),
        date_column=dated.date_column,
        dates=tuple(consecutive_ranges(days)),
        columns={"day": dated.date_column, **columns},
    )


def calendar_scan(job: Job, days: Iterable[date]) -> Scan | None:
    """Scan the calendar's entries on the days; None without a calendar."""
    calendar = job.expectation.calendar
    return None if calendar is None else _scan(calendar, days)


def expectation_scan(job: Job, days: Iterable[date]) -> Scan:
    """Scan the expected entities of the days."""
    return _scan(job.expectation, days, entity=job.expectation.entity_columns[0])


def source_scan(job: Job, source: Source, days: Iterable[date]) -> Scan:
    """Scan the source's entities on the days themselves, without the lookback: coverage is counted over these."""
    return _scan(source, days, entity=job.source_entity_column(source))


def source_scans(job: Job, days: Sequence[date]) -> dict[str, Scan]:
    """Scan each source by name, but not a source in the expectation's own table, which has every expected entity."""
    expectation = expectation_scan(job, days)
    return {source.name: scan for source in job.sources if (scan := source_scan(job, source, days)) != expectation}


def source_entities(
    warehouse: Warehouse, job: Job, days: Sequence[date], expected: dict[date, frozenset[str]]
) -> dict[str, dict[date, frozenset[str]]]:
    """Read the distinct entities of each source by day; none for a source without a table."""
    entities = dict.fromkeys((source.name for source in job.sources), expected)
    for name, scan in source_scans(job, days).items():
        entities[name] = {} if warehouse.describe(scan.table) is None else read_entities(warehouse, scan)
    return entities


def input_fingerprints(warehouse: Warehouse, job: Job, days: Sequence[date]) -> dict[date, str]:
    """Hash, for each day, the job's version and the partitions that the date is built from."""
    parts: dict[date, list[str]] = {day: [job.version] for day in days}
    expectation = job.expectation
    lookbacks: dict[tuple[str, str], int] = {(expectation.table, expectation.date_column): 0}
    columns: dict[tuple[str, str], set[str] | None] = {
        (expectation.table, expectation.date_column): {*expectation.entity_columns}
    }
    for dependency in (*job.sources, *job.inputs):
        key = (dependency.table, dependency.date_column)
        lookbacks[key] = max(lookbacks.get(key, 0), dependency.lookback_days)
        names = columns.setdefault(key, set())
        columns[key] = None if names is None or dependency.columns is None else {*names, *dependency.columns}
    for source in job.sources:
        if (names := columns[source.table, source.date_column]) is not None:
            names.add(job.source_entity_column(source))
    for (table, date_column), lookback in sorted(lookbacks.items()):
        days_read = [day for span in consecutive_ranges(days, lookback=lookback) for day in span.days()]
        fingerprints = warehouse.fingerprints(
            TableName.parse(table), date_column, days_read, columns=columns[table, date_column]
        )
        for day in days:
            parts[day] += [table, *(fingerprints[day - ONE_DAY * n] for n in range(lookback, -1, -1))]
    return {day: hashlib.sha256("\n".join(texts).encode()).hexdigest() for day, texts in parts.items()}
