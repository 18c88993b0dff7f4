"""Queries for coverage: the expected entities of each date, and the share of them that each source has."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from typing import Any

import pyarrow as pa

from gated_backfill.common.errors import ExpectationUnreadable, QueryFailed, SchemaMismatch, TableNotFound
from gated_backfill.common.model.arrow.types import parse_value
from gated_backfill.common.model.coverage import TargetCounts, describe_contradiction
from gated_backfill.common.model.dates import ONE_DAY, DateRange, consecutive_ranges
from gated_backfill.common.model.entities import EntityColumns, PresenceRule
from gated_backfill.common.model.job import CalendarEvents, Expectation, Job, Source
from gated_backfill.common.model.tables import NULL_TYPE, TableName
from gated_backfill.common.warehouse.entities import ExpectedEntities, read_days, rows_by_day
from gated_backfill.common.warehouse.protocol import (
    ABSENT,
    EntityScan,
    Scan,
    TableInfo,
    Warehouse,
    read_unless_absent,
    require_table,
)

SEASON_LOOKBACK_DAYS = 400  #: the most days between a date and the first date of its season

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
    return CalendarEvents(count_by_date=warehouse.count_rows(events))


def read_calendar(warehouse: Warehouse, job: Job, days: Sequence[date]) -> CalendarEvents | None:
    """Count the calendar's events on each day, and read the first dates of their seasons; None without a calendar."""
    events = count_calendar_events(warehouse, job, days)
    calendar = job.expectation.calendar
    if events is None or calendar is None or calendar.season_column is None or calendar.season_filter is None:
        return events
    kind_column = calendar.season_filter[0]
    info = require_table(warehouse, TableName.parse(calendar.table))
    info.check_columns(calendar.date_column, [kind_column], time_zone=calendar.time_zone)
    try:
        kind = season_filter_value(info, calendar.season_filter)
    except ValueError as exc:
        raise SchemaMismatch(str(exc), table=calendar.table) from exc
    seasons = Scan(
        table=TableName.parse(calendar.table),
        date_column=calendar.date_column,
        dates=(DateRange(start=min(days) - ONE_DAY * SEASON_LOOKBACK_DAYS, through=max(days)),),
        columns={"day": calendar.date_column, "season": calendar.season_column, "kind": kind_column},
        time_zone=calendar.time_zone,
    )
    opened = warehouse.query(SEASONS_QUERY, scans={"calendar": seasons}, params={"kind": kind})["opens"]
    season_starts = read_days(opened.drop_null(), calendar.time_zone).to_pylist()
    return replace(events, season_starts=tuple(sorted(season_starts)))


def season_filter_value(info: TableInfo, season_filter: tuple[str, str]) -> Any:
    """Return the value of `season_filter` in the type of its column, which the calendar has.

    Raises `ValueError`, worded as the end of a sentence about the table, for a text that is no value of that type.
    """
    column, text = season_filter
    kind = info.columns[column]
    if kind == NULL_TYPE:
        return text
    try:
        return parse_value(text, kind)
    except ValueError as exc:
        raise ValueError(f"column {column} is {kind}, but the value of season_filter is {text!r}") from exc


@dataclass(frozen=True, kw_only=True)
class ExpectationMatch:
    """How the staged rows of one date compare with the expectation."""

    expected: int
    matched: int
    null_entities: int  #: rows of the expectation without an entity
    missing: tuple[str, ...]  #: sorted
    unexpected: tuple[str, ...]  #: sorted
    target: TargetCounts | None = None  #: None if the staged rows were not compared with the target's


def match_expectation(
    job: Job, days: Sequence[date], expected: ExpectedEntities, staged: pa.Table, *, target_rows: pa.Table | None = None
) -> dict[date, ExpectationMatch]:
    """Compare the entities of staged rows with the expectation of the days.

    `staged` and `target_rows` are as `Warehouse.read_entities` returns them. The latter are the rows that the target
    has on some of the days: the staged rows of these days are compared with them, too.
    """
    present = expected.present_in(staged, target_columns(job).rule)
    counts, matched = expected.count_by_day(expected.all), expected.count_by_day(present)
    missing, unexpected = expected.names_by_day(~present), expected.unexpected(staged)
    targets = {} if target_rows is None else compare_with_target(job, expected, staged, target_rows)
    return {
        day: ExpectationMatch(
            expected=counts.get(day, 0),
            matched=matched.get(day, 0),
            null_entities=expected.null_rows.get(day, 0),
            missing=tuple(missing.get(day, ())),
            unexpected=tuple(unexpected.get(day, ())),
            target=targets.get(day),
        )
        for day in days
    }


