"""Measure the coverage of each date's sources, choose one, and read its rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import structlog

from gated_backfill.common.errors import ProcessFailed, SchemaMismatch
from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.coverage import DateExpectation, SourceChoice, choose_source, describe_contradiction
from gated_backfill.common.model.dates import consecutive_ranges, summarize_dates
from gated_backfill.common.model.entities import EntityColumns
from gated_backfill.common.model.job import SOURCE_COLUMN, CalendarEvents, Input, Job, Source
from gated_backfill.common.model.missing_names import MISSING_NAMES_SHOWN
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.model.tables import ColumnType, TableName
from gated_backfill.common.warehouse.coverage_queries import (
    MeasuredDates,
    count_calendar_events,
    measure_dates,
    translate_expectation_errors,
)
from gated_backfill.common.warehouse.entities import read_days
from gated_backfill.common.warehouse.protocol import Scan, Warehouse, read_unless_absent
from gated_backfill.worker.dates.frames import (
    concat_equal_types,
    fill_entities,
    has_only_days,
    rename_entity_columns,
    sort_by_entity,
    to_frame,
)

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class SourceCheck:
    """The coverage of one date's sources, and the source that was chosen."""

    expectation: DateExpectation
    expected: frozenset[str]
    present_by_source: Mapping[str, frozenset[str]]  #: by source, the expected entities it has
    choice: SourceChoice
    unexpected: frozenset[str]  #: the entities of the chosen source that are not expected

    @property
    def present_counts(self) -> dict[str, int]:
        return {name: len(names) for name, names in self.present_by_source.items()}

    @property
    def filled_entities(self) -> frozenset[str]:
        """The expected entities that the chosen source lacks, and the one it is filled from has."""
        if self.choice.fill_from is None:
            return frozenset()
        return self.present_by_source[self.choice.fill_from] - self.present_by_source[self.choice.source]

    @cached_property
    def covered_entities(self) -> frozenset[str]:
        """The expected entities that the chosen source has, with the one it is filled from."""
        fill = self.present_by_source[self.choice.fill_from] if self.choice.fill_from else frozenset[str]()
        return self.present_by_source[self.choice.source] | fill


def check_sources(
    warehouse: Warehouse,
    job: Job,
    options: RunOptions,
    days: Sequence[date],
    *,
    published: Collection[date] = frozenset(),
) -> dict[date, SourceCheck]:
    """Measure every source of each date against the expectation and choose one.

    `published` are the days on which the target has rows. Raises `ExpectationUnreadable`.
    """
    return choose_sources(job, options, days, measure_sources(warehouse, job, options, days), published=published)


class MeasuredSources(NamedTuple):
    """What was read of some days to choose their sources."""

    entities: MeasuredDates
    calendar: CalendarEvents | None


def measure_sources(warehouse: Warehouse, job: Job, options: RunOptions, days: Sequence[date]) -> MeasuredSources:
    """Read the expected entities of each date, those of every source, and the calendar. Raises like `check_sources`."""

    def count_events() -> CalendarEvents | None:
        with translate_expectation_errors():
            return count_calendar_events(warehouse, job, days, must_exist=options.calendar)

    return MeasuredSources(*warehouse.together(lambda: measure_dates(warehouse, job, days), count_events))


def choose_sources(
    job: Job, options: RunOptions, days: Sequence[date], read: MeasuredSources, *, published: Collection[date]
) -> dict[date, SourceCheck]:
    """Choose a source for each date, see `check_sources`."""
    measured, calendar = read
    checks: dict[date, SourceCheck] = {}
    for day in days:
        expected = measured.expected.get(day, frozenset[str]())
        present = {name: source.present.get(day, frozenset[str]()) for name, source in measured.sources.items()}
        choice = _choose(job, options, expected, present)
        checks[day] = SourceCheck(
            expectation=job.date_expectation(
                len(expected),
                day,
                calendar,
                null_entities=measured.null_entities.get(day, 0),
                contradicted_by=describe_contradiction(measured.rows_on(day), target_has_rows=day in published),
            ),
            expected=expected,
            present_by_source=present,
            choice=choice,
            unexpected=frozenset(measured.sources[choice.source].unexpected.get(day, ())),
        )
    return checks


