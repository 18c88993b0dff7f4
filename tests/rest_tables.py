"""Tables with rows behind the REST double: queries over them are answered by DuckDB, by the meaning of the SQL."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import sqlglot
from sqlglot import exp

from gated_backfill.common.model.arrow.types import arrow_schema
from gated_backfill.common.model.tables import TableName
from gated_backfill.common.warehouse.bigquery import tables
from tests import rest_rules as rules
from tests.lab import PROBE_TYPES, Lab, LocalTables, made_lab, players, probe_rows
from tests.rest_double import RestDouble
from tests.rest_lab import URL, opened
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
FIRST = date(2023, 1, 1)
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
        statement = sqlglot.parse_one(PROJECT_IN_SQL.sub(r"\1__\2", sql), read="bigquery")
        for parameter in list(statement.find_all(exp.Parameter)):
            parameter.replace(exp.Placeholder(this=parameter.name))
        with duckdb.connect() as connection:
            for dataset, table in rules.tables_in(sql):
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


@pytest.fixture
def filled() -> FilledDouble:
    return FilledDouble()


@pytest.fixture
def rest_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filled: FilledDouble) -> Iterator[Lab]:
    """A lab over the double. A process describes each table once, however long the test takes."""
    monkeypatch.setattr(tables, "DESCRIPTION_CACHE_SECONDS", 3600.0)
    for module in ("producer.context", "worker.dependencies"):
        path = f"gated_backfill.{module}.open_warehouse"
        monkeypatch.setattr(path, lambda url, limits=None: opened(filled.double))
    yield from made_lab(tmp_path, monkeypatch, LocalTables(tmp_path), warehouse=URL)


def days_from(count: int) -> list[date]:
    return [FIRST + timedelta(days=n) for n in range(count)]


def with_sources(filled: FilledDouble, days: Sequence[date]) -> None:
    """The expectation of the probe job, and its first source; the second does not exist."""
    for name in ("expected", "first"):
        filled.fill(TableName("probe", name), probe_rows(days, players(5)), PROBE_TYPES, "day")
