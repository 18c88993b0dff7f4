"""Checks of the tables that a job reads: existing, dated and with the columns it needs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.entities import ENTITY_TYPES, SUM_TYPES, EntityColumns
from gated_backfill.common.model.job import Job
from gated_backfill.common.model.query import Query
from gated_backfill.common.model.tables import ColumnType, ColumnTypes, TableName
from gated_backfill.common.warehouse.coverage_queries import expectation_columns, season_filter_value, source_columns
from gated_backfill.common.warehouse.input_fingerprints import source_role
from gated_backfill.common.warehouse.protocol import TableInfo, Warehouse, require_table

NOT_IN_PYTHON = frozenset({"INTERVAL", "ARRAY<INTERVAL>"})  #: types that the client of a warehouse cannot read


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
            if any(use.lookback_days and use.require_lookback for use in (*job.sources, *job.inputs)):
                notes.append(f"calendar {table} does not exist: days that are missing in a lookback are not noticed")
        return notes


@dataclass(frozen=True, kw_only=True)
class TableRequirement:
    """A table that a job reads, and the columns it needs."""

    role: str  #: the table's role in the job, as in `Job.tables_by_role`
    table: TableName
    date_column: str
    columns: tuple[str, ...] = ()  #: required columns of any type
    types: ColumnTypes = field(default_factory=dict[str, ColumnType])  #: required columns with their types
    entity: tuple[str, ...] = ()  #: required columns of a type that may hold entities
    sums: tuple[str, ...] = ()  #: required columns of a type whose sums may be compared
    season_filter: tuple[str, str] | None = None  #: a required column, and the value with which it is compared
    reads_all_columns: bool = False  #: for `process`, once a date is built from the table
    reads_in_python: bool = True  #: rows reach `process`; False: a query reads them in the warehouse
    time_zone: str | None = None
    optional: bool = False

    def mismatches(self, info: TableInfo) -> list[str]:
        """List the differences from the table, each worded as the rest of a sentence about it."""
        columns = (*self.columns, *self.entity, *self.sums)
        differences = info.column_mismatches(self.date_column, columns, time_zone=self.time_zone)
        differences += info.column_mismatches(self.date_column, self.types, time_zone=self.time_zone)
        differences += _wrong_types(info, self.entity, ENTITY_TYPES, "an entity")
        differences += _wrong_types(info, self.sums, SUM_TYPES, "a column whose sums are compared")
        differences += _season_mismatches(info, self.season_filter)
        return list(dict.fromkeys(differences))

    def unreadable_columns(self, info: TableInfo) -> list[str]:
        """List what prevents reading the columns for `process`, worded like the mismatches."""
        names = info.columns if self.reads_all_columns else self.types
        unreadable = [f"column {name} {info.mixed_columns[name]}" for name in names if name in info.mixed_columns]
        if self.reads_in_python:
            unreadable += [
                f"column {name} is {info.columns[name]}, which no Python job can read: declare the columns to read"
                for name in names
                if info.columns.get(name) in NOT_IN_PYTHON
            ]
        return unreadable


def _wrong_types(info: TableInfo, names: Iterable[str], allowed: Sequence[str], what: str) -> list[str]:
    """List the columns of a type that is not allowed; `column_mismatches` lists those of several types."""
    return [
        f"column {name} is {info.columns[name]}: {what} must be {', '.join(allowed[:-1])} or {allowed[-1]}"
        for name in names
        if name not in info.mixed_columns and info.columns.get(name, allowed[0]) not in allowed
    ]


def _season_mismatches(info: TableInfo, season_filter: tuple[str, str] | None) -> list[str]:
    """List what prevents comparing the column with the value; `column_mismatches` lists a missing or mixed column."""
    if season_filter is None or season_filter[0] not in info.columns or season_filter[0] in info.mixed_columns:
        return []
    try:
        season_filter_value(info, season_filter)
    except ValueError as exc:
        return [str(exc)]
    return []


def check_tables(warehouse: Warehouse, job: Job) -> MissingTables:
    """Check every table the job reads, and return the optional ones that do not exist.

    Raises `TableNotFound` when the table of the expectation or of a required input does not exist, `SchemaMismatch`
    when a table lacks its date column or a column the job reads.
    """
    missing = {required.role for required in table_requirements(job) if not _check_table(warehouse, required)}
    return MissingTables(
        sources=frozenset(source.name for source in job.sources if source_role(source.name) in missing),
        inputs=frozenset(table_input.name for table_input in job.inputs if f"input {table_input.name}" in missing),
        calendar=job.expectation.calendar is None or "calendar" in missing,
    )


def table_requirements(job: Job) -> list[TableRequirement]:
    """List every table the job reads. Sources are optional: one without a table has a coverage of 0."""
    expectation, in_python = job.expectation, not isinstance(job.process, Query)
    requirements = [_entity_requirement("expectation", expectation.table, expectation_columns(job))]
    requirements += [
        replace(
            _entity_requirement(source_role(source.name), source.table, source_columns(job, source)),
            types=source.columns or {},
            reads_all_columns=source.columns is None,
            reads_in_python=in_python,
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
            reads_all_columns=table_input.columns is None,
            reads_in_python=in_python,
            entity=job.input_entity(table_input) if table_input.coverage is not None else (),
            time_zone=table_input.time_zone,
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
                season_filter=calendar.season_filter if calendar.season_column else None,
                time_zone=calendar.time_zone,
                optional=True,
            )
        )
    return requirements


def _entity_requirement(role: str, table: str, columns: EntityColumns) -> TableRequirement:
    return TableRequirement(
        role=role,
        table=TableName.parse(table),
        date_column=columns.date,
        columns=columns.required,
        entity=columns.entity,
        sums=columns.sums,
        time_zone=columns.time_zone,
    )


def _check_table(warehouse: Warehouse, required: TableRequirement) -> bool:
    """Return whether the table exists. Raises `TableNotFound` for a required one, `SchemaMismatch` for a mismatch."""
    info = warehouse.describe(required.table) if required.optional else require_table(warehouse, required.table)
    if info is None:
        return False
    if mismatches := required.mismatches(info):
        raise SchemaMismatch("; ".join(mismatches), table=str(required.table))
    return True


def check_columns_to_read(warehouse: Warehouse, job: Job, sources: Collection[str]) -> None:
    """Raise `SchemaMismatch` when `process` can't get all columns of an input or of one of the sources.

    `sources` are those that dates are built from. Of the others, only declared columns must be readable.
    """
    unused = {source_role(source.name) for source in job.sources if source.name not in sources}
    for required in table_requirements(job):
        if not required.reads_all_columns or required.role in unused:
            continue
        info = warehouse.describe(required.table)
        if info is not None and (unreadable := required.unreadable_columns(info)):
            raise SchemaMismatch("; ".join(unreadable), table=str(required.table))


def check_target_columns(warehouse: Warehouse, job: Job) -> None:
    """Raise `SchemaMismatch` when rows of the job can't be published to its target, if that exists."""
    info = warehouse.describe(TableName.parse(job.target.table))
    if info is not None and (differences := blocking_differences(job, info)):
        raise SchemaMismatch(
            f"the target is not as job {job.name} declares it: {as_clauses(differences)}: change the table "
            f"(`backfill tables create --job {job.name} --add-columns` adds columns), or what the job declares; "
            "nothing was started",
            table=str(info.table),
        )


def blocking_differences(job: Job, info: TableInfo) -> list[str]:
    """The differences that prevent publishing to the table."""
    return info.write_mismatches(job.target.date_column, target_types(job))


def as_clauses(differences: Iterable[str]) -> str:
    """Join the ends of sentences about a table to the end of one sentence."""
    clauses = (text if text.startswith("column ") else f"it {text}" for text in differences)
    return "; ".join(clauses)


def target_types(job: Job) -> ColumnTypes:
    return {name: column.type for name, column in job.target.columns.items()}
