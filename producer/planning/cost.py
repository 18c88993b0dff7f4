"""What a plan would read in the warehouse and what that costs, told before anything is launched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from gated_backfill.common.model.dates import consecutive_ranges
from gated_backfill.common.model.job import Input, Job, Source
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.coverage_queries import calendar_scan, expectation_scan, source_scans
from gated_backfill.common.warehouse.protocol import Scan, Warehouse
from gated_backfill.producer.planning.plan import Plan, PlanAction

TIB = 1024**4
MIN_BILLED_BYTES = 10 * 1024**2  #: BigQuery bills at least so much for a table that a query names
MAX_PARALLEL_DRY_RUNS = 8  #: dry runs under way


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """The bytes that a plan's run would be billed for, and their price."""

    preflight_bytes: int  #: what making this plan read
    date_bytes: int  #: per task of one date
    window_bytes: int  #: per window, at the gate
    dates: int
    windows: int
    window: int  #: dates per window
    price_per_tib: float

    @property
    def run_bytes(self) -> int:
        return self.dates * self.date_bytes + self.windows * self.window_bytes

    @property
    def price(self) -> float:
        return (self.preflight_bytes + self.run_bytes) / TIB * self.price_per_tib

    def describe(self) -> str:
        return (
            f"about {format_bytes(self.run_bytes)} would be read: "
            f"{format_bytes(self.date_bytes)} for each of {self.dates} date(s), "
            f"{format_bytes(self.window_bytes)} for each of {self.windows} window(s) of {self.window}; "
            f"with the pre-flight's {format_bytes(self.preflight_bytes)} "
            f"about {self.price:.2f} at {self.price_per_tib:g} per TiB"
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"run_bytes": self.run_bytes, "price": round(self.price, 4)}


def format_bytes(count: int) -> str:
    """The bytes in the largest unit that keeps the number above one, e.g. `1.5 GiB`."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"


def estimate_cost(
    plan: Plan, job: Job, warehouse: Warehouse, *, dates_per_window: int, price_per_tib: float
) -> CostEstimate | None:
    """What the plan's run would cost, by dry runs over one of its dates and one of its windows.

    None where reading is free, and when there is nothing to build.
    """
    days = [step.day for step in plan.steps_with(PlanAction.BUILD)]
    if not days or (date_bytes := _billed(warehouse, date_scans(job, days[len(days) // 2]))) is None:
        return None
    return CostEstimate(
        preflight_bytes=_billed(warehouse, preflight_scans(job, plan.request.days)) or 0,
        date_bytes=date_bytes,
        window_bytes=_billed(warehouse, window_scans(job, days[:dates_per_window])) or 0,
        dates=len(days),
        windows=-(-len(days) // dates_per_window),
        window=dates_per_window,
        price_per_tib=price_per_tib,
    )


def _billed(warehouse: Warehouse, scans: Sequence[Scan]) -> int | None:
    """The bytes that are billed for all the scans whose tables are there; None where reading is free."""
    present = [scan for scan in scans if warehouse.describe(scan.table) is not None]
    with ThreadPoolExecutor(MAX_PARALLEL_DRY_RUNS) as pool:
        read = list(pool.map(warehouse.estimate_bytes, present))
    return None if None in read else sum(max(one or 0, MIN_BILLED_BYTES) for one in read)


def preflight_scans(job: Job, days: Sequence[date]) -> list[Scan]:
    """The scans of one plan over the days."""
    sources = source_scans(job, days).values()
    return [expectation_scan(job, days), *sources, *_calendar(job, days), _target_scan(job, days)]


def date_scans(job: Job, day: date) -> list[Scan]:
    """The scans of one date's task: every source is measured and fingerprinted, the primary's rows are read."""
    measured = source_scans(job, [day]).values()
    rows = [_rows_scan(one, day) for one in (*job.sources, *job.inputs)]
    read = [_rows_scan(job.sources[0], day), *(_rows_scan(one, day) for one in job.inputs)]
    return [_target_scan(job, [day]), expectation_scan(job, [day]), *_calendar(job, [day]), *measured, *rows, *read]


def window_scans(job: Job, days: Sequence[date]) -> list[Scan]:
    """The scans of one window's gate: it recounts in two queries, and looks at the target before and after its
    transaction, which reads it three times.
    """
    truth, target = expectation_scan(job, days), _target_scan(job, days)
    return [truth, truth, *_calendar(job, days), *[target] * 5]


def _calendar(job: Job, days: Sequence[date]) -> list[Scan]:
    scan = calendar_scan(job, days)
    return [] if scan is None else [scan]


def _target_scan(job: Job, days: Sequence[date]) -> Scan:
    return Scan(
        table=TableName.parse(job.target.table),
        date_column=job.target.date_column,
        dates=tuple(consecutive_ranges(days)),
    )


def _rows_scan(one: Source | Input, day: date) -> Scan:
    columns: Mapping[str, str] | None = None
    if one.columns is not None:
        columns = {name: name for name in (one.date_column, *one.columns)}
    dates = tuple(consecutive_ranges([day], lookback=one.lookback_days))
    return Scan(table=TableName.parse(one.table), date_column=one.date_column, dates=dates, columns=columns)