def _choose(
    job: Job, options: RunOptions, expected: frozenset[str], present: Mapping[str, frozenset[str]]
) -> SourceChoice:
    order = [source.name for source in job.sources]
    return choose_source(
        order,
        {name: len(names) for name, names in present.items()},
        len(expected),
        policy=options.policy,
        fallback=options.fallback,
        with_fill={name: len(present[name] | present[order[0]]) for name in order[1:]},
    )


def log_checks(checks: Mapping[date, SourceCheck]) -> None:
    """Log `source_check` for each date."""
    for day, check in checks.items():
        _log_check(check, day)


def _log_check(check: SourceCheck, day: date) -> None:
    count = len(check.expected)
    missing = sorted(check.expected - check.covered_entities)
    log.info(
        "source_check",
        day=day.isoformat(),
        expected=count,
        found=check.present_counts,
        coverage={name: round(n / count, 4) if count else None for name, n in check.present_counts.items()},
        chosen=check.choice.label,
        reason=check.choice.reason,
        missing=missing[:MISSING_NAMES_SHOWN],
        missing_count=len(missing),
    )


def group_by_source(checks: Mapping[date, SourceCheck]) -> list[tuple[date, ...]]:
    """Groups of dates that have the same sources and are therefore read and processed together."""
    groups: dict[tuple[str, str | None], list[date]] = {}
    for day, check in checks.items():
        groups.setdefault((check.choice.source, check.choice.fill_from), []).append(day)
    return [tuple(days) for days in groups.values()]


def entities_counted(checks: Mapping[date, SourceCheck], days: Sequence[date]) -> pa.Table:
    """The entities that the source check of these dates found in their source: none of their rows is read."""
    pairs = [(day, name) for day in days for name in (*checks[day].covered_entities, *checks[day].unexpected)]
    return pa.table(
        {
            "day": pa.array([day for day, _ in pairs], pa.date32()),
            "entity": pa.array([name for _, name in pairs], pa.string()),
        }
    )


def chosen_columns(job: Job, check: SourceCheck) -> EntityColumns:
    """The date and entity columns in the rows that `read_batches` returns."""
    return _date_and_entity(job, job.source(check.choice.source))


def _date_and_entity(job: Job, source: Source) -> EntityColumns:
    return EntityColumns(date=source.date_column, entity=job.source_entity(source), time_zone=source.time_zone)


def read_batches(
    warehouse: Warehouse, job: Job, checks: Mapping[date, SourceCheck], days: Sequence[date]
) -> dict[tuple[date, ...], pd.DataFrame]:
    """Read the rows to process of dates that have the same sources, by the dates to process together.

    The rows are sorted by date and entity; their column `_source` names the source of each row. Dates whose derived
    rows differ in columns or types are processed apart: in one frame, a gap on one date would make the integers of
    all of them floats.
    """
    choice = checks[days[0]].choice
    chosen = job.source(choice.source)
    sources = [chosen] if choice.fill_from is None else [chosen, job.source(choice.fill_from)]
    tables = {source.name: _read_source(warehouse, job, source, days) for source in sources}
    if chosen.derive is None and choice.fill_from is None:
        return {tuple(days): _rows_of(job, chosen, tables[chosen.name], days)}  # already sorted
    if len(days) > 1 and any(source.derive is not None and not source.derive_together for source in sources):
        rows_by_source = [_rows_by_date(job, source, tables[source.name], days) for source in sources]
        frames = {(day,): tuple(rows[day] for rows in rows_by_source) for day in days}
    else:
        frames = {tuple(days): tuple(_rows_of(job, source, tables[source.name], days) for source in sources)}
    if choice.fill_from is not None:
        frames = _fill(job, checks, sources, frames)
    columns = _date_and_entity(job, chosen)
    return {group: sort_by_entity(rows, columns) for group, (rows,) in concat_equal_types(frames).items()}


