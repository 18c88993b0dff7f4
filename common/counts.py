"""Counting a whole range before it is run: who is expected, and how much of that each source has."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from typing import LiteralString

from common.job import Job, Source
from common.measure import source_scans, truth_scan
from common.warehouse.base import Scan, Warehouse

AT_ONCE = 4  #: slices that are counted at once: each takes some memory
SELECT = "SELECT $columns FROM $tables GROUP BY w.day"
WANTED = "(SELECT DISTINCT day, entity FROM truth WHERE entity IS NOT NULL) AS w"
JOINED = "(SELECT DISTINCT day, entity FROM source$) AS s$ ON s$.day = w.day AND s$.entity = w.entity"
EITHER = "COUNT(COALESCE(s$1.entity, s$.entity)) AS either$"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Expected entities by day; a day without any is in none of them."""

    expected: Mapping[date, int]
    found: Mapping[str, Mapping[date, int]]  #: by source: those that it has
    either: Mapping[str, Mapping[date, int]]  #: by source but the first: those that it or the first has


@dataclass(frozen=True, kw_only=True)
class _Joined:
    """A source in the query: the names of its scan and its columns end in a tail of its own."""

    source: Source
    scan: Scan
    tail: LiteralString


def count_range(warehouse: Warehouse, job: Job, present: Sequence[Source], days: Sequence[date]) -> Counts:
    """Count what is expected on the days, and what of it those sources have whose tables are there.

    Every table is read once. A source that is the expectation's own table has what is expected, and is not read again.
    """
    slices = warehouse.slices(days)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, AT_ONCE)) as pool:
        parts = list(pool.map(lambda part: _count(warehouse, job, present, part), slices))
    return Counts(
        expected=_together(one.expected for one in parts),
        found={source.name: _together(one.found[source.name] for one in parts) for source in present},
        either={source.name: _together(one.either[source.name] for one in parts) for source in job.sources[1:]},
    )


def _together(parts: Iterable[Mapping[date, int]]) -> dict[date, int]:
    found: dict[date, int] = {}
    for one in parts:
        found |= one
    return found


def _count(warehouse: Warehouse, job: Job, present: Sequence[Source], days: Sequence[date]) -> Counts:
    joined = _joined(job, present, days)
    scans = {"truth": truth_scan(job, days), **{f"source{one.tail}": one.scan for one in joined}}
    rows = warehouse.query(_query(job, joined), scans=scans).to_pylist()

    def counted(what: str) -> dict[str, Mapping[date, int]]:
        names = {one.source.name: f"{what}{one.tail}" for one in joined}
        return {name: {row["day"]: row[column] for row in rows if row.get(column)} for name, column in names.items()}

    expected = {row["day"]: row["expected"] for row in rows}
    apart = counted("found")
    found = dict.fromkeys((source.name for source in present), expected) | apart
    both = counted("either")
    first, *others = (source.name for source in job.sources)
    either: dict[str, Mapping[date, int]] = {}
    for name in others:
        if first in found and name in found:
            either[name] = both[name] if {first, name} <= apart.keys() else expected
        else:
            either[name] = found.get(first) or found.get(name, {})
    return Counts(expected=expected, found=found, either=either)


def _joined(job: Job, present: Sequence[Source], days: Sequence[date]) -> list[_Joined]:
    """The sources as they are joined to the expectation, but for those that are its own table."""
    scans = source_scans(job, days)
    apart = [source for source in present if source.name in scans]
    return [_Joined(source=one, scan=scans[one.name], tail="_" * n) for n, one in enumerate(apart, 1)]


def _query(job: Job, joined: Sequence[_Joined]) -> LiteralString:
    """The one query. Its text is put together of ours alone: a tail stands for each `$`."""
    first = next((one for one in joined if one.source.name == job.sources[0].name), None)
    columns: list[LiteralString] = ["w.day AS day", "COUNT(*) AS expected"]
    tables: list[LiteralString] = [WANTED]
    for one in joined:
        columns.append("COUNT(s$.entity) AS found$".replace("$", one.tail))
        tables.append(JOINED.replace("$", one.tail))
        if first is not None and one is not first:
            columns.append(EITHER.replace("$1", first.tail).replace("$", one.tail))
    return SELECT.replace("$columns", ", ".join(columns)).replace("$tables", " LEFT JOIN ".join(tables))
