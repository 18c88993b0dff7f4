"""Count the expected entities of a range, and how many of them each source has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from gated_backfill.common.model.job import Job, Source
from gated_backfill.common.warehouse.coverage_queries import expectation_scan, source_scans
from gated_backfill.common.warehouse.protocol import Warehouse


@dataclass(frozen=True, kw_only=True)
class RangeCounts:
    """Numbers of expected entities by day. Days without any are absent."""

    expected: Mapping[date, int]
    found: Mapping[str, Mapping[date, int]]  #: by source: entities it has
    with_primary: Mapping[str, Mapping[date, int]]  #: by further source: entities that it or the first source has
    null_entities: Mapping[date, int]  #: rows of the expectation without an entity
    rows: Mapping[str, Mapping[date, int]]  #: by source: its rows on days without expected entities


def count_range(warehouse: Warehouse, job: Job, present: Sequence[Source], days: Sequence[date]) -> RangeCounts:
    """Count the expected entities of the days, and how many of them each present source has.

    `present` are the sources whose tables exist. Every table is read once; a source in the expectation's own table is
    not read, as it has every expected entity.
    """
    names = [source.name for source in present]
    scans = {name: scan for name, scan in source_scans(job, days).items() if name in names}
    primary, *fallbacks = (source.name for source in job.sources)
    pairs = [(primary, name) for name in fallbacks if {primary, name} <= scans.keys()]
    counts = warehouse.count_entities(expectation_scan(job, days), scans, [*((name,) for name in scans), *pairs])
    by_source = {name: counts.present[name,] if name in scans else counts.expected for name in names}

    def with_primary(name: str) -> Mapping[date, int]:
        if primary in by_source and name in by_source:
            return counts.present.get((primary, name), counts.expected)
        return by_source.get(primary) or by_source.get(name, {})

    return RangeCounts(
        expected=counts.expected,
        found=by_source,
        with_primary={name: with_primary(name) for name in fallbacks},
        null_entities=counts.null_entities,
        rows=counts.rows,
    )
