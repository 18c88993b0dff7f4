"""A warehouse in BigQuery: one load job and one transaction per window, which replaces whole partitions.

Staged rows are loaded into a staging table with an expiration; one multi-statement transaction then replaces the
partitions and records the publication. A repeated publication finds its record and changes nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
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

STAGING_TABLE_LIFETIME = timedelta(days=1)  #: from its creation to its expiration
DESCRIPTION_CACHE_SECONDS = 30.0
STAGING_TABLE_CACHE_SECONDS = (
    STAGING_TABLE_LIFETIME.total_seconds() / 2
)  #: after loading, it is reused without checking that it exists
MAX_STAGING_TABLES = 8  #: that one process remembers
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
READ_PERMISSIONS = "bigquery.jobs.create, bigquery.tables.getData"
WRITE_PERMISSIONS = "bigquery.jobs.create, bigquery.tables.updateData"
CREATE_PERMISSIONS = "bigquery.datasets.create, bigquery.tables.create"


class BigQueryWarehouse(BigQueryBackups):
    """Tables in BigQuery; see `Warehouse`. Safe for several processes and threads at once."""

    def __init__(self, address: BigQueryAddress, limits: WarehouseLimits | None = None, *, http: Any = None) -> None:
        """`http` replaces the authorised session that requests go through."""
        self._jobs = BigQueryConnection(address, limits or WarehouseLimits(), http)
        self._deadline: dict[str, Any] = {"retry": self._jobs.retry, "timeout": REQUEST_SECONDS}
        self._project = address.project
        self._publications = TableName(address.dataset, "publications")
        self._descriptions: dict[TableName, tuple[float, TableInfo]] = {}
        self._staging_tables: OrderedDict[frozenset[str], tuple[TableName, float]] = OrderedDict()
        self._owns_tables = False

    def __repr__(self) -> str:
        return f"BigQueryWarehouse({self._project!r})"

    # -- reading --------------------------------------------------------------------------------------------

    def describe(self, table: TableName) -> TableInfo | None:
        cached = self._descriptions.get(table)
        if cached is not None and time.monotonic() - cached[0] < DESCRIPTION_CACHE_SECONDS:
            return cached[1]
        with translate_bigquery_errors("looking at the table", table=str(table), needs="bigquery.tables.get"):
            try:
                remote = self._jobs.client.get_table(self._reference(table), **self._deadline)
            except NotFound:
                self._descriptions.pop(table, None)
                return None
        info = table_info(table, remote)
        self._descriptions[table] = (time.monotonic(), info)
        return info

    def query(
        self, sql: LiteralString, *, scans: Mapping[str, Scan | StagedScan], params: Mapping[str, Any] | None = None
    ) -> pa.Table:
        tables = ", ".join(str(s.table) if isinstance(s, Scan) else "staged files" for s in scans.values())
        statement, bound = self._build_query(sql, scans, params or {}, tables)
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
        with translate_bigquery_errors("the dry run", table=str(scan.table), needs=READ_PERMISSIONS):
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
        rows = self._rows_of_existing(statement, date_parameters(days), table)
        now = {row["day"]: row["content"] for row in rows}
        return {day: now.get(day, ABSENT) for day in days}

    def matching_dates(self, table: TableName, date_column: str, checksums: Mapping[date, str]) -> frozenset[date]:
        check_column_names(date_column)
        info = self.describe(table)
        if info is None or not checksums or self.describe(self._publications) is None:
            return frozenset()
        statement = sql_of.matching_dates(
            self._partitions(table, date_column, info.columns), self._quoted(self._publications)
        )
        request = requested_dates({day: {"checksum": checksum} for day, checksum in checksums.items()})
        params = date_parameters(checksums) | {"target": str(table), "wanted": request}
        return frozenset(row["day"] for row in self._rows_of_existing(statement, params, table))

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
        _check_partition_limit(target, days)
        checksums = {staged.day: staged.checksum for staged in files}
        published = self.matching_dates(target, date_column, checksums)
        source, unreadable = self._stage_intact_files([staged for staged in files if staged.day not in published])
        intact = [staged for staged in files if staged.day not in published | unreadable]
        if source is not None:
            self._replace_partitions(target, date_column, intact, source, fingerprints_when_staged, publication)
            published = self.matching_dates(target, date_column, checksums)
        return PublishResult(
            published=published, conflicting=days - published - unreadable, lost=unreadable - published
        )

    def _replace_partitions(
        self,
        target: TableName,
        date_column: str,
        files: Sequence[StagedFile],
        source: TableName,
        before: Mapping[date, str],
        publication: str,
    ) -> None:
        """Replace, in one transaction, the partitions that are unchanged since their rows were staged."""
        run, _, window = publication.partition("/")
        columns = self._shared_columns(target, date_column, source)
        self._make_publications()
        request = requested_dates({staged.day: publication_request(staged, before[staged.day]) for staged in files})
        replaces = any(before[staged.day] != ABSENT for staged in files)
        undo_table = self._quoted(self._make_undo_table(run, target, date_column)) if replaces else None
        statement = sql_of.publish(
            self._partitions(target, date_column, columns),
            self._quoted(source),
            self._quoted(self._publications),
            undo_table,
        )
        params = date_parameters([staged.day for staged in files]) | {
            "target": str(target),
            "run": run,
            "window_number": window,
            "wanted": request,
        }

        def has_effect() -> bool:
            if self.matching_dates(target, date_column, {staged.day: staged.checksum for staged in files}):
                return True
            now = self.fingerprints(target, date_column, [staged.day for staged in files])
            return all(now[staged.day] != before[staged.day] for staged in files)

        with translate_bigquery_errors("the publication", table=str(target), needs=WRITE_PERMISSIONS):
            name = job_name("publish", target, publication, *request)
            self._jobs.run_script(name, statement, params, has_effect=has_effect)

    def _shared_columns(self, target: TableName, date_column: str, source: TableName) -> list[str]:
        """Return the columns of the target, created if missing. Raises `SchemaMismatch` if the source's differ."""
        columns = dict(require_table(self, source).columns)
        self.create_table(target, columns, date_column)  # pyright: ignore[reportArgumentType] - staged types only
        check_same_columns(self.describe(target), date_column, columns)
        return sorted(columns)

    def replaced_partitions(
        self, target: TableName, date_column: str, run: str, days: Collection[date]
    ) -> dict[date, ReplacedPartition]:
        if not days or self.describe(self._publications) is None:
            return {}
        span = enclosing_range(days)
        params = {"target": str(target), "run": run, "first": span.start, "last": span.through}
        statement = sql_of.replaced_partitions(self._quoted(self._publications))
        rows = self._rows(statement, params, str(self._publications)).to_pylist()
        replaced = {row["day"]: ReplacedPartition(before=row["before"], published=row["published"]) for row in rows}
        return {day: replaced[day] for day in days if day in replaced}

    def restore(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, ReplacedPartition]
    ) -> frozenset[date]:
        _check_partition_limit(target, replaced)
        now = self.fingerprints(target, date_column, list(replaced))
        waiting = {
            day: partition for day, partition in replaced.items() if now[day] == partition.published != partition.before
        }
        if waiting:
            self.check_restorable(target, date_column, run, waiting)
            self._restore(target, date_column, run, waiting)
            now = self.fingerprints(target, date_column, list(replaced))
        return frozenset(day for day in replaced if now[day] == replaced[day].before)

    def check_restorable(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, ReplacedPartition]
    ) -> None:
        changed = [day for day, partition in replaced.items() if partition.before not in (ABSENT, partition.published)]
        if not changed:
            return
        undo_table = self._undo_table(run, target)
        contents: dict[date, str] = {}
        if self.describe(undo_table) is not None:
            contents = self._contents(undo_table, date_column, changed, require_table(self, target).columns)
        if expired := [day for day in changed if contents.get(day) != replaced[day].before]:
            raise BackupMissing(
                f"what run {run} replaced on {len(expired)} date(s) is not kept any more (BACKFILL_UNDO_DAYS)",
                table=str(target),
                day=min(expired),
            )

    def _restore(
        self, target: TableName, date_column: str, run: str, replaced: Mapping[date, ReplacedPartition]
    ) -> None:
        undo_table = self._undo_table(run, target)
        statement = sql_of.restore(
            self._partitions(target, date_column, require_table(self, target).columns),
            None if self.describe(undo_table) is None else self._quoted(undo_table),
        )
        request = requested_dates({day: asdict(partition) for day, partition in replaced.items()})
        with translate_bigquery_errors("the restoration", table=str(target), needs=WRITE_PERMISSIONS):
            self._jobs.run_script(
                job_name("restore", uuid4().hex), statement, date_parameters(replaced) | {"wanted": request}
            )

    def delete_expired_undo(self) -> None:
        """Do nothing: undo tables have an expiration."""

    def create_own_tables(self) -> bool:
        if self.describe(self._publications) is not None:
            return False
        self._make_publications()
        return True

    def check_publishable(self, target: TableName) -> bool:
        info = self.describe(target)
        if info is None:
            return False  # the first publication creates it
        with translate_bigquery_errors("asking for permissions", table=str(target), needs="bigquery.tables.updateData"):
            needed = ["bigquery.tables.getData", "bigquery.tables.updateData"]
            try:
                answer = self._jobs.client.test_iam_permissions(self._reference(target), needed, **self._deadline)
            except (NotFound, MethodNotAllowed, MethodNotImplemented):
                if self._jobs.address.endpoint is None:
                    raise
                return False  # an emulator does not know permissions
        if missing := [name for name in needed if name not in answer.get("permissions", [])]:
            raise NotAllowed(f"nothing can be published to it: {', '.join(missing)} is missing", table=str(target))
        return True

    def load(self, table: TableName, date_column: str, rows: pa.Table) -> list[date]:
        check_dated(table, date_column, rows)
        days: list[date] = sorted(set(rows[date_column].to_pylist()))  # pyright: ignore[reportArgumentType] - no null
        _check_partition_limit(table, days)
        if table.dataset == self._publications.dataset and table.table != METADATA_TABLE:
            raise UserError(f"{table} is one of the tool's own tables: nothing can be loaded into it")
        columns = types_of(rows.schema)
        check_same_columns(self.describe(table), date_column, columns)
        self.create_table(table, columns, date_column)  # pyright: ignore[reportArgumentType]
        source = TableName(self._publications.dataset, f"load_{uuid4().hex}")
        self._make_own_dataset()
        self._load_into(source, rows.schema, parquet_bytes(rows), rows.num_rows, str(table))
        statement = sql_of.load(self._partitions(table, date_column, columns), self._quoted(source))
        with translate_bigquery_errors("the load", table=str(table), needs=WRITE_PERMISSIONS):
            self._jobs.run_script(job_name("replace", source), statement, date_parameters(days))
        return days

    def create_table(
        self, table: TableName, columns: ColumnTypes, date_column: str, cluster_by: Sequence[str] = ()
    ) -> bool:
        check_column_names(date_column, *columns, *cluster_by)
        if self.describe(table) is not None:
            return False
        self._make_dataset(table.dataset)
        definition = self._define_table(table, columns)
        definition.time_partitioning = bigquery.TimePartitioning(field=date_column)
        definition.require_partition_filter = True
        if cluster_by:
            definition.clustering_fields = list(cluster_by)[:4]
        self._make_table(definition)
        return True

    # -- staged rows ----------------------------------------------------------------------------------------

    def _stage_intact_files(self, files: Sequence[StagedFile]) -> tuple[TableName | None, frozenset[date]]:
        """Stage the intact files; return the table, None without such files, and the days of lost or damaged ones."""
        unreadable: set[date] = set()
        while intact := [staged for staged in files if staged.day not in unreadable]:
            try:
                return self._stage(intact), frozenset(unreadable)
            except StagedFileLost as exc:
                unreadable.add(exc.file_day)
        return None, frozenset(unreadable)

    def _stage(self, files: Sequence[StagedFile]) -> TableName:
        """Return a table with at least the rows of these files, loaded by one job. Raises `StagedFileLost`."""
        keys = frozenset(f"{staged.day} {staged.attempt} {staged.checksum}" for staged in files)
        for staged_keys, (table, since) in list(self._staging_tables.items()):  # other threads may add to it
            if keys <= staged_keys and time.monotonic() - since < STAGING_TABLE_CACHE_SECONDS:
                return table
        name = job_name("load", *sorted(keys))
        table = TableName(self._publications.dataset, "staged_" + name.rpartition("-")[2])
        remote = [staged.location for staged in files if staged.location.startswith("gs://")]
        rows = sum(staged.rows for staged in files)
        combined = read_all_rows(files)  # always, to check their checksums
        source = remote if len(remote) == len(files) else parquet_bytes(combined)
        self._make_own_dataset()
        self._load_into(table, combined.schema, source, rows, "staged files", name=name)
        self._staging_tables[keys] = (table, time.monotonic())
        while len(self._staging_tables) > MAX_STAGING_TABLES:
            self._staging_tables.popitem(last=False)
        return table

    def _load_into(
        self,
        table: TableName,
        schema: pa.Schema,
        source: bytes | Sequence[str],
        rows: int,
        label: str,
        *,
        name: str | None = None,
    ) -> None:
        definition = self._define_table(table, types_of(schema))
        definition.expires = utcnow() + STAGING_TABLE_LIFETIME
        if not self._make_table(definition):  # made by an earlier gate: this one needs it for longer
            with translate_bigquery_errors(
                "keeping the staging table", table=str(table), needs="bigquery.tables.update"
            ):
                self._jobs.client.update_table(definition, ["expires"], **self._deadline)

        def is_whole() -> bool:
            return self._jobs.client.get_table(self._reference(table), **self._deadline).num_rows == rows

        with translate_bigquery_errors(
            "loading staged rows", table=label, needs=f"{WRITE_PERMISSIONS}, {CREATE_PERMISSIONS}"
        ):
            self._jobs.load_parquet(name or job_name("load", table), definition, source, is_whole=is_whole)

    # -- bookkeeping tables ----------------------------------------------------------------------------------

    def _make_own_dataset(self) -> None:
        self._make_dataset(self._publications.dataset)

    def _make_publications(self) -> None:
        if self._owns_tables:
            return
        self._make_own_dataset()
        definition = self._define_table(self._publications, PUBLICATION_COLUMNS)
        definition.clustering_fields = ["target", "day"]  # no partitions: they might expire by the dataset's default
        self._make_table(definition)
        with translate_bigquery_errors("looking at the record of publications", needs="bigquery.tables.get"):
            expires = self._jobs.client.get_table(self._reference(self._publications), **self._deadline).expires
        if expires is not None:
            raise UserError(
                f"{self._publications} must not expire, but will at {expires:%Y-%m-%d} UTC: remove its expiration "
                f"and the default table expiration of the dataset {self._publications.dataset}"
            )
        self._owns_tables = True

    def _undo_table(self, run: str, target: TableName) -> TableName:
        digest = hashlib.sha256(str(target).encode()).hexdigest()[:12]
        name = f"undo_{run.replace('-', '_')}_{digest}"
        return TableName(self._publications.dataset, validate_identifier(name, "table name"))

    def _make_undo_table(self, run: str, target: TableName, date_column: str) -> TableName:
        """Create the table for the rows that the run replaces, unless it exists, and return its name."""
        undo_table = self._undo_table(run, target)
        if self.describe(undo_table) is not None:
            return undo_table
        definition = self._define_table(undo_table, require_table(self, target).columns)
        # No partitions: those of past dates might expire at once, by the dataset's default.
        definition.clustering_fields = [date_column]
        definition.expires = utcnow() + timedelta(days=self._jobs.limits.undo_days)
        self._make_table(definition)
        return undo_table

    def _define_table(self, table: TableName, columns: Mapping[str, str]) -> bigquery.Table:
        return bigquery.Table(self._reference(table), schema=[bigquery.SchemaField(n, t) for n, t in columns.items()])

    def _make_table(self, table: bigquery.Table) -> bool:
        """Create the table unless it exists; return whether it was created."""
        name = TableName(table.dataset_id, table.table_id)
        self._descriptions.pop(name, None)
        with (
            translate_bigquery_errors("making the table", table=str(name), needs=CREATE_PERMISSIONS),
            suppress(Conflict),
        ):
            self._jobs.client.create_table(table, **self._deadline)
            return True
        return False

    def _make_dataset(self, dataset: str) -> None:
        definition = bigquery.Dataset(f"{self._project}.{validate_identifier(dataset, 'dataset name')}")
        definition.location = self._jobs.address.location
        with translate_bigquery_errors("making the dataset", table=dataset, needs=CREATE_PERMISSIONS):
            try:
                self._jobs.client.get_dataset(definition.reference, **self._deadline)
            except NotFound:
                with suppress(Conflict):
                    self._jobs.client.create_dataset(definition, **self._deadline)

    # -- statements -----------------------------------------------------------------------------------------

    def _build_query(
        self, sql: LiteralString, scans: Mapping[str, Scan | StagedScan], params: Mapping[str, Any], tables: str
    ) -> tuple[str, dict[str, Any]]:
        """Build the query with a CTE for each scan, and all its parameters."""
        try:
            unknown, used = table_names(sql) - set(scans), parameter_names(sql)
        except SqlglotError as exc:
            raise QueryFailed(str(exc), table=tables) from exc
        if unknown:
            raise QueryFailed(f"the query reads {', '.join(sorted(unknown))}, but has no scan of that name")
        statements: dict[str, sql_of.QuotedSql] = {}
        bound = {name: value for name, value in params.items() if name in used}
        for name, scan in scans.items():
            validate_identifier(name, "scan name")
            statements[name], added = self._scan(name, scan) if isinstance(scan, Scan) else self._staged_scan(scan)
            bound |= added
        return with_scans(sql, statements), bound

    def _scan(self, name: str, scan: Scan) -> tuple[sql_of.QuotedSql, dict[str, Any]]:
        statement, bound = scan_statement(name, scan, self._quoted(scan.table))
        require_table(self, scan.table).check_columns(scan.date_column, tuple((scan.columns or {}).values()))
        return statement, bound

    def _staged_scan(self, scan: StagedScan) -> tuple[sql_of.QuotedSql, dict[str, Any]]:
        if not scan.files:
            raise QueryFailed("no staged file was given to the query")
        check_column_names(*(scan.columns or {}), *(scan.columns or {}).values())
        return full_table_statement(scan.columns, self._quoted(self._stage(scan.files))), {}

    def _rows(self, statement: str, params: Mapping[str, Any], tables: str) -> pa.Table:
        try:
            with translate_bigquery_errors("the query", table=tables, needs=READ_PERMISSIONS):
                return self._jobs.query(statement, params)
        except UserError:
            self._descriptions.clear()  # a table has changed, or a staging table has expired
            self._staging_tables.clear()
            raise

    def _partitions(self, table: TableName, date_column: str, columns: Iterable[str]) -> sql_of.Partitions:
        return sql_of.Partitions(
            table=self._quoted(table), date=quoted_column(date_column), columns=quoted_columns(sorted(columns))
        )

    def _rows_of_existing(self, statement: str, params: Mapping[str, Any], table: TableName) -> list[dict[str, Any]]:
        """Run the query; return no rows if the table was dropped after it was described."""
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


def _check_partition_limit(table: TableName, days: Collection[date]) -> None:
    if len(days) > MAX_PARTITIONS_PER_JOB:
        raise UserError(
            f"{table}: {len(days)} dates at once; one job of BigQuery may touch {MAX_PARTITIONS_PER_JOB} partitions"
        )
