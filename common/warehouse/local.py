"""A warehouse of Parquet files, one per table and date, queried with DuckDB.

`<root>/<dataset>/<table>/<date_column>=YYYY-MM-DD/part.parquet`. Only the partitions that a query's dates need are
handed to DuckDB, as an explicit list: a glob over all of them costs ten times as much. There is no database file, which
would lock other processes out.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Collection, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any, LiteralString

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from sqlglot.errors import SqlglotError

from common.clock import utcnow
from common.errors import (
    NothingKept,
    QueryFailed,
    StagedFileLost,
    TableNotFound,
    WarehouseUnavailable,
)
from common.schema import TableName, Types, checked_identifier, column_type
from common.warehouse.base import (
    ABSENT,
    Limits,
    Receipt,
    Replaced,
    Scan,
    StagedFile,
    StagedScan,
    TableInfo,
    refuse_other_shape,
    refuse_undated,
)
from common.warehouse.files import (
    check_writable,
    inside,
    locked,
    parquet_bytes,
    sync_all,
    sync_folder,
    write_atomically,
)
from common.warehouse.local_backups import LocalBackups
from common.warehouse.partitions import (
    PART,
    PUBLICATION,
    Fingerprints,
    Stamp,
    fingerprint,
    link,
    partitions_in,
    stamp_of,
    translated,
)
from common.warehouse.sql import is_query, parameter_names, table_names, to_duckdb, with_googlesql_types
from common.warehouse.staged import read_staged_bytes

PROBE_AT_MOST = 60  #: days for which looking for each partition is cheaper than listing the folder
MOST_TRIES = 50  #: of a query whose files are replaced while it reads them
LOADING = ".loading"  #: partitions in preparation; once it holds COMMITTED they will take effect whatever dies
COMMITTED = "COMMITTED"
UNDO = ".undo"  #: in the root: by run, table and date, what a run's first publication replaced
REPLACED = "replaced.json"  #: beside a kept part: the fingerprints before and after


class LocalWarehouse(LocalBackups):
    """See `Warehouse` for what it promises. Safe for several processes and threads at once."""

    def __init__(self, root: Path, *, threads: int = 1, limits: Limits | None = None) -> None:
        self.root = root
        self._limits = limits or Limits()
        self._threads = threads
        self._fingerprints = Fingerprints()
        self._described: dict[TableName, tuple[Path, Stamp, TableInfo]] = {}
        self._local = threading.local()

    def __repr__(self) -> str:
        return f"LocalWarehouse({str(self.root)!r})"

    # -- reading --------------------------------------------------------------------------------------------

    def describe(self, table: TableName) -> TableInfo | None:
        folder = self._folder(table)
        with translated(table):
            self._finish_load(table)
            known = self._described.get(table)
            if known is not None and stamp_of(known[0]) == known[1]:  # the part that it was told from is still the same
                return known[2]
            first = next(partitions_in(self.root, folder), None)
            if first is None:
                return self._unpartitioned(table)
            stamp = stamp_of(first / PART)
            schema = pq.read_schema(first / PART)
        columns = {field.name: column_type(field.type) or str(field.type) for field in schema}
        found = TableInfo(table=table, columns=columns, partitioned_by=first.name.partition("=")[0])
        self._described[table] = (first / PART, stamp, found)
        return found

    def query(
        self,
        sql: LiteralString,
        *,
        scans: Mapping[str, Scan | StagedScan],
        params: Mapping[str, Any] | None = None,
    ) -> pa.Table:
        named = ", ".join(str(s.table) if isinstance(s, Scan) else "staged files" for s in scans.values())
        for _ in range(MOST_TRIES):
            parts = {name: self._paths(scan) for name, scan in scans.items()}
            before = _stamps(parts)
            try:
                found: pa.Table | duckdb.Error = self._run(sql, scans, parts, params or {})
            except duckdb.Error as exc:
                found = exc
            except RuntimeError as exc:  # all that is left of what a signal's handler raised during the query
                raise WarehouseUnavailable(f"the query was cut off: {exc}", table=named) from exc
            except (SqlglotError, pa.ArrowInvalid) as exc:
                raise QueryFailed(str(exc), table=named) from exc
            if _stamps(parts) != before:
                continue  # DuckDB opens a file twice; one was replaced in between, so the answer means nothing
            if isinstance(found, pa.Table):
                return found
            if isinstance(found, duckdb.IOException):
                raise WarehouseUnavailable(str(found), table=named) from found
            raise QueryFailed(str(found), table=named) from found
        raise WarehouseUnavailable(f"was written to during each of {MOST_TRIES} reads", table=named)

    def _run(
        self,
        sql: LiteralString,
        scans: Mapping[str, Scan | StagedScan],
        parts: Mapping[str, list[str]],
        params: Mapping[str, Any],
    ) -> pa.Table:
        if not is_query(sql):
            raise QueryFailed("it is no query: a warehouse is asked, never told, by SQL")
        unknown = table_names(sql) - set(scans)
        if unknown:
            raise QueryFailed(f"the query names {', '.join(sorted(unknown))}, which is none of its scans")
        connection = self._connection()
        for name, scan in scans.items():
            relation = self._relation(connection, scan, parts[name])
            relation.create_view(checked_identifier(name, "scan name"), replace=True)
        bound = {key: value for key, value in params.items() if key in parameter_names(sql)}
        return with_googlesql_types(connection.sql(to_duckdb(sql), params=bound).to_arrow_table())

    def read(self, scan: Scan) -> pa.Table:
        parts = self._checked_parts(scan)
        wanted = None if scan.columns is None else list(scan.columns.values())
        with translated(scan.table):
            tables = [pq.ParquetFile(part).read(columns=wanted, use_threads=False) for part in parts]
            rows = (
                _stacked(tables, wanted or tables[0].column_names) if tables else self._schema(scan.table).empty_table()
            )
        if scan.columns is None or wanted is None:
            return rows
        return rows.select(wanted).rename_columns(list(scan.columns))

    def bytes_of(self, scan: Scan) -> int | None:
        return None

    def fingerprints(
        self, table: TableName, date_column: str, days: Collection[date], *, columns: Collection[str] | None = None
    ) -> dict[date, str]:
        with translated(table):
            self._finish_load(table)
            return {day: self._fingerprints.of(self._part(table, date_column, day)) for day in days}

    def holds(self, table: TableName, date_column: str, checksums: Mapping[date, str]) -> frozenset[date]:
        with translated(table):
            self._finish_load(table)
            now = {day: fingerprint(self._part(table, date_column, day)) for day in checksums}  # the bytes themselves
        return frozenset(day for day, checksum in checksums.items() if now[day] == checksum)

    def publication(self, table: TableName, date_column: str, day: date) -> dict[str, Any] | None:
        """Which run and attempt wrote the partition; None for one that no run wrote as it is now."""
        part = self._part(table, date_column, day)
        try:
            noted = json.loads((part.parent / PUBLICATION).read_text())
        except FileNotFoundError:
            return None
        return noted if noted["checksum"] == fingerprint(part) else None

    # -- writing --------------------------------------------------------------------------------------------

    def publish(
        self,
        target: TableName,
        date_column: str,
        files: Sequence[StagedFile],
        *,
        unchanged_since: Mapping[date, str],
        publication: str,
    ) -> Receipt:
        lost: set[date] = set()
        folder = self._folder(target)
        run = publication.partition("/")[0]
        with translated(target), locked(self._lock(folder)):
            self._start_loading(folder)
            now = {staged.day: fingerprint(self._part(target, date_column, staged.day)) for staged in files}
            there = {staged.day for staged in files if now[staged.day] == staged.checksum}
            changed = {day for day in now if day not in there and now[day] != unchanged_since[day]}
            kept: list[Path] = []
            for staged in files:
                if staged.day in there or staged.day in changed:
                    continue
                part = self._part(target, date_column, staged.day)
                place = folder / LOADING / part.parent.name
                try:
                    _prepare(place, staged, publication)
                except StagedFileLost:
                    lost.add(staged.day)
                else:
                    kept.append(self._kept(run, part))
                    _keep(part, kept[-1], place, before=now[staged.day], published=staged.checksum)
            self._commit_loading(folder, kept)
        published = frozenset(now) - changed - lost
        return Receipt(published=published, changed=frozenset(changed), lost=frozenset(lost))

    def _kept(self, run: str, part: Path) -> Path:
        """The folder of what the run replaced on the part's date."""
        return inside(self.root, self.root / UNDO / run / part.parent.relative_to(self.root))

    def replaced(self, target: TableName, date_column: str, run: str, days: Collection[date]) -> dict[date, Replaced]:
        found: dict[date, Replaced] = {}
        with translated(target):
            for day in days:
                note = self._kept(run, self._part(target, date_column, day)) / REPLACED
                if note.exists():
                    found[day] = Replaced(**json.loads(note.read_text()))
        return found

    def check_restorable(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, Replaced]
    ) -> None:
        held = [day for day, one in replaced.items() if one.before not in (ABSENT, one.published)]
        kept = {day: self._kept(run, self._part(target, date_column, day)) / PART for day in held}
        if gone := [day for day in held if fingerprint(kept[day]) != replaced[day].before]:
            raise NothingKept(
                f"what run {run} replaced on {len(gone)} date(s) is not kept any more (BACKFILL_UNDO_DAYS)",
                table=str(target),
                day=min(gone),
            )

    def restore(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, Replaced]
    ) -> frozenset[date]:
        folder = self._folder(target)
        with translated(target), locked(self._lock(folder)):
            self._roll_forward(folder)
            parts = {day: self._part(target, date_column, day) for day in replaced}
            waiting = [day for day, one in replaced.items() if fingerprint(parts[day]) == one.published]
            self.check_restorable(target, date_column, run, {day: replaced[day] for day in waiting})
            for day in waiting:
                _put_back(parts[day], self._kept(run, parts[day]) / PART, replaced[day])
            sync_folder(folder)
            return frozenset(day for day, one in replaced.items() if fingerprint(parts[day]) == one.before)

    def forget_replaced(self) -> None:
        before = (utcnow() - timedelta(days=self._limits.undo_days)).timestamp()
        for run in inside(self.root, self.root / UNDO).glob("*"):
            if not run.is_symlink() and run.stat().st_mtime < before:
                for kept in run.rglob(PART):  # the notes stay: they tell that something was replaced
                    kept.unlink(missing_ok=True)

    def create_table(self, table: TableName, columns: Types, date_column: str, cluster_by: Sequence[str] = ()) -> bool:
        return False  # a folder becomes a table with its first partition

    def prepare(self) -> None:
        return None

    def check_publishable(self, target: TableName) -> bool:
        check_writable(self._folder(target))
        return True

    def now(self) -> None:
        return None

    def load(self, table: TableName, date_column: str, rows: pa.Table) -> list[date]:
        refuse_undated(table, date_column, rows)
        given = {field.name: column_type(field.type) or str(field.type) for field in rows.schema}
        refuse_other_shape(self.describe(table), date_column, given)
        folder = self._folder(table)
        with translated(table), locked(self._lock(folder)):
            self._start_loading(folder)
            days = _write_partitions(folder / LOADING, date_column, rows)
            self._commit_loading(folder)
        return days

    def _finish_load(self, table: TableName) -> None:
        """Carry out a load that was committed by a process which then died."""
        folder = self._folder(table)
        if (folder / LOADING / COMMITTED).exists():
            with locked(self._lock(folder)):
                self._roll_forward(folder)

    def _lock(self, folder: Path) -> Path:
        return inside(self.root, folder / ".lock")

    def _loading(self, folder: Path) -> Path:
        return inside(self.root, folder / LOADING)

    def _start_loading(self, folder: Path) -> None:
        self._roll_forward(folder)
        shutil.rmtree(self._loading(folder), ignore_errors=True)

    def _commit_loading(self, folder: Path, kept: Sequence[Path] = ()) -> None:
        """Put what was prepared into effect: from the mark on it will take effect whatever dies.

        `kept` are the folders of what it replaces.
        """
        loading = folder / LOADING
        if loading.exists():
            sync_all(place for one in (*loading.iterdir(), *kept) for place in (*one.iterdir(), one))
            sync_all({one.parent for one in kept} | {loading})
            write_atomically(loading / COMMITTED, b"")
            self._roll_forward(folder)

    def _roll_forward(self, folder: Path) -> None:
        loading = self._loading(folder)
        if not (loading / COMMITTED).exists():
            return
        placed: list[Path] = []
        for new in sorted(partitions_in(self.root, loading)):
            (folder / new.name).mkdir(exist_ok=True)
            (new / PART).replace(folder / new.name / PART)
            if (new / PUBLICATION).exists():
                (new / PUBLICATION).replace(folder / new.name / PUBLICATION)
            else:
                (folder / new.name / PUBLICATION).unlink(missing_ok=True)
            placed.append(folder / new.name)
        sync_all(placed)
        sync_folder(folder)
        (loading / COMMITTED).unlink()
        shutil.rmtree(loading)

    # -- paths and relations --------------------------------------------------------------------------------

    def _folder(self, table: TableName) -> Path:
        return inside(self.root, self.root / table.dataset / table.table)

    def _part(self, table: TableName, date_column: str, day: date) -> Path:
        return inside(self.root, self._folder(table) / f"{date_column}={day.isoformat()}" / PART)

    def _unpartitioned(self, table: TableName) -> TableInfo | None:
        if next(self._folder(table).glob("*.parquet"), None) is None:
            return None
        return TableInfo(table=table, columns={}, partitioned_by=None)

    def _parts(self, scan: Scan) -> list[Path]:
        if sum(len(one) for one in scan.dates) <= PROBE_AT_MOST:
            wanted = (self._part(scan.table, scan.date_column, day) for one in scan.dates for day in one.days())
            return [part for part in wanted if part.exists()]
        needed = {f"{scan.date_column}={day.isoformat()}" for one in scan.dates for day in one.days()}
        found = sorted(partitions_in(self.root, self._folder(scan.table)))
        return [one / PART for one in found if one.name in needed]

    def _paths(self, scan: Scan | StagedScan) -> list[str]:
        return _places(scan.files) if isinstance(scan, StagedScan) else self._checked_parts(scan)

    def _relation(
        self, connection: duckdb.DuckDBPyConnection, scan: Scan | StagedScan, paths: list[str]
    ) -> duckdb.DuckDBPyRelation:
        relation = connection.read_parquet(paths, hive_partitioning=False) if paths else self._empty(connection, scan)
        if scan.columns is None:
            return relation
        return relation.select(*(duckdb.ColumnExpression(own).alias(name) for name, own in scan.columns.items()))

    def _checked_parts(self, scan: Scan) -> list[str]:
        info = self.describe(scan.table)
        if info is None:
            raise TableNotFound("no such table in the warehouse", table=str(scan.table))
        info.require(scan.date_column, tuple((scan.columns or {}).values()))
        return [str(part) for part in self._parts(scan)]

    def _empty(self, connection: duckdb.DuckDBPyConnection, scan: Scan | StagedScan) -> duckdb.DuckDBPyRelation:
        if isinstance(scan, StagedScan):
            raise QueryFailed("no staged file was given to the query")
        return connection.from_arrow(self._schema(scan.table).empty_table())

    def _schema(self, table: TableName) -> pa.Schema:
        return pq.read_schema(next(partitions_in(self.root, self._folder(table))) / PART)

    def _connection(self) -> duckdb.DuckDBPyConnection:
        """A connection of this thread's own: DuckDB's are not to be shared."""
        found = getattr(self._local, "connection", None)
        if found is None:
            found = duckdb.connect(
                config={
                    "threads": self._threads,
                    "autoinstall_known_extensions": False,
                    "python_enable_replacements": False,
                }
            )
            self._local.connection = found
        return found


