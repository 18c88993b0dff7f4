"""Columns and types of BigQuery tables and of rows to load."""

from __future__ import annotations

import pyarrow as pa
from google.cloud import bigquery

from gated_backfill.common.errors import SchemaMismatch
from gated_backfill.common.model.arrow.types import column_type_of
from gated_backfill.common.model.tables import TableName, validate_identifier
from gated_backfill.common.warehouse.protocol import TableInfo

STANDARD_TYPES = {"INTEGER": "INT64", "FLOAT": "FLOAT64", "BOOLEAN": "BOOL"}


def table_info(table: TableName, remote: bigquery.Table) -> TableInfo:
    columns = {field.name: type_of(field) for field in remote.schema}
    partitioning = remote.time_partitioning
    expires = partitioning.expiration_ms if partitioning is not None else None
    return TableInfo(
        table=table,
        columns=columns,
        partitioned_by=None if partitioning is None else partitioning.field or "the time of loading",
        expires_after_days=None if expires is None else int(expires) // 86_400_000,
    )


def type_of(field: bigquery.SchemaField) -> str:
    """Return the name of the column's type in GoogleSQL."""
    name = STANDARD_TYPES.get(field.field_type, field.field_type)
    return f"ARRAY<{name}>" if field.mode == "REPEATED" else name


def types_of(schema: pa.Schema) -> dict[str, str]:
    """Return the types by column. Raises `SchemaMismatch` for an unsupported type."""
    types = {validate_identifier(field.name, "column name"): column_type_of(field.type) for field in schema}
    if wrong := [name for name, kind in types.items() if kind is None]:
        raise SchemaMismatch(f"column(s) {', '.join(wrong)} have a type that no table here can hold")
    return {name: str(kind) for name, kind in types.items()}


def check_column_names(*names: str) -> None:
    """Check that all names are plain identifiers. Raises `UserError`."""
    for name in names:
        validate_identifier(name, "column name")