def _read_source(warehouse: Warehouse, job: Job, source: Source, days: Sequence[date]) -> pa.Table | None:
    """Read the source's rows, with their lookback; None if the table does not exist."""
    needed = columns_to_read(source.columns, source.date_column, *job.source_entity(source))
    table = TableName.parse(source.table)
    return read_unless_absent(warehouse.describe, table, lambda: _read_table(warehouse, source, days, needed))


def _rows_by_date(job: Job, source: Source, table: pa.Table | None, days: Sequence[date]) -> dict[date, pd.DataFrame]:
    """The source's rows of each date; those of a derived source are derived from the date and its lookback alone."""
    if table is None:
        return {day: _rows_of(job, source, None, [day]) for day in days}
    row_days = read_days(table[source.date_column], source.time_zone).to_numpy()
    lookback = np.timedelta64(source.lookback_days, "D")
    rows: dict[date, pd.DataFrame] = {}
    for day in days:
        last = np.datetime64(day)
        is_history = (row_days <= last) & (row_days >= last - lookback)
        rows[day] = _rows_of(job, source, table.filter(pa.array(is_history)), [day])
    return rows


def _fill(
    job: Job,
    checks: Mapping[date, SourceCheck],
    sources: Sequence[Source],
    frames: Mapping[tuple[date, ...], tuple[pd.DataFrame, ...]],
) -> dict[tuple[date, ...], tuple[pd.DataFrame, ...]]:
    """The rows of the first source, with the entities that it lacks from the second.

    `frames` has the rows of both sources, by date or of all dates. Dates with equal columns and types are filled
    together: the types of filled rows depend on these alone. A date whose frames have rows of other dates as well is
    filled by itself.
    """
    chosen, fill = sources
    if chosen.derive is not None:
        frames = {days: (_typed_if_empty(job, sources, *pair), pair[1]) for days, pair in frames.items()}
    together = {
        days: pair for days, pair in frames.items() if len(frames) == 1 or _has_only_rows_of(job, sources, pair, days)
    }
    apart = {days: pair for days, pair in frames.items() if days not in together}
    groups = concat_equal_types(together) | apart
    return {days: (_fill_dates(job, checks, chosen, fill, days, *pair),) for days, pair in groups.items()}


def _has_only_rows_of(
    job: Job, sources: Sequence[Source], frames: Sequence[pd.DataFrame], days: Sequence[date]
) -> bool:
    """Whether every row of every source has one of these dates, as the rows that are read always have."""
    derived = [(source, rows) for source, rows in zip(sources, frames, strict=True) if source.derive is not None]
    return all(has_only_days(rows, _date_and_entity(job, source), days) for source, rows in derived)