def compare_with_target(
    job: Job, expected: ExpectedEntities, staged: pa.Table, target_rows: pa.Table
) -> dict[date, TargetCounts]:
    """Compare, for each day of `target_rows`, what the target has with the staged rows that are to replace it.

    An entity is lost if the target has it by the job's rule, or at all, and the staged rows do not.
    """
    rule, any_row = target_columns(job).rule, PresenceRule()
    matching, held = expected.present_in(target_rows, rule), expected.present_in(target_rows, any_row)
    lost = matching & ~expected.present_in(staged, rule) | held & ~expected.present_in(staged, any_row)
    thinned = (
        expected.with_fewer_rows(staged, than=target_rows) & ~lost if _compares_row_numbers(job) else ~expected.all
    )
    matched_counts, held_counts = expected.count_by_day(matching), expected.count_by_day(held)
    lost_names, thinned_names = expected.names_by_day(lost), expected.names_by_day(thinned)
    unexpected, staged_unexpected = expected.unexpected(target_rows), expected.unexpected(staged)
    return {
        day: TargetCounts(
            rows=rows,
            matched=matched_counts.get(day, 0),
            held=held_counts.get(day, 0),
            entities=held_counts.get(day, 0) + len(unexpected.get(day, ())),
            lost=tuple(lost_names.get(day, ())),
            dropped=tuple(sorted({*unexpected.get(day, ())}.difference(staged_unexpected.get(day, ())))),
            thinned=tuple(thinned_names.get(day, ())),
        )
        for day, rows in rows_by_day(target_rows).items()
    }


def _compares_row_numbers(job: Job) -> bool:
    """Whether fewer rows of an entity may be a loss that neither the rule of the job notices nor its key explains.

    If the key has no more columns than the entity, several rows of an entity are duplicates.
    """
    return not target_columns(job).rule.is_measured and not {*job.target.key} <= {
        *job.target_entity,
        job.target.date_column,
    }


def read_expectation(warehouse: Warehouse, job: Job, days: Iterable[date]) -> ExpectedEntities:
    """Read the expected entities of the days."""
    scan = expectation_scan(job, days)
    return ExpectedEntities(warehouse.read_entities(scan), is_measured=scan.columns.rule.is_measured)


@dataclass(frozen=True, kw_only=True)
class SourceEntities:
    """The entities of one source by day, compared with the expected ones."""

    present: Mapping[date, frozenset[str]]  #: of the expected
    unexpected: Mapping[date, Collection[str]]
    rows: Mapping[date, int]  #: rows on days without expected entities


NO_ENTITIES = SourceEntities(present={}, unexpected={}, rows={})


@dataclass(frozen=True, kw_only=True)
class MeasuredDates:
    """The expected entities of some days, and those that each source has."""

    expected: Mapping[date, frozenset[str]]
    null_entities: Mapping[date, int]  #: rows of the expectation without an entity
    sources: Mapping[str, SourceEntities]  #: by name; nothing for a source without a table

    def rows_on(self, day: date) -> dict[str, int]:
        """Return the number of rows by source on the day, if nothing is expected on it."""
        return {name: source.rows.get(day, 0) for name, source in self.sources.items()}


def measure_dates(warehouse: Warehouse, job: Job, days: Sequence[date]) -> MeasuredDates:
    """Read the expected entities of the days and compare every source with them.

    Raises `ExpectationUnreadable`, and for a source like `Warehouse.read_entities`.
    """

    def read_expected() -> ExpectedEntities:
        with translate_expectation_errors():
            return read_expectation(warehouse, job, days)

    scans = source_scans(job, days)
    entities, *rows_of_sources = warehouse.together(
        read_expected, *(partial(_read_source, warehouse, scan) for scan in scans.values())
    )
    expected = entities.all_by_day()
    sources = {source.name: SourceEntities(present=expected, unexpected={}, rows={}) for source in job.sources}
    for (name, scan), rows in zip(scans.items(), rows_of_sources, strict=True):
        sources[name] = _measure_source(scan, rows, entities)
    return MeasuredDates(expected=expected, null_entities=entities.null_rows, sources=sources)


def _read_source(warehouse: Warehouse, scan: EntityScan) -> pa.Table | None:
    return read_unless_absent(warehouse.describe, scan.table, lambda: warehouse.read_entities(scan))


def _measure_source(scan: EntityScan, rows: pa.Table | None, expected: ExpectedEntities) -> SourceEntities:
    if rows is None:
        return NO_ENTITIES
    present = expected.present_in(rows, scan.columns.rule)
    return SourceEntities(
        present=expected.sets_by_day(present),
        unexpected=expected.unexpected(rows),
        rows=expected.rows_on_other_days(rows),
    )


