"""Cost estimate of a plan: the bytes that its run would read in the warehouse, and their price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any

from gated_backfill.common.model.dates import consecutive_ranges
from gated_backfill.common.model.expectation_floor import neighbour_days, share_of_recent
from gated_backfill.common.model.job import Input, Job, Source
from gated_backfill.common.model.query import Query
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.model.usage import format_bytes
from gated_backfill.common.warehouse.coverage_queries import calendar_scan, expectation_scan, source_scans, target_scan
from gated_backfill.common.warehouse.input_fingerprints import fingerprint_scans, input_tables
from gated_backfill.common.warehouse.prerequisites import prerequisite_scans
from gated_backfill.common.warehouse.protocol import Scan, Warehouse
from gated_backfill.producer.planning.plan import Plan, PlanAction

TIB = 1024**4
MIN_BILLED_BYTES = 10 * 1024**2  #: the least that BigQuery bills for each table in a query
MAX_PARALLEL_DRY_RUNS = 8
DATES_SAMPLED = 100  #: checkpointed dates whose size in the target is that of a date to build
#: How often the staged rows of a date are read: counted by the gate, inserted into the target, hashed for the record in
#: the same transaction, and hashed in the target once it has ended.
STAGED_READS = 4
STAGED_READS_OF_QUERY = 6  #: of a SQL job, also hashed by the worker that staged them, and by the gate
#: Logical bytes of a value, as BigQuery bills it. Texts are of any length: two bytes more than this assumes.
VALUE_BYTES: Mapping[str, int] = {"BOOL": 1, "NUMERIC": 16, "STRING": 2 + 16, "BYTES": 2 + 16}
OTHER_VALUE_BYTES = 8  #: of INT64, FLOAT64, DATE, DATETIME and TIMESTAMP


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """The bytes that a plan's run would be billed for, and their price."""

    preflight_bytes: int  #: read to make this plan
    date_bytes: int  #: per task of one date
    publish_bytes: int  #: per date, at the gate, of its new rows
    window_bytes: int  #: per window, at the gate, of what is there already
    dates: int
    windows: int
    window: int  #: dates per window
    price_per_tib: float

    @property
    def run_bytes(self) -> int:
        return self.dates * (self.date_bytes + self.publish_bytes) + self.windows * self.window_bytes

    @property
    def price(self) -> float:
        return (self.preflight_bytes + self.run_bytes) / TIB * self.price_per_tib

    def describe(self) -> str:
        return (
            f"about {format_bytes(self.run_bytes)} would be read: "
            f"{format_bytes(self.date_bytes)} to build and {format_bytes(self.publish_bytes)} to publish each of "
            f"{self.dates} date(s), "
            f"{format_bytes(self.window_bytes)} for each of {self.windows} window(s) of {self.window}; "
            f"with the pre-flight's {format_bytes(self.preflight_bytes)} "
            f"about {self.price:.2f} at {self.price_per_tib:g} per TiB"
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"run_bytes": self.run_bytes, "price": round(self.price, 4)}


