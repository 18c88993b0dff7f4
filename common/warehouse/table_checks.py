"""Checks of the tables that a job reads: existing, dated and with the columns it needs."""

from __future__ import annotations

from dataclasses import dataclass, field

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.tables import ColumnType, ColumnTypes, TableName
from gated_backfill.common.warehouse.protocol import TableInfo, Warehouse, require_table


@dataclass(frozen=True, kw_only=True)
class MissingTables:
    """Tables that a job names and the warehouse does not have."""

    sources: frozenset[str]  #: names of sources: their coverage counts as 0
    inputs: frozenset[str]  #: names of optional inputs: `process` gets None for them
    calendar: bool  #: without a calendar, a date with nothing expected is skipped, not blocked

    def notes(self, job: Job) -> list[str]:
        """Write one sentence for each missing table."""
        notes = [
            f"source {source.name}: table {source.table} does not exist, counted as 0 found"
            for source in job.sources
            if source.name in self.sources
        ]
        notes += [
            f"optional input {table_input.name}: table {table_input.table} does not exist, and is left out"
            for table_input in job.inputs
            if table_input.name in self.inputs
        ]
        if self.calendar and job.expectation.calendar:
            table = job.expectation.calendar.table
            notes.append(f"calendar {table} does not exist: dates with nothing expected are skipped without a check")
        return notes


@dataclass(frozen=True, kw_only=True)
class TableRequirement:
    """A table that a job reads, and the columns it needs."""

    role: str  #: the table's role in the job, as in `Job.tables_by_role`
    table: TableName
    date_column: str
    columns: tuple[str, ...] = ()  #: required columns of any type
    types: ColumnTypes = field(default_factory=dict[str, ColumnType])  #: required columns with their types
    optional: bool = False

    def mismatches(self, info: TableInfo) -> list[str]:
        """List the differences from the table, each worded as the rest of a sentence about it."""
        untyped = info.column_mismatches(self.date_column, self.columns)
        return list(dict.fromkeys(untyped + info.column_mismatches(self.date_column, self.types)))


def check_tables(warehouse: Warehouse, job: Job) -> MissingTables:
    """Check every table the job reads, and return the optional ones that do not exist.

    Raises `TableNotFound` when the table of the expectation or of a required input does not exist, `SchemaMismatch`
    when a table lacks its date column or a column the job reads.
    """
    missing = {required.role for required in table_requirements(job) if not _check_table(warehouse, required)}
    return MissingTables(
        sources=frozenset(source.name for source in job.sources if f"source {source.name}" in missing),
        inputs=frozenset(table_input.name for table_input in job.inputs if f"input {table_input.name}" in missing),
        calendar=job.expectation.calendar is None or "calendar" in missing,
    )


def table_requirements(job: Job) -> list[TableRequirement]:
    """List every table the job reads. Sources are optional: one without a table has a coverage of 0."""
    expectation = job.expectation
    requirements = [
        TableRequirement(
            role="expectation",
            table=TableName.parse(expectation.table),
            date_column=expectation.date_column,
            columns=expectation.entity_columns,
        )
    ]
    requirements += [
        TableRequirement(
            role=f"source {source.name}",
            table=TableName.parse(source.table),
            date_column=source.date_column,
            columns=job.source_entity(source),
            types=source.columns or {},
            optional=True,
        )
        for source in job.sources
    ]
    requirements += [
        TableRequirement(
            role=f"input {table_input.name}",
            table=TableName.parse(table_input.table),
            date_column=table_input.date_column,
            types=table_input.columns or {},
            optional=table_input.optional,
        )
        for table_input in job.inputs
    ]
    if (calendar := expectation.calendar) is not None:
        columns = [calendar.season_column, calendar.season_filter[0] if calendar.season_filter else None]
        requirements.append(
            TableRequirement(
                role="calendar",
                table=TableName.parse(calendar.table),
                date_column=calendar.date_column,
                columns=tuple(name for name in columns if name),
                optional=True,
            )
        )
    return requirements


def _check_table(warehouse: Warehouse, required: TableRequirement) -> bool:
    """Return whether the table exists. Raises `TableNotFound` for a required one, `SchemaMismatch` for a mismatch."""
    info = warehouse.describe(required.table) if required.optional else require_table(warehouse, required.table)
    if info is None:
        return False
    if mismatches := required.mismatches(info):
        raise SchemaMismatch("; ".join(mismatches), table=str(required.table))
    return True
