"""A warehouse in BigQuery: one load job and one transaction a window, every partition replaced wholly or not at all.

Staged rows go into a table of our own that expires by itself; one multi-statement transaction then replaces the
partitions and records the publication beside them. A publication that is repeated finds its record and does nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, timedelta
from typing import Any, LiteralString
from uuid import uuid4

import pyarrow as pa
from google.api_core.exceptions import Conflict, MethodNotAllowed, MethodNotImplemented, NotFound
from google.cloud import bigquery
from sqlglot.errors import SqlglotError

from gated_backfill.common.errors import (
    BackupMissing,
    NotAllowed,
    QueryFailed,
    StagedFileLost,
    TableNotFound,
    UserError,
)
from gated_backfill.common.model.dates import enclosing_range
from gated_backfill.common.model.publication import METADATA_TABLE, PublishResult, StagedFile, WarehouseLimits
from gated_backfill.common.model.tables import ColumnTypes, TableName, validate_identifier
from gated_backfill.common.process.clock import utcnow
from gated_backfill.common.storage.files import parquet_bytes
from gated_backfill.common.storage.staged_files import read_all_rows
from gated_backfill.common.warehouse.bigquery import statements as sql_of
from gated_backfill.common.warehouse.bigquery.backups import BigQueryBackups
from gated_backfill.common.warehouse.bigquery.client import (
    REQUEST_SECONDS,
    BigQueryAddress,
    BigQueryConnection,
    job_name,
    translate_bigquery_errors,
)
from gated_backfill.common.warehouse.bigquery.parameters import (
    date_parameters,
    full_table_statement,
    publication_request,
    requested_dates,
    scan_statement,
)
from gated_backfill.common.warehouse.bigquery.schema import check_column_names, table_info, types_of
from gated_backfill.common.warehouse.bigquery.statements import quoted_column, quoted_columns, quoted_table, with_scans
from gated_backfill.common.warehouse.counting import count_query, parse_counts
from gated_backfill.common.warehouse.protocol import (
    ABSENT,
    EntityCounts,
    ReplacedPartition,
    Scan,
    StagedScan,
    TableInfo,
    check_dated,
    check_same_columns,
    require_table,
)
from gated_backfill.common.warehouse.sql import parameter_names, table_names

STAGED_LIVES = timedelta(days=1)  #: a staging table expires so long after it was made
DESCRIBED_SECONDS = 30.0  #: how long a table's description is believed
LOADED_SECONDS = STAGED_LIVES.total_seconds() / 2  #: how long one is counted on without looking
MOST_LOADED = 8  #: staging tables that one process remembers
MAX_PARTITIONS_PER_JOB = 4000  #: partitions that one job may touch, by BigQuery's quota
PUBLICATION_COLUMNS: Mapping[str, str] = {
    "target": "STRING",
    "day": "DATE",
    "run": "STRING",
    "window_number": "STRING",
    "attempt": "INT64",
    "row_count": "INT64",
    "checksum": "STRING",
    "content": "STRING",
    "before": "STRING",
    "published_at": "TIMESTAMP",
}
READS = "bigquery.jobs.create, bigquery.tables.getData"
WRITES = "bigquery.jobs.create, bigquery.tables.updateData"
MAKES = "bigquery.datasets.create, bigquery.tables.create"


class BigQueryWarehouse(BigQueryBackups):
    """See `Warehouse` for what it promises. Safe for several processes and threads at once."""

    def __init__(self, address: BigQueryAddress, limits: WarehouseLimits | None = None, *, http: Any = None) -> None:
        """`http` replaces the authorised session that requests go through."""
        self._jobs = BigQueryConnection(address, limits or WarehouseLimits(), http)
        self._deadline: dict[str, Any] = {"retry": self._jobs.retry, "timeout": REQUEST_SECONDS}
        self._project = address.project
        self._publications = TableName(address.dataset, "publications")
        self._described: dict[TableName, tuple[float, TableInfo]] = {}
        self._loaded: OrderedDict[frozenset[str], tuple[TableName, float]] = OrderedDict()
        self._owns_tables = False

    def __repr__(self) -> str:
        return f"BigQueryWarehouse({self._project!r})"

    # -- reading --------------------------------------------------------------------------------------------

    def describe(self, table: TableName) -> TableInfo | None:
        known = self._described.get(table)
        if known is not None and time.monotonic() - known[0] < DESCRIBED_SECONDS:
            return known[1]
        with translate_bigquery_errors("looking at the table", table=str(table), needs="bigquery.tables.get"):
            try:
                found = self._jobs.client.get_table(self._reference(table), **self._deadline)
            except NotFound:
                self._described.pop(table, None)
                return None
        info = table_info(table, found)
        self._described[table] = (time.monotonic(), info)
        return info

    def query(
        self,
        sql: LiteralString,
        *,
        scans: Mapping[str, Scan | StagedScan],
        params: Mapping[str, Any] | None = None,
    ) -> pa.Table:
        tables = ", ".join(str(s.table) if isinstance(s, Scan) else "staged files" for s in scans.values())
        statement, bound = self._over(sql, scans, params or {}, tables)
        return self._rows(statement, bound, tables)

    def count_entities(
        self, expected: Scan, sources: Mapping[str, Scan], groups: Collection[tuple[str, ...]]
    ) -> EntityCounts:
        counting = count_query(expected, sources, groups)
        return parse_counts(counting, self.query(counting.sql, scans=counting.scans))

    def read(self, scan: Scan, *, once: bool = False) -> pa.Table:
        statement, bound = self._scan("t", scan)
        return self._rows(statement, bound, str(scan.table))

    def estimate_bytes(self, scan: Scan) -> int | None:
        statement, bound = self._scan("t", scan)
        with translate_bigquery_errors("the dry run", table=str(scan.table), needs=READS):
            return self._jobs.dry_run(statement, bound)

    def now(self) -> datetime:
        with translate_bigquery_errors("asking for the time", needs="bigquery.jobs.create"):
            (row,) = self._jobs.query("SELECT CURRENT_TIMESTAMP() AS now", {}).to_pylist()
            return row["now"]

    def fingerprints(
        self, table: TableName, date_column: str, days: Collection[date], *, columns: Collection[str] | None = None
    ) -> dict[date, str]:
        check_column_names(date_column, *(columns or ()))
        info = self.describe(table)
        if info is None or not days:
            return dict.fromkeys(days, ABSENT)
        info.check_columns(date_column, columns or ())
        return self._contents(table, date_column, days, {date_column, *(columns or info.columns)})

    def _contents(
        self, table: TableName, date_column: str, days: Collection[date], columns: Collection[str]
    ) -> dict[date, str]:
        statement = sql_of.partition_contents(self._partitions(table, date_column, columns))
        found = self._rows_if_there(statement, date_parameters(days), table)
        now = {row["day"]: row["content"] for row in found}
        return {day: now.get(day, ABSENT) for day in days}

    def matching_dates(self, table: TableName, date_column: str, checksums: Mapping[date, str]) -> frozenset[date]:
        check_column_names(date_column)
        info = self.describe(table)
        if info is None or not checksums or self.describe(self._publications) is None:
            return frozenset()
        statement = sql_of.matching_dates(
            self._partitions(table, date_column, info.columns), self._quoted(self._publications)
        )
        asked = requested_dates({day: {"checksum": checksum} for day, checksum in checksums.items()})
        params = date_parameters(checksums) | {"target": str(table), "wanted": asked}
        return frozenset(row["day"] for row in self._rows_if_there(statement, params, table))

    # -- writing --------------------------------------------------------------------------------------------

    def publish(
        self,
        target: TableName,
        date_column: str,
        files: Sequence[StagedFile],
        *,
        fingerprints_when_staged: Mapping[date, str],
        publication: str,
    ) -> PublishResult:
        days = frozenset(staged.day for staged in files)
        _refuse_too_many(target, days)
        checksums = {staged.day: staged.checksum for staged in files}
        published = self.matching_dates(target, date_column, checksums)
        source, lost = self._stage_what_is_there([staged for staged in files if staged.day not in published])
        sent = [staged for staged in files if staged.day not in published | lost]
        if source is not None:
            self._replace(target, date_column, sent, source, fingerprints_when_staged, publication)
            published = self.matching_dates(target, date_column, checksums)
        return PublishResult(published=published, conflicting=days - published - lost, lost=lost - published)

    def _replace(
        self,
        target: TableName,
        date_column: str,
        files: Sequence[StagedFile],
        source: TableName,
        unchanged_since: Mapping[date, str],
        publication: str,
    ) -> None:
        """The transaction: a date whose partition is not as it was when it was staged stays as it is."""
        run, _, window = publication.partition("/")
        columns = self._columns_of_both(target, date_column, source)
        self._make_publications()
        asked = requested_dates(
            {staged.day: publication_request(staged, unchanged_since[staged.day]) for staged in files}
        )
        replaces = any(unchanged_since[staged.day] != ABSENT for staged in files)
        kept = self._quoted(self._make_kept(run, target, date_column)) if replaces else None
        statement = sql_of.publish(
            self._partitions(target, date_column, columns),
            self._quoted(source),
            self._quoted(self._publications),
            kept,
        )
        params = date_parameters([staged.day for staged in files]) | {
            "target": str(target),
            "run": run,
            "window_number": window,
            "wanted": asked,
        }

        def has_effect() -> bool:
            if self.matching_dates(target, date_column, {staged.day: staged.checksum for staged in files}):
                return True
            now = self.fingerprints(target, date_column, [staged.day for staged in files])
            return all(now[staged.day] != unchanged_since[staged.day] for staged in files)

        with translate_bigquery_errors("the publication", table=str(target), needs=WRITES):
            name = job_name("publish", target, publication, *asked)
            self._jobs.run_script(name, statement, params, has_effect=has_effect)

    def _columns_of_both(self, target: TableName, date_column: str, source: TableName) -> list[str]:
        """The columns of the target, which is made if need be. Raises `SchemaMismatch` unless they are the source's."""
        given = dict(require_table(self, source).columns)
        self.create_table(target, given, date_column)  # pyright: ignore[reportArgumentType] - they are of our types
        check_same_columns(self.describe(target), date_column, given)
        return sorted(given)

    def replaced_partitions(
        self, target: TableName, date_column: str, run: str, days: Collection[date]
    ) -> dict[date, ReplacedPartition]:
        if not days or self.describe(self._publications) is None:
            return {}
        span = enclosing_range(days)
        params = {"target": str(target), "run": run, "first": span.start, "last": span.through}
        statement = sql_of.replaced_partitions(self._quoted(self._publications))
        rows = self._rows(statement, params, str(self._publications)).to_pylist()
        found = {row["day"]: ReplacedPartition(before=row["before"], published=row["published"]) for row in rows}
        return {day: found[day] for day in days if day in found}

    def restore(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, ReplacedPartition]
    ) -> frozenset[date]:
        _refuse_too_many(target, replaced)
        now = self.fingerprints(target, date_column, list(replaced))
        waiting = {
            day: one for day, one in replaced.items() if now[day] == one.published and one.before != one.published
        }
        if waiting:
            self.check_restorable(target, date_column, run, waiting)
            self._restore(target, date_column, run, waiting)
            now = self.fingerprints(target, date_column, list(replaced))
        return frozenset(day for day, one in replaced.items() if now[day] == one.before)

    def check_restorable(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, ReplacedPartition]
    ) -> None:
        held = [day for day, one in replaced.items() if one.before not in (ABSENT, one.published)]
        if not held:
            return
        kept = self._kept(run, target)
        there: dict[date, str] = {}
        if self.describe(kept) is not None:
            there = self._contents(kept, date_column, held, require_table(self, target).columns)
        if gone := [day for day in held if there.get(day) != replaced[day].before]:
            raise BackupMissing(
                f"what run {run} replaced on {len(gone)} date(s) is not kept any more (BACKFILL_UNDO_DAYS)",
                table=str(target),
                day=min(gone),
            )

    def _restore(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, ReplacedPartition]
    ) -> None:
        kept = self._kept(run, target)
        statement = sql_of.restore(
            self._partitions(target, date_column, require_table(self, target).columns),
            None if self.describe(kept) is None else self._quoted(kept),
        )
        asked = requested_dates(
            {day: {"before": one.before, "published": one.published} for day, one in replaced.items()}
        )
        with translate_bigquery_errors("the restoration", table=str(target), needs=WRITES):
            self._jobs.run_script(
                job_name("restore", uuid4().hex), statement, date_parameters(replaced) | {"wanted": asked}
            )

    def delete_expired_undo(self) -> None:
        """Nothing to do: what is kept expires by itself."""

    def create_own_tables(self) -> bool:
        if self.describe(self._publications) is not None:
            return False
        self._make_publications()
        return True

    def check_publishable(self, target: TableName) -> bool:
        info = self.describe(target)
        if info is None:
            return False  # it is made with the first publication
        with translate_bigquery_errors("asking for permissions", table=str(target), needs="bigquery.tables.updateData"):
            needed = ["bigquery.tables.getData", "bigquery.tables.updateData"]
            try:
                answer = self._jobs.client.test_iam_permissions(self._reference(target), needed, **self._deadline)
            except (NotFound, MethodNotAllowed, MethodNotImplemented):
                if self._jobs.address.endpoint is None:
                    raise
                return False  # an emulator has no permissions to tell of
        if missing := [one for one in needed if one not in answer.get("permissions", [])]:
            raise NotAllowed(f"nothing can be published to it: {', '.join(missing)} is missing", table=str(target))
        return True

    def load(self, table: TableName, date_column: str, rows: pa.Table) -> list[date]:
        check_dated(table, date_column, rows)
        days: list[date] = sorted(set(rows[date_column].to_pylist()))  # pyright: ignore[reportArgumentType] - no null
        _refuse_too_many(table, days)
        if table.dataset == self._publications.dataset and table.table != METADATA_TABLE:
            raise UserError(f"{table} is one of the tool's own tables: nothing can be loaded into it")
        given = types_of(rows.schema)
        check_same_columns(self.describe(table), date_column, given)
        self.create_table(table, given, date_column)  # pyright: ignore[reportArgumentType]
        source = TableName(self._publications.dataset, f"load_{uuid4().hex}")
        self._make_own_dataset()
        self._load_into(source, rows.schema, parquet_bytes(rows), rows.num_rows, str(table))
        statement = sql_of.load(self._partitions(table, date_column, given), self._quoted(source))
        with translate_bigquery_errors("the load", table=str(table), needs=WRITES):
            self._jobs.run_script(job_name("replace", source), statement, date_parameters(days))
        return days

    def create_table(
        self, table: TableName, columns: ColumnTypes, date_column: str, cluster_by: Sequence[str] = ()
    ) -> bool:
        check_column_names(date_column, *columns, *cluster_by)
        if self.describe(table) is not None:
            return False
        self._make_dataset(table.dataset)
        made = bigquery.Table(self._reference(table), schema=[bigquery.SchemaField(n, t) for n, t in columns.items()])
        made.time_partitioning = bigquery.TimePartitioning(field=date_column)
        made.require_partition_filter = True
        if cluster_by:
            made.clustering_fields = list(cluster_by)[:4]
        self._make(made)
        return True

    # -- staged rows ----------------------------------------------------------------------------------------

    def _stage_what_is_there(self, files: Sequence[StagedFile]) -> tuple[TableName | None, frozenset[date]]:
        """A table with the rows of the files that are whole, and the days of those that are not."""
        lost: set[date] = set()
        while left := [staged for staged in files if staged.day not in lost]:
            try:
                return self._stage(left), frozenset(lost)
            except StagedFileLost as exc:
                lost.add(exc.file_day)
        return None, frozenset(lost)

    def _stage(self, files: Sequence[StagedFile]) -> TableName:
        """A table that holds at least the rows of these files, loaded by one job. Raises `StagedFileLost`."""
        keys = frozenset(f"{staged.day} {staged.attempt} {staged.checksum}" for staged in files)
        for held, (table, since) in list(self._loaded.items()):  # other threads may add to it
            if keys <= held and time.monotonic() - since < LOADED_SECONDS:
                return table
        name = job_name("load", *sorted(keys))
        table = TableName(self._publications.dataset, "staged_" + name.rpartition("-")[2])
        remote = [staged.location for staged in files if staged.location.startswith("gs://")]
        rows = sum(staged.rows for staged in files)
        combined = read_all_rows(files)  # read here also where the service reads them itself: to check them
        source = remote if len(remote) == len(files) else parquet_bytes(combined)
        self._make_own_dataset()
        self._load_into(table, combined.schema, source, rows, "staged files", name=name)
        self._loaded[keys] = (table, time.monotonic())
        while len(self._loaded) > MOST_LOADED:
            self._loaded.popitem(last=False)
        return table

    def _load_into(
        self,
        table: TableName,
        schema: pa.Schema,
        source: bytes | Sequence[str],
        rows: int,
        what: str,
        *,
        name: str | None = None,
    ) -> None:
        made = bigquery.Table(
            self._reference(table), schema=[bigquery.SchemaField(n, t) for n, t in types_of(schema).items()]
        )
        made.expires = utcnow() + STAGED_LIVES
        if not self._make(made):  # an earlier gate's: it is to outlive this one
            with translate_bigquery_errors(
                "keeping the staging table", table=str(table), needs="bigquery.tables.update"
            ):
                self._jobs.client.update_table(made, ["expires"], **self._deadline)

        def is_whole() -> bool:
            return self._jobs.client.get_table(self._reference(table), **self._deadline).num_rows == rows

        with translate_bigquery_errors("loading staged rows", table=what, needs=f"{WRITES}, {MAKES}"):
            self._jobs.load_parquet(name or job_name("load", table), made, source, is_whole=is_whole)

    # -- tables of our own ----------------------------------------------------------------------------------

    def _make_own_dataset(self) -> None:
        self._make_dataset(self._publications.dataset)

    def _make_publications(self) -> None:
        if self._owns_tables:
            return
        self._make_own_dataset()
        made = bigquery.Table(
            self._reference(self._publications),
            schema=[bigquery.SchemaField(n, t) for n, t in PUBLICATION_COLUMNS.items()],
        )
        made.clustering_fields = ["target", "day"]  # and no partitions, which might expire by the dataset's default
        self._make(made)
        with translate_bigquery_errors("looking at the record of publications", needs="bigquery.tables.get"):
            expires = self._jobs.client.get_table(self._reference(self._publications), **self._deadline).expires
        if expires is not None:
            raise UserError(
                f"{self._publications} must not expire, but will at {expires:%Y-%m-%d} UTC: remove its expiration "
                f"and the default table expiration of the dataset {self._publications.dataset}"
            )
        self._owns_tables = True

    def _kept(self, run: str, target: TableName) -> TableName:
        named_after = hashlib.sha256(str(target).encode()).hexdigest()[:12]
        name = f"undo_{run.replace('-', '_')}_{named_after}"
        return TableName(self._publications.dataset, validate_identifier(name, "table name"))

    def _make_kept(self, run: str, target: TableName, date_column: str) -> TableName:
        """The table that keeps what the run replaces, made at the run's first replacement."""
        kept = self._kept(run, target)
        if self.describe(kept) is not None:
            return kept
        columns = require_table(self, target).columns
        made = bigquery.Table(self._reference(kept), schema=[bigquery.SchemaField(n, t) for n, t in columns.items()])
        # No partitions: those of past dates might expire at once, by the dataset's default.
        made.clustering_fields = [date_column]
        made.expires = utcnow() + timedelta(days=self._jobs.limits.undo_days)
        self._make(made)
        return kept

    def _make(self, table: bigquery.Table) -> bool:
        """Make the table unless it exists; returns whether it was made."""
        name = TableName(table.dataset_id, table.table_id)
        self._described.pop(name, None)
        with translate_bigquery_errors("making the table", table=str(name), needs=MAKES), suppress(Conflict):
            self._jobs.client.create_table(table, **self._deadline)
            return True
        return False

    def _make_dataset(self, dataset: str) -> None:
        made = bigquery.Dataset(f"{self._project}.{validate_identifier(dataset, 'dataset name')}")
        made.location = self._jobs.address.location
        with translate_bigquery_errors("making the dataset", table=dataset, needs=MAKES):
            try:
                self._jobs.client.get_dataset(made.reference, **self._deadline)
            except NotFound:
                with suppress(Conflict):
                    self._jobs.client.create_dataset(made, **self._deadline)

    # -- statements -----------------------------------------------------------------------------------------

    def _over(
        self, sql: LiteralString, scans: Mapping[str, Scan | StagedScan], params: Mapping[str, Any], tables: str
    ) -> tuple[str, dict[str, Any]]:
        """The query with its scans written out, and everything that is bound in it."""
        try:
            unknown, used = table_names(sql) - set(scans), parameter_names(sql)
        except SqlglotError as exc:
            raise QueryFailed(str(exc), table=tables) from exc
        if unknown:
            raise QueryFailed(f"the query names {', '.join(sorted(unknown))}, which is none of its scans")
        written: dict[str, sql_of.QuotedSql] = {}
        bound = {name: value for name, value in params.items() if name in used}
        for name, scan in scans.items():
            validate_identifier(name, "scan name")
            written[name], more = self._scan(name, scan) if isinstance(scan, Scan) else self._staged_scan(scan)
            bound |= more
        return with_scans(sql, written), bound

    def _scan(self, name: str, scan: Scan) -> tuple[sql_of.QuotedSql, dict[str, Any]]:
        statement, bound = scan_statement(name, scan, self._quoted(scan.table))
        info = self.describe(scan.table)
        if info is None:
            raise TableNotFound("no such table in the warehouse", table=str(scan.table))
        info.check_columns(scan.date_column, tuple((scan.columns or {}).values()))
        return statement, bound

    def _staged_scan(self, scan: StagedScan) -> tuple[sql_of.QuotedSql, dict[str, Any]]:
        if not scan.files:
            raise QueryFailed("no staged file was given to the query")
        check_column_names(*(scan.columns or {}), *(scan.columns or {}).values())
        return full_table_statement(scan.columns, self._quoted(self._stage(scan.files))), {}

    def _rows(self, statement: str, params: Mapping[str, Any], tables: str) -> pa.Table:
        try:
            with translate_bigquery_errors("the query", table=tables, needs=READS):
                return self._jobs.query(statement, params)
        except UserError:
            self._described.clear()  # a table is not as it was described, or a staging table has expired
            self._loaded.clear()
            raise

    def _partitions(self, table: TableName, date_column: str, columns: Iterable[str]) -> sql_of.Partitions:
        return sql_of.Partitions(
            table=self._quoted(table), date=quoted_column(date_column), columns=quoted_columns(sorted(columns))
        )

    def _rows_if_there(self, statement: str, params: Mapping[str, Any], table: TableName) -> list[dict[str, Any]]:
        """The rows; none when the table has gone since it was described."""
        try:
            return self._rows(statement, params, str(table)).to_pylist()
        except TableNotFound:
            if self.describe(table) is not None:
                raise
            return []

    def _quoted(self, table: TableName) -> sql_of.QuotedSql:
        return quoted_table(self._project, table)

    def _reference(self, table: TableName) -> bigquery.TableReference:
        validate_identifier(table.dataset, "dataset name")
        validate_identifier(table.table, "table name")
        return bigquery.TableReference.from_string(f"{self._project}.{table.dataset}.{table.table}")


def _refuse_too_many(table: TableName, days: Collection[date]) -> None:
    if len(days) > MAX_PARTITIONS_PER_JOB:
        raise UserError(
            f"{table}: {len(days)} dates at once; one job of BigQuery may touch {MAX_PARTITIONS_PER_JOB} partitions"
        )
