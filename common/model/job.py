"""The declaration of a job: the dataclasses that a job author fills in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.coverage import CoveragePolicy, DateExpectation, Fallback
from gated_backfill.common.model.tables import (
    DEFAULT_DATE_COLUMN,
    Column,
    ColumnType,
    ColumnTypes,
    DatedTable,
    TableName,
    validate_identifier,
)

if TYPE_CHECKING:
    import pandas as pd

SOURCE_COLUMN = "_source"  #: column of a batch's rows with the name of the source each row came from


@dataclass(frozen=True, kw_only=True)
class Calendar:
    """A table with one row per event (a game, a market session). It shows whether a date without rows had events.

    A date with events that has no expected entities, or fewer than `floor_per_event` per event, is blocked as
    "expectation incomplete". A date with neither events nor expected entities is skipped. Seasons are known only if
    `season_column` and `season_filter` are both given.
    """

    table: str  #: `dataset.table`
    date_column: str  #: the column with the event's date
    floor_per_event: int = 1  #: the smallest number of entities that one event implies
    season_column: str | None = None  #: the column that groups events into seasons
    season_filter: tuple[str, str] | None = None  #: (column, value) of the events that can open a season


@dataclass(frozen=True, kw_only=True)
class CalendarEvents:
    """The calendar's events on the dates of a batch, passed to the job's `skip` rule."""

    count_by_date: Mapping[date, int]  #: dates without events are absent
    season_starts: tuple[date, ...] = ()  #: the first date of each season, in order

    def count_on(self, day: date) -> int:
        """Return the number of events on the day."""
        return self.count_by_date.get(day, 0)


SkipRule = Callable[[date, CalendarEvents | None], str | None]  #: the reason to skip the date, or None to build it


def never_skip(day: date, calendar: CalendarEvents | None) -> str | None:
    """Skip no date: the default skip rule."""
    return None


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """The entities that each date must contain: the distinct values of one column of a table.

    The table must exist. Null entities are not counted.
    """

    table: str  #: `dataset.table`
    date_column: str  #: the column with the date of each row
    entity: str  #: the column with the entity
    calendar: Calendar | None = None  #: guards against an incomplete expectation; None: an empty date is skipped


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table that a date can be built from.

    A source's coverage of a date is the number of expected entities among that date's own rows. Without `derive`,
    these rows are processed as they are.
    """

    name: str  #: unique within the job; `status` and `plan` show it
    table: str  #: `dataset.table`
    date_column: str  #: the column with the date of each row
    entity: str | None = None  #: the column with the entity; None: named as in the expectation
    columns: ColumnTypes | None = None  #: the columns to read, with their types; None: all columns
    lookback_days: int = 0  #: days before each date whose rows `derive` also gets
    #: Computes the rows to process from the rows that were read, lookback included, and the dates to build.
    derive: Callable[[pd.DataFrame, Sequence[date]], pd.DataFrame] | None = None


@dataclass(frozen=True, kw_only=True)
class Input:
    """A further table that `process` reads, whichever source was chosen."""

    name: str  #: the key in `Batch.inputs`
    table: str  #: `dataset.table`
    date_column: str  #: the column with the date of each row
    columns: ColumnTypes | None = None  #: the columns to read, with their types; None: all columns
    lookback_days: int = 0  #: days before each date whose rows are read as well
    optional: bool = False  #: an optional table may be absent: `Batch.inputs` then holds None


@dataclass(frozen=True, kw_only=True)
class Target:
    """The dated table that the job rebuilds."""

    table: str  #: `dataset.table`
    date_column: str  #: the column with the date of each row, which must be one of `columns`
    key: tuple[str, ...]  #: unique within a date; rows are published in the order of these columns
    columns: Mapping[str, Column]  #: exactly the columns that `process` returns, with type, nulls and bounds
    entity: str | None = None  #: the column with the entity; None: named as in the expectation