def _stacked(tables: Sequence[pa.Table], names: list[str]) -> pa.Table:
    """These columns of the tables one after the other, matched by name as a query matches them."""
    for table in tables:
        if missing := set(names) - set(table.column_names):
            raise pa.ArrowInvalid(f"one of them lacks {', '.join(sorted(missing))}")
    return pa.concat_tables([table.select(names) for table in tables], promote_options="permissive")


def _stamps(parts: Mapping[str, list[str]]) -> list[Stamp]:
    return [stamp_of(path) for paths in parts.values() for path in paths]


def _places(files: Sequence[StagedFile]) -> list[str]:
    """Where the staged files are. Raises `StagedFileLost` for a link: what it leads to is not what was staged."""
    for staged in files:
        if Path(staged.location).is_symlink():
            raise StagedFileLost("the staged file is a link", day=staged.day)
    return [staged.location for staged in files]


def _prepare(place: Path, staged: StagedFile, publication: str) -> None:
    """Write the staged rows, and who publishes them, where a load is prepared. Raises `StagedFileLost`.

    Like what is kept, they are made durable all at once, before the mark that puts them into effect.
    """
    data = read_staged_bytes(staged)
    note = {"publication": publication, "attempt": staged.attempt, "checksum": staged.checksum, "rows": staged.rows}
    write_atomically(place / PUBLICATION, json.dumps(note).encode(), durable=False)
    write_atomically(place / PART, data, durable=False)


