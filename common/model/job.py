"""The declaration of a job: the dataclasses that a job author fills in."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

from gated_backfill.common.errors import UserError
from gated_backfill.common.model.coverage import NO_FLOOR, CoveragePolicy, DateExpectation, ExpectationFloor, Fallback
from gated_backfill.common.model.dates import validate_time_zone
from gated_backfill.common.model.entities import ENTITY_TYPES, SUM_TYPES
from gated_backfill.common.model.field_checks import (
    AT_LEAST_1,
    NOT_BLANK,
    NOT_NEGATIVE,
    POSITIVE_SHARE,
    SHARE,
    FieldRule,
    check_fields,
)
from gated_backfill.common.model.query import HISTORY, ROWS, SOURCE_COLUMN, Query
from gated_backfill.common.model.schedule import Schedule
from gated_backfill.common.model.tables import (
    DEFAULT_DATE_COLUMN,
    Column,
    ColumnType,
    ColumnTypes,
    DatedTable,
    TableName,
    validate_identifier,
)
from gated_backfill.common.process.signals import find_interruption, is_raised_by_handler

if TYPE_CHECKING:
    import pandas as pd

SCHEDULED_NAME_LENGTH = 50  #: the ledger keeps the names of scheduled tasks, in which it is
#: Of sources and inputs. A date that is filled from a second source has the names of both, joined with "+".
TABLE_LABEL = FieldRule(
    allowed="a name of letters, digits, _ and -", permits=lambda name: re.fullmatch(r"[A-Za-z0-9_-]+", name) is not None
)
KEY = FieldRule(
    allowed="a tuple of one or several columns, each once", permits=lambda key: bool(key) and len({*key}) == len(key)
)


def as_columns(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of one or several columns as a tuple."""
    return (names,) if isinstance(names, str) else names


def _validate_entity(entity: str | tuple[str, ...] | None, owner: str) -> None:
    """Check the declared entity columns of a table; None declares none."""
    if entity is None:
        return
    names = as_columns(entity)
    if not names:
        raise UserError(f"{owner} names no entity column")
    for name in names:
        validate_identifier(name, f"entity column of {owner}")
    if len(set(names)) < len(names):
        raise UserError(f"{owner} names an entity column twice: {', '.join(names)}")


def _validate_columns(owner: str, *names: str | None) -> None:
    """Check the names of columns; None names none."""
    for name in names:
        if name is not None:
            validate_identifier(name, f"column name of {owner}")


@dataclass(frozen=True, kw_only=True)
class Calendar:
    """A table with one row per event (a game, a market session). It shows whether a date without rows had events.

    A date with events that has no expected entities, or fewer than `floor_per_event` per event, is blocked as
    "expectation incomplete". A date with neither events nor expected entities is skipped. Seasons are known only if
    `season_column` and `season_filter` are both given. Raises `UserError` for a value that is not allowed.
    """

    table: str  #: `dataset.table`, or `project.dataset.table`
    date_column: str  #: the column with the event's date
    floor_per_event: int = 1  #: the smallest number of entities that one event implies
    time_zone: str | None = None  #: IANA name; required if the date column is a TIMESTAMP
    season_column: str | None = None  #: the column that groups events into seasons
    season_filter: tuple[str, str] | None = None  #: (column, value as text) of the events that can open a season

    def __post_init__(self) -> None:
        owner = f"calendar {self.table}"
        check_fields(self, owner, floor_per_event=NOT_NEGATIVE)
        validate_time_zone(self.time_zone, owner)
        _validate_columns(owner, self.date_column, self.season_column, *(self.season_filter or ())[:1])


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


TOLERANCE = FieldRule(allowed="a finite number, and not negative", permits=lambda number: 0 <= number < math.inf)


