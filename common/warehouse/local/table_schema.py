"""The schemas of local tables: declared in a file of the table, or found in the files of its partitions.

`<root>/<dataset>/<table>/schema.json` has the table's columns in order, with their types, and its date column. It is
written with the first rows. A table that only other programs wrote has none: its schema is the union of the columns of
all its partitions, whatever the order in which the file system lists them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.arrow.types import ARROW_TYPES, column_type_of, read_type_of
from gated_backfill.common.model.tables import FITTING_TYPES, NULL_TYPE, TableName, validate_identifier
from gated_backfill.common.storage.files import read_regular_file, sync_folder
from gated_backfill.common.warehouse.local.partition_files import (
    FileSchema,
    FileStamp,
    FolderStamp,
    PartitionFiles,
    file_stamp,
    folder_stamp,
    has_settled,
)
from gated_backfill.common.warehouse.local.partitions import (
    LOADING,
    ROWS_FILE,
    SCHEMA_FILE,
    check_only_partitions,
    is_damage,
    partition_damage,
    partition_mismatch,
    partition_names,
    write_through,
)
from gated_backfill.common.warehouse.protocol import TableInfo

MAX_CHECKED_SCHEMAS = 64  #: of partitions, remembered for each table
WIDER_TYPES: Mapping[frozenset[str], str] = {
    frozenset({"INT64", "FLOAT64"}): "FLOAT64",
    frozenset({"DATE", "DATETIME"}): "DATETIME",
}


class UnreadableSchema(SchemaMismatch):
    """The file with a table's schema holds none."""


class UnknownPartitionSchema(Exception):
    """A partition has columns or types that were not among those of the table's partitions when they were read."""


@dataclass(frozen=True, kw_only=True)
class TableSchema:
    """The schema of a table: `info` with the columns and types, and the Arrow types of the columns."""

    folder: str  #: of the table: a checked path
    info: TableInfo
    date_column: str
    arrow_types: Mapping[str, pa.DataType]
    _checked: list[pq.ParquetSchema] = field(default_factory=list[pq.ParquetSchema], compare=False, repr=False)

    def check_partition(self, part: str, schema: FileSchema) -> None:
        """Check that the table's columns and types include those of the partition.

        Raises `SchemaMismatch` for a further column, or, if the table's schema was found in its partitions,
        `UnknownPartitionSchema`. Whether values fit a declared type is checked where they are read.
        """
        for checked in self._checked:
            if checked.equals(schema.parquet):
                return
        columns = schema.read_arrow()
        check_names_are_unique(part, columns)
        for column in columns:
            if column.name not in self.info.columns:
                if not self.info.types_are_declared:
                    raise UnknownPartitionSchema(part)
                raise partition_mismatch(
                    part,
                    f"has the column {column.name}, which the table's schema lacks: "
                    f"`backfill tables refresh {self.info.table}` adds it",
                )
            known = self.info.columns[column.name]
            if self.info.types_are_declared or column.name in self.info.mixed_columns:
                continue
            if unite_types({known, read_type_name(column.type)}) != known:
                raise UnknownPartitionSchema(part)
        if len(self._checked) < MAX_CHECKED_SCHEMAS:
            self._checked.append(schema.parquet)


def read_type_name(arrow: pa.DataType) -> str:
    """Return the column type as which an Arrow type is read; for an unsupported type, the name that Arrow gives it."""
    return read_type_of(arrow) or str(arrow)


def check_names_are_unique(part: str, schema: pa.Schema) -> None:
    if repeated := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise partition_mismatch(part, f"has several columns named {', '.join(repeated)}")


def unite_types(types: Iterable[str]) -> str | None:
    """Return the type that holds the values of all the types; None when there is none."""
    named = frozenset(types) - {NULL_TYPE}
    if len(named) <= 1:
        return next(iter(named), NULL_TYPE)
    return WIDER_TYPES.get(named)