def _keep(part: Path, kept: Path, place: Path, *, before: str, published: str) -> None:
    """Keep what the part held before the run's first publication, and note what it is about to hold.

    The note is prepared where the load is, which is cleared should the process die: nobody clears what is kept.
    """
    note = kept / REPLACED
    if note.exists():
        before = json.loads(note.read_text())["before"]
    elif before != ABSENT:
        kept.mkdir(parents=True, exist_ok=True)
        (kept / PART).unlink(missing_ok=True)
        link(part, kept / PART)
    replaced = json.dumps({"before": before, "published": published}).encode()
    write_atomically(place / REPLACED, replaced, durable=False)
    kept.mkdir(parents=True, exist_ok=True)
    (place / REPLACED).replace(note)


def _put_back(part: Path, kept: Path, replaced: Replaced) -> None:
    if replaced.before == replaced.published:
        return
    if replaced.before == ABSENT:
        part.unlink()
        shutil.rmtree(part.parent)
        return
    temporary = part.with_name(f".{PART}.undo.tmp")
    temporary.unlink(missing_ok=True)
    link(kept, temporary)
    temporary.replace(part)
    sync_folder(part.parent)


def _write_partitions(folder: Path, date_column: str, rows: pa.Table) -> list[date]:
    days = sorted(found["day"] for found in _counts(rows, date_column))
    ordered = rows.sort_by([(date_column, "ascending")])
    starts = {found["day"]: found["n"] for found in _counts(ordered, date_column)}
    offset = 0
    for day in days:
        part = folder / f"{date_column}={day.isoformat()}" / PART
        write_atomically(part, parquet_bytes(ordered.slice(offset, starts[day])), durable=False)
        offset += starts[day]
    return days


def _counts(rows: pa.Table, date_column: str) -> list[dict[str, Any]]:
    counted = rows.group_by(date_column).aggregate([(date_column, "count")])
    return counted.rename_columns({date_column: "day", f"{date_column}_count": "n"}).to_pylist()