@dataclass(frozen=True, kw_only=True)
class Reconcile:
    """A sum that must agree with the expectation's, for each entity.

    An entity is present only if the sum of `column` over its rows differs from the expectation's sum by at most
    `tolerance` times that sum. Nulls count as 0. Raises `UserError` for a value that is not allowed.
    """

    column: str  #: the column of the expectation's table, and of the others unless they name another one
    tolerance: float = 0.0  #: relative to the expectation's sum
    source_column: str | None = None  #: the column of the sources; None: `column`
    target_column: str | None = None  #: the column of the target; None: `column`

    def __post_init__(self) -> None:
        owner = f"reconcile {self.column}"
        check_fields(self, owner, tolerance=TOLERANCE)
        _validate_columns(owner, self.column, self.source_column, self.target_column)


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """The entities that each date must contain: the distinct values of one or several columns of a table.

    The table must exist. A date with null entities is blocked as "expectation incomplete". Raises `UserError` for a
    value that is not allowed.
    """

    table: str  #: `dataset.table`, or `project.dataset.table`
    date_column: str  #: the column with the date of each row
    entity: str | tuple[str, ...]  #: the column with the entity, or several columns that identify it together
    calendar: Calendar | None = None  #: guards against an incomplete expectation; None: an empty date is skipped
    time_zone: str | None = None  #: IANA name; required if the date column is a TIMESTAMP
    #: Rows per entity, compared with the expectation's: "equal", or the smallest share of them. None: not compared.
    rows: Literal["equal"] | float | None = None
    reconcile: tuple[Reconcile, ...] = ()  #: sums per entity that must agree with the expectation's
    floor: int | None = None  #: the fewest entities that may be expected on a date that has any
    #: The smallest share of the usual number of entities on the dates around it. None: 0.1 without a calendar, else 0.
    floor_share_of_recent: float | None = None

    def __post_init__(self) -> None:
        owner = f"expectation {self.table}"
        is_share = isinstance(self.rows, float | int) and not isinstance(self.rows, bool) and 0 < self.rows <= 1
        if self.rows not in (None, "equal") and not is_share:
            raise UserError(f'{owner}: rows is {self.rows}: it must be "equal" or a share above 0 and at most 1')
        check_fields(self, owner, floor=NOT_NEGATIVE, floor_share_of_recent=SHARE)
        _validate_entity(self.entity, owner)
        validate_time_zone(self.time_zone, owner)
        _validate_columns(owner, self.date_column)

    @property
    def entity_columns(self) -> tuple[str, ...]:
        """The columns that identify the entity."""
        return as_columns(self.entity)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A table that a date can be built from.

    A source's coverage of a date is the number of expected entities among that date's own rows. Without `derive`,
    these rows are processed as they are. Raises `UserError` for a declaration that contradicts itself.
    """

    name: str  #: unique within the job; letters, digits, `_` and `-`; `status` and `plan` show it
    table: str  #: `dataset.table`, or `project.dataset.table`
    date_column: str  #: the column with the date of each row
    entity: str | tuple[str, ...] | None = None  #: the columns with the entity; None: named as in the expectation
    columns: ColumnTypes | None = None  #: the columns to read, with their types; None: all columns
    lookback_days: int = 0  #: days before each date whose rows `derive`, which it then needs, also gets
    require_lookback: bool = True  #: a day of the lookback without rows, that had events if there is a calendar, blocks
    #: Computes the rows to process from the rows that were read, lookback included, and the dates to build. A `Query`
    #: reads them as `history`.
    derive: Callable[[pd.DataFrame, Sequence[date]], pd.DataFrame] | Query | None = None
    derive_together: bool = False  #: `derive` may get several dates at once; by default it is called for each date
    required: tuple[str, ...] = ()  #: a row with a null in one of these columns does not count as present
    check_rows: bool = True  #: compare its rows per entity with the expectation's, if the expectation says so
    check_sums: bool = True  #: compare its sums with the expectation's, if the expectation says so
    time_zone: str | None = None  #: IANA name; required if the date column is a TIMESTAMP

    def __post_init__(self) -> None:
        owner = f"source {self.name}"
        check_fields(self, owner, name=TABLE_LABEL, lookback_days=NOT_NEGATIVE)
        _validate_entity(self.entity, owner)
        validate_time_zone(self.time_zone, owner)
        _validate_columns(owner, self.date_column, *(self.columns or ()), *self.required)
        if self.lookback_days and self.derive is None:
            raise UserError(f"{owner}: lookback_days is {self.lookback_days}, but there is no derive to use those days")


@dataclass(frozen=True, kw_only=True)
class Input:
    """A further table that `process` reads, whichever source was chosen.

    A date on which a required input has no rows is blocked. Raises `UserError` for a declaration that contradicts
    itself.
    """

    name: str  #: the key in `Batch.inputs`; unique within the job; letters, digits, `_` and `-`
    table: str  #: `dataset.table`, or `project.dataset.table`
    date_column: str  #: the column with the date of each row
    columns: ColumnTypes | None = None  #: the columns to read, with their types; None: all columns
    lookback_days: int = 0  #: days before each date whose rows are read as well
    require_lookback: bool = True  #: a day of the lookback without rows, that had events if there is a calendar, blocks
    optional: bool = False  #: it may lack rows, and its table may be absent: `Batch.inputs` then holds None
    entity: str | tuple[str, ...] | None = None  #: only with `coverage`: the columns with the expectation's entity
    coverage: float | None = None  #: the smallest share of the expected entities that it must have on a date
    time_zone: str | None = None  #: IANA name; required if the date column is a TIMESTAMP

    def __post_init__(self) -> None:
        owner = f"input {self.name}"
        check_fields(self, owner, name=TABLE_LABEL, lookback_days=NOT_NEGATIVE, coverage=POSITIVE_SHARE)
        _validate_entity(self.entity, owner)
        validate_time_zone(self.time_zone, owner)
        _validate_columns(owner, self.date_column, *(self.columns or ()))
        if self.entity is not None and self.coverage is None:
            raise UserError(f"{owner}: entity is declared, but not the coverage that it is for")


@dataclass(frozen=True, kw_only=True)
class Target:
    """The dated table that the job rebuilds. Raises `UserError` for a value that is not allowed."""

    table: str  #: `dataset.table`, or `project.dataset.table`
    date_column: str  #: the column with the date of each row, which must be one of `columns`, of type DATE
    key: tuple[str, ...]  #: unique within a date; rows are published in the order of these columns
    columns: Mapping[str, Column]  #: exactly the columns that `process` returns, with type, nulls and bounds
    entity: str | tuple[str, ...] | None = None  #: the columns with the entity; None: named as in the expectation
    required: tuple[str, ...] = ()  #: a row with a null in one of these columns does not count as present
    check_rows: bool = True  #: compare its rows per entity with the expectation's, if the expectation says so
    check_sums: bool = True  #: compare its sums with the expectation's, if the expectation says so

    def __post_init__(self) -> None:
        owner = f"target {self.table}"
        check_fields(self, owner, key=KEY)
        _validate_entity(self.entity, owner)
        _validate_columns(owner, self.date_column, *self.key, *self.columns, *self.required)

    @property
    def row_order(self) -> tuple[str, ...]:
        """The columns by which the rows of several dates are ordered: the date, then the rest of the key."""
        return tuple(dict.fromkeys((self.date_column, *self.key)))


@dataclass(frozen=True, kw_only=True)
class StaleTable:
    """A table that the job fills for upcoming dates only, and from which the cleanup deletes old rows."""

    table: str  #: `dataset.table`, or `project.dataset.table`
    date_column: str = DEFAULT_DATE_COLUMN  #: the column with the date of each row

    def __post_init__(self) -> None:
        check_fields(self, "a StaleTable")

    def dated_table(self) -> DatedTable:
        """Return the checked names. Raises `UserError` for a name that is not a plain identifier."""
        return DatedTable(
            name=TableName.parse(self.table), date_column=validate_identifier(self.date_column, "column name")
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of one or several dates, passed to `process`.

    How dates are grouped into batches may differ between runs, so a date's result must not depend on the other dates.
    Columns keep their pandas types with and without nulls: INT64 is `Int64`, BOOL is `boolean`, DATE and DATETIME are
    `datetime64`.
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
    #: Computes the target's rows: a function, which is called repeatedly and in parallel, so it has no side effects; or
    #: a `Query`, which reads `rows` and the inputs by name.
    process: ProcessFunction | Query
    inputs: tuple[Input, ...] = ()
    policy: CoveragePolicy = field(default_factory=CoveragePolicy)  #: the coverage that a date needs
    fallback: Fallback = Fallback.REPLACE  #: how to build a date that the primary source covers only in part
    skip: SkipRule = never_skip  #: decides which dates need no rows, such as the first days of a season
    stale_tables: tuple[StaleTable, ...] = ()  #: tables from which the daily cleanup deletes old rows
    description: str = ""  #: one line, shown by `backfill jobs`
    soft_time_limit_seconds: int = 300  #: a date that takes longer is failed
    time_limit_seconds: int = 360  #: the worker process of a date that takes even longer is killed
    max_in_flight: int | None = None  #: dates in flight at once, over all active runs of the job; None: no limit
    schedule: Schedule | None = None  #: when beat builds its newest dates each day; None: never

    def __post_init__(self) -> None:
        owner = f"job {self.name}"
        limits = dict.fromkeys(("soft_time_limit_seconds", "time_limit_seconds", "max_in_flight"), AT_LEAST_1)
        check_fields(self, owner, version=NOT_BLANK, **limits)
        validate_identifier(self.name, "job name")
        if self.schedule is not None and len(self.name) > SCHEDULED_NAME_LENGTH:
            raise UserError(
                f"{owner}: the name of a job with a schedule has at most {SCHEDULED_NAME_LENGTH} characters"
            )
        if not self.sources:
            raise UserError(f"{owner} declares no source")
        if self.time_limit_seconds <= self.soft_time_limit_seconds:
            raise UserError(
                f"{owner}: time_limit_seconds is {self.time_limit_seconds}: it must be more than "
                f"soft_time_limit_seconds, which is {self.soft_time_limit_seconds}"
            )
        for kind, declared in (("sources", self.sources), ("inputs", self.inputs)):
            names = [table.name for table in declared]
            if len(set(names)) < len(names):
                raise UserError(f"{owner} declares two {kind} of the same name: {names}")
        self._validate_target()
        self._validate_entities()
        self._validate_sources()
        self._validate_queries()
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

    def _validate_target(self) -> None:
        target = self.target
        reconciled = self.expectation.reconcile if target.check_sums else ()
        sums = [reconcile.target_column or reconcile.column for reconcile in reconciled]
        needed = (*target.key, target.date_column, *self.target_entity, *target.required, *sums)
        if missing := [column for column in dict.fromkeys(needed) if column not in target.columns]:
            raise UserError(f"job {self.name}: the target's columns lack {missing}")
        date_type = target.columns[target.date_column].type
        if date_type != "DATE":
            raise UserError(f"job {self.name}: the target's date column {target.date_column} is {date_type}, not DATE")
        self._validate_target_types("entity column", self.target_entity, ENTITY_TYPES)
        self._validate_target_types("reconciled column", sums, SUM_TYPES)
        for name in target.key:
            if target.columns[name].max_null_share is not None:
                raise UserError(
                    f"job {self.name}: column {name} of the target's key has a max_null_share: no key is null"
                )

    def _validate_target_types(self, what: str, names: Iterable[str], types: Collection[ColumnType]) -> None:
        for name in names:
            if (kind := self.target.columns[name].type) not in types:
                raise UserError(f"job {self.name}: the target's {what} {name} is {kind}, not {', '.join(types)}")

    def _validate_entities(self) -> None:
        """Check that every table names as many entity columns as the expectation."""
        count = len(self.expectation.entity_columns)
        for what, names in (
            ("the target", self.target_entity),
            *((f"source {source.name}", self.source_entity(source)) for source in self.sources),
            *((f"input {declared.name}", self.input_entity(declared)) for declared in self.inputs),
        ):
            if len(names) != count:
                raise UserError(f"job {self.name}: {what} has {len(names)} entity column(s), the expectation {count}")

    def _validate_sources(self) -> None:
        """Check that no source is read by a column with the name that a batch has for the source of each row."""
        for source in self.sources:
            payload = source.columns if source.columns is not None and source.derive is None else ()
            if SOURCE_COLUMN in (source.date_column, *self.source_entity(source), *payload):
                raise UserError(
                    f"job {self.name}: source {source.name} reads a column {SOURCE_COLUMN}, the name that a batch has "
                    "for the source of each row: leave it out, or read it under another name through a view"
                )

    def _validate_queries(self) -> None:
        """Check that a SQL job is one throughout, and that its texts read and return what the job declares."""
        is_sql = isinstance(self.process, Query)
        for source in self.sources:
            if source.derive is not None and isinstance(source.derive, Query) != is_sql:
                kinds = ("a Python function", "a Query") if is_sql else ("a Query", "a Python function")
                raise UserError(
                    f"job {self.name}: derive of source {source.name} is {kinds[0]}, but process is {kinds[1]}: "
                    "write both as queries or both as functions"
                )
        if not isinstance(self.process, Query):
            return
        for declared in self.inputs:
            if declared.optional and declared.columns is None:
                raise UserError(
                    f"job {self.name}: input {declared.name} is optional and read by a query: declare its columns, "
                    "which it has although its table is absent"
                )
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", declared.name) or declared.name.lower() in (ROWS, HISTORY):
                raise UserError(
                    f"job {self.name}: a query cannot read an input named {declared.name!r}: choose a name of letters, "
                    f"digits and _ that begins with a letter, other than {ROWS} and {HISTORY}"
                )
        input_names = [declared.name.lower() for declared in self.inputs]
        if len({*input_names}) < len(input_names):
            raise UserError(f"job {self.name}: a query cannot read inputs whose names differ by case only")
        self.process.check(
            f"job {self.name}: process",
            tables=(ROWS, *(declared.name for declared in self.inputs)),
            columns=tuple(self.target.columns),
        )
        for source in self.sources:
            if isinstance(source.derive, Query):
                source.derive.check(
                    f"job {self.name}: derive of source {source.name}",
                    tables=(HISTORY,),
                    columns=(source.date_column, *self.source_entity(source)),
                    may_return_more=True,
                )

    @property
    def target_entity(self) -> tuple[str, ...]:
        """The target's columns with the entity."""
        return as_columns(self.target.entity or self.expectation.entity)

    def skip_reason(self, day: date, calendar: CalendarEvents | None) -> str | None:
        """Return why the job's `skip` rule skips the day; None to build it.

        Raises `UserError` if the rule raises, or returns anything true but a text that is not blank.
        """
        try:
            reason: Any = self.skip(day, calendar)  # not what is annotated, if the job's author is not careful
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as exc:  # a job's code may raise anything
            interruption = find_interruption(exc)
            if interruption is not None and (interruption is not exc or is_raised_by_handler(exc)):
                raise
            raise UserError(
                f"{self._skip_call(day, calendar)} raised {type(exc).__name__}: {' '.join(str(exc).split())}"
            ) from exc
        if not reason:  # `is_weekend and "weekend"` is False on other days
            return None
        if isinstance(reason, str) and reason.strip():
            return reason
        raise UserError(
            f"{self._skip_call(day, calendar)} returned {reason!r}: it must be the reason to skip the date, or None to "
            "build it"
        )

    def _skip_call(self, day: date, calendar: CalendarEvents | None) -> str:
        return f"job {self.name}: skip({day}, {'None' if calendar is None else 'calendar'})"

    def source_entity(self, source: Source) -> tuple[str, ...]:
        """Return the source's columns with the entity."""
        return as_columns(source.entity or self.expectation.entity)

    def input_entity(self, declared: Input) -> tuple[str, ...]:
        """Return the input's columns with the entity."""
        return as_columns(declared.entity or self.expectation.entity)

    def source(self, name: str) -> Source:
        """Return the source of that name. Raises `StopIteration` when the job has none."""
        return next(source for source in self.sources if source.name == name)

    def date_expectation(
        self,
        expected: int,
        day: date,
        calendar: CalendarEvents | None,
        *,
        null_entities: int = 0,
        contradicted_by: str | None = None,
        floor: ExpectationFloor = NO_FLOOR,
    ) -> DateExpectation:
        """Combine the number of expected entities on the day with the facts that speak for or against it."""
        guard = self.expectation.calendar
        return DateExpectation(
            expected=expected,
            events=calendar.count_on(day) if calendar is not None and guard is not None else None,
            floor_per_event=guard.floor_per_event if guard is not None else 0,
            null_entities=null_entities,
            contradicted_by=contradicted_by,
            floor=floor.count,
            floor_reason=floor.reason,
            table=self.expectation.table,
        )

    def time_zone(self, default: str) -> str:
        """Return the IANA name of the zone in which its days begin and end.

        It is that of its schedule, or else of its expectation, or else the default.
        """
        own = self.schedule.time_zone if self.schedule is not None else None
        return own or self.expectation.time_zone or default

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
