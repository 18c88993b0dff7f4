"""Counting, by day, how many of those who are wanted are held: by one query, or here by reading."""

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

DAYS_AT_ONCE = 200  #: that are read together: the memory that counting takes does not grow with the days
MANY_DAYS = 1000  #: for fewer, a second process is not worth its start

SELECT = "SELECT $columns FROM $tables GROUP BY w.day"
WANTED = "(SELECT DISTINCT day, entity FROM truth WHERE entity IS NOT NULL) AS w"
JOINED = "(SELECT DISTINCT day, entity FROM source$) AS s$ ON s$.day = w.day AND s$.entity = w.entity"
EITHER = "COUNT(COALESCE($entities)) AS found$"

Read = Callable[[Scan], pa.Table]
Sources = Mapping[str, Scan]
HeldBy = Collection[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class CountQuery:
    """One query that counts, and the scans it is over: `truth`, and a `source` for each other table."""

    sql: LiteralString
    scans: Mapping[str, Scan]
    columns: Mapping[tuple[str, ...], str]  #: of the result, beside `expected`: by the sources of which one will do


def count_query(wanted: Scan, sources: Sources, held_by: HeldBy) -> CountQuery:
    """The query by which `Warehouse.count` is answered. Its text is put together of ours alone.

    The names of a source's table and of a column end in a tail of its own: a number is no text of ours.
    """
    tails: dict[str, LiteralString] = {name: "_" * n for n, name in enumerate(sources, 1)}
    columns: list[LiteralString] = ["w.day AS day", "COUNT(*) AS expected"]
    found: dict[tuple[str, ...], str] = {}
    for n, names in enumerate(held_by, 1):
        tail: LiteralString = "_" * n
        entities: LiteralString = ", ".join([f"s{tails[name]}.entity" for name in names])
        columns.append(EITHER.replace("$entities", entities).replace("$", tail))
        found[names] = f"found{tail}"
    tables: list[LiteralString] = [WANTED, *(JOINED.replace("$", tail) for tail in tails.values())]
    sql = SELECT.replace("$columns", ", ".join(columns)).replace("$tables", " LEFT JOIN ".join(tables))
    scans = {"truth": wanted, **{f"source{tails[name]}": scan for name, scan in sources.items()}}
    return CountQuery(sql=sql, scans=scans, columns=found)


def parse_counts(asked: CountQuery, rows: pa.Table) -> EntityCounts:
    """What the query's result says."""
    found = rows.to_pylist()

    def by_day(column: str) -> dict[date, int]:
        return {row["day"]: row[column] for row in found if row[column]}

    return EntityCounts(
        expected=by_day("expected"), present={names: by_day(column) for names, column in asked.columns.items()}
    )


def count_by_reading(read: Read, wanted: Scan, sources: Sources, held_by: HeldBy) -> EntityCounts:
    """The answer to `Warehouse.count` from the rows themselves, some days at a time."""
    days = [day for one in wanted.dates for day in one.days()]
    processes = usable_processes() if len(days) >= MANY_DAYS else 1
    parts = map_in_forks(partial(_count, read, wanted, sources, held_by), chunk_dates(days, DAYS_AT_ONCE), processes)
    return EntityCounts(
        expected=_together(one.expected for one in parts),
        present={names: _together(one.present[names] for one in parts) for names in held_by},
    )


def _count(read: Read, wanted: Scan, sources: Sources, held_by: HeldBy, days: Sequence[date]) -> EntityCounts:
    def rows(scan: Scan) -> pa.Table:
        return day_entity_rows(
            read(replace(scan, dates=tuple(consecutive_ranges(days)))), "day", "entity", table=str(scan.table)
        )

    truth = rows(wanted)
    known: Any = pc.unique(truth["entity"])
    keys = _keys(truth, known)
    there = {name: _keys(rows(scan), known) for name, scan in sources.items()}

    def of(names: Iterable[str]) -> npt.NDArray[np.int64]:
        return keys[np.isin(keys, np.concatenate([there[name] for name in names]))]

    return EntityCounts(
        expected=_by_day(keys, len(known)), present={names: _by_day(of(names), len(known)) for names in held_by}
    )


def _keys(rows: pa.Table, names: Any) -> npt.NDArray[np.int64]:
    """Each day with each of the names that it has, once, as a number: in order, and without other names."""
    places = pc.index_in(rows["entity"], value_set=names)
    known = pa.Table.from_arrays([rows["day"].cast(pa.int32()), places], names=["day", "place"]).drop_null()
    days = known["day"].to_numpy().astype(np.int64)
    return _once(days * len(names) + known["place"].to_numpy())


def _once(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Each key once, in order. They nearly are: numpy's own `unique` would make a hash table of them first."""
    if np.all(np.diff(keys) > 0):
        return keys
    ordered = np.sort(keys)
    return ordered[np.diff(ordered, prepend=ordered[:1] - 1) != 0]


def _by_day(keys: npt.NDArray[np.int64], names: int) -> dict[date, int]:
    if not len(keys):
        return {}
    days = keys // names  # in order, as the keys are
    starts = np.flatnonzero(np.diff(days, prepend=days[0] - 1))
    counts = np.diff(starts, append=len(days))
    return dict(zip(days[starts].astype("datetime64[D]").tolist(), counts.tolist(), strict=True))


def _together(parts: Iterable[Mapping[date, int]]) -> dict[date, int]:
    found: dict[date, int] = {}
    for one in parts:
        found |= one
    return found


def day_entity_rows(rows: pa.Table, day: str, entity: str, *, table: str | None = None) -> pa.Table:
    """Who is there when: columns `day` and `entity`, as text, without nulls.

    Raises `SchemaMismatch` where that can't be told.
    """
    try:
        columns = [rows[day].cast(pa.date32()), rows[entity].cast(pa.string())]
    except pa.ArrowException as exc:
        raise SchemaMismatch(f"who is when can't be told by {day} and {entity}: {exc}", table=table) from exc
    return pa.Table.from_arrays(columns, names=["day", "entity"]).drop_null()
