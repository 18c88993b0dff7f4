"""Create the target tables of jobs, as the jobs declare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.tables import ColumnType, ColumnTypes, TableName
from gated_backfill.common.warehouse.protocol import TableInfo, Warehouse
from gated_backfill.common.warehouse.table_checks import as_clauses, blocking_differences, target_types

MAX_CLUSTER_COLUMNS = 4  #: a limit of BigQuery
UNCLUSTERED_TYPES = ("FLOAT64",)  #: BigQuery can't cluster by these


class TableOutcome(StrEnum):
    CREATED = "created"
    EXISTED = "there already"


@dataclass(frozen=True, kw_only=True)
class TargetTable:
    """The target of a job, and whether it was created, or got columns."""

    job: Job
    outcome: TableOutcome
    added_columns: ColumnTypes = field(default_factory=dict[str, ColumnType])

    def describe(self) -> str:
        target = self.job.target
        if self.added_columns:
            columns = ", ".join(f"{name} {kind}" for name, kind in self.added_columns.items())
            return f"{self.job.name}: {target.table} was there already, and got the column(s) {columns}"
        if self.outcome is TableOutcome.EXISTED:
            return f"{self.job.name}: {target.table} was there already, as the job declares it"
        columns = ", ".join(cluster_columns(self.job))
        return f"{self.job.name}: {target.table} was made, partitioned by {target.date_column}" + (
            f", clustered by {columns}" if columns else ""
        )


@dataclass(frozen=True, kw_only=True)
class CreatedTables:
    """The targets, and whether the tool's own tables were created."""

    targets: tuple[TargetTable, ...]
    prepared: bool | None  #: whether the warehouse's own tables were created; None when it needs none


def create_tables(warehouse: Warehouse, jobs: Sequence[Job], *, add_columns: bool = False) -> CreatedTables:
    """Create the jobs' targets, and the tool's own tables, where they do not exist. Repeating it is harmless.

    With `add_columns`, add the columns that an existing target lacks. Raises `SchemaMismatch`, and creates nothing,
    when a target exists and is not as its job declares it.
    """
    _check_targets(warehouse, jobs, without_lacking=add_columns)
    added = [_add_lacking_columns(warehouse, job) if add_columns else {} for job in jobs]
    prepared = warehouse.create_own_tables()
    targets = tuple(
        TargetTable(job=job, outcome=_create_target(warehouse, job), added_columns=columns)
        for job, columns in zip(jobs, added, strict=True)
    )
    _check_targets(warehouse, jobs)  # another process may have created one in the meantime
    return CreatedTables(targets=targets, prepared=prepared)


def _create_target(warehouse: Warehouse, job: Job) -> TableOutcome:
    table = TableName.parse(job.target.table)
    if warehouse.create_table(table, target_types(job), job.target.date_column, cluster_columns(job)):
        return TableOutcome.CREATED
    return TableOutcome.EXISTED


def _add_lacking_columns(warehouse: Warehouse, job: Job) -> ColumnTypes:
    """Add the columns that the job's target lacks, if it exists, and return them."""
    table = TableName.parse(job.target.table)
    info = warehouse.describe(table)
    if info is None or not (lacking := _lacking_columns(job, info)):
        return {}
    warehouse.add_columns(table, lacking)
    return lacking


def _lacking_columns(job: Job, info: TableInfo) -> ColumnTypes:
    return {name: kind for name, kind in target_types(job).items() if name not in info.columns}


def _check_targets(warehouse: Warehouse, jobs: Sequence[Job], *, without_lacking: bool = False) -> None:
    """Raise `SchemaMismatch` for targets that are not as declared; `without_lacking` columns to be added."""
    errors: list[str] = []
    for job in jobs:
        info = warehouse.describe(TableName.parse(job.target.table))
        if info is not None and without_lacking and job.target.date_column in info.columns:
            info = replace(info, columns={**info.columns, **_lacking_columns(job, info)})
        if info is not None and (differences := target_differences(job, info)):
            errors.append(f"{info.table} is not as job {job.name} declares it: {as_clauses(differences)}")
    if errors:
        raise SchemaMismatch("; ".join(errors))


def target_differences(job: Job, info: TableInfo) -> list[str]:
    """How the table differs from the job's target, each as the end of a sentence about it."""
    differences = blocking_differences(job, info)
    if info.partitioned_by is None:
        differences.append("is not partitioned")
    return differences


def cluster_columns(job: Job) -> list[str]:
    """The columns by which the target is clustered: its key, without the date."""
    target = job.target
    columns = [
        name for name in target.key if name != target.date_column and target.columns[name].type not in UNCLUSTERED_TYPES
    ]
    return columns[:MAX_CLUSTER_COLUMNS]
