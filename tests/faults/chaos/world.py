"""The tables of a schedule, made and read with nothing of the tool's but its file layout."""

from __future__ import annotations

import ctypes
import errno
import io
import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.chaos.shapes import OLD_DAYS, Day, Row, old_rows

TEXT, DATE, NUMBER = pa.string(), pa.date32(), pa.float64()
SCHEMAS = {
    "expected": pa.schema([("name", TEXT), ("day", DATE)]),
    "calendar": pa.schema([("event", TEXT), ("day", DATE)]),
    "first": pa.schema([("name", TEXT), ("day", DATE), ("value", NUMBER), ("trick", TEXT)]),
    "second": pa.schema([("name", TEXT), ("day", DATE), ("value", NUMBER), ("trick", TEXT)]),
    "target": pa.schema([("name", TEXT), ("day", DATE), ("value", NUMBER), ("source", TEXT)]),
    "old": pa.schema([("name", TEXT), ("day", DATE), ("value", NUMBER), ("source", TEXT)]),
}

AT_FDCWD = -100
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
MARK = "_SUCCESS"  #: a file that another program leaves beside its rows, as Spark does
SPARE = "spare"  #: beside the local warehouse: where another program prepares its files
REPLACED = "others.replaced"  #: what other programs replaced in BigQuery, by write
#: A date is replaced in one transaction; its label, the source of the new rows, says what was replaced.
REPLACE_DATE = """
    BEGIN TRANSACTION;
    INSERT INTO others.replaced (label, name, value, source)
    SELECT @label, name, value, source FROM chaos.{table} WHERE day = @day;
    DELETE FROM chaos.{table} WHERE day = @day;
    INSERT INTO chaos.{table} (name, day, value, source)
    SELECT name, @day, @value, @label FROM UNNEST(@names) AS name;
    COMMIT TRANSACTION;
"""


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
    found["old"] = {day: _typed_rows(day, old_rows(day)) for day in OLD_DAYS}
    return found


def table_of(day: date) -> str:
    """The table that other programs write the date of."""
    return "old" if day in OLD_DAYS else "target"


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

    def rows(self, day: date) -> list[Row]:
        """The rows of a date of the target, or of the old table."""
        part = self._part(table_of(day), day)
        return _rows(pq.ParquetFile(part).read()) if part.exists() else []

    def replace_date(self, day: date, rows: Sequence[Row]) -> list[Row]:
        """Write the rows of a date as another program does; return what it held at that moment."""
        part = self._part(table_of(day), day)
        spare = self._root.parent / SPARE / f"{uuid4().hex}.parquet"
        spare.parent.mkdir(exist_ok=True)
        pq.write_table(_typed_rows(day, rows), spare)
        while True:
            part.parent.mkdir(parents=True, exist_ok=True)
            try:
                (part.parent / MARK).touch()
            except FileNotFoundError:  # the tool has removed the empty folder again
                continue
            if _rename(spare, part, RENAME_EXCHANGE):
                replaced = _rows(pq.ParquetFile(spare).read())
                spare.unlink()
                return replaced
            if _rename(spare, part, RENAME_NOREPLACE):
                return []

    def delete_date(self, day: date) -> None:
        """Delete the rows of a date as another program does."""
        self._part(table_of(day), day).unlink(missing_ok=True)

    def spoil_staged(self) -> None:
        """Staged files are not tables of the warehouse."""

    def has_mark(self, day: date) -> bool:
        """Whether the file is there that another program leaves beside its rows."""
        return (self._part(table_of(day), day).parent / MARK).exists()

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
        self._client.create_dataset("others")
        columns = {"label": "STRING", "name": "STRING", "value": "FLOAT64", "source": "STRING"}
        fields = [self._bigquery.SchemaField(name, kind) for name, kind in columns.items()]
        self._client.create_table(self._bigquery.Table(f"test-project.{REPLACED}", schema=fields))
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

    def rows(self, day: date) -> list[Row]:
        listed = [row for row in self._all(table_of(day)) if row["day"] == day]
        return _rows(pa.Table.from_pylist(listed, SCHEMAS["target"]))

    def replace_date(self, day: date, rows: Sequence[Row]) -> list[Row]:
        scalar = self._bigquery.ScalarQueryParameter
        label = scalar("label", "STRING", rows[0][2])
        values = [scalar("day", "DATE", day), scalar("value", "FLOAT64", rows[0][1]), label]
        names = self._bigquery.ArrayQueryParameter("names", "STRING", [name for name, _, _ in rows])
        config = self._bigquery.QueryJobConfig(query_parameters=[*values, names])
        self._client.query(REPLACE_DATE.format(table=table_of(day)), config).result()
        query = f"SELECT name, value, source FROM {REPLACED} WHERE label = @label"
        config = self._bigquery.QueryJobConfig(query_parameters=[label])
        return _rows(self._client.query(query, config).result().to_arrow(create_bqstorage_client=False))

    def delete_date(self, day: date) -> None:
        values = [self._bigquery.ScalarQueryParameter("day", "DATE", day)]
        config = self._bigquery.QueryJobConfig(query_parameters=values)
        self._client.query(f"DELETE FROM chaos.{table_of(day)} WHERE day = @day", config).result()

    def spoil_staged(self) -> None:
        """Change the values in every staging table, as another program does."""
        for table in self._client.list_tables("backfill"):
            if table.table_id.startswith("staged_"):
                self._client.query(f"UPDATE backfill.{table.table_id} SET value = value + 5000 WHERE TRUE").result()

    def has_mark(self, _: date) -> bool:
        return True

    def strays(self) -> list[str]:
        return []

    def _all(self, table: str) -> list[dict[str, Any]]:
        if table not in self._found:
            found = self._client.query(f"SELECT * FROM chaos.{table}").result()
            self._found[table] = found.to_arrow(create_bqstorage_client=False).to_pylist()
        return self._found[table]


def _rows(found: pa.Table) -> list[Row]:
    return sorted((row["name"], row["value"], row["source"]) for row in found.to_pylist())


def _typed_rows(day: date, rows: Sequence[Row]) -> pa.Table:
    listed = [{"name": name, "day": day, "value": value, "source": source} for name, value, source in rows]
    return pa.Table.from_pylist(listed, schema=SCHEMAS["target"])


def _rename(path: Path, new: Path, flag: int) -> bool:
    """Rename with a flag of renameat2; return whether there was a file to exchange, or none in the way."""
    if _libc.renameat2(AT_FDCWD, os.fsencode(path), AT_FDCWD, os.fsencode(new), flag) == 0:
        return True
    if (number := ctypes.get_errno()) in (errno.ENOENT, errno.EEXIST):
        return False
    raise OSError(number, os.strerror(number), str(new))


_libc = ctypes.CDLL(None, use_errno=True)


def open_tables(url: str) -> Files | Emulated:
    """Those of `BACKFILL_WAREHOUSE`."""
    if url.startswith("local:"):
        return Files(Path(url.removeprefix("local:")))
    return Emulated(url.partition("endpoint=")[2])
