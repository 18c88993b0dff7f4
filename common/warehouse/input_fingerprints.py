"""Fingerprints of what a date is built from: by the role of each table in the job, of the columns that are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import NamedTuple

from gated_backfill.common.model.dates import ONE_DAY, consecutive_ranges, days_with_lookback
from gated_backfill.common.model.job import Input, Job, Source
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.protocol import Scan, Warehouse

EXPECTATION_ROLE = "expectation"
PART_LENGTH = 32  #: hexadecimal digits

InputParts = Mapping[str, str]  #: by role of the table, the fingerprint of the rows that a date is built from


def source_role(name: str) -> str:
    return f"source {name}"


@dataclass(frozen=True, kw_only=True)
class InputTable:
    """A table that a date is built from, and what is read of it."""

    role: str  #: as in `Job.tables_by_role`
    table: str
    date_column: str
    columns: frozenset[str] | None  #: None: all
    lookback_days: int = 0
    time_zone: str | None = None


class InputPartitions(NamedTuple):
    """The partitions of a table that are fingerprinted together.

    Only those with the same lookback: over a long one, the columns of the other roles would be read in vain.
    """

    table: str
    date_column: str
    time_zone: str | None
    lookback_days: int


def input_fingerprints(
    warehouse: Warehouse, job: Job, days: Sequence[date], *, roles: Collection[str] | None = None
) -> dict[date, dict[str, str]]:
    """Fingerprint, for each day and role, the rows that the day is built from, with the lookback.

    A column that is not read changes no fingerprint. `roles` limits the tables.
    """
    parts: dict[date, dict[str, str]] = {day: {} for day in days}
    groups = _by_partitions(_tables_of(job, roles))
    reads = (
        partial(
            warehouse.column_fingerprints,
            TableName.parse(partitions.table),
            partitions.date_column,
            days_with_lookback(days, partitions.lookback_days),
            list(dict.fromkeys(table.columns for table in tables)),
            time_zone=partitions.time_zone,
        )
        for partitions, tables in groups.items()
    )
    for tables, fingerprints in zip(groups.values(), warehouse.together(*reads), strict=True):
        for table in tables:
            for day in days:
                parts[day][table.role] = _part(table, day, fingerprints[table.columns])
    return parts


def _tables_of(job: Job, roles: Collection[str] | None) -> list[InputTable]:
    return [table for table in input_tables(job) if roles is None or table.role in roles]


def _part(table: InputTable, day: date, fingerprints: Mapping[date, str], *also: str) -> str:
    """Hash the fingerprints of the day and its lookback, oldest first, after further texts."""
    return _hash([*also, *(fingerprints[day_read] for day_read in _days_read(table, day))])[:PART_LENGTH]


def _days_read(table: InputTable, day: date) -> list[date]:
    return [day - ONE_DAY * n for n in range(table.lookback_days, -1, -1)]


def fingerprint_scans(job: Job, days: Sequence[date], *, roles: Collection[str] | None = None) -> list[Scan]:
    """The scans that `input_fingerprints` takes."""
    return [
        Scan(
            table=TableName.parse(partitions.table),
            date_column=partitions.date_column,
            dates=tuple(consecutive_ranges(days, lookback=partitions.lookback_days)),
            columns=_columns_to_scan(partitions, tables),
            time_zone=partitions.time_zone,
        )
        for partitions, tables in _by_partitions(_tables_of(job, roles)).items()
    ]


def _by_partitions(tables: Iterable[InputTable]) -> dict[InputPartitions, list[InputTable]]:
    """Group the tables that are fingerprinted together."""
    groups: dict[InputPartitions, list[InputTable]] = {}
    for table in tables:
        partitions = InputPartitions(table.table, table.date_column, table.time_zone, table.lookback_days)
        groups.setdefault(partitions, []).append(table)
    return groups


def _columns_to_scan(partitions: InputPartitions, tables: Iterable[InputTable]) -> dict[str, str] | None:
    """Return the columns that these tables need together; None for all."""
    names = {partitions.date_column}
    for table in tables:
        if table.columns is None:
            return None
        names |= table.columns
    return {name: name for name in sorted(names)}


def quick_fingerprints(
    warehouse: Warehouse, job: Job, days: Sequence[date], *, roles: Collection[str] | None = None
) -> dict[date, dict[str, str]]:
    """Like `input_fingerprints`, from the warehouse's quick fingerprints, under names of their own.

    While such a part is the same, so is the part of its role: nothing has to be read. A day has no part of a role
    about which the warehouse can tell nothing.
    """
    parts: dict[date, dict[str, str]] = {day: {} for day in days}
    by_table: dict[tuple[str, str], list[InputTable]] = {}
    for table in _tables_of(job, roles):
        by_table.setdefault((table.table, table.date_column), []).append(table)
    reads = (
        partial(
            warehouse.quick_fingerprints,
            TableName.parse(name),
            date_column,
            days_with_lookback(days, max(table.lookback_days for table in tables)),
        )
        for (name, date_column), tables in by_table.items()
    )
    for tables, fingerprints in zip(by_table.values(), warehouse.together(*reads), strict=True):
        for table in tables:
            columns = "*" if table.columns is None else ",".join(sorted(table.columns))
            for day in days:
                if all(day_read in fingerprints for day_read in _days_read(table, day)):
                    parts[day][quick_role(table.role)] = _part(table, day, fingerprints, columns)
    return parts


def quick_role(role: str) -> str:
    return f"{role} (quick)"


def combine_parts(parts: InputParts) -> str:
    """One hash over all parts."""
    return _hash([json.dumps(dict(parts), sort_keys=True)])


def _hash(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def input_tables(job: Job) -> list[InputTable]:
    """The expectation, the sources and the inputs of a job, with the columns that are read of each."""
    expectation = job.expectation
    sums = [reconcile.column for reconcile in expectation.reconcile]
    return [
        InputTable(
            role=EXPECTATION_ROLE,
            table=expectation.table,
            date_column=expectation.date_column,
            columns=frozenset({*expectation.entity_columns, *sums}),
            time_zone=expectation.time_zone,
        ),
        *(_source_table(job, source) for source in job.sources),
        *(_input_table(job, table_input) for table_input in job.inputs),
    ]


def _source_table(job: Job, source: Source) -> InputTable:
    columns = None
    if source.columns is not None:
        sums = [reconcile.source_column or reconcile.column for reconcile in job.expectation.reconcile]
        columns = frozenset(
            {*source.columns, *job.source_entity(source), *source.required, *(sums if source.check_sums else ())}
        )
    return InputTable(
        role=source_role(source.name),
        table=source.table,
        date_column=source.date_column,
        columns=columns,
        lookback_days=source.lookback_days,
        time_zone=source.time_zone,
    )


def _input_table(job: Job, table_input: Input) -> InputTable:
    columns = None
    if table_input.columns is not None:
        measured = job.input_entity(table_input) if table_input.coverage is not None else ()
        columns = frozenset({*table_input.columns, *measured})
    return InputTable(
        role=f"input {table_input.name}",
        table=table_input.table,
        date_column=table_input.date_column,
        columns=columns,
        lookback_days=table_input.lookback_days,
        time_zone=table_input.time_zone,
    )