class TableSchemas:
    """Finds and keeps the schemas of a warehouse's tables. Thread-safe.

    A schema that was found in partitions is cached until a partition is added or removed. The caller checks each
    partition that it reads, as one may have been replaced, and then calls `forget`.
    """

    def __init__(self, parts: PartitionFiles) -> None:
        self._parts = parts
        self._declared: dict[str, tuple[FileStamp, TableSchema]] = {}
        self._found: dict[str, tuple[FolderStamp, TableSchema]] = {}
        self._partitions: dict[tuple[str, str | None], set[str]] = {}  #: names that were checked
        self._listed: dict[str, tuple[FolderStamp, str | None]] = {}  #: with the date column that was checked

    def find(self, table: TableName, folder: str) -> TableSchema | None:
        """Return the schema of the table in the folder, which is a checked path; None for no table.

        Raises `SchemaMismatch` for an unreadable schema or partition, and for rows outside of partitions.
        """
        try:
            folder_now = folder_stamp(os.stat(folder))  # noqa: PTH116 - asked for every read
            stamp = file_stamp(f"{folder}/{SCHEMA_FILE}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        schema = None if stamp is None else self._find_declared(table, folder, stamp)
        self._check_listing(table, folder, folder_now, None if schema is None else schema.date_column)
        return self._find_in_partitions(table, folder, folder_now) if schema is None else schema

    def _find_declared(self, table: TableName, folder: str, stamp: FileStamp) -> TableSchema:
        cached = self._declared.get(folder)
        if cached is not None and cached[0] == stamp:
            return cached[1]
        schema = _parse(table, folder, read_regular_file(f"{folder}/{SCHEMA_FILE}"))
        self._declared[folder] = (stamp, schema)
        return schema

    def _check_listing(self, table: TableName, folder: str, stamp: FolderStamp, date_column: str | None) -> None:
        """Check the names in the table's folder, unless they were checked since the last change of one."""
        if self._listed.get(folder) == (stamp, date_column):
            return
        # A publication adds some, again and again.
        partitions = self._partitions.setdefault((folder, date_column), set())
        if check_only_partitions(table, folder, date_column, partitions) and has_settled(stamp):
            self._listed[folder] = (stamp, date_column)

    def forget(self, folder: str) -> None:
        """Forget what was found in the table's partitions."""
        self._found.pop(folder, None)

    def declare(self, folder: str, date_column: str, columns: Mapping[str, str]) -> None:
        """Write the schema of the table in the folder, whose lock is held.

        The next load removes what a process left that died before the file got its place.
        """
        content = json.dumps({"date_column": date_column, "columns": dict(columns)}, indent=1)
        write_through(Path(folder, LOADING), Path(folder, SCHEMA_FILE), content.encode(), durable=True)
        sync_folder(folder)

    def refresh(self, table: TableName, folder: str) -> TableSchema | None:
        """Write the schema of the table's partitions as they are now; None for no table.

        A declared type stays where values of the partitions' type may fit it; an unreadable schema is replaced. Raises
        `SchemaMismatch`, and changes nothing, for a column whose partitions differ too much, or of an unsupported type.
        """
        declared = self._find_readable_declared(table, folder)
        found = self._unite_partitions(table, folder, declared.date_column if declared else None, skip_damaged=False)
        if found is None:
            return declared
        any_zone = "UTC"  # readers of a TIMESTAMP declare theirs; a table has none
        found.info.check_columns(found.date_column, list(found.info.columns), time_zone=any_zone)
        columns = dict(found.info.columns)
        for name, kind in columns.items():
            known = declared.info.columns.get(name, kind) if declared else kind
            columns[name] = known if kind == NULL_TYPE or (kind, known) in FITTING_TYPES else kind
        _check_supported(table, columns)
        self.declare(folder, found.date_column, columns)
        return self.find(table, folder)

    def _find_readable_declared(self, table: TableName, folder: str) -> TableSchema | None:
        """Return the declared schema of the table; None without a file, and for one that holds no schema."""
        if not Path(folder, SCHEMA_FILE).exists():
            return None
        try:
            return self.find(table, folder)
        except UnreadableSchema:
            check_only_partitions(table, folder, None, set())  # as `find` does, once the schema can be read
            return None

    def _find_in_partitions(self, table: TableName, folder: str, stamp: FolderStamp) -> TableSchema | None:
        cached = self._found.get(folder)
        if cached is not None and cached[0] == stamp:
            return cached[1]
        schema = self._unite_partitions(table, folder, None, skip_damaged=True)
        if schema is not None and has_settled(stamp):
            self._found[folder] = (stamp, schema)
        return schema

    def _unite_partitions(
        self, table: TableName, folder: str, date_column: str | None, *, skip_damaged: bool
    ) -> TableSchema | None:
        """Unite the columns of all partitions, in the order of their names; None without partitions.

        A damaged partition may be skipped, unless all are damaged: its readers refuse it. The types of a partition
        without rows count only for columns that no other partition has.
        """
        partitions_by_type: dict[str, dict[str, str]] = {}  # by column, then type: the first such partition
        of_empty_partitions: dict[str, tuple[dict[str, str], pa.DataType]] = {}  # the same of the first, and its type
        arrow_types: dict[str, pa.DataType] = {}
        date_columns: dict[str, None] = {}
        damage: SchemaMismatch | None = None  # of the first damaged partition
        for partition in sorted(partition_names(folder, date_column)):
            part = f"{folder}/{partition}/{ROWS_FILE}"
            try:
                schema = self._parts.schema(part)
            except (pa.ArrowException, OSError) as exc:
                if not is_damage(exc):
                    raise
                damage = damage or partition_damage(part, exc)
                if not skip_damaged:
                    raise damage from exc
                continue
            if schema is None:
                continue
            check_names_are_unique(part, schema.columns)
            date_columns[partition.partition("=")[0]] = None
            for column in schema.columns:
                name, kind = column.name, read_type_name(column.type)
                if not schema.has_rows:
                    of_empty_partitions.setdefault(name, ({kind: partition}, column.type))
                    continue
                partitions_by_type.setdefault(name, {}).setdefault(kind, partition)
                if kind != NULL_TYPE:
                    arrow_types.setdefault(name, column.type)
        if not date_columns and damage is not None:
            raise damage
        if not date_columns:
            return None
        if len(date_columns) > 1:
            raise SchemaMismatch(f"has partitions by several columns: {', '.join(date_columns)}", table=str(table))
        for name, (types, arrow_type) in of_empty_partitions.items():
            if name not in partitions_by_type:
                partitions_by_type[name], arrow_types[name] = types, arrow_type
        return _united_schema(table, folder, next(iter(date_columns)), partitions_by_type, arrow_types)


def _united_schema(
    table: TableName,
    folder: str,
    date_column: str,
    partitions_by_type: Mapping[str, Mapping[str, str]],
    arrow_types: Mapping[str, pa.DataType],
) -> TableSchema:
    columns: dict[str, str] = {}
    mixed: dict[str, str] = {}
    for name, partitions in partitions_by_type.items():
        kind = unite_types(partitions)
        if kind is None:
            (first, partition), (second, other), *_ = ((k, p) for k, p in partitions.items() if k != NULL_TYPE)
            mixed[name] = f"is {first} in partition {partition} and {second} in partition {other}"
        columns[name] = kind or " or ".join(partitions)
    info = TableInfo(
        table=table, columns=columns, partitioned_by=date_column, types_are_declared=False, mixed_columns=mixed
    )
    return TableSchema(
        folder=folder, info=info, date_column=date_column, arrow_types=_arrow_types(columns, arrow_types)
    )


def _arrow_types(columns: Mapping[str, str], others: Mapping[str, pa.DataType]) -> dict[str, pa.DataType]:
    """Return the Arrow type of each column: of a column type, of nulls, or else among `others`."""
    standard: dict[str, pa.DataType] = {**ARROW_TYPES, NULL_TYPE: pa.null()}
    return {name: standard.get(kind) or others[name] for name, kind in columns.items()}


def _parse(table: TableName, folder: str, content: bytes) -> TableSchema:
    try:
        declared: dict[str, Any] = json.loads(content)
        date_column, columns = declared["date_column"], dict(declared["columns"])
        arrow_types = _arrow_types(columns, {})
    except (ValueError, KeyError, TypeError) as exc:
        raise UnreadableSchema(
            f"its {SCHEMA_FILE} is not a schema of a table ({exc}): `backfill tables refresh {table}` writes it again "
            f"from the table's partitions; a table without any needs none: delete the file",
            table=str(table),
        ) from exc
    info = TableInfo(table=table, columns=columns, partitioned_by=date_column)
    return TableSchema(folder=folder, info=info, date_column=date_column, arrow_types=arrow_types)


def _check_supported(table: TableName, columns: Mapping[str, str]) -> None:
    supported = {*ARROW_TYPES, NULL_TYPE}
    if wrong := [f"{name} is {kind}" for name, kind in columns.items() if kind not in supported]:
        raise SchemaMismatch(
            f"no {SCHEMA_FILE} can keep these types: column {', '.join(wrong)}; "
            f"a table without a {SCHEMA_FILE} may have such columns",
            table=str(table),
        )


def declarable_types(schema: pa.Schema) -> dict[str, str]:
    """Return the types of rows to write, by column. Raises `SchemaMismatch` for an unsupported type."""
    types = {validate_identifier(column.name, "column name"): column_type_of(column.type) for column in schema}
    if wrong := [f"{name} is {schema.field(name).type}" for name, kind in types.items() if kind is None]:
        raise SchemaMismatch(f"no table here can hold these types: column {', '.join(wrong)}")
    return {name: str(kind) for name, kind in types.items()}
