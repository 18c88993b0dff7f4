"""Counting a whole range before it is run: who is expected, and how much of that each source has, in one query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import LiteralString

from common.job import Job, Source
from common.measure import source_scan, truth_scan
from common.warehouse.base import Scan, Warehouse

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
    """A source in the query: the names of its scan and its columns differ in the number of their last letter."""

    source: Source
    scan: Scan
    tail: LiteralString


def count_range(warehouse: Warehouse, job: Job, present: Sequence[Source], days: Sequence[date]) -> Counts:
    """Count what is expected on the days, and what of it those sources have whose tables are there.

    Every table is read once. A source that is the expectation's own table has what is expected, and is not read again.
    """
    truth = truth_scan(job, days)
    whole, joined = _split(job, present, truth, days)
    scans = {"truth": truth, **{f"source{one.tail}": one.scan for one in joined}}
    rows = warehouse.query(_query(job, joined), scans=scans).to_pylist()

    def counted(what: str) -> dict[str, Mapping[date, int]]:
        names = {one.source.name: f"{what}{one.tail}" for one in joined}
        return {name: {row["day"]: row[column] for row in rows if row.get(column)} for name, column in names.items()}

    expected = {row["day"]: row["expected"] for row in rows}
    found = counted("found") | dict.fromkeys(whole, expected)
    first, *others = (source.name for source in job.sources)
    either: dict[str, Mapping[date, int]] = {}
    for name in others:
        if first in found and name in found:
            either[name] = expected if {first, name} & set(whole) else counted("either")[name]
        else:
            either[name] = found.get(first) or found.get(name, {})
    return Counts(expected=expected, found=found, either=either)


def _split(job: Job, present: Sequence[Source], truth: Scan, days: Sequence[date]) -> tuple[list[str], list[_Joined]]:
    """The names of the sources that are the expectation's own table, and the others as they are joined to it."""
    whole: list[str] = []
    joined: list[_Joined] = []
    for source in present:
        scan = source_scan(job, source, days)
        if scan == truth:
            whole.append(source.name)
        else:
            joined.append(_Joined(source=source, scan=scan, tail="_" * (len(joined) + 1)))
    return whole, joined


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
