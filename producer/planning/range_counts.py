"""Counting a whole range before it is run: who is expected, and how much of that each source has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from gated_backfill.common.model.job import Job, Source
from gated_backfill.common.warehouse.coverage_queries import expectation_scan, source_scans
from gated_backfill.common.warehouse.protocol import Warehouse


@dataclass(frozen=True, kw_only=True)
class RangeCounts:
    """Expected entities by day; a day without any is in none of them."""

    expected: Mapping[date, int]
    found: Mapping[str, Mapping[date, int]]  #: by source: those that it has
    with_primary: Mapping[str, Mapping[date, int]]  #: by source but the first: those that it or the first has


def count_range(warehouse: Warehouse, job: Job, present: Sequence[Source], days: Sequence[date]) -> RangeCounts:
    """Count what is expected on the days, and what of it those sources have whose tables are there.

    Every table is read once. A source that is the expectation's own table has what is expected, and is not read again.
    """
    there = [source.name for source in present]
    apart = {name: scan for name, scan in source_scans(job, days).items() if name in there}
    first, *others = (source.name for source in job.sources)
    both = [(first, name) for name in others if {first, name} <= apart.keys()]
    counted = warehouse.count_entities(expectation_scan(job, days), apart, [*((name,) for name in apart), *both])
    found = {name: counted.present[name,] if name in apart else counted.expected for name in there}

    def either(name: str) -> Mapping[date, int]:
        if first in found and name in found:
            return counted.present.get((first, name), counted.expected)
        return found.get(first) or found.get(name, {})

    return RangeCounts(expected=counted.expected, found=found, with_primary={name: either(name) for name in others})
