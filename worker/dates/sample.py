"""Build dates in memory, alone and together, to see whether a job's rows depend on how dates are grouped."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import pyarrow as pa

from gated_backfill.common.model.coverage import judge_expectation
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.run_options import RunOptions
from gated_backfill.common.warehouse.protocol import Warehouse
from gated_backfill.worker.dates.build import compute_rows
from gated_backfill.worker.dates.sources import check_sources, group_by_source


def compare_groupings(job: Job, warehouse: Warehouse, days: Sequence[date]) -> dict[date, str | None]:
    """Build each day alone, once more alone, and with the other days of the same sources; nothing is stored.

    Returns, for each day that has something to build, the first difference in words, or None without one. Raises the
    errors of the job and of the warehouse.
    """
    options = RunOptions.for_job(job, window=len(days), in_flight=1, fallback=None, forced_because=None)
    checks = check_sources(warehouse, job, options, days)
    buildable = {day: check for day, check in checks.items() if judge_expectation(check.expectation) is None}
    differences: dict[date, str | None] = {}
    for group in group_by_source(buildable):
        together = compute_rows(job, buildable, group, warehouse)
        for day in group:
            alone, again = (compute_rows(job, buildable, (day,), warehouse)[day] for _ in range(2))
            differences[day] = _difference("twice", alone, again) or _difference(
                f"with {len(group) - 1} other date(s)", alone, together[day]
            )
    return differences


def _difference(how: str, alone: pa.Table, other: pa.Table) -> str | None:
    if alone.equals(other):
        return None
    if alone.num_rows != other.num_rows:
        return f"built {how} it has {other.num_rows} row(s), built alone {alone.num_rows}"
    columns = [name for name in alone.column_names if not alone[name].equals(other[name])]
    return f"built {how} it differs in {', '.join(columns)}" if columns else None
