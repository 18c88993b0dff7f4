"""What a job author writes, and how a job is found by its name.

A job is found through the entry point group `backfill.jobs`, so a package of the user's own can add one; a name
given on the command line can select an installed job but never import anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.coverage import CoveragePolicy, DateExpectation, Fallback
from gated_backfill.common.model.tables import Column, ColumnType, ColumnTypes, TableName, validate_identifier

if TYPE_CHECKING:
    import pandas as pd

SOURCE_COLUMN = "_source"  #: column of a batch's rows that names the source each row came from


@dataclass(frozen=True, kw_only=True)
class Calendar:
    """A table with one row per event (a game, a market session): it tells an empty date from a lost one."""

    table: str
    date_column: str
    floor_per_event: int = 1  #: the fewest entities that one event implies
    season_column: str | None = None  #: groups events into seasons
    season_filter: tuple[str, str] | None = None  #: (column, value) of the events that open a season


@dataclass(frozen=True, kw_only=True)
class CalendarEvents:
    """What the calendar says of the dates in hand."""

    count_by_date: Mapping[date, int]
    season_starts: tuple[date, ...] = ()

    def count_on(self, day: date) -> int:
        return self.count_by_date.get(day, 0)


SkipRule = Callable[[date, CalendarEvents | None], str | None]


def never_skip(day: date, calendar: CalendarEvents | None) -> str | None:
    """The default skip rule."""
    return None


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """Which entities each date must contain: the distinct values of `entity` in a table that must exist."""

    table: str
    date_column: str
    entity: str
    calendar: Calendar | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """One input that a date can be built from.

    Its coverage of a date is counted over the rows of that very date. With `lookback_days`, `derive` is also given
    the rows of that many days before each date, and returns the rows to process; without `derive`, the date's own
    rows are processed as they are.
    """

    name: str
    table: str
    date_column: str
    entity: str | None = None  #: defaults to the expectation's entity column
    columns: ColumnTypes | None = None  #: the columns that are read; None reads all
    lookback_days: int = 0
    derive: Callable[[pd.DataFrame, Sequence[date]], pd.DataFrame] | None = None


@dataclass(frozen=True, kw_only=True)
class Input:
    """A further table that `process` reads for its dates; an optional one may be absent."""

    name: str
    table: str
    date_column: str
    columns: ColumnTypes | None = None
    lookback_days: int = 0
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Target:
    """The dated table that the job rebuilds. `key` is unique within a date; rows are published in its order."""

    table: str
    date_column: str
    key: tuple[str, ...]
    columns: Mapping[str, Column]
    entity: str | None = None  #: defaults to the expectation's entity column


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of one or several dates, for `process`. Nothing in it depends on when or where it is processed.

    INT64 columns are pandas `Int64`, BOOL `boolean`, DATE `datetime64`, whether or not they hold nulls.
    """

    days: tuple[date, ...]
    rows: pd.DataFrame  #: the chosen source's rows; `_source` names the source of each
    inputs: Mapping[str, pd.DataFrame | None]  #: by input name; None where an optional table is absent


ProcessFunction = Callable[[Batch], "pd.DataFrame"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A dated table that can be rebuilt: its target, expectation, sources in order of preference, and `process`."""

    name: str
    version: str
    target: Target
    expectation: Expectation
    sources: tuple[Source, ...]
    process: ProcessFunction
    inputs: tuple[Input, ...] = ()
    policy: CoveragePolicy = field(default_factory=CoveragePolicy)
    fallback: Fallback = Fallback.REPLACE
    skip: SkipRule = never_skip
    description: str = ""
    soft_time_limit_seconds: int = 300  #: a date that takes longer is failed
    time_limit_seconds: int = 360  #: a date that ignores the soft limit is killed
    max_in_flight: int | None = None  #: dates under way at once, over all active runs of the job; None: no cap

    def __post_init__(self) -> None:
        validate_identifier(self.name, "job name")
        if not self.sources:
            raise UserError(f"job {self.name} declares no source")
        if self.max_in_flight is not None and self.max_in_flight < 1:
            raise UserError(f"job {self.name}: max_in_flight is {self.max_in_flight}: no date could ever be begun")
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise UserError(f"job {self.name} declares two sources of the same name: {names}")
        lacking = [
            c for c in (*self.target.key, self.target.date_column, self.entity_column) if c not in self.target.columns
        ]
        if lacking:
            raise UserError(f"job {self.name}: the target's columns lack {lacking}")
        for role, table in self.tables_by_role():
            try:
                TableName.parse(table)
            except UserError as exc:
                raise UserError(f"job {self.name}, {role}: {exc}") from exc

    @property
    def entity_column(self) -> str:
        """The target's column that holds the entity."""
        return self.target.entity or self.expectation.entity

    def source_entity_column(self, source: Source) -> str:
        return source.entity or self.expectation.entity

    def source(self, name: str) -> Source:
        return next(source for source in self.sources if source.name == name)

    def date_expectation(self, expected: int, day: date, calendar: CalendarEvents | None) -> DateExpectation:
        """What is known about one date, for `judge_truth`."""
        guard = self.expectation.calendar
        if calendar is None or guard is None:
            return DateExpectation(expected=expected)
        return DateExpectation(expected=expected, events=calendar.count_on(day), floor_per_event=guard.floor_per_event)

    def tables_by_role(self) -> list[tuple[str, str]]:
        """Every table the job names, each with the part it plays."""
        calendar = self.expectation.calendar
        return [
            ("target", self.target.table),
            ("expectation", self.expectation.table),
            *([("calendar", calendar.table)] if calendar else []),
            *((f"source {source.name}", source.table) for source in self.sources),
            *((f"input {one.name}", one.table) for one in self.inputs),
        ]

    def date_column_of(self, table: str) -> str | None:
        """The date column that the job reads that table by; None when it does not read it."""
        calendar = self.expectation.calendar
        read = (self.expectation, *([calendar] if calendar else []), *self.sources, *self.inputs, self.target)
        return next((one.date_column for one in read if one.table == table), None)

    def declared_types(self) -> dict[str, dict[str, ColumnType]]:
        """The column types that the job declares for the tables it reads, by table."""
        found: dict[str, dict[str, ColumnType]] = {}
        for one in (*self.sources, *self.inputs):
            found.setdefault(one.table, {}).update(one.columns or {})
        return found
