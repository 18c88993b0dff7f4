"""The tables of a schedule, made and read with nothing of the tool's but its file layout."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.chaos.shapes import Day, Row

TEXT, DATE, NUMBER = pa.string(), pa.date32(), pa.float64()
SCHEMAS = {
    "expected": pa.schema([("name", TEXT), ("day", DATE)]),
    "calendar": pa.schema([("event", TEXT), ("day", DATE)]),
    "first": pa.schema([("name", TEXT), ("day", DATE), ("value", NUMBER), ("trick", TEXT)]),
    "second": pa.schema([("name", TEXT), ("day", DATE), ("value", NUMBER), ("trick", TEXT)]),
    "target": pa.schema([("name", TEXT), ("day", DATE), ("value", NUMBER), ("source", TEXT)]),
}


def tables(shape: Sequence[Day]) -> dict[str, dict[date, pa.Table]]:
    """Every table by its name and date, without the dates that have no rows."""
    found: dict[str, dict[date, pa.Table]] = {name: {} for name in SCHEMAS}
    for day in shape:
        rows = {
            "expected": [{"name": name} for name in day.expected],
            "calendar": [{"event": "game"}] if day.expected else [],
            "target": [dict(zip(("name", "value", "source"), row, strict=True)) for row in day.before],
            **{
                source: [{"name": name, "value": day.value(name), "trick": day.trick} for name in day.names_in(source)]
                for source in ("first", "second")
            },
        }
        for name, listed in rows.items():
            if listed:
                made = [row | {"day": day.day} for row in listed]
                found[name][day.day] = pa.Table.from_pylist(made, schema=SCHEMAS[name])
    return found


class Files:
    """The local warehouse."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def make(self, shape: Sequence[Day]) -> None:
        for name, by_day in tables(shape).items():
            for day, rows in by_day.items():
                part = self._part(name, day)
                part.parent.mkdir(parents=True)
                pq.write_table(rows, part)

    def names(self, table: str, day: date) -> list[str]:
        """The names on a date of a table, one for each row."""
        part = self._part(table, day)
        return pq.ParquetFile(part).read(columns=["name"])["name"].to_pylist() if part.exists() else []

    def target(self, day: date) -> list[Row]:
        part = self._part("target", day)
        return _rows(pq.ParquetFile(part).read()) if part.exists() else []

    def strays(self) -> list[str]:
        """Files that nothing of the tool's will ever look at again: what a load prepares is cleared by the next one."""
        folders = os.walk(self._root)  # a folder that is removed meanwhile is no error here
        paths = [Path(folder).relative_to(self._root) / name for folder, _, names in folders for name in names]
        strays: list[str] = [str(path) for path in paths if path.suffix == ".tmp" and ".loading" not in path.parts]
        return sorted(strays)

    def _part(self, table: str, day: date) -> Path:
        return self._root / "chaos" / table / f"day={day}" / "part.parquet"


class Emulated:
    """The BigQuery emulator."""

    def __init__(self, endpoint: str) -> None:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import bigquery

        self._kinds = {TEXT: "STRING", DATE: "DATE", NUMBER: "FLOAT64"}
        self._bigquery = bigquery
        self._client = bigquery.Client(
            project="test-project", credentials=AnonymousCredentials(), client_options={"api_endpoint": endpoint}
        )
        self._found: dict[str, list[dict[str, Any]]] = {}  # a table is read once

    def make(self, shape: Sequence[Day]) -> None:
        for dataset in list(self._client.list_datasets()):
            self._client.delete_dataset(dataset.reference, delete_contents=True)
        self._client.create_dataset("chaos")
        for name, by_day in tables(shape).items():
            columns = [self._bigquery.SchemaField(f.name, self._kinds[f.type]) for f in SCHEMAS[name]]
            table = self._bigquery.Table(f"test-project.chaos.{name}", schema=columns)
            table.time_partitioning = self._bigquery.TimePartitioning(field="day")
            self._client.create_table(table)
            if by_day:
                file = io.BytesIO()
                pq.write_table(pa.concat_tables(by_day.values()), file)
                file.seek(0)
                config = self._bigquery.LoadJobConfig(source_format="PARQUET")
                self._client.load_table_from_file(file, f"test-project.chaos.{name}", job_config=config).result()

    def names(self, table: str, day: date) -> list[str]:
        return [row["name"] for row in self._all(table) if row["day"] == day]

    def target(self, day: date) -> list[Row]:
        return _rows(pa.Table.from_pylist([row for row in self._all("target") if row["day"] == day], SCHEMAS["target"]))

    def strays(self) -> list[str]:
        return []

    def _all(self, table: str) -> list[dict[str, Any]]:
        if table not in self._found:
            found = self._client.query(f"SELECT * FROM chaos.{table}").result()
            self._found[table] = found.to_arrow(create_bqstorage_client=False).to_pylist()
        return self._found[table]


def _rows(found: pa.Table) -> list[Row]:
    return sorted((row["name"], row["value"], row["source"]) for row in found.to_pylist())


def open_tables(url: str) -> Files | Emulated:
    """Those of `BACKFILL_WAREHOUSE`."""
    if url.startswith("local:"):
        return Files(Path(url.removeprefix("local:")))
    return Emulated(url.partition("endpoint=")[2])
