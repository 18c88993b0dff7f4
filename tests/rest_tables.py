"""Tables with rows behind the REST double: queries over them are answered by DuckDB, by the meaning of the SQL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa
import sqlglot
from sqlglot import exp

from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.tables import TableName
from tests import rest_rules as rules
from tests.rest_double import RestDouble
from tests.rest_lab import opened
from tests.rest_service import PROJECT, Rows

#: DuckDB adds up integers in decimals.
SQL_TYPES = {
    "date32[day]": "DATE",
    "int32": "INT64",
    "int64": "INT64",
    "decimal128(38, 0)": "INT64",
    "double": "FLOAT64",
    "bool": "BOOL",
}
PROJECT_IN_SQL = re.compile(rf"`{PROJECT}\.(\w+)\.(\w+)`")


@dataclass
class FilledDouble:
    """A REST double whose tables have rows."""

    double: RestDouble = field(default_factory=RestDouble)

    def __post_init__(self) -> None:
        self.double.answer = self._answer

    def fill(self, table: TableName, rows: pa.Table, types: Mapping[str, Any], date_column: str) -> None:
        """Create the table with these rows, as another program would have."""
        opened(self.double).create_table(table, types, date_column)
        self.double.loaded[table.dataset, table.table] = rows.cast(arrow_schema(types))
        self.double.log.clear()

    def _answer(self, sql: str, params: Mapping[str, Any]) -> Rows:
        tables = rules.tables_in(sql)
        statement = sqlglot.parse_one(PROJECT_IN_SQL.sub(r"\1__\2", sql), read="bigquery")
        for parameter in list(statement.find_all(exp.Parameter)):
            parameter.replace(exp.Placeholder(this=parameter.name))
        with duckdb.connect() as connection:
            for dataset, table in tables:
                connection.register(f"{dataset}__{table}", self._rows(dataset, table))
            result = connection.sql(statement.sql("duckdb"), params=dict(params)).to_arrow_table()
        types = {one.name: SQL_TYPES.get(str(one.type), "STRING") for one in result.schema}
        return types, [tuple(row.values()) for row in result.to_pylist()]

    def _rows(self, dataset: str, table: str) -> pa.Table:
        if (dataset, table) in self.double.loaded:
            return self.double.loaded[dataset, table]
        fields = self.double.tables[dataset, table]["schema"]["fields"]
        kinds = {"INTEGER": "INT64", "FLOAT": "FLOAT64", "BOOLEAN": "BOOL"}
        return arrow_schema({one["name"]: kinds.get(one["type"], one["type"]) for one in fields}).empty_table()
