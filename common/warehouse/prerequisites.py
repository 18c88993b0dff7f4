"""What a date is built from besides its source's rows: required inputs, and the days of a lookback."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from gated_backfill.common.model.coverage import SourceChoice, format_percent, reaches_ratio
from gated_backfill.common.model.dates import ONE_DAY, consecutive_ranges, days_with_lookback
from gated_backfill.common.model.entities import EntityColumns
from gated_backfill.common.model.job import Input, Job, Source
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.coverage_queries import calendar_scan, count_calendar_events, expectation_scan
from gated_backfill.common.warehouse.protocol import EntityScan, Scan, Warehouse

MAX_DAYS_NAMED = 3  #: of the days that lack rows

#: Days that have rows, by table, date column and the time zone in which a TIMESTAMP has its date.
TableDays = Mapping[tuple[str, str, str | None], Collection[date]]
NO_TABLE_DAYS: TableDays = {}


@dataclass(frozen=True, kw_only=True)
class Prerequisites:
    """The rows that dates need and lack, in words."""

    inputs: Mapping[date, str] = field(default_factory=dict[date, str])
    lookbacks: Mapping[str, Mapping[date, str]] = field(default_factory=dict[str, Mapping[date, str]])  #: by source

    def problem_on(self, day: date, sources: Iterable[str | None]) -> str | None:
        """Return what the day lacks when it is built from these sources, or None."""
        if not self.inputs and not self.lookbacks:  # as for most jobs
            return None
        lookbacks = (self.lookbacks.get(name, {}).get(day) for name in sources if name is not None)
        return "; ".join(problem for problem in (self.inputs.get(day), *lookbacks) if problem) or None

    def problem_with(self, choice: SourceChoice, day: date) -> str | None:
        """Return what the day lacks when it is built from the chosen source, or None."""
        return self.problem_on(day, (choice.source, choice.fill_from))


def measure_prerequisites(
    warehouse: Warehouse,
    job: Job,
    days: Collection[date],
    *,
    sources: Collection[str | None] | None = None,
    days_with_rows: TableDays = NO_TABLE_DAYS,
) -> Prerequisites:
    """Find the days that lack rows of a required input, or rows in a required lookback. Reads nothing without these.

    `sources` are the sources whose lookbacks matter; None: of all. `days_with_rows` need not be looked up.
    A day of a lookback on which the calendar has no event needs no rows. If the job's calendar does not exist, days off
    cannot be told from lost ones, and no lookback is checked. Raises like `Warehouse.count_rows`.
    """
    required = [declared for declared in job.inputs if not declared.optional]
    derived = [source for source in job.sources if sources is None or source.name in sources]
    lookback = max((use.lookback_days for use in (*required, *derived) if use.require_lookback), default=0)
    if not days or not (required or lookback):
        return Prerequisites()
    finder = _Finder(warehouse, job, sorted(days), lookback, days_with_rows)
    problems: dict[date, list[str]] = {}
    for declared in required:
        for day, problem in finder.input_problems(declared).items():
            problems.setdefault(day, []).append(problem)
    return Prerequisites(
        inputs={day: "; ".join(texts) for day, texts in problems.items()},
        lookbacks={source.name: finder.lookback_problems(source, f"source {source.name}") for source in derived},
    )


def prerequisite_scans(job: Job, days: Collection[date], *, sources: Collection[str] | None = None) -> list[Scan]:
    """The scans that `measure_prerequisites` takes, if no day is known to have rows."""
    scans: list[Scan] = []
    for declared in job.inputs:
        if declared.optional:
            continue
        scans.append(_rows_scan(declared, days))
        if declared.coverage is not None:
            scans += [expectation_scan(job, days).rows(), _coverage_scan(job, declared, days).rows()]
    derived = [source for source in job.sources if sources is None or source.name in sources]
    uses = [use for use in (*job.inputs, *derived) if isinstance(use, Source) or not use.optional]
    with_lookback = [use for use in uses if use.lookback_days and use.require_lookback]
    scans += [_rows_scan(use, days, lookback=use.lookback_days) for use in with_lookback]
    if with_lookback:
        longest = max(use.lookback_days for use in with_lookback)
        calendar = calendar_scan(job, days_with_lookback(days, longest))
        scans += [] if calendar is None else [calendar]
    return scans


def _rows_scan(use: Source | Input, days: Iterable[date], *, lookback: int = 0) -> Scan:
    return Scan(
        table=TableName.parse(use.table),
        date_column=use.date_column,
        dates=tuple(consecutive_ranges(days, lookback=lookback)),
        columns={"day": use.date_column},
        time_zone=use.time_zone,
    )


def _coverage_scan(job: Job, declared: Input, days: Iterable[date]) -> EntityScan:
    columns = EntityColumns(date=declared.date_column, entity=job.input_entity(declared), time_zone=declared.time_zone)
    return EntityScan(table=TableName.parse(declared.table), columns=columns, dates=tuple(consecutive_ranges(days)))


class _Finder:
    """Finds the days that lack rows."""

    def __init__(
        self, warehouse: Warehouse, job: Job, days: Sequence[date], lookback: int, days_with_rows: TableDays
    ) -> None:
        self._warehouse, self._job, self._days, self._table_days = warehouse, job, days, days_with_rows
        self._days_off = self._find_days_off(lookback) if lookback else frozenset[date]()

    def _find_days_off(self, lookback: int) -> frozenset[date] | None:
        """The days of lookbacks on which the calendar has no event; None if the job's calendar does not exist."""
        if self._job.expectation.calendar is None:
            return frozenset()
        days = days_with_lookback(self._days, lookback)
        calendar = count_calendar_events(self._warehouse, self._job, days)
        return None if calendar is None else frozenset(day for day in days if not calendar.count_on(day))

    def input_problems(self, declared: Input) -> dict[date, str]:
        """What each day lacks of a required input."""
        name = f"input {declared.name}"
        with_rows = self._days_with_rows(declared, lookback=0)
        problems = {day: f"{name} has no rows on {day}" for day in self._days if day not in with_rows}
        return self.lookback_problems(declared, name) | self._coverage_problems(declared, name) | problems

    def lookback_problems(self, use: Source | Input, name: str) -> dict[date, str]:
        """The days of its lookback on which the table has no rows, for each day that has such days."""
        if not (use.lookback_days and use.require_lookback) or self._days_off is None:
            return {}
        with_rows = self._days_with_rows(use, lookback=use.lookback_days) | self._days_off
        problems: dict[date, str] = {}
        for day in self._days:
            lookback = (day - ONE_DAY * n for n in range(use.lookback_days, 0, -1))
            if missing := [earlier for earlier in lookback if earlier not in with_rows]:
                of = f"{len(missing)} of the {use.lookback_days} day(s) of its lookback"
                problems[day] = f"{name} has no rows on {of}: {_list_days(missing)}"
        return problems

    def _days_with_rows(self, use: Source | Input, *, lookback: int) -> frozenset[date]:
        days_with_rows = frozenset(self._table_days.get((use.table, use.date_column, use.time_zone), ()))
        table = TableName.parse(use.table)
        days_to_count = set(days_with_lookback(self._days, lookback)) - days_with_rows
        if not days_to_count or (isinstance(use, Source) and self._warehouse.describe(table) is None):
            return days_with_rows
        return days_with_rows | self._warehouse.count_rows(_rows_scan(use, days_to_count)).keys()

    def _coverage_problems(self, declared: Input, name: str) -> dict[date, str]:
        """The days on which the input has too few of the expected entities."""
        if declared.coverage is None:
            return {}
        expected = expectation_scan(self._job, self._days)
        scan = _coverage_scan(self._job, declared, self._days)
        group = (declared.name,)
        counts = self._warehouse.count_entities(expected, {declared.name: scan}, [group])
        problems: dict[date, str] = {}
        for day in self._days:
            present, whole = counts.present[group].get(day, 0), counts.expected.get(day, 0)
            if not reaches_ratio(present, whole, declared.coverage):
                share = f"{present} of {whole} expected entities ({format_percent(present, whole)})"
                problems[day] = f"{name} has {share} on {day}, below its coverage of {declared.coverage:.0%}"
        return problems


def _list_days(days: Sequence[date]) -> str:
    more = f" and {len(days) - MAX_DAYS_NAMED} more" if len(days) > MAX_DAYS_NAMED else ""
    return ", ".join(map(str, days[:MAX_DAYS_NAMED])) + more