@dataclass(frozen=True, kw_only=True)
class StaleTable:
    """A table that the job fills for upcoming dates only, and from which the cleanup deletes old rows."""

    table: str  #: `dataset.table`
    date_column: str = DEFAULT_DATE_COLUMN  #: the column with the date of each row

    def dated_table(self) -> DatedTable:
        """Return the checked names. Raises `UserError` for a name that is not a plain identifier."""
        return DatedTable(
            name=TableName.parse(self.table), date_column=validate_identifier(self.date_column, "column name")
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of one or several dates, passed to `process`.

    How dates are grouped into batches may differ between runs, so a date's result must not depend on the other dates.
    Columns keep their pandas types with and without nulls: INT64 is `Int64`, BOOL is `boolean`, DATE is `datetime64`.
    """

    days: tuple[date, ...]  #: the dates to build
    rows: pd.DataFrame  #: rows of the chosen source; the column `_source` names the source of each row
    inputs: Mapping[str, pd.DataFrame | None]  #: rows by input name; None for an optional table that is absent


ProcessFunction = Callable[[Batch], "pd.DataFrame"]  #: returns the target's columns


@dataclass(frozen=True, kw_only=True)
class Job:
    """A dated table that can be rebuilt.

    A job is installed through an entry point of the group `backfill.jobs`, whose name is the job's name. Raises
    `UserError` for a declaration that contradicts itself.
    """

    name: str  #: letters, digits and `_`
    version: str  #: stored in each checkpoint; change it when the same inputs give other rows
    target: Target
    expectation: Expectation
    sources: tuple[Source, ...]  #: in order of preference; the first one is the primary
    process: ProcessFunction  #: computes the target's rows; is called repeatedly and in parallel: no side effects
    inputs: tuple[Input, ...] = ()
    policy: CoveragePolicy = field(default_factory=CoveragePolicy)  #: the coverage that a date needs
    fallback: Fallback = Fallback.REPLACE  #: how to build a date that the primary source covers only in part
    skip: SkipRule = never_skip  #: decides which dates need no rows, such as the first days of a season
    stale_tables: tuple[StaleTable, ...] = ()  #: tables from which the daily cleanup deletes old rows
    description: str = ""  #: one line, shown by `backfill jobs`
    soft_time_limit_seconds: int = 300  #: a date that takes longer is failed
    time_limit_seconds: int = 360  #: the worker process of a date that takes even longer is killed
    max_in_flight: int | None = None  #: dates in flight at once, over all active runs of the job; None: no limit

    def __post_init__(self) -> None:
        validate_identifier(self.name, "job name")
        if not self.sources:
            raise UserError(f"job {self.name} declares no source")
        if self.max_in_flight is not None and self.max_in_flight < 1:
            raise UserError(f"job {self.name}: max_in_flight is {self.max_in_flight}: it must be at least 1")
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise UserError(f"job {self.name} declares two sources of the same name: {names}")
        required = (*self.target.key, self.target.date_column, self.entity_column)
        if missing := [column for column in required if column not in self.target.columns]:
            raise UserError(f"job {self.name}: the target's columns lack {missing}")
        for role, table in self.tables_by_role():
            try:
                TableName.parse(table)
            except UserError as exc:
                raise UserError(f"job {self.name}, {role}: {exc}") from exc
        for stale in self.stale_tables:
            try:
                stale.dated_table()
            except UserError as exc:
                raise UserError(f"job {self.name}, stale table: {exc}") from exc

    @property
    def entity_column(self) -> str:
        """The target's column with the entity."""
        return self.target.entity or self.expectation.entity

    def source_entity_column(self, source: Source) -> str:
        """Return the source's column with the entity."""
        return source.entity or self.expectation.entity

    def source(self, name: str) -> Source:
        """Return the source of that name. Raises `StopIteration` when the job has none."""
        return next(source for source in self.sources if source.name == name)

    def date_expectation(self, expected: int, day: date, calendar: CalendarEvents | None) -> DateExpectation:
        """Combine the number of expected entities on the day with the day's calendar events."""
        guard = self.expectation.calendar
        if calendar is None or guard is None:
            return DateExpectation(expected=expected)
        return DateExpectation(expected=expected, events=calendar.count_on(day), floor_per_event=guard.floor_per_event)

    def tables_by_role(self) -> list[tuple[str, str]]:
        """Return (role, table) for the target and every table the job reads."""
        calendar = self.expectation.calendar
        return [
            ("target", self.target.table),
            ("expectation", self.expectation.table),
            *([("calendar", calendar.table)] if calendar else []),
            *((f"source {source.name}", source.table) for source in self.sources),
            *((f"input {declared.name}", declared.table) for declared in self.inputs),
        ]

    def date_column_of(self, table: str) -> str | None:
        """Return the date column by which the job reads the table, or None for a table it does not read."""
        calendar = self.expectation.calendar
        uses = (self.expectation, *([calendar] if calendar else []), *self.sources, *self.inputs, self.target)
        return next((use.date_column for use in uses if use.table == table), None)

    def declared_types(self) -> dict[str, dict[str, ColumnType]]:
        """Return the column types that the job declares for its sources and inputs, by table."""
        types_by_table: dict[str, dict[str, ColumnType]] = {}
        for declared in (*self.sources, *self.inputs):
            types_by_table.setdefault(declared.table, {}).update(declared.columns or {})
        return types_by_table
