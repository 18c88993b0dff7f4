"""Reading from BigQuery: queries over scans, fingerprints of partitions, and costs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any, LiteralString

import pyarrow as pa
from sqlglot.errors import SqlglotError

from gated_backfill.common.errors import QueryFailed, StagedFileLost, UserError
from gated_backfill.common.model.dates import consecutive_ranges, days_in, enclosing_range
from gated_backfill.common.model.entities import EntityColumns
from gated_backfill.common.model.publication import PublishedDate, WarehouseLimits
from gated_backfill.common.model.tables import TableName, validate_identifier
from gated_backfill.common.warehouse.bigquery import statements as sql_of
from gated_backfill.common.warehouse.bigquery.address import BigQueryAddress
from gated_backfill.common.warehouse.bigquery.client import (
    READ_PERMISSIONS,
    BigQueryConnection,
    translate_bigquery_errors,
)
from gated_backfill.common.warehouse.bigquery.entity_counts import (
    EntityTable,
    count_statement,
    entity_statement,
    entity_table,
    row_count_statement,
)
from gated_backfill.common.warehouse.bigquery.parameters import (
    DateColumn,
    PartitionedTable,
    date_filter,
    date_parameters,
    requested_dates,
    scan_statement,
    staged_rows_statement,
)
from gated_backfill.common.warehouse.bigquery.partition_metadata import PartitionMetadata
from gated_backfill.common.warehouse.bigquery.publication_record import PublicationRecord
from gated_backfill.common.warehouse.bigquery.query_staging import BigQueryQueryStaging
from gated_backfill.common.warehouse.bigquery.schema import check_column_names
from gated_backfill.common.warehouse.bigquery.staging_tables import StagingTables
from gated_backfill.common.warehouse.bigquery.statements import quoted_columns, with_scans
from gated_backfill.common.warehouse.bigquery.tables import BigQueryTables
from gated_backfill.common.warehouse.counting import count_by_reading
from gated_backfill.common.warehouse.entities import day_entity_rows
from gated_backfill.common.warehouse.protocol import (
    ABSENT,
    ColumnSet,
    EntityCounts,
    EntityScan,
    QueryFiles,
    QueryStaging,
    Scan,
    StagedScan,
    TableInfo,
    read_unless_absent,
)
from gated_backfill.common.warehouse.sql import parameter_names, table_names


class BigQueryQueries:
    """Descriptions, queries and fingerprints; see `Warehouse`."""

    bills_reads = True

    def __init__(
        self,
        address: BigQueryAddress,
        limits: WarehouseLimits | None = None,
        *,
        http: Any = None,
        open_storage: Callable[[], Any] | None = None,
    ) -> None:
        """`http` and `open_storage` replace what requests go through, see `BigQueryConnection`."""
        self._jobs = BigQueryConnection(address, limits or WarehouseLimits(), http, open_storage)
        self._tables = BigQueryTables(self._jobs)
        self._staged = StagingTables(self._jobs, self._tables)
        self._record = PublicationRecord(self._jobs, self._tables)
        self.query_staging: QueryStaging | None = BigQueryQueryStaging(self._jobs, self._tables, self._build_query)
        self._metadata = PartitionMetadata(self._jobs, self._tables)
        self.query_files: QueryFiles | None = None

    def together(self, *reads: Callable[[], Any]) -> list[Any]:
        return self._jobs.together(reads)

    def describe(self, table: TableName) -> TableInfo | None:
        return self._tables.describe(table)

    def query(
        self, sql: LiteralString, *, scans: Mapping[str, Scan | StagedScan], params: Mapping[str, Any] | None = None
    ) -> pa.Table:
        tables = ", ".join(str(s.table) if isinstance(s, Scan) else "staged files" for s in scans.values())
        statement, bound = self._build_query(sql, scans, params or {}, tables)
        return self._rows(statement, bound, tables)

    def query_in_order(
        self,
        sql: LiteralString,
        *,
        scans: Mapping[str, Scan | StagedScan],
        params: Mapping[str, Any] | None = None,
        order: Sequence[str],
    ) -> Generator[pa.Table]:
        # Ordered here: BigQuery orders as many rows as fit into the memory of one of its workers.
        yield self.query(sql, scans=scans, params=params).sort_by([(name, "ascending") for name in order])

    def count_entities(
        self, expected: EntityScan, sources: Mapping[str, EntityScan], groups: Collection[tuple[str, ...]]
    ) -> EntityCounts:
        expectation = self._entity_table("expectation", expected)
        tables = {
            name: self._entity_table(f"source{number}", scan) for number, (name, scan) in enumerate(sources.items())
        }
        if not all(table.has_text_entities for table in (expectation, *tables.values())):
            return count_by_reading(self.read_entities, expected, sources, groups)
        statement, params = count_statement(expectation, tables, groups)
        names = ", ".join(sorted({str(scan.table) for scan in (expected, *sources.values())}))
        rows = self._rows(statement, params, names).to_pylist()
        expected_days = {row["day"] for row in rows if row["expected"]}
        other_days = [day for day in days_in(expected.dates) if day not in expected_days]
        return EntityCounts(
            expected={row["day"]: row["expected"] for row in rows if row["expected"]},
            present={
                group: {row["day"]: row[f"present{number}"] for row in rows if row[f"present{number}"]}
                for number, group in enumerate(groups)
            },
            null_entities={row["day"]: row["null_rows"] for row in rows if row["null_rows"]},
            rows={name: self._row_counts(scan, other_days) for name, scan in sources.items()},
        )

    def _row_counts(self, scan: EntityScan, days: Collection[date]) -> dict[date, int]:
        if not days:
            return {}
        table = self._entity_table("t", replace(scan, dates=tuple(consecutive_ranges(days))))
        rows = self._rows(row_count_statement(table), table.params, str(scan.table)).to_pylist()
        return {row["day"]: row["row_count"] for row in rows}

    def read_entities(self, scan: EntityScan) -> pa.Table:
        table = self._entity_table("t", scan)
        rows = self._rows(entity_statement(table), table.params, str(scan.table))
        return day_entity_rows(rows, table.result_columns, table=str(scan.table))

    def _entity_table(self, name: str, scan: EntityScan) -> EntityTable:
        columns = scan.columns
        check_column_names(*columns.names)
        info = self._tables.require(scan.table)
        info.check_columns(columns.date, columns.names, time_zone=columns.time_zone)
        return entity_table(name, scan, self._tables.quoted(scan.table), info.columns)

    def count_rows(self, scan: Scan) -> dict[date, int]:
        columns = EntityColumns(date=scan.date_column, entity=(), time_zone=scan.time_zone)
        rows = EntityScan(table=scan.table, columns=columns, dates=scan.dates)
        return self._row_counts(rows, days_in(scan.dates))

    def read(self, scan: Scan, *, once: bool = False) -> pa.Table:
        if scan.types is not None:  # the table may have changed since the plan has checked it
            self._tables.require(scan.table).check_columns(scan.date_column, scan.types, time_zone=scan.time_zone)
        statement, bound = self._scan("t", scan)
        return self._rows(statement, bound, str(scan.table))

    def estimate_bytes(self, scan: Scan) -> int | None:
        statement, bound = self._scan("t", scan)
        with translate_bigquery_errors("the dry run", table=str(scan.table), needs=READ_PERMISSIONS):
            return self._jobs.dry_run(statement, bound)

    def quick_fingerprints(self, table: TableName, date_column: str, days: Collection[date]) -> dict[date, str]:
        return self._metadata.quick_fingerprints(table, date_column, days)

    def now(self) -> datetime:
        return self._time_after(timedelta())

    def _time_after(self, period: timedelta) -> datetime:
        """Return the time after that period, by BigQuery's clock."""
        with translate_bigquery_errors("asking for the time", needs="bigquery.jobs.create"):
            (row,) = self._jobs.query(sql_of.TIME, {"seconds": round(period.total_seconds())}).to_pylist()
            return row["time"]

    def fingerprints(self, table: TableName, date_column: str, days: Collection[date]) -> dict[date, str]:
        return self.column_fingerprints(table, date_column, days, [None])[None]

    def column_fingerprints(
        self,
        table: TableName,
        date_column: str,
        days: Collection[date],
        column_sets: Collection[ColumnSet],
        *,
        time_zone: str | None = None,
    ) -> dict[ColumnSet, dict[date, str]]:
        names = frozenset[str]().union(*(columns for columns in column_sets if columns is not None))
        check_column_names(date_column, *names)
        info = self.describe(table)
        if info is None or not days:
            return {columns: dict.fromkeys(days, ABSENT) for columns in column_sets}
        info.check_columns(date_column, names, time_zone=time_zone)
        sets = {columns: {date_column, *(info.columns if columns is None else columns)} for columns in column_sets}
        return dict(
            zip(sets, self._contents_by_set(table, date_column, days, [*sets.values()], time_zone), strict=True)
        )

    def _contents(
        self, table: TableName, date_column: str, days: Collection[date], columns: Collection[str]
    ) -> dict[date, str]:
        (contents,) = self._contents_by_set(table, date_column, days, [columns], None)
        return contents

    def _contents_by_set(
        self,
        table: TableName,
        date_column: str,
        days: Collection[date],
        column_sets: Sequence[Collection[str]],
        time_zone: str | None,
    ) -> list[dict[date, str]]:
        kind = self._tables.require(table).columns[date_column]
        dated = DateColumn(name=date_column, kind=kind, time_zone=time_zone)
        within, params = date_filter("within", dated, [enclosing_range(days)])
        statement = sql_of.day_contents(
            self._tables.quoted(table),
            {sql_of.content_name(n): quoted_columns(sorted(columns)) for n, columns in enumerate(column_sets)},
            day=dated.day("zone"),
            within=within,
        )
        params |= dated.zone("zone") | {"days": sorted(days)}
        rows = {row["day"]: row for row in self._rows_of_existing(statement, params, table)}
        return [
            {day: rows[day][sql_of.content_name(n)] if day in rows else ABSENT for day in days}
            for n in range(len(column_sets))
        ]

    def matching_dates(self, table: TableName, date_column: str, checksums: Mapping[date, str]) -> frozenset[date]:
        check_column_names(date_column)
        info = self.describe(table)
        if info is None or not checksums or not self._record.exists():
            return frozenset()
        matching = self._exactly_matching(table, date_column, checksums, list(info.columns))
        unmatched_checksums = {day: checksum for day, checksum in checksums.items() if day not in matching}
        # Nobody's rows change when a column is added: those that were there are as they were published without it.
        for columns, days in self._columns_before(table, date_column, list(unmatched_checksums)):
            unmatched = {day: unmatched_checksums[day] for day in days if day not in matching}
            matching |= self._exactly_matching(table, date_column, unmatched, columns)
        return matching

    def find_publications(
        self, table: TableName, date_column: str, days: Collection[date]
    ) -> dict[date, PublishedDate]:
        check_column_names(date_column)
        info = self.describe(table)
        if info is None or not days or not self._record.exists():
            return {}
        published = self._publications_of_rows(table, date_column, days, list(info.columns))
        others = [day for day in days if day not in published]
        for columns, days_before in self._columns_before(table, date_column, others):  # as in `matching_dates`
            unmatched = [day for day in days_before if day not in published]
            published |= self._publications_of_rows(table, date_column, unmatched, columns)
        return published

    def _publications_of_rows(
        self, table: TableName, date_column: str, days: Collection[date], columns: Collection[str]
    ) -> dict[date, PublishedDate]:
        if not days:
            return {}
        statement = sql_of.publications_of_rows(
            self._tables.partitions(table, date_column, columns), self._record.quoted
        )
        rows = self._rows_of_existing(statement, date_parameters(days) | {"target": str(table)}, table)
        return {
            row["day"]: PublishedDate(run=row["run"], attempt=row["attempt"], checksum=row["checksum"]) for row in rows
        }

    def _columns_before(
        self, table: TableName, date_column: str, days: Collection[date]
    ) -> list[tuple[list[str], list[date]]]:
        """List the columns that the table may have had before others were added, with the days that hold none of these.

        BigQuery adds a column behind the others, and without values. The longest lists come first.
        """
        info = self.describe(table)
        if info is None or not days:  # the table may have been dropped in the meantime
            return []
        columns = list(info.columns)
        count_names = [f"n{number}" for number in range(len(columns))]
        statement = sql_of.count_values(self._tables.partitions(table, date_column, columns), columns, count_names)
        rows = self._rows_of_existing(statement, date_parameters(days), table)
        empty_by_day: dict[date, int] = {}
        for row in rows:
            empty = 0
            while empty < len(columns) and not row[count_names[len(columns) - 1 - empty]]:
                empty += 1
            empty_by_day[row["day"]] = empty
        return [
            (columns[:-number], [day for day, empty in empty_by_day.items() if empty >= number])
            for number in range(1, max(empty_by_day.values(), default=0) + 1)
        ]

    def _exactly_matching(
        self, table: TableName, date_column: str, checksums: Mapping[date, str], columns: Collection[str]
    ) -> frozenset[date]:
        """Return the days that hold the rows published from the file with that checksum, in exactly these columns."""
        if not checksums or not self._record.exists():
            return frozenset()
        statement = sql_of.matching_dates(self._tables.partitions(table, date_column, columns), self._record.quoted)
        request = requested_dates({day: {"checksum": checksum} for day, checksum in checksums.items()})
        params = date_parameters(checksums) | {"target": str(table), "wanted": request}
        return frozenset(row["day"] for row in self._rows_of_existing(statement, params, table))

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
            is_table = isinstance(scan, Scan)
            statements[name], added = self._scan(name, scan) if is_table else self._staged_scan(name, scan)
            bound |= added
        return with_scans(sql, statements), bound

    def _scan(self, name: str, scan: Scan) -> tuple[sql_of.QuotedSql, dict[str, Any]]:
        check_column_names(scan.date_column, *(scan.columns or {}), *(scan.columns or {}).values())
        info = self._tables.require(scan.table)
        info.check_columns(scan.date_column, tuple((scan.columns or {}).values()), time_zone=scan.time_zone)
        return scan_statement(name, scan, self._tables.quoted(scan.table), info.columns[scan.date_column])

    def _staged_scan(self, name: str, scan: StagedScan) -> tuple[sql_of.QuotedSql, dict[str, Any]]:
        if not scan.files:
            raise QueryFailed("no staged rows were given to the query")
        check_column_names(*(scan.columns or {}), *(scan.columns or {}).values())
        return self._staged_rows(name, scan.columns, self._staged.find_tables(scan.files))

    def _staged_rows(
        self, name: str, columns: Mapping[str, str] | None, days_by_table: Mapping[TableName, Sequence[date] | None]
    ) -> tuple[sql_of.QuotedSql, dict[str, Any]]:
        tables: dict[PartitionedTable, Sequence[date] | None] = {}
        for table, days in days_by_table.items():
            date_column = None
            if days is not None:
                info = self._tables.describe(table)
                if info is None or info.partitioned_by is None:
                    raise StagedFileLost("the staging table has expired", day=days[0])
                date_column = sql_of.quoted_column(info.partitioned_by)
            tables[PartitionedTable(self._tables.quoted(table), date_column)] = days
        return staged_rows_statement(name, columns, tables)

    def _rows(self, statement: str, params: Mapping[str, Any], tables: str) -> pa.Table:
        try:
            with translate_bigquery_errors("the query", table=tables, needs=READ_PERMISSIONS):
                return self._jobs.query(statement, params)
        except UserError:
            self._tables.forget_descriptions()  # a table has changed, or a staging table has expired
            self._staged.forget()
            raise

    def _rows_of_existing(self, statement: str, params: Mapping[str, Any], table: TableName) -> list[dict[str, Any]]:
        """Run the query; return no rows if the table was dropped after it was described."""
        rows = read_unless_absent(self.describe, table, lambda: self._rows(statement, params, str(table)))
        return [] if rows is None else rows.to_pylist()
