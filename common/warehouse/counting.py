"""Counts of expected and present entities by day: by one query, or from the rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from typing import Any, LiteralString

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.dates import chunk_dates, consecutive_ranges
from gated_backfill.common.process.forked_work import map_in_forks, usable_processes
from gated_backfill.common.warehouse.protocol import EntityCounts, Scan

DAYS_PER_READ = 200  #: bounds the memory of counting
MIN_DAYS_TO_FORK = 1000  #: below, starting a second process takes longer than it saves

SELECT = "SELECT $columns FROM $tables GROUP BY w.day"
EXPECTED = "(SELECT DISTINCT day, entity FROM expectation WHERE entity IS NOT NULL) AS w"
SOURCE_JOIN = "(SELECT DISTINCT day, entity FROM source$) AS s$ ON s$.day = w.day AND s$.entity = w.entity"
PRESENT_IN_ANY = "COUNT(COALESCE($entities)) AS found$"

ReadScan = Callable[[Scan], pa.Table]
SourceScans = Mapping[str, Scan]
SourceGroups = Collection[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class CountQuery:
    """A counting query with its scans: `expectation`, and `source_`, `source__`... in the order of the sources."""

    sql: LiteralString
    scans: Mapping[str, Scan]
    columns: Mapping[tuple[str, ...], str]  #: of the result, in addition to `expected`: by group of sources


def count_query(expected: Scan, sources: SourceScans, groups: SourceGroups) -> CountQuery:
    """Build the query of `Warehouse.count_entities`, from literal text only.

    The names of the n-th source end in n underscores, as a formatted number would not be literal text.
    """
    suffixes: dict[str, LiteralString] = {name: "_" * n for n, name in enumerate(sources, 1)}
    columns: list[LiteralString] = ["w.day AS day", "COUNT(*) AS expected"]
    column_by_group: dict[tuple[str, ...], str] = {}
    for n, names in enumerate(groups, 1):
        suffix: LiteralString = "_" * n
        entities: LiteralString = ", ".join([f"s{suffixes[name]}.entity" for name in names])
        columns.append(PRESENT_IN_ANY.replace("$entities", entities).replace("$", suffix))
        column_by_group[names] = f"found{suffix}"
    tables: list[LiteralString] = [EXPECTED, *(SOURCE_JOIN.replace("$", suffix) for suffix in suffixes.values())]
    sql = SELECT.replace("$columns", ", ".join(columns)).replace("$tables", " LEFT JOIN ".join(tables))
    scans = {"expectation": expected, **{f"source{suffixes[name]}": scan for name, scan in sources.items()}}
    return CountQuery(sql=sql, scans=scans, columns=column_by_group)


def parse_counts(query: CountQuery, result: pa.Table) -> EntityCounts:
    """Read the counts from the query's result."""
    rows = result.to_pylist()

    def by_day(column: str) -> dict[date, int]:
        return {row["day"]: row[column] for row in rows if row[column]}

    return EntityCounts(
        expected=by_day("expected"), present={names: by_day(column) for names, column in query.columns.items()}
    )


def count_by_reading(read: ReadScan, expected: Scan, sources: SourceScans, groups: SourceGroups) -> EntityCounts:
    """Count as `Warehouse.count_entities` does, from the rows, a limited number of days at a time."""
    days = [day for span in expected.dates for day in span.days()]
    processes = usable_processes() if len(days) >= MIN_DAYS_TO_FORK else 1
    parts = map_in_forks(partial(_count, read, expected, sources, groups), chunk_dates(days, DAYS_PER_READ), processes)
    return EntityCounts(
        expected=_merged(part.expected for part in parts),
        present={names: _merged(part.present[names] for part in parts) for names in groups},
    )


def _count(
    read: ReadScan, expected: Scan, sources: SourceScans, groups: SourceGroups, days: Sequence[date]
) -> EntityCounts:
    def rows(scan: Scan) -> pa.Table:
        of_days = replace(scan, dates=tuple(consecutive_ranges(days)))
        return day_entity_rows(read(of_days), "day", "entity", table=str(scan.table))

    expectation = rows(expected)
    entities: Any = pc.unique(expectation["entity"])
    keys = _keys(expectation, entities)
    source_keys = {name: _keys(rows(scan), entities) for name, scan in sources.items()}

    def present(names: Iterable[str]) -> npt.NDArray[np.int64]:
        return keys[np.isin(keys, np.concatenate([source_keys[name] for name in names]))]

    return EntityCounts(
        expected=_by_day(keys, len(entities)),
        present={names: _by_day(present(names), len(entities)) for names in groups},
    )


def _keys(rows: pa.Table, entities: Any) -> npt.NDArray[np.int64]:
    """Number each distinct pair of day and entity, ascending, without other entities."""
    positions = pc.index_in(rows["entity"], value_set=entities)
    pairs = pa.Table.from_arrays([rows["day"].cast(pa.int32()), positions], names=["day", "position"]).drop_null()
    days = pairs["day"].to_numpy().astype(np.int64)
    return _distinct(days * len(entities) + pairs["position"].to_numpy())


def _distinct(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Sort and deduplicate the keys. Most are sorted already, which numpy's `unique` does not make use of."""
    if np.all(np.diff(keys) > 0):
        return keys
    ordered = np.sort(keys)
    return ordered[np.diff(ordered, prepend=ordered[:1] - 1) != 0]


def _by_day(keys: npt.NDArray[np.int64], entities: int) -> dict[date, int]:
    if not len(keys):
        return {}
    days = keys // entities  # ascending, like the keys
    starts = np.flatnonzero(np.diff(days, prepend=days[0] - 1))
    counts = np.diff(starts, append=len(days))
    return dict(zip(days[starts].astype("datetime64[D]").tolist(), counts.tolist(), strict=True))


def _merged(parts: Iterable[Mapping[date, int]]) -> dict[date, int]:
    return {day: count for part in parts for day, count in part.items()}


def day_entity_rows(rows: pa.Table, day: str, entity: str, *, table: str | None = None) -> pa.Table:
    """Reduce the rows to the columns `day` and `entity`, as text, without nulls.

    Raises `SchemaMismatch` for columns that cannot be read as a date and as text.
    """
    try:
        columns = [rows[day].cast(pa.date32()), rows[entity].cast(pa.string())]
    except pa.ArrowException as exc:
        raise SchemaMismatch(f"cannot read {day} as a date and {entity} as text: {exc}", table=table) from exc
    return pa.Table.from_arrays(columns, names=["day", "entity"]).drop_null()
