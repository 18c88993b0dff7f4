"""Compare staged dates with what the target has on them, so that a publication loses no entities that readers see.

Nothing is read for a date on which the target had no rows when it was staged: the warehouse publishes it only if that
is still so. A comparison holds for the target as it was when the date was staged (`target_before`), which the warehouse
checks again when it publishes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc

from gated_backfill.common.errors import QueryFailed, SchemaMismatch
from gated_backfill.common.ledger import DateRow
from gated_backfill.common.model.arrow.types import comparable
from gated_backfill.common.model.coverage import CoveragePolicy, Recount, TargetCounts, describe_loss
from gated_backfill.common.model.entities import EntityColumns
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.publication import StagedFile
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.coverage_queries import read_expectation, target_columns, target_scan
from gated_backfill.common.warehouse.entities import day_entity_rows
from gated_backfill.common.warehouse.protocol import ABSENT, Scan, Warehouse, read_unless_absent
from gated_backfill.common.warehouse.staged_entities import read_staged_entities
from gated_backfill.common.warehouse.table_checks import target_types
from gated_backfill.worker.gate.staged_contents import StagedContents
from gated_backfill.worker.gate.window import LeasedWindow

StagedFiles = Mapping[date, StagedContents]


@dataclass(frozen=True, kw_only=True)
class TargetRows:
    """The rows that the target has on the dates to compare."""

    days: frozenset[date] = frozenset()  #: the dates that were read
    entities: pa.Table | None = None  #: as `Warehouse.read_entities` returns them; None if the target has none
    problems: Mapping[date, str] = field(default_factory=dict[date, str])  #: why dates could not be read


def read_target_rows(window: LeasedWindow, dates: Mapping[date, DateRow], days: Collection[date]) -> TargetRows:
    """Read the target on the days on which it has rows, except days that an earlier gate compared with this attempt."""
    to_read = sorted(day for day in days if _has_rows_to_compare(dates[day]))
    if not to_read:
        return TargetRows()
    tables: list[pa.Table] = []
    problems: dict[date, str] = {}
    _read_readable(window, to_read, tables, problems)
    return TargetRows(
        days=frozenset(to_read) - problems.keys(),
        entities=pa.concat_tables(tables) if tables else None,
        problems=problems,
    )


def _has_rows_to_compare(row: DateRow) -> bool:
    return row.target_before not in (None, ABSENT) and row.target_rows is None


def _read_readable(
    window: LeasedWindow, days: Sequence[date], tables: list[pa.Table], problems: dict[date, str]
) -> None:
    """Read by halves when a partition cannot be read, so that only its own day has a problem."""
    warehouse, scan = window.deps.warehouse, target_scan(window.job, days)
    try:
        rows = read_unless_absent(warehouse.describe, scan.table, lambda: warehouse.read_entities(scan))
    except (SchemaMismatch, QueryFailed) as exc:
        if len(days) == 1:
            problems[days[0]] = f"cannot be compared with what the target holds: {exc}"
            return
        half = len(days) // 2
        _read_readable(window, days[:half], tables, problems)
        _read_readable(window, days[half:], tables, problems)
    else:
        tables += [] if rows is None else [rows]


def add_losses(
    window: LeasedWindow,
    dates: Mapping[date, DateRow],
    counts: Mapping[date, Recount],
    target_rows: TargetRows,
    staged: StagedFiles,
    policy: CoveragePolicy,
) -> dict[date, Recount]:
    """Return the recounts with what a publication of each date would lose.

    The comparison of an earlier gate with the same attempt stays: by now the target may hold the staged rows.
    """
    compared = {day: _with_target(count, dates[day], target_rows) for day, count in counts.items()}
    compared = _with_all_rows(window, compared, target_rows.days)
    losing_days = [day for day, count in compared.items() if _describe_loss(count, policy, writer=None) is not None]
    if not losing_days:
        return compared
    writers = _find_writers(window, dates, losing_days)
    doubtful = [day for day in losing_days if day not in writers and _loses_rows_only(compared[day])]
    compared |= _count_keys(window, {day: compared[day] for day in doubtful}, staged)
    for day in losing_days:
        loss = compared[day].loss or _describe_loss(compared[day], policy, writer=writers.get(day))
        compared[day] = replace(compared[day], loss=loss)
    return compared


def find_changed(window: LeasedWindow, dates: Mapping[date, DateRow], days: Collection[date]) -> frozenset[date]:
    """Return the days on which the target has changed since they were staged."""
    if not days:
        return frozenset()
    target = window.job.target
    now = window.deps.warehouse.fingerprints(TableName.parse(target.table), target.date_column, days)
    return frozenset(day for day in days if now[day] != dates[day].target_before)


def _with_target(count: Recount, row: DateRow, target_rows: TargetRows) -> Recount:
    if row.target_rows is not None:
        return replace(count, loss=row.loss)
    if row.day in target_rows.problems:
        return replace(count, loss=target_rows.problems[row.day])
    is_compared = row.day in target_rows.days and count.schema_problem is None
    if is_compared or row.target_before == ABSENT:
        return replace(count, target=count.target or TargetCounts())
    return count


def _with_all_rows(window: LeasedWindow, counts: Mapping[date, Recount], days: Collection[date]) -> dict[date, Recount]:
    """Return the counts with all rows of the target: entities are read without rows that lack a required value."""
    if not days or not window.job.target.required:
        return dict(counts)
    rows = window.deps.warehouse.count_rows(target_scan(window.job, days).rows())
    return {
        day: replace(count, target=replace(count.target, rows=rows.get(day, 0)))
        if day in days and count.target is not None
        else count
        for day, count in counts.items()
    }


def _describe_loss(count: Recount, policy: CoveragePolicy, *, writer: str | None) -> str | None:
    if count.target is None:
        return None
    return describe_loss(count.target, expected=count.expectation.expected, policy=policy, writer=writer)


def _loses_rows_only(count: Recount) -> bool:
    return count.target is not None and bool(count.target.thinned) and not count.target.lost


def _find_writers(window: LeasedWindow, dates: Mapping[date, DateRow], days: Collection[date]) -> dict[date, str]:
    """Return the runs of the job that wrote the target's rows: a checkpoint's, or this one in an earlier attempt."""
    job, warehouse, run = window.job, window.deps.warehouse, window.run.id
    target, date_column = TableName.parse(job.target.table), job.target.date_column
    checkpoints = window.deps.ledger.checkpoints.list_checkpoints(job.name, min(days), max(days))
    checksums = {day: checkpoints[day].checksum for day in days if day in checkpoints}
    writers = {day: checkpoints[day].run_id for day in warehouse.matching_dates(target, date_column, checksums)}
    others = [day for day in days if day not in writers]
    replaced = warehouse.replaced_partitions(target, date_column, run, others) if others else {}
    own = [day for day, partition in replaced.items() if partition.published == dates[day].target_before]
    return writers | dict.fromkeys(own, run)


def _count_keys(window: LeasedWindow, counts: Mapping[date, Recount], staged: StagedFiles) -> dict[date, Recount]:
    """Return the counts with the entities of which the target has more keys than were staged, not only more rows."""
    if not counts:
        return {}
    days = sorted(counts)
    try:
        files = [staged[day].file for day in days]
        thinned = find_entities_with_fewer_keys(window.deps.warehouse, window.job, files)
    except (SchemaMismatch, QueryFailed) as exc:
        problem = f"cannot be compared with what the target holds: {exc}"
        return {day: replace(count, loss=problem) for day, count in counts.items()}
    return {
        day: replace(count, target=replace(count.target, thinned=tuple(thinned.get(day, ()))))
        for day, count in counts.items()
        if count.target is not None
    }


def find_entities_with_fewer_keys(
    warehouse: Warehouse, job: Job, staged: Sequence[StagedFile]
) -> dict[date, list[str]]:
    """Return the expected entities of which the target has more distinct keys than were staged, sorted, by day.

    Keys with a null do not count: they were never complete rows.
    """
    days, columns = sorted(file.day for file in staged), target_columns(job)
    expected = read_expectation(warehouse, job, days)
    staged_rows = read_staged_entities(warehouse, job, staged)
    fewer = expected.with_fewer_rows(staged_rows, than=_read_distinct_keys(warehouse, job, days, columns))
    return expected.names_by_day(fewer)


def _read_distinct_keys(warehouse: Warehouse, job: Job, days: Sequence[date], columns: EntityColumns) -> pa.Table:
    """Read each key of the target on the days once, as a row of its entity."""
    types = target_types(job)
    key = list(dict.fromkeys((columns.date, *columns.entity, *job.target.key)))
    names = list(dict.fromkeys((*key, *columns.required)))
    scan = Scan(
        table=TableName.parse(job.target.table),
        date_column=columns.date,
        dates=target_scan(job, days).dates,
        columns={name: name for name in names},
        types={name: types[name] for name in names},
    )
    rows = warehouse.read(scan, once=True)
    for name in names:
        rows = rows.filter(pc.invert(pc.is_null(rows[name], nan_is_null=True)))
    keys = pa.Table.from_arrays([comparable(rows[name]) for name in key], names=key)
    distinct = keys.group_by(key, use_threads=False).aggregate([])
    return day_entity_rows(distinct, replace(columns, required=(), sums=(), magnitudes=()), table=job.target.table)
