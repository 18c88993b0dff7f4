"""The target tables of jobs, made as the jobs declare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.tables import ColumnTypes, TableName
from gated_backfill.common.warehouse.protocol import TableInfo, Warehouse

MAX_CLUSTER_COLUMNS = 4  #: columns that BigQuery clusters a table by
UNCLUSTERED_TYPES = ("FLOAT64",)  #: that BigQuery clusters no table by


class TableOutcome(StrEnum):
    CREATED = "made"
    EXISTED = "there already"
    CREATED_ON_PUBLISH = "made with its first partition"


@dataclass(frozen=True, kw_only=True)
class TargetTable:
    """The target of a job, and what became of it."""

    job: Job
    outcome: TableOutcome

    def describe(self) -> str:
        target = self.job.target
        if self.outcome is TableOutcome.CREATED_ON_PUBLISH:
            return f"{self.job.name}: {target.table} comes into being with its first partition: nothing to make"
        if self.outcome is TableOutcome.EXISTED:
            return f"{self.job.name}: {target.table} was there already, as the job declares it"
        clustered = ", ".join(cluster_columns(self.job))
        return f"{self.job.name}: {target.table} was made, partitioned by {target.date_column}" + (
            f", clustered by {clustered}" if clustered else ""
        )


@dataclass(frozen=True, kw_only=True)
class CreatedTables:
    """What the warehouse has now."""

    targets: tuple[TargetTable, ...]
    prepared: bool | None  #: whether the warehouse's own tables were made; None when it needs none


def create_tables(warehouse: Warehouse, jobs: Sequence[Job]) -> CreatedTables:
    """Make the jobs' targets where they do not exist, and what the warehouse keeps for itself. Twice is harmless.

    Raises `SchemaMismatch`, and makes nothing, when a target exists and is not as its job declares it.
    """
    _refuse_different(warehouse, jobs)
    prepared = warehouse.create_own_tables()
    targets = tuple(TargetTable(job=job, outcome=_create(warehouse, job)) for job in jobs)
    _refuse_different(warehouse, jobs)  # somebody else may have made one meanwhile
    return CreatedTables(targets=targets, prepared=prepared)


def _create(warehouse: Warehouse, job: Job) -> TableOutcome:
    table = TableName.parse(job.target.table)
    if warehouse.create_table(table, target_types(job), job.target.date_column, cluster_columns(job)):
        return TableOutcome.CREATED
    return TableOutcome.CREATED_ON_PUBLISH if warehouse.describe(table) is None else TableOutcome.EXISTED


def _refuse_different(warehouse: Warehouse, jobs: Sequence[Job]) -> None:
    wrong: list[str] = []
    for job in jobs:
        info = warehouse.describe(TableName.parse(job.target.table))
        if info is not None and (found := target_differences(job, info)):
            wrong.append(f"{info.table} is not as job {job.name} declares it: it {'; it '.join(found)}")
    if wrong:
        raise SchemaMismatch("; ".join(wrong))


def target_differences(job: Job, info: TableInfo) -> list[str]:
    """How the table differs from the job's target, each as the end of a sentence about it."""
    found = blocking_differences(job, info)
    if info.partitioned_by is None:
        found.append("is not partitioned")
    return found


def blocking_differences(job: Job, info: TableInfo) -> list[str]:
    """Those of the differences for which nothing is published to the table."""
    wanted = target_types(job)
    found = info.column_mismatches(job.target.date_column, wanted)
    if more := [name for name in info.columns if name not in wanted]:
        found.append(f"has the column(s) {', '.join(more)}, which the job does not write")
    return found


def target_types(job: Job) -> ColumnTypes:
    return {name: column.type for name, column in job.target.columns.items()}


def cluster_columns(job: Job) -> list[str]:
    """The columns by which the target is clustered: its key, without the date."""
    target = job.target
    named = [
        name for name in target.key if name != target.date_column and target.columns[name].type not in UNCLUSTERED_TYPES
    ]
    return named[:MAX_CLUSTER_COLUMNS]
