"""Counts of expected and present entities by day, from the rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial, reduce
from operator import or_

import pyarrow as pa

from gated_backfill.common.model.dates import chunk_dates, consecutive_ranges, days_in
from gated_backfill.common.process.forked_work import map_in_forks, usable_processes
from gated_backfill.common.warehouse.entities import ExpectedEntities
from gated_backfill.common.warehouse.protocol import EntityCounts, EntityScan

DAYS_PER_READ = 200  #: bounds the memory of counting
MIN_DAYS_TO_FORK = 1000  #: below, starting a second process takes longer than it saves

ReadEntities = Callable[[EntityScan], pa.Table]  #: returns what `Warehouse.read_entities` does
SourceScans = Mapping[str, EntityScan]
SourceGroups = Collection[tuple[str, ...]]


def count_by_reading(
    read: ReadEntities, expected: EntityScan, sources: SourceScans, groups: SourceGroups
) -> EntityCounts:
    """Count as `Warehouse.count_entities` does, from the rows, a limited number of days at a time."""
    days = days_in(expected.dates)
    processes = usable_processes() if len(days) >= MIN_DAYS_TO_FORK else 1
    parts = map_in_forks(partial(_count, read, expected, sources, groups), chunk_dates(days, DAYS_PER_READ), processes)
    return EntityCounts(
        expected=_merged(part.expected for part in parts),
        present={names: _merged(part.present[names] for part in parts) for names in groups},
        null_entities=_merged(part.null_entities for part in parts),
        rows={name: _merged(part.rows[name] for part in parts) for name in sources},
    )


def _count(
    read: ReadEntities, expected: EntityScan, sources: SourceScans, groups: SourceGroups, days: Sequence[date]
) -> EntityCounts:
    spans = tuple(consecutive_ranges(days))
    rules = {name: scan.columns.rule for name, scan in sources.items()}
    is_measured = any(rule.is_measured for rule in rules.values())
    entities = ExpectedEntities(read(replace(expected, dates=spans)), is_measured=is_measured)
    rows = {name: read(replace(scan, dates=spans)) for name, scan in sources.items()}
    present = {name: entities.present_in(rows[name], rule) for name, rule in rules.items()}
    return EntityCounts(
        expected=entities.count_by_day(entities.all),
        present={names: entities.count_by_day(reduce(or_, (present[name] for name in names))) for names in groups},
        null_entities=entities.null_rows,
        rows={name: entities.rows_on_other_days(table) for name, table in rows.items()},
    )


def _merged(parts: Iterable[Mapping[date, int]]) -> dict[date, int]:
    return {day: count for part in parts for day, count in part.items()}