def find_contradictions(
    warehouse: Warehouse, job: Job, days: Collection[date], rows_by_source: Mapping[str, Mapping[date, int]]
) -> dict[date, str]:
    """Say, for each of these days without expected entities, which source or target has rows nevertheless.

    `rows_by_source` has the number of rows of each source on these days.
    """
    if not days:
        return {}
    target = job.target
    table, date_only = TableName.parse(target.table), frozenset({target.date_column})  # the fewest bytes to read
    fingerprints = warehouse.column_fingerprints(table, target.date_column, days, [date_only])[date_only]
    contradictions: dict[date, str] = {}
    for day in days:
        rows = {name: rows.get(day, 0) for name, rows in rows_by_source.items()}
        if contradiction := describe_contradiction(rows, target_has_rows=fingerprints[day] != ABSENT):
            contradictions[day] = contradiction
    return contradictions


def count_source_rows(warehouse: Warehouse, job: Job, days: Sequence[date]) -> dict[str, Mapping[date, int]]:
    """Count the rows of each source on days without expected entities, as a plan and the workers count them.

    A source that is read like the expectation itself is left out.
    """
    scans = {name: scan for name, scan in source_scans(job, days).items() if warehouse.describe(scan.table) is not None}
    return dict(warehouse.count_entities(expectation_scan(job, days), scans, []).rows) if days and scans else {}


# -- scans ----------------------------------------------------------------------------------------------------


def calendar_scan(job: Job, days: Iterable[date]) -> Scan | None:
    """Scan the calendar's entries on the days; None without a calendar."""
    calendar = job.expectation.calendar
    if calendar is None:
        return None
    return Scan(
        table=TableName.parse(calendar.table),
        date_column=calendar.date_column,
        dates=tuple(consecutive_ranges(days)),
        columns={"day": calendar.date_column},
        time_zone=calendar.time_zone,
    )


def expectation_columns(job: Job) -> EntityColumns:
    """Return the columns by which the expectation is read."""
    expectation = job.expectation
    return EntityColumns(
        date=expectation.date_column,
        entity=expectation.entity_columns,
        time_zone=expectation.time_zone,
        sums=tuple(reconcile.column for reconcile in expectation.reconcile),
        rule=presence_rule(expectation),
    )


def source_columns(job: Job, source: Source) -> EntityColumns:
    """Return the columns by which the source's coverage is measured."""
    reconciled = job.expectation.reconcile if source.check_sums else ()
    return EntityColumns(
        date=source.date_column,
        entity=job.source_entity(source),
        time_zone=source.time_zone,
        required=source.required,
        sums=tuple(reconcile.source_column or reconcile.column for reconcile in reconciled),
        rule=presence_rule(job.expectation, rows=source.check_rows, sums=source.check_sums),
    )


def target_columns(job: Job) -> EntityColumns:
    """Return the columns by which rows of the target are compared with the expectation."""
    target = job.target
    reconciled = job.expectation.reconcile if target.check_sums else ()
    return EntityColumns(
        date=target.date_column,
        entity=job.target_entity,
        required=target.required,
        sums=tuple(reconcile.target_column or reconcile.column for reconcile in reconciled),
        rule=presence_rule(job.expectation, rows=target.check_rows, sums=target.check_sums),
    )


def presence_rule(expectation: Expectation, *, rows: bool = True, sums: bool = True) -> PresenceRule:
    """Return when an entity counts as present; `rows` and `sums` say which numbers are compared."""
    return PresenceRule(
        rows=expectation.rows if rows else None,
        tolerances=tuple(reconcile.tolerance for reconcile in expectation.reconcile) if sums else (),
    )


def expectation_scan(job: Job, days: Iterable[date]) -> EntityScan:
    """Scan the expected entities of the days."""
    return _entity_scan(job.expectation.table, expectation_columns(job), days)


def source_scan(job: Job, source: Source, days: Iterable[date]) -> EntityScan:
    """Scan the source's entities on the days themselves, without the lookback: coverage is counted over these."""
    return _entity_scan(source.table, source_columns(job, source), days)


def source_scans(job: Job, days: Sequence[date]) -> dict[str, EntityScan]:
    """Scan each source by name, but not one that is read like the expectation itself: it has every expected entity."""
    expectation = expectation_scan(job, days)
    return {source.name: scan for source in job.sources if (scan := source_scan(job, source, days)) != expectation}


def target_scan(job: Job, days: Iterable[date]) -> EntityScan:
    """Scan the published entities of the days."""
    return _entity_scan(job.target.table, target_columns(job), days)


def _entity_scan(table: str, columns: EntityColumns, days: Iterable[date]) -> EntityScan:
    return EntityScan(table=TableName.parse(table), columns=columns, dates=tuple(consecutive_ranges(days)))