def estimate_cost(
    plan: Plan, job: Job, warehouse: Warehouse, *, dates_per_window: int, price_per_tib: float
) -> CostEstimate | None:
    """Estimate the cost of the plan's run with dry runs over one of its dates and one of its windows.

    None when the warehouse bills nothing for reading, or the plan builds no date.
    """
    days = [step.day for step in plan.steps_with(PlanAction.BUILD)]
    if not days or (date_bytes := _estimate_billed_bytes(warehouse, date_scans(job, days[len(days) // 2]))) is None:
        return None
    is_forced = plan.request.forced_because is not None
    window_bytes = _estimate_billed_bytes(warehouse, window_scans(job, days[:dates_per_window], is_forced=is_forced))
    tables = {(table.table, table.date_column) for table in input_tables(job)}
    return CostEstimate(
        preflight_bytes=_estimate_billed_bytes(warehouse, preflight_scans(job, plan)) or 0,
        date_bytes=date_bytes + MIN_BILLED_BYTES * len(tables),  # for the metadata of their partitions
        publish_bytes=_estimate_staged_bytes(plan, job, warehouse) * staged_reads(job),
        window_bytes=(window_bytes or 0) + MIN_BILLED_BYTES,  # for the metadata of the target's
        dates=len(days),
        windows=-(-len(days) // dates_per_window),
        window=dates_per_window,
        price_per_tib=price_per_tib,
    )


def _estimate_billed_bytes(warehouse: Warehouse, scans: Sequence[Scan]) -> int | None:
    """The bytes billed for the scans of existing tables; None when the warehouse bills nothing for reading."""
    existing = [scan for scan in scans if warehouse.describe(scan.table) is not None]
    with ThreadPoolExecutor(MAX_PARALLEL_DRY_RUNS) as pool:
        estimates = list(pool.map(warehouse.estimate_bytes, existing))
    return None if None in estimates else sum(max(count or 0, MIN_BILLED_BYTES) for count in estimates)


def staged_reads(job: Job) -> int:
    return STAGED_READS_OF_QUERY if isinstance(job.process, Query) else STAGED_READS


def _estimate_staged_bytes(plan: Plan, job: Job, warehouse: Warehouse) -> int:
    """The size of a date's new rows: that of checkpointed dates in the target or, without any, one row per entity."""
    sampled = sorted(plan.checkpointed_by)[-DATES_SAMPLED:]
    if sampled and warehouse.describe(TableName.parse(job.target.table)) is not None:
        return (warehouse.estimate_bytes(_target_scan(job, sampled)) or 0) // len(sampled)
    expected = [step.expected or 0 for step in plan.steps_with(PlanAction.BUILD)]
    return row_bytes(job) * sum(expected) // len(expected)


def row_bytes(job: Job) -> int:
    """The size of a row of the target, by the types of its columns."""
    return sum(VALUE_BYTES.get(column.type, OTHER_VALUE_BYTES) for column in job.target.columns.values())


def preflight_scans(job: Job, plan: Plan) -> list[Scan]:
    """The scans that making the plan took."""
    days, steps = plan.request.days, plan.steps
    scans = _coverage_scans(job, days)
    if share_of_recent(job.expectation, has_calendar=plan.has_calendar):
        scans.append(expectation_scan(job, neighbour_days(days)).rows())
    if idle_days := [step.day for step in steps if not step.expected]:
        target = _target_scan(job, idle_days)
        scans.append(replace(target, columns={"day": target.date_column}))
    if measured_days := [step.day for step in steps if step.expected and step.action is not PlanAction.DONE]:
        scans += prerequisite_scans(job, measured_days)
    for roles, days_read in plan.read_roles.items():
        scans += fingerprint_scans(job, days_read, roles=roles)
    if plan.recounted_days:
        scans += [expectation_scan(job, plan.recounted_days).rows(), target_scan(job, plan.recounted_days).rows()]
    return [*scans, *([_target_scan(job, plan.hashed_days)] if plan.hashed_days else [])]


def date_scans(job: Job, day: date) -> list[Scan]:
    """The scans of one date's task: it measures and fingerprints every source, and reads the primary's rows."""
    primary = job.sources[0]
    return [
        _target_scan(job, [day]),
        *_coverage_scans(job, [day]),
        *fingerprint_scans(job, [day]),
        *prerequisite_scans(job, [day], sources=[primary.name]),
        _rows_scan(primary, [day], *job.source_entity(primary)),
        *(_rows_scan(declared, [day]) for declared in job.inputs),
    ]


def window_scans(job: Job, days: Sequence[date], *, is_forced: bool = False) -> list[Scan]:
    """The scans of one window's gate, without those of the staged rows: it reads the expectation, and the rows that the
    target has before its transaction and in it: to compare, hash, keep, and delete them. Forced dates are searched for
    what they were built without.
    """
    lacking = prerequisite_scans(job, days) if is_forced else []
    return [expectation_scan(job, days).rows(), *_calendar_scans(job, days), *lacking, *[_target_scan(job, days)] * 5]


def _coverage_scans(job: Job, days: Sequence[date]) -> list[Scan]:
    """The scans that compare every source with the expectation."""
    sources = [scan.rows() for scan in source_scans(job, days).values()]
    return [expectation_scan(job, days).rows(), *sources, *_calendar_scans(job, days)]


def _calendar_scans(job: Job, days: Sequence[date]) -> list[Scan]:
    scan = calendar_scan(job, days)
    return [] if scan is None else [scan]


def _target_scan(job: Job, days: Sequence[date]) -> Scan:
    return Scan(
        table=TableName.parse(job.target.table),
        date_column=job.target.date_column,
        dates=tuple(consecutive_ranges(days)),
    )


def _rows_scan(table: Source | Input, days: Sequence[date], *entity: str) -> Scan:
    """The scan of the rows that are processed; `entity` are the columns by which they are sorted."""
    columns: Mapping[str, str] | None = None
    if table.columns is not None:
        columns = {name: name for name in (table.date_column, *entity, *table.columns)}
    dates = tuple(consecutive_ranges(days, lookback=table.lookback_days))
    return Scan(
        table=TableName.parse(table.table),
        date_column=table.date_column,
        dates=dates,
        columns=columns,
        time_zone=table.time_zone,
    )