def _typed_if_empty(job: Job, sources: Sequence[Source], rows: pd.DataFrame, fill_rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, but of none the columns in the types of the rows to fill from."""
    if not rows.empty:
        return rows
    columns, fill_columns = (_date_and_entity(job, source) for source in sources)
    renamed = rename_entity_columns(fill_rows, fill_columns, columns)
    # a frame that was made without rows has no types to keep
    types = {**rows.dtypes, **{name: kind for name, kind in renamed.dtypes.items() if name in rows.columns}}
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in types.items()})


def _fill_dates(
    job: Job,
    checks: Mapping[date, SourceCheck],
    chosen: Source,
    fill: Source,
    days: Sequence[date],
    rows: pd.DataFrame,
    fill_rows: pd.DataFrame,
) -> pd.DataFrame:
    """Fill dates together. A value that is refused fails all of them, until they are built apart."""
    missing = {(day, name) for day in days for name in checks[day].filled_entities}
    columns, fill_columns = _date_and_entity(job, chosen), _date_and_entity(job, fill)
    fill_rows = rename_entity_columns(fill_rows, fill_columns, columns)
    try:
        return fill_entities(rows, columns, fill_rows, fill_columns.time_zone, missing, _entity_types(job))
    except SchemaMismatch as exc:
        raise SchemaMismatch(f"can't fill {summarize_dates(days)} from source {fill.name}: {exc}") from exc


def _rows_of(job: Job, source: Source, table: pa.Table | None, days: Sequence[date]) -> pd.DataFrame:
    """The source's rows, sorted by date and entity unless they are derived."""
    if table is None:
        table = _without_rows(job, source)
    elif source.derive is not None:
        rows = _derive(job, source, to_frame(table), days)
        return rows.assign(**{SOURCE_COLUMN: pd.Series(source.name, index=rows.index, dtype="str")})
    elif SOURCE_COLUMN in table.column_names:  # the table's own: the job asks for all columns
        table = table.drop_columns(SOURCE_COLUMN)
    ordered = table.sort_by([(name, "ascending") for name in (source.date_column, *job.source_entity(source))])
    return to_frame(ordered.append_column(SOURCE_COLUMN, pa.repeat(source.name, ordered.num_rows)))


def _without_rows(job: Job, source: Source) -> pa.Table:
    """A table that does not exist: the declared columns, and a date and an entity, by default as in the target."""
    return arrow_schema({**date_and_entity_types(job, source), **(source.columns or {})}).empty_table()


def date_and_entity_types(job: Job, source: Source) -> dict[str, ColumnType]:
    """The types of the source's date and entity, which are read even if not declared: by default as in the target."""
    types: dict[str, ColumnType] = {source.date_column: "DATE"}
    return types | dict(zip(job.source_entity(source), _entity_types(job), strict=True))


def _entity_types(job: Job) -> list[ColumnType]:
    return [job.target.columns[name].type for name in job.target_entity]


def _derive(job: Job, source: Source, history: pd.DataFrame, days: Sequence[date]) -> pd.DataFrame:
    """Call `derive`. Raises `ProcessFailed` for a result without the columns by which its rows are read."""
    assert callable(source.derive), "a query is the warehouse's work"
    needed = (source.date_column, *job.source_entity(source))
    return _checked_frame(source.derive(history, days), needed, f"derive of source {source.name}", days)


def _checked_frame(result: object, needed: Sequence[str], function: str, days: Sequence[date]) -> pd.DataFrame:
    day = days[0] if len(days) == 1 else None
    if not isinstance(result, pd.DataFrame):
        raise ProcessFailed(f"{function} returned a {type(result).__name__}, not a DataFrame", day=day)
    if repeated := sorted(map(str, result.columns[result.columns.duplicated()])):
        raise ProcessFailed(f"{function} returned rows with repeated column(s) {', '.join(repeated)}", day=day)
    if missing := [name for name in needed if name not in result.columns]:
        raise ProcessFailed(f"{function} returned rows without the column(s) {', '.join(missing)}", day=day)
    return result


def read_inputs(warehouse: Warehouse, job: Job, days: Sequence[date]) -> dict[str, pd.DataFrame | None]:
    """Read the job's inputs for the days; None for an optional table that does not exist."""
    frames: dict[str, pd.DataFrame | None] = {}
    for job_input in job.inputs:
        is_absent = job_input.optional and warehouse.describe(TableName.parse(job_input.table)) is None
        needed = columns_to_read(job_input.columns, job_input.date_column)
        frames[job_input.name] = None if is_absent else to_frame(_read_table(warehouse, job_input, days, needed))
    return frames


def _read_table(
    warehouse: Warehouse, table: Source | Input, days: Sequence[date], columns: Mapping[str, str] | None
) -> pa.Table:
    return warehouse.read(scan_of(table, days, columns))


def scan_of(table: Source | Input, days: Sequence[date], columns: Mapping[str, str] | None) -> Scan:
    """The scan of a table on the days and their lookback."""
    return Scan(
        table=TableName.parse(table.table),
        date_column=table.date_column,
        dates=tuple(consecutive_ranges(days, lookback=table.lookback_days)),
        columns=columns,
        time_zone=table.time_zone,
        types=table.columns,
    )


def columns_to_read(columns: Mapping[str, object] | None, *always: str) -> dict[str, str] | None:
    return None if columns is None else {name: name for name in dict.fromkeys((*always, *columns))}
